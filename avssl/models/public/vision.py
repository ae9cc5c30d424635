"""Encoders of images and video of transformers: `hf/ORG/NAME[@revision]` or `hf/FOLDER`.

A network keeps transformers' names and gets its weights by transformers' own reading of safetensors. Networks that also
read text (CLIP, SigLIP) are taken without that part.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from avssl.models.public import hub_files
from avssl.models.public.encoder import (
    Demand,
    PublicEncoder,
    Tower,
    check_options,
    embeddings_of,
    layers_of,
    mean_over_frames,
)
from avssl.models.public.hub_files import Located
from avssl.models.public.processors import demands_of_processor, preprocess
from avssl.models.public.transformers_door import (
    checkpoint_activations,
    config_of,
    has_processor,
    library,
    plain_config,
    read_weights,
)
from avssl.types import Modality

__all__ = ["preprocess"]

OPTIONS = (
    "pretrained", "pool", "projection", "drop_path", "gradient_checkpointing", "architecture", "sha256",
)  # fmt: skip
# {type: ways of pooling its features, the default first}: "pooler" is the network's own, "token" the class token,
# "mean" over patches. The poolers of vit, deit and vivit are linear layers that were not trained, and are left out.
VIDEO_POOLS = {
    "timesformer": ("token", "mean"),
    "videomae": ("mean",),
    "vivit": ("token", "mean"),
    "vjepa2": ("mean",),
}
IMAGE_POOLS = {
    **dict.fromkeys(("data2vec-vision", "deit", "vit", "vit_mae", "vit_msn"), ("token", "mean")),
    **dict.fromkeys(("ijepa", "poolformer"), ("mean",)),
    **dict.fromkeys(("bit", "convnext", "convnextv2", "regnet", "resnet"), ("pooler",)),
    **dict.fromkeys(("dinov3_convnext", "hiera", "siglip_vision_model", "swin", "swinv2"), ("pooler", "mean")),
    **dict.fromkeys(
        ("beit", "clip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit", "pixio"),
        ("pooler", "token", "mean"),
    ),
}
WITHOUT_POOLER = ("deit", "vit", "vivit")
# {type that reads text, too: (class of its part for images, class with the projection into the common space or "")}
WITH_TEXT = {
    "clip": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipVisionModel", ""),
}
# Types whose networks interpolate their positions without being asked, or have none that depend on the size.
ANY_SIZE = (
    "bit", "convnext", "convnextv2", "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "pixio",
    "poolformer", "regnet", "resnet", "timesformer", "vjepa2",
)  # fmt: skip
FIXED_SIZE = ("hiera", "vivit")  # although their networks can be told to interpolate
ANY_LENGTH = ("timesformer", "vjepa2")
BLOCK = re.compile(r"stages\.\d+\.layers\.\d+|layers\.\d+\.blocks\.\d+|(?:layers?|blocks?)\.\d+")
# Beginnings of the names of what is not trained, since the features do not depend on it, unless the pooler is used.
UNUSED = {"clip_vision_model": "post_layernorm.", "siglip_vision_model": "head."}


class VisionEncoder(PublicEncoder):
    """A network of transformers for images or video, pooled to one vector."""

    def __init__(self, net: nn.Module, modality: Modality, config: Any, pool: str) -> None:
        names = [name for name, _ in net.named_parameters()]
        super().__init__(
            net, modality, _dim(config, pool), layer_ids=layers_of(names, BLOCK), no_decay=embeddings_of(net)
        )
        self.config, self.pool = config, pool
        self.reads_video = config.model_type in VIDEO_POOLS
        self.can_interpolate = "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
        self.num_prefix_tokens = _num_prefix_tokens(net)

    def features(self, media: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if self.modality == "video" and not self.reads_video:
            return mean_over_frames(media, self._pooled)
        return self._pooled(media.transpose(1, 2) if self.reads_video else media)

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) or (n, T, 3, H, W) -> (n, dim)."""
        output = self.net(pixels, **self._arguments(pixels))
        if self.pool == "projection":
            return cast("torch.Tensor", output.image_embeds)
        if self.pool == "pooler":
            return cast("torch.Tensor", output.pooler_output.flatten(1))
        states = output.last_hidden_state
        if states.ndim == 4:
            return cast("torch.Tensor", states.mean(dim=(2, 3)))
        return cast(
            "torch.Tensor", states[:, 0] if self.pool == "token" else states[:, self.num_prefix_tokens :].mean(dim=1)
        )

    def _arguments(self, pixels: torch.Tensor) -> dict[str, Any]:
        """What the network is told besides the pixels."""
        arguments: dict[str, Any] = {}
        if self.can_interpolate and tuple(pixels.shape[-2:]) != (_size_px(self.config),) * 2:
            arguments["interpolate_pos_encoding"] = True
        if self.config.model_type == "vit_mae":  # all patches, in their own order
            patch = self.config.patch_size
            count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
            arguments["noise"] = torch.arange(count, device=pixels.device).expand(len(pixels), -1)
        if self.config.model_type == "vjepa2":
            arguments["skip_predictor"] = True
        return arguments


