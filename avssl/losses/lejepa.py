"""LeJEPA: views predict their mean, embeddings are Gaussian (Balestriero, LeCun 2025, arXiv 2511.08544).

Nothing stops the gradient, nothing is scheduled, there is no teacher and one weight, w:

    L = (1 - w) A + w R
    A = mean over views v, samples and dimensions of (z^v - c)^2,   c = mean of z over the large views    views agree
    R = mean over views of SIGReg(Z^v)                                         embeddings are those of a Gaussian

SIGReg projects the embeddings, which are not normalized, on M random unit directions a, and measures with the test of
Epps and Pulley (1983) how far each sample of N numbers x = Z a is from a standard normal one:

    SIGReg(Z) = mean over a of N * integral over t of |1/N sum_n exp(i t x_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

The integral runs from -5 to 5 by the trapezoidal rule with 17 points; the integrand is even, so 9 of them are computed.
A collapsed batch is far from normal in every direction, and by the theorem of Cramer and Wold a distribution that is
normal in all directions is an isotropic Gaussian. The directions are drawn anew for each batch, the same on all ranks,
and N counts the batch of all ranks: R does not depend on the number of processes, but its weight grows with the batch,
as in the paper.

Two modalities have a projector each into one space: c is the mean over both, and each must be Gaussian by itself. This
is designed by analogy, without a published result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from avssl.distributed import gather_with_grad
from avssl.losses.base import Outputs
from avssl.losses.configs import LeJEPAConfig
from avssl.losses.crops import MultiCropLoss
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.sampling import generator_for
from avssl.types import LossConfig, LossOutput, Progress

LAST_POINT, NUM_POINTS = 5.0, 9  # of the half line; 17 on all of it


def epps_pulley(samples: torch.Tensor) -> torch.Tensor:
    """The statistic of Epps and Pulley of each column against the standard normal distribution.

    Args:
        samples: float32 (N, M), M samples of N numbers, N >= 1.

    Returns float32 (M,), >= 0, 1.06 in the mean over normal samples, whatever N is; memory is O(9 N M).

    >>> epps_pulley(torch.zeros(100, 1)).round().item()  # collapsed: it grows with N
    41.0
    """
    points = torch.linspace(0.0, LAST_POINT, NUM_POINTS, device=samples.device)
    normal = (-points.square() / 2).exp()
    weights = torch.full_like(points, 2 * LAST_POINT / (NUM_POINTS - 1))  # both halves of the line
    weights[[0, -1]] /= 2
    angles = samples.float()[..., None] * points
    distance = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return len(samples) * (distance * normal * weights).sum(dim=1)


def sigreg(z: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Sketched isotropic Gaussian regularization: the mean of `epps_pulley` over directions.

    Args:
        z: (N, D) embeddings of one view, N >= 2; any float. Their scale matters: do not normalize them.
        directions: float32 (D, M), unit columns.

    Returns a float32 scalar >= 0. Raises ValueError for a batch of one, which has no distribution.

    >>> z = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    >>> sigreg(z, torch.eye(4)).item() < 2 < 200 < sigreg(0 * z, torch.eye(4)).item()
    True
    """
    if len(z) < 2:
        raise ValueError(
            f"sigreg compares the distribution of a batch with a Gaussian, which needs at least 2 samples; given: "
            f"{len(z)}. Raise data.global_batch_size"
        )
    return epps_pulley(z.float() @ directions).mean()


def random_directions(dim: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Unit vectors in all directions alike, as columns: float32 (dim, count) on the generator's device."""
    directions = torch.randn(dim, count, generator=generator, device=generator.device)
    return nn.functional.normalize(directions, dim=0)


@register("lejepa")
class LeJEPA(MultiCropLoss):
    """Views predict their mean; embeddings are Gaussian. State: none.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> config = LeJEPA.Config(num_small_crops=0, projector_hidden_dims=(16,), embedding_dim=8)
    >>> loss = LeJEPA(config, encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = LeJEPAConfig
    family: ClassVar[str] = "redundancy reduction"
    paper: ClassVar[str] = "Balestriero & LeCun 2025, arXiv 2511.08544"
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: LeJEPAConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: LeJEPAConfig = config
        if not 0 < config.sigreg_weight < 1:
            raise ValueError(
                f"loss.sigreg_weight is {config.sigreg_weight}; it must be between 0 and 1, and the rest is the weight "
                "of the agreement of views"
            )
        if config.num_directions < 1:
            raise ValueError(f"loss.num_directions is {config.num_directions}; it must be at least 1")
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            self.projectors[modality] = mlp(dims, batch_norm=True)

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """{view: (B, D)} of every crop, float32, not normalized."""
        return self.project_crops(views)

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """The loss of the batch of all ranks, computed on every rank; the terms are logged unweighted."""
        z = {name: gather_with_grad(outputs[name]) for name in self.modality_of}
        generator = generator_for(self.config.seed, progress.batch, next(iter(z.values())).device)
        directions = random_directions(self.config.embedding_dim, self.config.num_directions, generator)
        center = torch.stack([z[name] for name in self.large_views]).mean(dim=0)
        agreement = torch.stack([(view - center).square().mean() for view in z.values()]).mean()
        gaussianity = torch.stack([sigreg(view, directions) for view in z.values()]).mean()
        weight = self.config.sigreg_weight
        total = (1 - weight) * agreement + weight * gaussianity
        return LossOutput(total, {"agreement": agreement.detach(), "sigreg": gaussianity.detach()})
