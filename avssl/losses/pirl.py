"""PIRL: self-supervised learning of pretext-invariant representations (Misra, van der Maaten 2020, arXiv 1912.01991).

The embedding of a sample and that of its jigsaw are made alike. The jigsaw's nine patches pass one by one through the
encoder and a shared linear layer; their outputs, concatenated, pass through a last linear layer: g(I^t). The whole
passes through one linear layer: f(I). Both are distinguished from noise samples by NCE against a slow memory m of f:

    L = weight NCE(g(I^t); m_i, m_n) + (1 - weight) NCE(f(I); m_i, m_n')
    m_i <- normalize(momentum m_i + (1 - momentum) f(I))

with negatives n and n' drawn independently and never the sample itself (see npid.py, and ops/nce.py for NCE). The
partition constant is the mean of exp(score) over the first batch's jigsaw negatives, then frozen: this is the form of
VISSL's implementation; the paper writes h like a softmax. `projector_hidden_dims=[2048]` gives the heads of VISSL's MLP
variant; that variant's cross-entropy in place of NCE is MoCo's and is not offered here.

A jigsaw of a video clip cuts space into nine cells, one of an audio clip cuts time and frequency; both cover the same
seconds as the whole. There is no jigsaw across modalities: with the other modality in place of the jigsaw, the two
terms would be those of joint AVID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import normalize

from avssl.distributed import gather
from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import PairConfig, PIRLConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.nce import bank_nce, initial_partition
from avssl.ops.sampling import check_negatives, draw_negatives
from avssl.ops.sharded_memory import AnyBank, make_bank
from avssl.types import LossConfig, LossOutput, Modality, Progress, View

NUM_PATCHES = 9
JIGSAWS = {"image": "pirl_jigsaw", "video": "pirl_jigsaw", "audio": "jigsaw"}  # the set of the second view


@register("pirl")
class PIRL(PairLoss):
    """NCE of a sample and of its jigsaw against a bank. State: the bank (N, D) and the partition constant ().

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = PIRL(PIRL.Config(num_negatives=4), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 48, 48), "second": torch.rand(4, 9, 3, 16, 16)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = PIRLConfig
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "Misra & van der Maaten 2020, arXiv 1912.01991"
    state: ClassVar[str] = "memory bank, partition constant"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("image", "image"), ("video", "video"), ("audio", "audio"))
    augments: ClassVar[tuple[str, str]] = ("pirl", "pirl_jigsaw")
    partition: torch.Tensor

    def __init__(self, config: PIRLConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: PIRLConfig = config
        check_negatives(config.num_negatives, num_samples)
        if not 0 <= config.jigsaw_weight <= 1:
            raise ValueError(f"loss.jigsaw_weight is {config.jigsaw_weight}; it must be from 0 to 1")
        dim = config.embedding_dim
        self.patch_projectors = nn.ModuleDict()
        self.puzzle_projectors = nn.ModuleDict()
        self.banks = nn.ModuleDict()
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, dim)
            self.projectors[modality] = mlp(dims, final_batch_norm=config.projector_final_batch_norm)
            self.patch_projectors[modality] = mlp(dims)
            jigsaw_dims = (NUM_PATCHES * dim, dim)
            self.puzzle_projectors[modality] = mlp(jigsaw_dims, final_batch_norm=config.projector_final_batch_norm)
            self.banks[modality] = make_bank(num_samples, dim, config.seed, sharded=config.shard_banks)
        self.register_buffer("partition", initial_partition())

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """The whole and its jigsaw, of the same image or seconds."""
        return tuple(replace(view, clip=0) for view in super().views(config))

    @classmethod
    def checked_modalities(cls, config: PairConfig) -> tuple[Modality, ...]:
        """As in the base class; the error for a pair across modalities names AVID instead."""
        if len(set(config.modalities)) == 2:
            raise ValueError(
                f"loss.modalities is [{', '.join(config.modalities)}]; loss pirl compares a sample with a jigsaw of "
                "itself, and across modalities it would be joint AVID: use loss.name=avid loss.variant=joint"
            )
        return super().checked_modalities(config)

    @classmethod
    def checked_augments(cls, config: PairConfig) -> tuple[str, ...]:
        """As in the base class, but the second set is always a jigsaw, which has "jigsaw" in its name."""
        first, second = super().checked_augments(config)
        jigsaw = JIGSAWS[config.modalities[1]]
        if not config.augments:
            return first, jigsaw
        if "jigsaw" not in second:
            raise ValueError(
                f"loss.augments is {list(config.augments)}; the second view of loss pirl is a jigsaw, of a set with "
                f"`jigsaw` in its name: use loss.augments=[{first},{jigsaw}]"
            )
        return first, second

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Unit embeddings {"first": f(I) (B, D), "second": g(I^t) (B, D)}."""
        outputs = {
            name: self.project(name, view) if name == "first" else self.project_jigsaw(view)
            for name, view in views.items()
        }
        return {name: normalize(z.float(), dim=1) for name, z in outputs.items()}

    def project_jigsaw(self, patches: torch.Tensor) -> torch.Tensor:
        """g: nine patches (B, 9, ...) in their shuffled order -> (B, D)."""
        if patches.shape[1] != NUM_PATCHES:
            raise ValueError(
                f"the second view of loss pirl has shape {tuple(patches.shape)}; it must be a jigsaw "
                f"(B, {NUM_PATCHES}, ...), from a set of views.augments that cuts one"
            )
        modality = self.modality_of["second"]
        rows = self.patch_projectors[modality](self.encoders[modality](patches.flatten(0, 1)))
        return cast("torch.Tensor", self.puzzle_projectors[modality](rows.view(len(patches), -1)))

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:
        """Weighted sum of the two terms, each a mean over this rank's rows, which are independent."""
        config = self.config
        positives = (gather(index) if config.shard_banks else index)[:, None]  # sharded: those of all ranks' anchors
        negatives = draw_negatives(
            positives,
            2 * config.num_negatives,
            self.num_samples,
            config.seed,
            progress.batch,
            for_all_ranks=config.shard_banks,
        )
        jigsaw_negatives, whole_negatives = negatives.chunk(2, dim=1)
        values, terms = {}, {}
        # The jigsaw comes first: its scores measure the partition constant.
        for term, name, noise in (("jigsaw", "second", jigsaw_negatives), ("whole", "first", whole_negatives)):
            values[term], scalars = bank_nce(
                outputs[name],
                self.bank,
                positives,
                noise,
                config.temperature,
                self.partition,
                measure=progress.batch == 0,
            )
            terms.update({term + suffix: value for suffix, value in scalars.items()})
        total = config.jigsaw_weight * values["jigsaw"] + (1 - config.jigsaw_weight) * values["whole"]
        return LossOutput(total, terms)

    @property
    def bank(self) -> AnyBank:
        """The memory bank of f(I)."""
        return cast("AnyBank", self.banks[self.modality_of["first"]])

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:
        """Move the bank's rows towards f(I); jigsaws do not change them."""
        self.bank.update(gather(index), gather(outputs["first"]), self.config.bank_momentum)
