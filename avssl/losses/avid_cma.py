"""AVID + CMA: cross-modal agreement (Morgado, Vasconcelos, Misra; arXiv 2004.12943, CVPR 2021).

It starts from AVID's encoders, banks and partition constant. The positives of sample i are the k other samples whose
memories agree most with its own in both modalities,

    rho_ij = min(<vbar_i, vbar_j>, <abar_i, abar_j>)     consensus; union takes the max, video and audio one of the two

and the loss adds to cross-AVID's instance terms the NCE of each anchor against its positives' memories of the same
modality (within) and, as an option, of the other one (across):

    L = ( c_instance L_cross + c_within L_within + c_across L_across ) / (c_instance + c_within + c_across)
    L_within = ( NCE(v_i; vbar_P, vbar_n) + NCE(a_i; abar_P, abar_n) ) / 2,   positive terms averaged over P

`instance_within_weight` adds instance terms within a modality (self-AVID). The within and across terms use the first
`num_negatives_within` of the shared negatives. Banks are updated with a sample's own embeddings only. This differs
from the authors' code in two ways: the anchor is excluded from its negatives together with its positives (their mapping
skips the positives only), and from its own positive set by masking the diagonal, not by dropping rank 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn

from avssl.distributed import gather_uneven, rank, world_size
from avssl.losses.avid import AVID, CROSS, SELF
from avssl.losses.base import EpochContext
from avssl.losses.configs import AVIDCMAConfig
from avssl.losses.registry import register
from avssl.ops.agreement import most_agreeing
from avssl.ops.sharded_memory import ShardedMemoryBank, sharded_positive_set
from avssl.options.counts import check_counts
from avssl.types import Agreement, LossConfig, LossOutput, Progress, TooFewSamplesError

SAMPLES_PER_POSITIVE = 8  # at least so many for each positive of a fitted number


@torch.no_grad()
def positive_set(
    video_bank: torch.Tensor, audio_bank: torch.Tensor, num_positives: int, agreement: Agreement
) -> torch.Tensor:
    """The k other samples that agree most with each sample.

    Args:
        video_bank, audio_bank: (N, D) unit rows of the same samples, N > k.
        num_positives: k >= 1.
        agreement: consensus (min), union (max), video or audio.

    Returns:
        int64 (N, k), ascending within a row, never the row itself; of equal scores the lower index. The result is
        exact, as ops/agreement.py proves. Memory is O(N k) besides blocks of fixed size. The ranks search different
        rows, and each returns all of them.
    """
    num_samples = video_bank.shape[0]
    if not 0 < num_positives < num_samples:
        raise ValueError(f"num_positives is {num_positives}; it must be from 1 to {num_samples - 1}, the other samples")
    rows_per_rank = -(-num_samples // world_size())
    start, stop = (min(number * rows_per_rank, num_samples) for number in (rank(), rank() + 1))
    return gather_uneven(most_agreeing(video_bank.float(), audio_bank.float(), num_positives, agreement, start, stop))


@register("avid_cma")
class AVIDCMA(AVID):
    """AVID plus positives by agreement. State: AVID's, and the positive sets (N, k).

    >>> video, audio = create_encoder("avid_video", depth=10, width=4), create_encoder("avid_audio", width=4)
    >>> config = AVIDCMA.Config(num_negatives=4, num_negatives_within=2, num_positives=2)
    >>> loss = AVIDCMA(config, {"video": video, "audio": audio}, num_samples=8)
    >>> views = {"video": torch.rand(4, 3, 4, 32, 32), "audio": torch.rand(4, 1, 50, 20)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = AVIDCMAConfig
    state: ClassVar[str] = "memory bank, partition constant, positive sets"
    positives: torch.Tensor

    def __init__(self, config: AVIDCMAConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: AVIDCMAConfig = config
        check_counts(config, "loss")
        if not 0 < config.num_positives < num_samples - 1:
            raise (TooFewSamplesError if config.num_positives > 0 else ValueError)(
                f"loss.num_positives is {config.num_positives} with {num_samples} samples: at least one sample must be "
                "left as a negative; lower loss.num_positives"
            )
        if not 0 < config.num_negatives_within <= config.num_negatives:
            raise ValueError(
                f"loss.num_negatives_within is {config.num_negatives_within}; it must be from 1 to "
                f"loss.num_negatives ({config.num_negatives}), of which it takes the first"
            )
        self.register_buffer("positives", torch.zeros(num_samples, config.num_positives, dtype=torch.int64))

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:  # noqa: ARG003
        """Positives: at most an eighth of the samples."""
        most = max(1, num_samples // SAMPLES_PER_POSITIVE)
        return {"num_positives": most} if cast("AVIDCMAConfig", config).num_positives > most else {}

    def on_epoch_start(self, context: EpochContext) -> None:
        """Search the positives in the banks as they are now, at epoch 0 and every `search_every_epochs`."""
        if context.epoch % self.config.search_every_epochs == 0:
            video, audio, config = self.bank("video"), self.bank("audio"), self.config
            if isinstance(video, ShardedMemoryBank) and isinstance(audio, ShardedMemoryBank):
                positives = sharded_positive_set(video, audio, config.num_positives, config.agreement)
            else:
                positives = positive_set(video.rows, audio.rows, config.num_positives, config.agreement)
            self.positives.copy_(positives)

    def bank_loss(self, outputs: dict[str, torch.Tensor], index: torch.Tensor, progress: Progress) -> LossOutput:
        """Weighted mean of the active groups of terms; see the module's text."""
        index = self.compared_rows(index)
        instance, positives = index[:, None], self.positives[index]
        negatives = self.draw_negatives(torch.cat([instance, positives], dim=1), progress)
        fewer = negatives[:, : self.config.num_negatives_within]
        terms: dict[str, torch.Tensor] = {}
        groups = (
            (self.config.instance_across_weight, CROSS, instance, negatives, "instance_"),
            (self.config.instance_within_weight, SELF, instance, negatives, "instance_"),
            (self.config.positive_within_weight, SELF, positives, fewer, "positive_"),
            (self.config.positive_across_weight, CROSS, positives, fewer, "positive_"),
        )
        total, weights = torch.zeros((), device=index.device), 0.0
        for weight, directions, targets, noise, prefix in groups:
            if weight > 0:
                losses = [
                    self.direction(outputs[anchor], targets, noise, anchor, memory, progress, terms, prefix)
                    for anchor, memory in directions
                ]
                total, weights = total + weight * torch.stack(losses).mean(), weights + weight
        if weights == 0:
            raise ValueError("every weight of loss avid_cma is 0; set at least one of the *_weight keys above 0")
        return LossOutput(total / weights, terms)
