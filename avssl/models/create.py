"""An encoder by its name: one of the registry, or a public model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from avssl.models.public import build as build_public
from avssl.models.public import is_public
from avssl.models.registry import ENCODERS


def create_encoder(name: str, modality: str | None = None, **options: Any) -> nn.Module:
    """Build an encoder: a module with `.dim`, `.modality` and forward to (B, dim).

    It is untrained, unless options say otherwise (`weights`, `pretrained`) or the name is that of published weights.

    Args:
        name: a key of ENCODERS, or a public model, timm/NAME or hf/ORG/NAME (avssl/models/public). Image encoders take
            (B, 3, H, W), video encoders (B, 3, T, H, W), audio encoders (B, 1, frames, bins).
        modality: what it is to encode, image, video or audio. A public model needs it; others have one of their own.
        options: keyword options of that encoder, for example depth=10, width=8 for avid_video.

    Raises ValueError for an unknown name, option or value, or another modality, with those that are allowed.

    >>> create_encoder("resnet18", width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """
    if is_public(name):
        return build_public(name, modality, **options)
    entry = ENCODERS.find(name)
    if modality is not None and modality != entry.modality:
        raise ValueError(f"encoder {name!r} encodes {entry.modality}, and not {modality}")
    for option in options:
        if option not in entry.options:
            raise ValueError(
                f"encoder {name!r} has no option {option!r}{_suggest(option, entry.options)}; "
                f"its options: {', '.join(entry.options)}"
            )
    return entry.build(**options)


def without_weights(options: Mapping[str, Any]) -> dict[str, Any]:
    """A section of `encoders`, from which the same network is built with random weights and without any file.

    >>> without_weights({"name": "resnet18", "weights": "resnet18.safetensors"})
    {'name': 'resnet18'}
    """
    if is_public(str(options.get("name"))):
        return {**options, "pretrained": False}
    return {key: value for key, value in options.items() if key != "weights"}


def _suggest(name: str, allowed: Iterable[str]) -> str:
    """' (did you mean ...?)' if an allowed name is similar, otherwise an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
