"""Runs with public models: the views follow the model, and config.yaml says which model and which weights it was.

`settle` completes a configuration before a run begins: sizes, normalization, frames and test view come from the model,
unless the recipe says them; then they must fit. What it writes into the configuration is enough to build the networks
again without the model's files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from avssl.checkpoint.step_folders import checkpoints
from avssl.checkpoint.weights import joined_licenses
from avssl.config import RunConfig, load_run
from avssl.files.hub import COMMIT
from avssl.files.plain_text import brief
from avssl.losses.configs import CaptionConfig
from avssl.models import public
from avssl.models.public.encoder import Demand
from avssl.transforms.config import ImageViewConfig, VideoViewConfig, ViewsConfig, image_augment, view_size_px
from avssl.transforms.frame_tensors import normalize, to_float
from avssl.transforms.test_view import frames_of_test_view
from avssl.types import View

PROBE_SIZES_PX = ((90, 131), (140, 101))  # height and width of the frames on which views and processor are compared
# Two ways of computing the same interpolation differ by a step of 8 bits here and there; another crop differs by many.
LARGEST_MEAN_DIFFERENCE = 0.5 / 255
TOLERANCE = 1e-6  # of numbers of a configuration


def settle(cfg: RunConfig, views: Iterable[View]) -> list[str]:
    """Complete encoders and views of the public models that a run uses; a line for each value that the model gave.

    A name without a revision gets the commit, its section the SHA-256 and license of its weights. A run that goes on
    takes all this from its config.yaml and asks for no file of the model. ValueError for a value of the recipe that
    does not fit, with the one that does.
    """
    views = list(views)
    stored = _stored(cfg)
    lines: list[str] = []
    for modality in sorted({view.modality for view in views}):
        section = dict(cfg.encoders.get(modality) or {})
        name = str(section.get("name"))
        if not public.is_public(name):
            continue
        before = None if stored is None else stored.encoders.get(modality)
        if before is not None and _is_part_of(section, before):
            assert stored is not None
            cfg.encoders[modality] = dict(before)
            demands = {key: Demand(value, False) for key, value in _demanded(stored.views, modality).items()}
            _take_over(cfg, modality, name, demands)
            continue
        section.pop("requested_revision", None)
        cfg.encoders[modality] = public.resolved_options(name, section) | _requested(cfg, name)
        lines += _follow_model(cfg, modality, [view for view in views if view.modality == modality])
    return lines


def settle_text(cfg: RunConfig) -> None:
    """Complete the section `loss.text_encoder`, as `settle` completes those of encoders; other losses have none.

    ValueError without a name, and for a model that reads no text.
    """
    if not isinstance(cfg.loss, CaptionConfig):
        return
    section, stored = dict(cfg.loss.text_encoder), _stored(cfg)
    name = str(section.get("name", ""))
    if not name:
        raise ValueError(
            "loss.text_encoder.name is not set; add loss.text_encoder.name=hf/ORG/NAME, or hf/FOLDER, of a public "
            "model that reads text: its weights stay as they are"
        )
    before = getattr(stored and stored.loss, "text_encoder", None)
    if before and _is_part_of(section, before):
        cfg.loss.text_encoder = dict(before)
        return
    section.pop("requested_revision", None)
    cfg.loss.text_encoder = public.text_options(name, section, cfg.loss.modalities) | _requested(cfg, name)


def _stored(cfg: RunConfig) -> RunConfig | None:
    """The configuration of the run that goes on; None for one that begins."""
    run = Path(cfg.run)
    return load_run(run) if cfg.run and checkpoints(run) and (run / "config.yaml").is_file() else None


def _is_part_of(section: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether a recipe's section of an encoder is that of a config.yaml, which has the commit and more keys."""
    others = all(stored.get(key) == value for key, value in section.items() if key != "name")
    name, (repository, commit) = str(section.get("name")), _split(str(stored.get("name")))
    names = [str(stored.get("name"))]
    if commit:
        names += [repository, f"{repository}@{stored.get('requested_revision', commit)}"]
    return others and name in names


def _split(name: str) -> tuple[str, str]:
    """(name, commit); the commit is "" for a name without one. The name of a folder may have an @."""
    head, _, tail = name.rpartition("@")
    return (head, tail) if head and COMMIT.fullmatch(tail) else (name, "")


def _requested(cfg: RunConfig, name: str) -> dict[str, str]:
    """{"requested_revision": the branch or tag that a recipe names}, by which a run that goes on knows its commit."""
    repository, commit = _split(name)
    _, _, revision = repository.rpartition("@")
    is_named = cfg.run and not commit and revision != repository and not Path(name.partition("/")[2]).is_dir()
    return {"requested_revision": revision} if is_named else {}


def _follow_model(cfg: RunConfig, modality: str, views: list[View]) -> list[str]:
    """Let the section of the views follow the model."""
    options = {key: value for key, value in cfg.encoders[modality].items() if key != "name"}
    name = cfg.encoders[modality]["name"]
    demands = public.demands(name, modality, options)
    size = getattr(getattr(cfg.views, modality), "size_px", None)
    if "size_px" in demands and size and _is_explicit(cfg, modality, "size_px") and size != demands["size_px"].value:
        demands = public.demands(name, modality, options, size_px=size)
    lines = _take_over(cfg, modality, name, demands)
    _check_small_views(cfg, modality, name, demands, views)
    if name.startswith("hf/") and {"mean", "test_resize"} <= demands.keys():
        check_views_of_processor(name, modality, options, getattr(cfg.views, modality))
    return lines


