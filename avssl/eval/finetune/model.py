"""A whole network on labels: encoders, dropout, one linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from avssl.eval.finetune.training import Headed


class Classifier(Headed):
    """Features of the encoders side by side, dropout, a linear layer: {modality: media} -> {head: logits (B, C)}.

    Args:
        encoders: {modality: module with .dim}; several are concatenated in this order.
        num_classes: C. dropout: share of the features that is dropped in training.
        head: name of the result.

    The linear layer starts at PyTorch's defaults.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], num_classes: int, *, dropout: float, head: str) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.head_name = head
        self.encoders = nn.ModuleDict(dict(encoders))
        self.dropout = nn.Dropout(dropout)
        dims: list[Any] = [encoder.dim for encoder in encoders.values()]
        self.head = nn.Linear(sum(dims), num_classes)

    def forward(self, views: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{modality: media of its encoder} -> {head: logits (B, C)}."""
        features = [encoder(views[modality]) for modality, encoder in self.encoders.items()]
        return {self.head_name: self.head(self.dropout(torch.cat(features, dim=1)))}
