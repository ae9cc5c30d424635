"""Linear classifiers on the layers of frozen networks, all trained in one pass over the data.

The networks are in eval mode and without gradients: neither weights nor running statistics move. The probes do not
know of each other (their losses are added, and no parameter is shared), so each learns what it would learn alone.
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
        example: {modality: media (B, ...)} of the size that will come, to learn the layers' widths from.
        num_classes: C.
        batch_norm: a batch norm, with scale and shift, before each linear layer (AVID's probes have it).

    A map is pooled to at most 9216 numbers (avssl/eval/features.py, `pooled`), the feature is taken as it is.
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
        self.widths: dict[str, int] = {}
        for modality, encoder in encoders.items():
            with torch.no_grad():
                given = stage_activations(encoder, example[modality])
            unknown = [layer for layer in layers if layer not in given]
            if unknown:
                raise ValueError(
                    f"the {modality} encoder has no layer {', '.join(unknown)}; it has {', '.join(given)}. Set layers"
                )
            self.layers[modality] = list(layers) or [name for name in given if name != FEATURE] or [FEATURE]
            for layer in self.layers[modality]:
                name, width = f"{modality}_{layer}", _vector(given[layer], modality).shape[1]
                norm: list[nn.Module] = [nn.BatchNorm1d(width)] if batch_norm else []
                self.probes[name] = nn.Sequential(*norm, nn.Linear(width, num_classes))
                self.widths[name] = width

    def train(self, mode: bool = True) -> LinearProbes:
        """As of any module; the encoders stay in eval mode whatever is asked."""
        super().train(mode)
        self.encoders.eval()
        return self

    def forward(self, views: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logits of every probe."""
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
