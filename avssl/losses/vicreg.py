"""VICReg: variance-invariance-covariance regularization (Bardes, Ponce, LeCun 2022, arXiv 2105.04906).

Three terms on the embeddings, which are not normalized:

    L = 25 s(Z1, Z2) + 25 v(Z1, Z2) + c(Z1, Z2)
    s = mean over batch and dimensions of (z1 - z2)^2                              views agree
    v = ( hinge(Z1) + hinge(Z2) ) / 2,   hinge(Z) = mean_d max(0, 1 - sqrt(Var_d + 1e-4))     dimensions vary
    c = redundancy(Z1) + redundancy(Z2),   redundancy(Z) = sum_{i != j} Cov_ij^2 / D          and are uncorrelated

with unbiased variances and covariances (B - 1) over the batch of all ranks. This follows the authors' code, which
halves v; the paper adds the two hinges, which is twice this v. Embeddings are gathered with exact gradient, and s is
the mean over all pairs: the balance of the three terms does not depend on the number of ranks.

v and c treat each view by itself, so across modalities only the projector differs: there is one for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.functional import mse_loss, relu

from avssl.distributed import gather_with_grad
from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import VICRegConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.types import LossConfig, LossOutput, Progress

VARIANCE_EPSILON = 1e-4  # as in the paper; keeps the root's gradient finite for constant dimensions


class VICRegTerms(NamedTuple):
    """The three terms before weighting, float32 scalars >= 0."""

    invariance: torch.Tensor
    variance: torch.Tensor
    covariance: torch.Tensor

    def weighted(self, invariance_weight: float, variance_weight: float, covariance_weight: float) -> torch.Tensor:
        """The weighted sum of the terms."""
        return (
            invariance_weight * self.invariance + variance_weight * self.variance + covariance_weight * self.covariance
        )


def variance_hinge(z: torch.Tensor) -> torch.Tensor:
    """mean_d max(0, 1 - sqrt(Var_d + 1e-4)) of float32 (B, D): 0.99 if all rows are equal, 0 from deviation 1 on."""
    return relu(1 - (z.var(dim=0) + VARIANCE_EPSILON).sqrt()).mean()


def redundancy(z: torch.Tensor) -> torch.Tensor:
    """sum_{i != j} Cov_ij^2 / D of float32 (B, D); memory is O(D^2)."""
    centered = z - z.mean(dim=0)
    covariance = centered.T @ centered / (len(z) - 1)
    return covariance.fill_diagonal_(0.0).square().sum() / z.shape[1]


def vicreg_terms(z1: torch.Tensor, z2: torch.Tensor) -> VICRegTerms:
    """The three terms of `vicreg`, whose arguments and errors these are, too."""
    if len(z1) < 2:
        raise ValueError(
            f"vicreg computes variances over the batch, which needs at least 2 samples; given: {len(z1)}. "
            "Raise data.global_batch_size"
        )
    z1, z2 = z1.float(), z2.float()
    return VICRegTerms(
        invariance=mse_loss(z1, z2),
        variance=(variance_hinge(z1) + variance_hinge(z2)) / 2,
        covariance=redundancy(z1) + redundancy(z2),
    )


def vicreg(
    z1: torch.Tensor, z2: torch.Tensor, invariance_weight: float, variance_weight: float, covariance_weight: float
) -> torch.Tensor:
    """Weighted sum of the three terms in the module's text.

    Args:
        z1, z2: (B, D) embeddings of the two views, row by row of the same sample, B >= 2; any float. Their scale
            matters: do not normalize them.
        invariance_weight, variance_weight, covariance_weight: >= 0; 25, 25, 1 in the paper.

    Returns a float32 scalar >= 0. Raises ValueError for a batch of one, which has no variance.

    >>> z = torch.zeros(4, 2)
    >>> round(vicreg(z, z, 25.0, 25.0, 1.0).item(), 2)  # collapsed: only the variance term is left
    24.75
    """
    return vicreg_terms(z1, z2).weighted(invariance_weight, variance_weight, covariance_weight)


@register("vicreg")
class VICReg(PairLoss):
    """Views agree, dimensions vary and are uncorrelated. State: none.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = VICReg(VICReg.Config(projector_hidden_dims=(16,), embedding_dim=16), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = VICRegConfig
    family: ClassVar[str] = "redundancy reduction"
    paper: ClassVar[str] = "Bardes et al. 2022, arXiv 2105.04906"
    augments: ClassVar[tuple[str, str]] = ("byol_first", "byol_second")
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: VICRegConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: VICRegConfig = config
        self.weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
        if min(self.weights) < 0:
            raise ValueError(
                "loss.invariance_weight, loss.variance_weight and loss.covariance_weight are "
                f"{', '.join(map(str, self.weights))}; none may be below 0 (25, 25, 1 in the paper)"
            )
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            self.projectors[modality] = mlp(dims, batch_norm=True, final_bias=False)

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """{"first": (B, D), "second": (B, D)}; each view is a batch of its own for batch norm."""
        return self.project_each(views)

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """The loss of the batch of all ranks, computed on every rank; the terms are logged unweighted."""
        terms = vicreg_terms(gather_with_grad(outputs["first"]), gather_with_grad(outputs["second"]))
        logged = {name: term.detach() for name, term in terms._asdict().items()}
        return LossOutput(terms.weighted(*self.weights), logged)
