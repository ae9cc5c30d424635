"""Barlow Twins: self-supervised learning by redundancy reduction (Zbontar et al. 2021, arXiv 2103.03230).

The D x D cross-correlation matrix of two views' embeddings over the batch is pulled towards the identity:

    L = sum_i (1 - C_ii)^2 + w sum_{i != j} C_ij^2,    C = Z1^T Z2 / B                                   (eq. 1, 2)

where every column of Z1 and of Z2 has mean 0 and (biased) variance 1 over the batch of all ranks, so that C_ii is
exactly 1 where the views agree. Nothing is normalized per sample, and no sample is a negative.

Differences from the authors' code: its sum of C over the ranks carries no gradient, so on W ranks its gradient is 1/W
of the exact one; here it is exact for any W. LARS cancels that factor for weights, but biases and norms, which it does
not scale, learn W times as fast here at the same rate: see recipes/configs/barlow_twins.yaml. Its normalization adds
1e-5 to the variance, which keeps C_ii below 1 for small embeddings; here the variance has a floor instead, above which
the result does not depend on the scale of the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from avssl.distributed import gather_with_grad
from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import BarlowTwinsConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.types import LossConfig, LossOutput, Progress

# Below a standard deviation of 1e-4 a dimension counts as constant: its gradient is at most 1e4 times that of C.
VARIANCE_FLOOR = 1e-8


def normalize_over_batch(z: torch.Tensor) -> torch.Tensor:
    """(B, D) -> (B, D) float32, each column with mean 0 and biased variance 1; constant columns become 0."""
    z = z.float()
    # Subtracting a row of z first does not change the result, but makes constant columns exact zeros instead of
    # rounding errors, which division by a tiny deviation would enlarge.
    z = z - z[0].detach()
    centered = z - z.mean(dim=0)
    return centered * centered.square().mean(dim=0).clamp_min(VARIANCE_FLOOR).rsqrt()


def barlow_twins(z1: torch.Tensor, z2: torch.Tensor, redundancy_weight: float) -> torch.Tensor:
    """Squared distance of the views' cross-correlation matrix from the identity, eq. 1.

    Args:
        z1, z2: (B, D) embeddings of the two views, row by row of the same sample, B >= 2; need not be normalized; any
            float. Memory is O(D^2).
        redundancy_weight: >= 0, lambda.

    Returns a float32 scalar >= 0; D for views that do not correlate at all.
    Raises ValueError for a batch of one, which has no correlations.

    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> barlow_twins(z, z, redundancy_weight=0.0051).item()  # two dimensions that do not correlate
    0.0
    """
    if len(z1) < 2:
        raise ValueError(
            f"barlow_twins correlates dimensions over the batch, which takes at least 2 samples; given: {len(z1)}. "
            "Raise data.global_batch_size"
        )
    correlation = normalize_over_batch(z1).T @ normalize_over_batch(z2) / len(z1)
    diagonal = correlation.diagonal().clone()
    redundancy = correlation.fill_diagonal_(0.0).square().sum()
    return (1 - diagonal).square().sum() + redundancy_weight * redundancy


@register("barlow_twins")
class BarlowTwins(PairLoss):
    """Pulls the cross-correlation of two views towards the identity. State: none.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = BarlowTwins(BarlowTwins.Config(projector_hidden_dims=(16,), embedding_dim=16), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = BarlowTwinsConfig
    family: ClassVar[str] = "redundancy reduction"
    paper: ClassVar[str] = "Zbontar et al. 2021, arXiv 2103.03230"
    augments: ClassVar[tuple[str, str]] = ("byol_first", "byol_second")
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: BarlowTwinsConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: BarlowTwinsConfig = config
        if config.redundancy_weight < 0:
            raise ValueError(
                f"loss.redundancy_weight is {config.redundancy_weight}; below 0 it would reward redundant dimensions; "
                "give 0 or more (0.0051 in the paper)"
            )
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            self.projectors[modality] = mlp(dims, batch_norm=True, final_bias=False)

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """{"first": (B, D), "second": (B, D)}; each view is a batch of its own for batch norm."""
        return self.project_each(views)

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """The loss of the batch of all ranks, computed on every rank."""
        z1, z2 = gather_with_grad(outputs["first"]), gather_with_grad(outputs["second"])
        return LossOutput(barlow_twins(z1, z2, self.config.redundancy_weight), {})
