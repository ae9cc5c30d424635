"""The networks that a state dict belongs to, from its names and shapes: AVID's encoders and projectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from avssl.models import create_encoder
from avssl.models.heads import mlp
from avssl.models.video import BLOCKS_PER_STAGE

PUBLISHED_DEPTH, PUBLISHED_WIDTH = 18, 64
PUBLISHED_PROJECTOR = (512, 512, 512, 128)


@dataclass(frozen=True)
class Architecture:
    """Options of the two encoders and the projectors' widths after the encoders."""

    encoders: dict[str, dict[str, Any]]  # {modality: {"name": ..., options}}
    hidden_dims: tuple[int, ...]
    embedding_dim: int
    small: bool


def infer(state: Mapping[str, torch.Tensor], *, small: bool) -> Architecture:
    """What the tensors `encoders.*` and `projectors.*` say; the published network where they do not say."""
    width = {modality: _width(state, modality) for modality in ("video", "audio")}
    encoders = {
        "video": {"name": "avid_video", "depth": _depth(state), "width": width["video"], "stem_pool": not small},
        "audio": {"name": "avid_audio", "width": width["audio"], "first_stride": 1 if small else 2},
    }
    widths = _projector_widths(state)
    return Architecture(encoders, widths[1:-1], widths[-1], small)


def skeleton(architecture: Architecture) -> dict[str, torch.Size]:
    """{name: shape} of everything that such a model has."""
    with torch.device("meta"):
        encoders = {modality: create_encoder(**options) for modality, options in architecture.encoders.items()}
        projectors = {
            modality: mlp((int(getattr(encoder, "dim")), *architecture.hidden_dims, architecture.embedding_dim))  # noqa: B009
            for modality, encoder in encoders.items()
        }
        whole = nn.ModuleDict({"encoders": nn.ModuleDict(encoders), "projectors": nn.ModuleDict(projectors)})
    return {name: value.shape for name, value in whole.state_dict().items()}


def _width(state: Mapping[str, torch.Tensor], modality: str) -> int:
    stem = state.get(f"encoders.{modality}.conv1.0.weight")
    return PUBLISHED_WIDTH if stem is None or stem.ndim == 0 else max(1, stem.shape[0])


def _depth(state: Mapping[str, torch.Tensor]) -> int:
    blocks = [set[int]() for _ in range(4)]
    for name in state:
        if match := re.match(r"encoders\.video\.conv([2-5])x\.(\d+)\.", name):
            blocks[int(match[1]) - 2].add(int(match[2]))
    counts = tuple(map(len, blocks))
    return next((depth for depth, numbers in BLOCKS_PER_STAGE.items() if numbers == counts), PUBLISHED_DEPTH)


def _projector_widths(state: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """Of the video projector, input to output; linear layers are modules 0, 2, 4, ..."""
    layers: dict[int, torch.Tensor] = {}
    for name, value in state.items():
        if (match := re.fullmatch(r"projectors\.video\.(\d+)\.weight", name)) and value.ndim == 2:
            layers[int(match[1])] = value
    places = sorted(layers)
    if not places or places != list(range(0, 2 * len(places), 2)):
        return PUBLISHED_PROJECTOR
    return (layers[0].shape[1], *(layers[place].shape[0] for place in places))
