"""Encoders of timm by name: `timm/NAME[.TAG][@revision]`, `timm/ORG/NAME[@revision]` or `timm/FOLDER`.

This is the only file that imports timm. Published weights are read where the name has a tag or files of its own, or
with pretrained: true; without, `timm/NAME` is an architecture with random weights, as `timm.create_model` has it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from avssl.files.hub import commit_of, download
from avssl.files.plain_text import brief
from avssl.models.public import hub_files
from avssl.models.public.encoder import Demand, PublicEncoder, check_options, embeddings_of, mean_over_frames
from avssl.models.public.hub_files import Located
from avssl.types import Modality

OPTIONS = (
    "pretrained", "pool", "drop_path", "gradient_checkpointing", "image_size_px", "in_chans", "arguments",
    "architecture", "sha256",
)  # fmt: skip
TEST_RESIZES = {"center": "short_side", "squash": "both_sides"}  # {timm's crop_mode: ours}
# Ways in which networks of one image size take others, by interpolating their positions; the first that fits is used.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
ANY_SPECTROGRAM: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True, "dynamic_img_pad": True}, *ANY_SIZE)


class TimmEncoder(PublicEncoder):
    """A network of timm without its classifier. A network for audio reads spectrograms as images of 1 or 3 channels."""

    in_chans: int = 3

    def features(self, media: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if self.modality == "video":
            return mean_over_frames(media, self.net)
        if self.modality == "audio":
            media = media.expand(-1, self.in_chans, -1, -1)
        return cast("torch.Tensor", self.net(media))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise FileNotFoundError("models of timm need the extra: pip install 'avssl[timm]'") from error
    return timm


def find(name: str, body: str, architecture: Mapping[str, Any] | None) -> Located:
    """The model of a name, whose part after `timm/` is `body`. ValueError for an unknown one.

    Nothing is downloaded for a name of timm itself. architecture: of a model with files of its own, if it is known.
    """
    timm = _timm()
    kind = body.partition("@")[0].partition(".")[0]
    if "/" in body or architecture or (not timm.is_model(kind) and (Path(body) / hub_files.CONFIG_FILE).is_file()):
        model = hub_files.locate(name, body, architecture)
        if not timm.is_model(str(model.config.get("architecture"))):
            raise ValueError(f"{name}: its config.json names no architecture of timm {timm.__version__}")
        return model
    tagged, _, revision = body.partition("@")
    tag = tagged.partition(".")[2]
    if not timm.is_model(kind):
        near = difflib.get_close_matches(kind, timm.list_models(), n=3)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise ValueError(f"{name}: timm {timm.__version__} has no model {brief(kind)}{hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{kind}.*")]
    if tag and tag not in tags:
        raise ValueError(f"{name}: {kind} has no published weights {brief(tag)}; it has: {', '.join(tags) or 'none'}")
    published = timm.models.get_pretrained_cfg(tagged)
    source = published.to_dict() if published else {}
    config = {"architecture": kind, "pretrained_cfg": source}
    return Located(name, None, revision, str(source.get("hf_hub_id") or ""), config)


def modalities(model: Located) -> tuple[Modality, ...]:
    """Every model of timm reads images, frames of video, and spectrograms."""
    del model
    return ("image", "video", "audio")


def is_pretrained(model: Located, options: Mapping[str, Any]) -> bool:
    """Whether published weights are read: by default if the name has a tag, or files of its own."""
    has_tag = "." in model.name.partition("/")[2].partition("@")[0]
    return bool(options.get("pretrained", _has_files(model) or has_tag))


def _has_files(model: Located) -> bool:
    """Whether the model is that of a folder or of ORG/NAME, and not a name of timm's own."""
    return model.folder is not None or "/" in model.name.partition("/")[2]


def with_files(model: Located) -> Located:
    """The model with the folder and the commit of its small files. ValueError if it has none at the hub."""
    if model.folder is not None:
        return model
    if not model.repository:
        raise ValueError(
            f"{model.name}: its weights are not at the hub as safetensors; take another tag, or pretrained: false"
        )
    folder = download(model.repository, model.revision or None, hub_files.SMALL_FILES)
    revision = commit_of(folder)
    return model._replace(name=hub_files.pinned(model.name, revision), folder=folder, revision=revision)


def license_of(model: Located) -> str:
    """The license of the weights, by their card or by timm."""
    return hub_files.license_of(model.folder) or str(_source(model).get("license") or "")


def architecture(model: Located) -> dict[str, Any]:
    """Options from which the network is built without its files; timm knows its own architectures by name."""
    return {"architecture": model.config} if _has_files(model) else {}


def demands(model: Located, modality: str, options: Mapping[str, Any], size_px: int | None = None) -> dict[str, Demand]:
    """Size, normalization and test view, from timm's data configuration. Spectrograms are free.

    size_px: of the views, if it is not the model's. Values of published weights are fixed, except the size of a network
    that takes others.
    """
    if modality == "audio":
        return {}
    data = _timm().data.resolve_data_config({}, pretrained_cfg=_source(model))
    _, height, width = data["input_size"]
    if height != width or data["crop_mode"] not in TEST_RESIZES or data["interpolation"] not in ("bilinear", "bicubic"):
        raise ValueError(
            f"{model.name}: its images have {height} x {width} px, crop_mode {data['crop_mode']!r} and "
            f"{data['interpolation']!r} resizing; views are squares, {' or '.join(TEST_RESIZES)}, bilinear or bicubic"
        )
    is_fixed = is_pretrained(model, options)
    own_size = int(options.get("image_size_px") or height)
    return {
        "size_px": _demand_of_size(model, own_size, options),
        "mean": Demand(list(data["mean"]), is_fixed),
        "std": Demand(list(data["std"]), is_fixed),
        "interpolation": Demand(data["interpolation"], is_fixed),
        "test_resize": Demand(TEST_RESIZES[data["crop_mode"]], is_fixed),
        "test_resize_px": Demand(math.floor((size_px or own_size) / data["crop_pct"]), is_fixed),
        "test_crop_offset": Demand("round", is_fixed),
    }


