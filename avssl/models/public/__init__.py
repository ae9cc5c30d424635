"""Public models as encoders: `timm/NAME[.TAG]` and `hf/ORG/NAME[@revision]` or `hf/FOLDER` of transformers.

A library's models lie in a file each (timm_models, vision, ...), which offers `modalities`, `demands` and `build` for a
`Located` model. Files come from a folder or from the hub; weights are safetensors, and no code of a model is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from avssl.files.plain_text import brief
from avssl.models.public import hub_files
from avssl.models.public.encoder import Demand, Tower, check_options
from avssl.models.public.hub_files import Located, locate, weights_sha256
from avssl.types import PUBLIC_PREFIXES, Modality

# Files of this folder for models of transformers; each knows by `modalities` which models are its own.
TRANSFORMERS_FAMILIES = ("vision", "sound", "perception")
TEXT_KINDS = ("clap", "clip", "siglip", "pe_audio", "pe_video", "pe_audio_video")  # types that text.py reads
# Options of a text encoder; a recipe may say the first, which head the text goes through, and the run writes all.
TEXT_OPTIONS = ("modality", "sha256", "files", "license", "dim", "requested_revision")
# Options that a run writes itself: of the model that it began with. Networks are built without the last three.
RESOLVED = ("sha256", "license", "files", "requested_revision")


class Facts(NamedTuple):
    """What a public model is, for config.yaml and provenance. sha256: of its weights, "" if they are random."""

    name: str  # with the commit of the hub
    revision: str  # commit; "" for a folder, or without files
    sha256: str
    license: str  # as its card says; "" if it says none


def is_public(name: str) -> bool:
    """Whether an encoder's name is that of a public model: it begins with timm/ or hf/."""
    return name.startswith(PUBLIC_PREFIXES)


def build(name: str, modality: str | None, **options: Any) -> nn.Module:
    """The encoder, a PublicEncoder. See `create_encoder`."""
    model, family = _open(name, options)
    _check_modality(model, family, modality)
    return cast("nn.Module", family.build(model, modality, _of_network(options)))


def tower(name: str, modality: str, **options: Any) -> Tower:
    """The encoder of a modality, and the projection of its features into the model's joint space, if it has one."""
    model, family = _open(name, options)
    _check_modality(model, family, modality)
    options = _of_network(options)
    if hasattr(family, "tower"):
        return cast("Tower", family.tower(model, modality, options))
    return Tower(family.build(model, modality, options), None)


def text_modalities(name: str) -> tuple[Modality, ...]:
    """The modalities that the model compares text with; () if it reads no text."""
    if not name.startswith("hf/"):
        return ()
    text = import_module("avssl.models.public.text")
    return cast("tuple[Modality, ...]", text.text_modalities(locate(name, name.partition("/")[2])))


def text_options(name: str, options: Mapping[str, Any], beside: Sequence[str]) -> dict[str, Any]:
    """The section of a text encoder with everything by which it is known again: see text.py.

    options: of the recipe. ValueError for one that text encoders lack, or that says of the model what it is not.
    """
    options = {key: value for key, value in options.items() if key != "name"}
    check_options(name, options, TEXT_OPTIONS)
    text, model = _with_text(name)
    found = cast("dict[str, Any]", text.text_options(model, [str(options.pop("modality", "")), *beside]))
    for key in sorted(options.keys() & {"sha256", "files", "license"}):
        if options[key] != found.get(key):
            raise ValueError(f"{name}: {key} is {brief(found.get(key))}, and not {brief(options[key])}")
    return found


def _with_text(name: str) -> tuple[Any, Located]:
    """text.py, and the located model. ValueError for a name that is not of transformers."""
    if not name.startswith("hf/"):
        raise ValueError(f"{name} reads no text; models of transformers do, such as CLAP and CLIP: hf/ORG/NAME")
    return import_module("avssl.models.public.text"), locate(name, name.partition("/")[2])


def text_tower(name: str, options: Mapping[str, Any] | None = None, device: str = "cpu") -> Any:
    """The TextTower of a model; see text.py. options: with the SHA-256 that weights and tokenizer must have, if any."""
    options = options or {}
    text, model = _with_text(name)
    hub_files.check_files(model, options.get("files"))
    return text.text_tower(model, options.get("sha256", ""), device)