def modalities(model: Located) -> tuple[Modality, ...]:
    """("image", "video") of networks of images, ("video",) of those of video, () of all others."""
    kind = model.config.get("model_type")
    if kind in VIDEO_POOLS:
        return ("video",)
    return ("image", "video") if kind in IMAGE_POOLS or kind in WITH_TEXT else ()


def is_pretrained(model: Located, options: Mapping[str, Any]) -> bool:
    """Whether the published weights are read, as by default."""
    del model
    return bool(options.get("pretrained", True))


def architecture(model: Located) -> dict[str, Any]:
    """Options from which the network is built without its files."""
    config = plain_config(model.config)
    if config.get("model_type") in WITH_TEXT:
        config = {"model_type": config["model_type"], "vision_config": config.get("vision_config") or {}} | {
            key: config[key] for key in ("projection_dim",) if key in config
        }
    return {"architecture": config}


def with_files(model: Located) -> Located:
    """The model itself, whose files were found by its name."""
    return model


def license_of(model: Located) -> str:
    """The license of the weights, by their card."""
    return hub_files.license_of(model.folder)


def demands(model: Located, modality: str, options: Mapping[str, Any], size_px: int | None = None) -> dict[str, Demand]:
    """Size, frames, normalization and test view, from the configuration and the processor.

    size_px: of the views, if it is not the model's.
    """
    config, _ = _network_of(model, options)
    kind, side = config.model_type, _size_px(config)
    can_interpolate = kind in ANY_SIZE or _interpolates(kind)
    patch = getattr(config, "patch_size", 1)
    result: dict[str, Demand] = {}
    if side or size_px:
        multiple = patch if isinstance(patch, int) else 1
        result["size_px"] = Demand(side, is_fixed=not can_interpolate, multiple_of=multiple)
    if modality == "video" and kind in VIDEO_POOLS:
        num_frames = getattr(config, "num_frames", None) or config.frames_per_clip
        tubelet = getattr(config, "tubelet_size", 1)
        step = tubelet if isinstance(tubelet, int) else tubelet[0]
        result["num_frames"] = Demand(num_frames, is_fixed=kind not in ANY_LENGTH, multiple_of=step)
    if has_processor(model.folder) or is_pretrained(model, options):
        result |= demands_of_processor(model, modality, result.get("size_px"), size_px)
    return result


def build(model: Located, modality: Modality, options: Mapping[str, Any]) -> nn.Module:
    """The encoder. ValueError for an option or a value that the network does not take, and for weights that differ."""
    check_options(model.name, options, OPTIONS)
    config, network = _network_of(model, options)
    pool = _pool(model.name, config, options)
    if options.get("drop_path") is not None:
        if not hasattr(config, "drop_path_rate"):
            raise ValueError(f"{model.name}: {config.model_type} has no drop path; leave drop_path out")
        config.drop_path_rate = float(options["drop_path"])
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    unused = ("pooler.", "embeddings.mask_token", "predictor.")
    if is_pretrained(model, options):
        net: Any = read_weights(model, network, config, options.get("sha256"), unused)
    else:
        net = network(config)
    if config.model_type == "vjepa2":
        net.predictor = None
    elif config.model_type in WITHOUT_POOLER:
        net.pooler = None
    if options.get("gradient_checkpointing"):
        if not net.supports_gradient_checkpointing:
            raise ValueError(f"{model.name}: {config.model_type} has no gradient checkpointing; leave it out")
        checkpoint_activations(net)
    for name, parameter in net.named_parameters():
        is_unused = pool in ("token", "mean") and name.startswith(("pooler.", UNUSED.get(config.model_type, "pooler.")))
        if is_unused or name.endswith("mask_token"):
            parameter.requires_grad_(False)
    return VisionEncoder(net, modality, config, pool).train()