def _take_over(cfg: RunConfig, modality: str, name: str, demands: Mapping[str, Demand]) -> list[str]:
    """Set the keys of a section that the recipe leaves open; check the others."""
    section = getattr(cfg.views, modality)
    changes: dict[str, Any] = {}
    for key, demand in demands.items():
        given = getattr(section, key)
        value = tuple(demand.value) if isinstance(given, tuple) else demand.value
        if _is_equal(given, value):
            continue
        if not _is_explicit(cfg, modality, key):
            changes[key] = value
        elif (
            demand.is_fixed
            or (demand.multiple_of > 1 and given % demand.multiple_of)
            or _is_above(given, demand.at_most)
        ):
            shown = list(value) if isinstance(value, tuple) else value
            fitting = f"{shown}"
            if not demand.is_fixed:
                is_bounded = demand.at_most < math.inf
                fitting = (
                    f"at most {demand.at_most:g}"
                    if is_bounded
                    else f"a multiple of {demand.multiple_of}, such as {shown}"
                )
            raise ValueError(
                f"views.{modality}.{key} is {brief(given)}, which does not fit {name}; leave it out, or set {fitting}"
            )
    setattr(cfg.views, modality, dataclasses.replace(section, **changes))
    return [f"views.{modality}.{key}={_shown(value)} as {name} needs it" for key, value in changes.items()]


def _is_above(given: Any, most: float) -> bool:
    return most < math.inf and given > most


def _is_explicit(cfg: RunConfig, modality: str, key: str) -> bool:
    """Whether the recipe says a key of the views; of a configuration made in Python, whether it is not the default."""
    if cfg.explicit_keys is not None:
        dotted = f"views.{modality}.{key}"
        return any(known == dotted or known.startswith(f"{dotted}.") for known in cfg.explicit_keys)
    default = getattr(getattr(ViewsConfig(), modality), key)
    return not _is_equal(getattr(getattr(cfg.views, modality), key), default)


def _is_equal(first: Any, second: Any) -> bool:
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(_is_equal, first, second))
    if isinstance(first, float) or isinstance(second, float):
        return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(first == second)


def _check_small_views(
    cfg: RunConfig, modality: str, name: str, demands: Mapping[str, Demand], views: list[View]
) -> None:
    """Raise ValueError for small crops that a network of one size cannot read."""
    size = demands.get("size_px")
    if size is None or not size.is_fixed:
        return
    section = getattr(cfg.views, modality)
    for view in views:
        side = view_size_px(image_augment(view, cfg.views), section)
        if side != size.value:
            raise ValueError(
                f"view {view.name!r} has crops of {side} px (set {view.augment!r}); {name} takes {size.value} px only"
            )


def check_views_of_processor(
    name: str, modality: str, options: Mapping[str, Any], section: ImageViewConfig | VideoViewConfig
) -> None:
    """Raise ValueError unless the test view of frames is what the model's own processor makes of them.

    Frames of the two orientations, with noise and edges, go both ways. Views of another size than the model's are not
    compared.
    """
    generator = torch.Generator().manual_seed(0)
    for height, width in PROBE_SIZES_PX:
        coarse = torch.rand(2, 3, height // 8 + 1, width // 8 + 1, generator=generator)
        frames = torch.nn.functional.interpolate(coarse, size=(height, width), mode="nearest").mul(255).byte()
        theirs = public.preprocess(name, modality, options, frames)
        ours = normalize(to_float(frames_of_test_view(frames, section)), section.mean, section.std)
        if theirs.shape[-1] != section.size_px:
            return
        scale = torch.tensor(section.std)[:, None, None]
        if theirs.shape != ours.shape or float(((theirs - ours) * scale).abs().mean()) > LARGEST_MEAN_DIFFERENCE:
            raise ValueError(
                f"{name}: its processor does something to frames of {height} x {width} px that views cannot do; they "
                "resize, cut the center and normalize"
            )


def _demanded(views: ViewsConfig, modality: str) -> dict[str, Any]:
    """The values of a section that a model may demand: all but augmentation."""
    section = getattr(views, modality)
    names = [item.name for item in dataclasses.fields(section) if item.name not in ("augment", "small_size_px")]
    return {name: getattr(section, name) for name in names}


def _shown(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def provenance_of(cfg: RunConfig, modalities: Iterable[str]) -> dict[str, Any]:
    """{"public_models": {modality: name, revision, sha256, license, views}, "license"}; {} without public models."""
    models: dict[str, dict[str, Any]] = {}
    for modality in modalities:
        section = cfg.encoders.get(modality) or {}
        if public.is_public(str(section.get("name"))):
            keys = ("name", "pretrained", "sha256", "files", "license")
            known = {key: section[key] for key in keys if key in section}
            revision = _split(str(section["name"]))[1]
            views = {key: list(v) if isinstance(v, tuple) else v for key, v in _demanded(cfg.views, modality).items()}
            models[modality] = known | {"revision": revision, "views": views}
    if isinstance(cfg.loss, CaptionConfig):
        models["text"] = {key: value for key, value in cfg.loss.text_encoder.items() if key != "requested_revision"}
    license = joined_licenses([model["license"] for model in models.values() if model.get("license")])
    found: dict[str, Any] = {"public_models": models} if models else {}
    return found | ({"license": license} if license else {})
