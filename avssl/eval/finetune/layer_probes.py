"""Linear classifiers on the layers of frozen networks, all trained in one pass over the data.

The networks are in eval mode and without gradients: neither weights nor running statistics move. The losses of the
probes are added and no parameter is shared, so each probe learns what it would learn alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from avssl.eval.features import pooled
from avssl.eval.finetune.training import Headed
from avssl.models.layers import FEATURE, stage_activations


class LinearProbes(Headed):
    """{modality: media} -> {"<modality>_<layer>": logits (B, C)}.

    Args:
        encoders: {modality: module}.
        layers: names as `models.layers.stage_activations` gives them; [] for all four stages, or the feature alone
            where there are no stages.
        example: {modality: media (B, ...)} of the size of the training data, which gives the dims of the layers.
        num_classes: C.
        batch_norm: a batch norm, with scale and shift, before each linear layer (AVID's probes have it).

    A map is pooled to at most 9216 numbers (avssl/eval/features.py, `pooled`); the feature is used as it is.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        layers: Sequence[str],
        example: Mapping[str, torch.Tensor],
        num_classes: int,
        *,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders)).requires_grad_(False).eval()
        self.layers: dict[str, list[str]] = {}
        self.probes = nn.ModuleDict()
        self.dims: dict[str, int] = {}
        for modality, encoder in encoders.items():
            with torch.no_grad():
                activations = stage_activations(encoder, example[modality])
            unknown = [layer for layer in layers if layer not in activations]
            if unknown:
                raise ValueError(
                    f"the {modality} encoder has no layer {', '.join(unknown)}; it has {', '.join(activations)}. Set "
                    "layers"
                )
            self.layers[modality] = list(layers) or [name for name in activations if name != FEATURE] or [FEATURE]
            for layer in self.layers[modality]:
                name, dim = f"{modality}_{layer}", _vector(activations[layer], modality).shape[1]
                norm: list[nn.Module] = [nn.BatchNorm1d(dim)] if batch_norm else []
                self.probes[name] = nn.Sequential(*norm, nn.Linear(dim, num_classes))
                self.dims[name] = dim

    def train(self, mode: bool = True) -> LinearProbes:
        """Set the mode of the probes; the encoders stay in eval mode."""
        super().train(mode)
        self.encoders.eval()
        return self

    def forward(self, views: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{"<modality>_<layer>": logits (B, C)} of every probe."""
        logits: dict[str, torch.Tensor] = {}
        for modality, encoder in self.encoders.items():
            with torch.no_grad():
                activations = stage_activations(encoder, views[modality])
            for layer in self.layers[modality]:
                name = f"{modality}_{layer}"
                logits[name] = self.probes[name](_vector(activations[layer], modality))
        return logits


def _vector(activation: torch.Tensor, modality: str) -> torch.Tensor:
    return activation if activation.ndim == 2 else pooled(activation, modality)
