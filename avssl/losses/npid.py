"""NPID: unsupervised feature learning via non-parametric instance discrimination (Wu et al. 2018, arXiv 1805.01978).

Every sample is a class of its own. Its unit embedding z_i is distinguished from K noise samples by NCE against a slow
memory m of every sample, with a constant partition E (eq. 4 to 8; see ops/nce.py):

    L = mean_i ( -log h(z_i, m_i) - sum_k log(1 - h(z_i, m_k)) ),    m_i <- normalize(momentum m_i + (1 - momentum) z_i)

Two views of one modality are both compared with the bank of that modality, which then follows the first view. A video
and its audio are compared with each other's bank, and each bank follows its own modality: this is cross-AVID
(avid.py) with a single linear layer as projector. The loss is the mean over the views.

The paper's proximal term is left out: the authors' code replaces it by the bank's momentum. The authors' code draws
negatives from all samples, the anchor's own among them, and includes the positive scores in E; here a sample is never
its own negative, because otherwise NCE's noise would contain data, and E is the mean over the first batch's negatives.
The bank starts from normalized rows, the authors' from uniform ones whose norm is 1 only in the mean. Their 1e-7 inside
the logarithms is not needed, because these are computed by softplus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import normalize

from avssl.distributed import gather
from avssl.losses.base import PAIRS, Outputs, PairLoss
from avssl.losses.configs import NPIDConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.nce import bank_nce, initial_partition
from avssl.ops.sampling import check_negatives, draw_negatives
from avssl.ops.sharded_memory import AnyBank, make_bank
from avssl.types import LossConfig, LossOutput, Modality, Progress


@register("npid")
class NPID(PairLoss):
    """NCE against a memory bank. State: a bank per modality (N, D) and the partition constant ().

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = NPID(NPID.Config(num_negatives=4), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = NPIDConfig
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "Wu et al. 2018, arXiv 1805.01978"
    state: ClassVar[str] = "memory bank, partition constant"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("image",), ("video",), ("audio",), *PAIRS)
    augments: ClassVar[tuple[str, str]] = ("npid", "npid")
    partition: torch.Tensor

    def __init__(self, config: NPIDConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: NPIDConfig = config
        check_negatives(config.num_negatives, num_samples)
        self.banks = nn.ModuleDict()
        for offset, modality in enumerate(sorted(encoders)):
            dims = (self.feature_dim(modality), config.embedding_dim)
            self.projectors[modality] = mlp(dims, final_batch_norm=config.projector_final_batch_norm)
            self.banks[modality] = make_bank(
                num_samples, config.embedding_dim, seed=2 * config.seed + offset, sharded=config.shard_banks
            )
        self.register_buffer("partition", initial_partition())

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Unit embeddings {view name: (B, D)}."""
        return {name: normalize(self.project(name, view).float(), dim=1) for name, view in views.items()}

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:
        """Mean over this rank's rows, which are independent, and over the views; all views share the negatives."""
        config = self.config
        positives = (gather(index) if config.shard_banks else index)[:, None]  # sharded: those of all ranks' anchors
        negatives = draw_negatives(
            positives,
            config.num_negatives,
            self.num_samples,
            config.seed,
            progress.batch,
            for_all_ranks=config.shard_banks,
        )
        losses, terms = [], {}
        for name in self.modality_of:
            loss, scalars = bank_nce(
                outputs[name],
                self.bank(self.memory_of(name)),
                positives,
                negatives,
                config.temperature,
                self.partition,
                measure=progress.batch == 0,
            )
            losses.append(loss)
            terms.update({name + suffix: value for suffix, value in scalars.items()})
        return LossOutput(torch.stack(losses).mean(), terms)

    def memory_of(self, name: str) -> str:
        """The modality whose bank a view is compared with: across modalities the other one, else its own."""
        others = set(self.modality_of.values()) - {self.modality_of[name]}
        return others.pop() if others else self.modality_of[name]

    def bank(self, modality: str) -> AnyBank:
        """The memory bank of a modality."""
        return cast("AnyBank", self.banks[modality])

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:
        """Move each bank's rows towards the first view of its modality."""
        index = gather(index)
        first_views = {modality: name for name, modality in reversed(self.modality_of.items())}
        for modality, name in first_views.items():
            self.bank(modality).update(index, gather(outputs[name]), self.config.bank_momentum)