def _demand_of_size(model: Located, size_px: int, options: Mapping[str, Any]) -> Demand:
    if not _source(model).get("fixed_input_size"):
        return Demand(size_px, is_fixed=False)
    net = _network(model, options, 3, ANY_SIZE, on_meta=True)
    embed = getattr(net, "patch_embed", None)
    patch = getattr(embed, "patch_size", 1)
    patch = int(patch if isinstance(patch, int) else patch[0])
    return Demand(size_px, is_fixed=getattr(embed, "strict_img_size", True), multiple_of=patch)


def build(model: Located, modality: Modality, options: Mapping[str, Any]) -> nn.Module:
    """The encoder. ValueError for an option or a value that the network does not take, and for weights that differ."""
    check_options(model.name, options, OPTIONS)
    in_chans = int(options.get("in_chans", 1)) if modality == "audio" else 3
    if in_chans not in (1, 3) or options.get("in_chans", in_chans) != in_chans:
        raise ValueError(f"{model.name}: in_chans is {options['in_chans']!r}; it is 1 or 3 for audio, and 3 otherwise")
    weights = None
    if is_pretrained(model, options):
        model = with_files(model)
        file = str(_source(model).get("hf_hub_filename") or hub_files.WEIGHTS_FILE)
        weights = hub_files.weights_of(model, Path(file).with_suffix(".safetensors").name)
        hub_files.check_sha256(model.name, weights, options.get("sha256"))
        if len(weights) > 1:
            raise ValueError(f"{model.name}: its weights are {len(weights)} files; timm reads them from one")
    ways = ANY_SPECTROGRAM if modality == "audio" else ANY_SIZE
    net = _network(model, options, in_chans, ways, weights=None if weights is None else weights[0])
    try:
        pool = options.get("pool")
        net.reset_classifier(0, *([pool] if pool else []))
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{model.name}: pool is {pool!r}, which this network does not have") from error
    if options.get("gradient_checkpointing"):
        net.set_grad_checkpointing(True)
    groups = _timm().models.group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    listed: set[str] = net.no_weight_decay() if hasattr(net, "no_weight_decay") else set()
    encoder = TimmEncoder(
        net,
        modality,
        int(getattr(net, "head_hidden_size", net.num_features)),
        layer_ids=groups,
        no_decay=embeddings_of(net, listed),
    )
    encoder.in_chans = in_chans
    return encoder


# Arguments of timm's factory that say which weights are read, and how strictly; the classifier is that of the weights.
NOT_OF_NETWORKS = frozenset([
    "cache_dir", "checkpoint_path", "features_only", "num_classes", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_filter_fn", "pretrained_strict",
])  # fmt: skip


def _source(model: Located) -> dict[str, Any]:
    """timm's description of the published weights; older files at the hub hold it without a section of its own."""
    source = dict(model.config.get("pretrained_cfg") or model.config)
    if "num_classes" in model.config:
        source["num_classes"] = model.config["num_classes"]  # as timm reads it
    return source


def _network(
    model: Located,
    options: Mapping[str, Any],
    in_chans: int,
    ways: tuple[dict[str, Any], ...],
    *,
    weights: Path | None = None,
    on_meta: bool = False,
) -> Any:
    """The network of timm with its classifier: first published weights are read into all of it, strictly."""
    own = options.get("arguments") or {}
    if wrong := [key for key in own if key in NOT_OF_NETWORKS] if isinstance(own, Mapping) else [own]:
        raise ValueError(f"{model.name}: arguments has {brief(str(wrong[0]))}; it takes {{name: value}} of the network")
    stored = {key: value for key, value in (model.config.get("model_args") or {}).items() if key not in NOT_OF_NETWORKS}
    arguments = {**stored, **own, "in_chans": in_chans}
    if options.get("drop_path"):
        arguments["drop_path_rate"] = float(options["drop_path"])
    if options.get("image_size_px"):
        arguments["img_size"] = int(options["image_size_px"])
    overlay = {"file": str(weights), "custom_load": False, "source": ""} if weights is not None else {}
    for way in ways if _source(model).get("fixed_input_size") else ({},):
        try:
            with torch.device("meta") if on_meta else nullcontext():
                return _timm().create_model(
                    model.config["architecture"],
                    pretrained=weights is not None,
                    pretrained_cfg=_source(model),
                    pretrained_cfg_overlay=overlay,
                    **arguments,
                    **way,
                )
        except TypeError as error:
            if not any(f"'{name}'" in str(error) for name in way):
                raise ValueError(f"{model.name}: {brief(str(error))}") from error
        except (ArithmeticError, AssertionError, AttributeError, LookupError, ValueError) as error:
            problem = f"{type(error).__name__} {brief(str(error))}"
            raise ValueError(f"{model.name}: its arguments do not fit: {problem}") from error
        except RuntimeError as error:  # names every tensor that is missing, unknown or of another shape
            what = "its arguments do not fit" if weights is None else "its weights are not this network's"
            raise ValueError(f"{model.name}: {what}: {brief(str(error))}") from error
    raise AssertionError("the last way has no option")