def modalities(name: str, **options: Any) -> tuple[Modality, ...]:
    """The modalities that the model can encode, the most natural one first."""
    model, family = _open(name, options)
    return cast("tuple[Modality, ...]", family.modalities(model))


def demands(name: str, modality: str, options: Mapping[str, Any], size_px: int | None = None) -> dict[str, Demand]:
    """{key of the modality's section of ViewsConfig: what the model demands of it}; no weights are built or read.

    size_px: side of the views, if it is not the model's own.
    """
    model, family = _open(name, options)
    _check_modality(model, family, modality)
    return cast("dict[str, Demand]", family.demands(model, modality, dict(options), size_px))


def requirements(name: str, modality: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """{key of the modality's section of ViewsConfig: value that suits the model}."""
    return {key: demand.value for key, demand in demands(name, modality, options).items()}


def preprocess(name: str, modality: str, options: Mapping[str, Any], frames: torch.Tensor) -> torch.Tensor:
    """What the processor of a model of transformers makes of frames uint8 (T, 3, H, W): float32 (T, 3, S, S)."""
    model, family = _open(name, options)
    return cast("torch.Tensor", family.preprocess(model, modality, frames))


def facts(name: str, options: Mapping[str, Any] | None = None) -> Facts:
    """Name with the commit, commit, SHA-256 of the weights, license. Reads the weights' file if they are used."""
    options = dict(options or {})
    model, family = _open(name, options)
    if not family.is_pretrained(model, options):
        return Facts(model.name, model.revision, "", "")
    model = family.with_files(model)
    return Facts(model.name, model.revision, weights_sha256(hub_files.weights_of(model)), family.license_of(model))


def resolved_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The section of an encoder with everything from which it is built again without asking the hub.

    That is its name with the commit, whether it began with published weights, their SHA-256 and license, and the
    architecture of a model of transformers.
    """
    options = {key: value for key, value in options.items() if key != "name"}
    model, family = _open(name, options)
    if hasattr(family, "OPTIONS"):
        check_options(name, options, (*family.OPTIONS, *RESOLVED))
    known = facts(name, options)
    files = hub_files.sha256_of_files(model)
    if options.get("sha256", known.sha256) != known.sha256:
        raise ValueError(f"{name}: the weights have the SHA-256 {known.sha256}, and not {brief(options['sha256'])}")
    found = {"pretrained": family.is_pretrained(model, options), **family.architecture(model)}
    if known.sha256:
        found |= {"sha256": known.sha256}
    if files and known.sha256:
        found |= {"files": files}
    if "${" in json.dumps(found, default=str):
        raise ValueError(
            f"{name}: its files hold ${{...}}, for which a YAML would put other text, such as an environment variable's"
        )
    return {"name": known.name, **options, **found, **({"license": known.license} if known.license else {})}


def _open(name: str, options: Mapping[str, Any]) -> tuple[Located, ModuleType]:
    """The located model, and the file of this folder that builds it."""
    library, _, body = name.partition("/")
    known = options.get("architecture") if options.get("pretrained") is False else None
    if library == "timm":
        family = import_module("avssl.models.public.timm_models")
        model = family.find(name, body, known)
        hub_files.check_files(model, options.get("files"))
        return model, family
    model = locate(name, body, known)
    hub_files.check_files(model, options.get("files"))
    for candidate in TRANSFORMERS_FAMILIES:
        family = import_module(f"avssl.models.public.{candidate}")
        if family.modalities(model):
            return model, family
    kind = brief(model.config.get("model_type"))
    problem = f"its model_type is {kind}, which can be no encoder here; docs/public_models.md lists those that can"
    if "auto_map" in model.config:
        problem += ". It asks for code of its own (auto_map), which is never run"
    raise ValueError(f"{name}: {problem}")


def _of_network(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in RESOLVED[1:]}


def _check_modality(model: Located, family: ModuleType, modality: str | None) -> None:
    allowed = family.modalities(model)
    if modality not in allowed:
        given = "no modality is given" if modality is None else f"it is to encode {modality}"
        raise ValueError(f"{model.name}: {given}; it encodes {' or '.join(allowed)}")