def tower(model: Located, modality: Modality, options: Mapping[str, Any]) -> Tower:
    """The encoder, and the projection into the space that the model shares with text. See `build`."""
    encoder = build(model, modality, options)
    projecting = WITH_TEXT.get(str(model.config["model_type"]), ("", ""))[1]
    if not projecting or options.get("projection"):
        return Tower(encoder, None)
    config, network = _network_of(model, {**options, "projection": True})
    is_read = is_pretrained(model, options)
    whole: Any = read_weights(model, network, config, options.get("sha256")) if is_read else network(config)
    return Tower(encoder, whole.visual_projection)


def _network_of(model: Located, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """(configuration, class) of the network for images or video."""
    config = config_of(model.name, model.config)
    transformers = library()
    if config.model_type in WITH_TEXT:
        plain, projecting = WITH_TEXT[config.model_type]
        if options.get("projection") and not projecting:
            raise ValueError(
                f"{model.name}: {config.model_type} has no projection; its features are in the common space"
            )
        if projecting:
            config.vision_config.projection_dim = config.projection_dim
        return config.vision_config, getattr(transformers, projecting if options.get("projection") else plain)
    if options.get("projection"):
        raise ValueError(f"{model.name}: projection is for {', '.join(WITH_TEXT)}, which share a space with text")
    return config, transformers.MODEL_MAPPING[type(config)]


def _pool(name: str, config: Any, options: Mapping[str, Any]) -> str:
    """How features are pooled. ValueError for a way that the network does not have."""
    pool = options.get("pool")
    if options.get("projection"):
        if pool:
            raise ValueError(f"{name}: with projection: true the pooling is the network's own; leave pool out")
        return "projection"
    ways = {**IMAGE_POOLS, **VIDEO_POOLS}[config.model_type]
    if getattr(config, "vision_use_head", True) is False:  # of SigLIP
        ways = ("mean",)
    if pool is not None and pool not in ways:
        raise ValueError(f"{name}: pool is {pool!r}; for {config.model_type} it may be {' or '.join(ways)}")
    return pool or ways[0]


def _interpolates(kind: str) -> bool:
    """Whether the network of a type can be told to interpolate its positions."""
    transformers = library()
    if kind in FIXED_SIZE:
        return False
    config_class = transformers.CONFIG_MAPPING[kind]
    forward = transformers.MODEL_MAPPING[config_class].forward
    return "interpolate_pos_encoding" in inspect.signature(forward).parameters


def _dim(config: Any, pool: str) -> int:
    """The number of features."""
    if pool == "projection":
        return int(config.projection_dim)
    return int(getattr(config, "hidden_size", None) or config.hidden_sizes[-1])


def _size_px(config: Any) -> int:
    """Side of the images that the network is built for; 0 if it is built for none."""
    size = getattr(config, "crop_size", None) or getattr(config, "image_size", None) or 0
    return int(size if isinstance(size, int) else size[0])


def _num_prefix_tokens(net: nn.Module) -> int:
    """The number of tokens before those of the patches: class, distillation, registers."""
    one = ("cls_token", "class_embedding", "distillation_token")
    shapes = {name.rpartition(".")[2]: parameter.shape for name, parameter in net.named_parameters()}
    count = sum(shapes[name][1] if len(shapes[name]) == 3 else 1 for name in one if name in shapes)
    return count + (shapes["register_tokens"][1] if "register_tokens" in shapes else 0)
