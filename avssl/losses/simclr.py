"""SimCLR: a simple framework for contrastive learning (Chen et al. 2020, arXiv 2002.05709).

Each of the 2 B embeddings of two augmented views is classified as its partner among the 2 B - 1 others:

    L = -1/(2B) sum_i log( exp(s(i, i+) / T) / sum_{j != i} exp(s(i, j) / T) ),    s the cosine           (eq. 1)

The authors' code adds the means over the two halves, which is 2 L; this is the paper's mean. Candidates are the
embeddings of all ranks, with gradient. Across modalities the loss is the two-way cross-entropy of video against audio
(Radford et al. 2021, CLIP's form): rows of one modality are compared only with rows of the other, because similarities
within a modality do not tell which video and audio belong together. With `num_negatives_same_clip` each clip comes with
other moments, pairs like the first one, which are candidates of each other (moments.py); the paper has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from avssl.distributed import gather_with_grad
from avssl.losses.base import VIEW_NAMES, Outputs, PairLoss
from avssl.losses.configs import SimCLRConfig
from avssl.losses.moments import all_moments, moment_views, moments_name, split_moments, with_moments
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.types import LossConfig, LossOutput, Progress, View


def nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """Normalized temperature-scaled cross-entropy, eq. 1: the mean over the 2 B anchors.

    Args:
        z1, z2: (B, D) embeddings of the two views, row by row of the same sample; need not be normalized; any float.
        temperature: > 0.

    Returns a float32 scalar; finite also where cosines are 1 and the temperature is small.

    >>> z = torch.eye(4)
    >>> nt_xent(z, z, temperature=0.1).item() < 1e-3 < nt_xent(z, z.flip(0), temperature=0.1).item()
    True
    """
    z = normalize(torch.cat([z1, z2]).float(), dim=1)
    batch_size = len(z1)
    scores = z @ z.T / temperature
    scores.fill_diagonal_(-torch.inf)  # an anchor is not its own candidate
    partner = torch.arange(2 * batch_size, device=z.device).roll(batch_size)
    return cross_entropy(scores, partner)


def two_way_cross_entropy(z1: torch.Tensor, z2: torch.Tensor, temperature: torch.Tensor | float) -> torch.Tensor:
    """Mean of the cross-entropies of z1 against z2's rows and of z2 against z1's. Arguments and result as in `nt_xent`.

    >>> two_way_cross_entropy(torch.eye(4), torch.eye(4), temperature=0.1).item() < 1e-3
    True
    """
    scores = normalize(z1.float(), dim=1) @ normalize(z2.float(), dim=1).T / temperature
    partner = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores, partner) + cross_entropy(scores.T, partner)) / 2


@register("simclr")
class SimCLR(PairLoss):
    """NT-Xent on two views, or two-way cross-entropy across modalities. State: none.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = SimCLR(SimCLR.Config(), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = SimCLRConfig
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "Chen et al. 2020, arXiv 2002.05709"
    augments: ClassVar[tuple[str, str]] = ("simclr", "simclr")
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: SimCLRConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: SimCLRConfig = config
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            batch_norm = config.projector_batch_norm
            self.projectors[modality] = mlp(dims, batch_norm=batch_norm, final_batch_norm=batch_norm)

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """As in the base class, and other moments of both."""
        pair = super().views(config)
        return (*pair, *moment_views(pair, cast("SimCLRConfig", config).num_negatives_same_clip))

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Embeddings {"first": (B, D), "second": (B, D)}; with other moments {"first_moments": (B, n, D), ...}."""
        num_moments = self.config.num_negatives_same_clip
        if not num_moments:
            return self.project_together(views)
        outputs: Outputs = {}
        for name in self.modality_of:
            if name in views:
                rows = self.project(name, with_moments(views, name))
                outputs[name], outputs[moments_name(name)] = split_moments(rows, num_moments)
        return outputs

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """The loss of the batch of all ranks, computed on every rank."""
        if self.config.num_negatives_same_clip:  # every moment is a pair, and a negative of all others
            z1, z2 = (gather_with_grad(all_moments(outputs, name)).flatten(0, 1) for name in VIEW_NAMES)
        else:
            z1, z2 = (gather_with_grad(outputs[name]) for name in VIEW_NAMES)
        compare = two_way_cross_entropy if self.is_cross_modal else nt_xent
        return LossOutput(compare(z1, z2, self.config.temperature), {})
