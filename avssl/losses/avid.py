"""AVID: audio-visual instance discrimination (Morgado, Vasconcelos, Misra; arXiv 2004.12943, CVPR 2021).

A clip's video embedding v_i and audio embedding a_i are distinguished from K noise samples by NCE against slow memories
of every sample, vbar and abar:

    cross  L = ( NCE(v_i; abar_i, abar_n) + NCE(a_i; vbar_i, vbar_n) ) / 2
    self   L = ( NCE(v_i; vbar_i, vbar_n) + NCE(a_i; abar_i, abar_n) ) / 2
    joint  L = ( cross + self ) / 2

All directions use the same K indices, uniform over all samples but i. Banks are read before this batch's update:
m_i <- normalize(momentum m_i + (1 - momentum) z_i). The partition constant is the mean of exp(score) over the first
batch's video -> audio (self: video -> video) negatives of all ranks; then it is frozen and shared by all directions.

The paper adds the directions, the authors' code averages them. This follows the code.

With `num_negatives_same_clip`, which is not in the paper, the loss has one more term, the cross-entropy between the
moments of a clip, from video to audio and back (moments.py). Banks hold no moments: a row is the mean of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import normalize

from avssl.distributed import gather
from avssl.losses.base import Loss
from avssl.losses.configs import AVIDConfig
from avssl.losses.moments import (
    all_moments,
    moment_cross_entropy,
    moment_views,
    moments_name,
    split_moments,
    with_moments,
)
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.nce import bank_nce, initial_partition
from avssl.ops.sampling import draw_negatives
from avssl.ops.sharded_memory import AnyBank, make_bank
from avssl.types import LossConfig, LossOutput, Modality, Progress, View

# (anchor modality, memory modality) of each direction; the first one measures the partition constant.
CROSS = (("video", "audio"), ("audio", "video"))
SELF = (("video", "video"), ("audio", "audio"))
DIRECTIONS = {"cross": CROSS, "self": SELF, "joint": CROSS + SELF}


@register("avid")
class AVID(Loss):
    """AVID's cross, self and joint variants. State: a bank per modality (N, D) and the partition constant ().

    >>> video, audio = create_encoder("avid_video", depth=10, width=4), create_encoder("avid_audio", width=4)
    >>> loss = AVID(AVID.Config(num_negatives=4), {"video": video, "audio": audio}, num_samples=8)
    >>> views = {"video": torch.rand(4, 3, 4, 32, 32), "audio": torch.rand(4, 1, 50, 20)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = AVIDConfig
    family: ClassVar[str] = "audio-visual"
    paper: ClassVar[str] = "Morgado et al. 2021, arXiv 2004.12943"
    state: ClassVar[str] = "memory bank, partition constant"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("video", "audio"),)
    partition: torch.Tensor

    def __init__(self, config: AVIDConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: AVIDConfig = config
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            self.projectors[modality] = mlp(dims, final_batch_norm=config.projector_final_batch_norm)
        self.banks = nn.ModuleDict(
            {
                modality: make_bank(
                    num_samples, config.embedding_dim, seed=2 * config.seed + offset, sharded=config.shard_banks
                )
                for offset, modality in enumerate(("video", "audio"))
            }
        )
        self.register_buffer("partition", initial_partition())

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """One clip of each modality, and other moments of both; AVID needs no second augmented view."""
        pair = (View("video", "video"), View("audio", "audio"))
        return (*pair, *moment_views(pair, cast("AVIDConfig", config).num_negatives_same_clip))

    def forward(self, views: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Unit embeddings {"video": (B, D), "audio": (B, D)}; with other moments {"video_moments": (B, n, D), ...}."""
        num_moments = self.config.num_negatives_same_clip
        outputs = {}
        for name in self.encoders:
            if num_moments and name in views:
                rows = self.unit_rows(name, with_moments(views, name))
                outputs[name], outputs[moments_name(name)] = split_moments(rows, num_moments)
            elif name in views:
                outputs[name] = self.unit_rows(name, views[name])
        return outputs

    def unit_rows(self, modality: str, view: torch.Tensor) -> torch.Tensor:
        """Encoder and projector of a modality: (B, ...) -> unit rows (B, D)."""
        return normalize(self.projectors[modality](self.encoders[modality](view)).float(), dim=1)

    def loss(self, outputs: dict[str, torch.Tensor], index: torch.Tensor, progress: Progress) -> LossOutput:
        """NCE against the banks, and the term of other moments of the same clip if there are any."""
        result = self.bank_loss(outputs, index, progress)
        if not self.config.num_negatives_same_clip:
            return result
        both = (all_moments(outputs, "video"), all_moments(outputs, "audio"))
        moments = moment_cross_entropy(*both, self.config.temperature)
        return LossOutput(result.total + moments, result.terms | {"same_clip": moments.detach()})

    def bank_loss(self, outputs: dict[str, torch.Tensor], index: torch.Tensor, progress: Progress) -> LossOutput:
        """Mean over this rank's anchors; rows are independent, so DDP's mean gives the global batch's gradient."""
        positives = self.compared_rows(index)[:, None]
        negatives = self.draw_negatives(positives, progress)
        terms: dict[str, torch.Tensor] = {}
        losses = [
            self.direction(outputs[anchor], positives, negatives, anchor, memory, progress, terms)
            for anchor, memory in DIRECTIONS[self.config.variant]
        ]
        return LossOutput(torch.stack(losses).mean(), terms)

    def draw_negatives(self, excluded: torch.Tensor, progress: Progress) -> torch.Tensor:
        """Indices (B, K) that avoid those in each row of `excluded` (B, E); the same for any world size."""
        config = self.config
        return draw_negatives(
            excluded,
            config.num_negatives,
            self.num_samples,
            config.seed,
            progress.batch,
            for_all_ranks=config.shard_banks,
        )

    def compared_rows(self, index: torch.Tensor) -> torch.Tensor:
        """The samples that `direction` compares: this rank's (B,), or with sharded banks those of all ranks (W B,)."""
        return gather(index) if self.config.shard_banks else index

    def direction(
        self,
        anchors: torch.Tensor,
        positives: torch.Tensor,
        negatives: torch.Tensor,
        anchor: str,
        memory: str,
        progress: Progress,
        terms: dict[str, torch.Tensor],
        prefix: str = "",
    ) -> torch.Tensor:
        """NCE of anchors (B, D) with rows of the `memory` bank (see `bank_nce`); adds scalars to log to `terms`."""
        total, scalars = bank_nce(
            anchors,
            self.bank(memory),
            positives,
            negatives,
            self.config.temperature,
            self.partition,
            measure=progress.batch == 0,
        )
        terms.update({f"{prefix}{anchor}_to_{memory}{name}": value for name, value in scalars.items()})
        return total

    def bank(self, modality: str) -> AnyBank:
        """The memory bank of a modality."""
        return cast("AnyBank", self.banks[modality])

    def update(self, outputs: dict[str, torch.Tensor], index: torch.Tensor) -> None:
        """Write this batch's own embeddings into both banks."""
        index = gather(index)
        for modality in self.banks:
            self.bank(modality).update(index, gather(outputs[modality]), self.config.bank_momentum)
