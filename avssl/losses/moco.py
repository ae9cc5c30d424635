"""MoCo: momentum contrast (He et al. 2020, arXiv 1911.05722), and MoCo v2 (Chen et al. 2020, arXiv 2003.04297).

Each query is classified as its key, the teacher's embedding of the other view, against a queue of the K newest keys of
other batches (eq. 1, rows of unit norm):

    L = mean_i -log( exp(q_i k_i / T) / ( exp(q_i k_i / T) + sum_{j <= K} exp(q_i queue_j / T) ) )

The teacher follows encoder and projector as a moving average of the parameters (eq. 2). The authors move it before the
keys are computed; here it moves after the optimizer's step, which is the same. Keys enter the queue after the loss is
computed; otherwise each would be its own negative.

Two views of one modality are treated asymmetrically, as published: the first is the query, the second the key. Across
modalities the loss is the mean of both directions, video queries with audio keys and the other way round, with a
teacher and a queue for each modality. v1 has a linear projector and T = 0.07; v2 has `projector_hidden_dims=[2048]`,
T = 0.2 and more augmentation. With `num_negatives_same_clip` keys of other moments of the same clip are negatives of
the queries (moments.py); they do not enter the queue. The papers have no such negatives.

Shuffled batch norm. If query and key share the statistics of a batch norm, these reveal which key belongs to the
query's batch. So the batch of all processes is divided into `shuffle_groups` groups with statistics of their own:
queries in their order, keys in a random one. The authors' groups are their 8 GPUs; here the number of groups does not
depend on the number of processes, so one process computes the same as eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from avssl.distributed import gather, rank, world_size
from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import MoCoConfig
from avssl.losses.moments import moment_scores, moment_views, moments_name, split_moments, with_moments
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.memory import Queue
from avssl.ops.sampling import generator_for
from avssl.ops.teacher import check_momentum, frozen_copy
from avssl.types import LossConfig, LossOutput, Progress, TooFewSamplesError, View


def info_nce(
    queries: torch.Tensor,
    keys: torch.Tensor,
    queue: torch.Tensor,
    temperature: float,
    moments: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of each query's key against the queue, eq. 1: the mean over the B queries.

    Args:
        queries: (B, D) with gradient; need not be normalized; any float.
        keys: (B, D), row by row of the same samples; likewise; detached here.
        queue: (K, D) negatives of every query; likewise; detached here.
        temperature: > 0.
        moments: (B, n, D), further negatives of each query: keys of other moments of its own clip; likewise.

    Returns a float32 scalar; finite also where cosines are 1 and the temperature is small.

    >>> z = torch.eye(4)
    >>> info_nce(z[:2], z[:2], queue=z[2:], temperature=0.1).item() < 1e-3
    True
    """
    queries, keys, queue = (normalize(x.float(), dim=1) for x in (queries, keys.detach(), queue.detach()))
    positive = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.T], dim=1) / temperature
    if moments is not None:
        logits = torch.cat([logits, moment_scores(queries, moments.detach(), temperature)], dim=1)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


@register("moco")
class MoCo(PairLoss):
    """InfoNCE against a queue of a momentum teacher's keys. State: a teacher and a queue (K, D) per modality.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = MoCo(MoCo.Config(queue_size=8, shuffle_groups=0), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = MoCoConfig
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "He et al. 2020, arXiv 1911.05722; v2: Chen et al. 2020, arXiv 2003.04297"
    state: ClassVar[str] = "EMA teacher, queue"
    augments: ClassVar[tuple[str, str]] = ("moco_v1", "moco_v1")
    compared: ClassVar[tuple[tuple[str, str], ...]] = (("first", "second_key"), ("second", "first_key"))

    def __init__(self, config: MoCoConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: MoCoConfig = config
        check_momentum(config.teacher_momentum)
        if config.queue_size > num_samples:
            raise TooFewSamplesError(
                f"loss.queue_size is {config.queue_size} with {num_samples} samples: the queue would hold keys of the "
                f"query's own sample as negatives; choose at most {num_samples}"
            )
        self.queues = nn.ModuleDict()
        for offset, modality in enumerate(sorted(encoders)):
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            self.projectors[modality] = mlp(dims)
            self.teachers[modality] = frozen_copy(self.student(modality))
            self.queues[modality] = Queue(config.queue_size, config.embedding_dim, seed=2 * config.seed + offset)

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:
        """A queue of whole batches of at most half the samples, and groups of at least 2 rows for the batch norm."""
        config, fitted = cast("MoCoConfig", config), {}
        if config.queue_size > num_samples // 2:
            num_batches = max(1, num_samples // 2 // global_batch_size)
            fitted["queue_size"] = min(num_batches * global_batch_size, config.queue_size)
        if config.shuffle_groups > global_batch_size // 2:
            fitted["shuffle_groups"] = global_batch_size // 2
        return fitted

    def check_batch_size(self, global_batch_size: int) -> None:
        """As in the base class; also checks the queue and the groups of the batch norm."""
        super().check_batch_size(global_batch_size)
        config, processes = self.config, world_size()
        if config.queue_size < global_batch_size:
            raise ValueError(
                f"loss.queue_size is {config.queue_size}, less than data.global_batch_size {global_batch_size}; a "
                "queue holds at least one batch of keys: raise loss.queue_size"
            )
        groups = config.shuffle_groups
        if groups and (
            groups < 0 or groups % processes or global_batch_size % groups or global_batch_size < 2 * groups
        ):
            raise ValueError(
                f"loss.shuffle_groups is {groups}; it must be a multiple of the {processes} processes that divides "
                f"data.global_batch_size {global_batch_size} into groups of at least 2, or 0 for batch norm without "
                "shuffling (then set sync_batch_norm=true)"
            )

    @classmethod
    def views(cls, config: LossConfig) -> tuple[View, ...]:
        """As in the base class, and other moments of both."""
        pair = super().views(config)
        return (*pair, *moment_views(pair, cast("MoCoConfig", config).num_negatives_same_clip))

    @property
    def key_of(self) -> dict[str, str]:
        """{query view: its key view}: from first to second; across modalities in both directions."""
        return {"first": "second", "second": "first"} if self.is_cross_modal else {"first": "second"}

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Queries {"first": (B, D)} and keys {"second_key": (B, D)}; across modalities both for each view.

        Also {"first_moments": (B, n, D)} and {"second_moments": (B, n, D)}, keys of other moments of the clip.
        """
        outputs: Outputs = {}
        for query, key in self.key_of.items():
            if query in views:
                outputs[query] = self.in_groups(self.student(self.modality_of[query]), views[query])
            if key in views:
                outputs |= self.keys_of(key, views)
        return outputs

    def keys_of(self, name: str, views: dict[str, torch.Tensor]) -> Outputs:
        """The teacher's keys of a view, and of other moments if the view has any."""
        num_moments, modality = self.config.num_negatives_same_clip, self.modality_of[name]
        if not num_moments:
            return {f"{name}_key": self.teach(modality, views[name])}
        keys, moments = split_moments(self.teach(modality, with_moments(views, name)), num_moments)
        return {f"{name}_key": keys, moments_name(name): moments}

    @property
    def shuffles(self) -> bool:
        """Whether queries and keys pass through the networks in groups."""
        return self.training and self.config.shuffle_groups > 0

    def in_groups(self, network: nn.Module, view: torch.Tensor) -> torch.Tensor:
        """The network applied to this process's groups, one after the other: (B, ...) -> (B, D)."""
        groups = self.config.shuffle_groups // world_size() if self.shuffles else 1
        return torch.cat([network(group) for group in view.chunk(groups)])

    @torch.no_grad()
    def teach(self, modality: str, view: torch.Tensor) -> torch.Tensor:
        """Keys (B, D) of this process's rows, each computed on the process to which a random order assigns it."""
        teacher = self.teachers[modality]
        if not self.shuffles:
            return cast("torch.Tensor", teacher(view))
        global_batch, rows = gather(view), len(view)
        local = slice(rank() * rows, (rank() + 1) * rows)
        # The number of rows ever pushed differs for each batch, also after a resume; an order drawn on the CPU is the
        # same on all ranks.
        generator = generator_for(self.config.seed, int(self.queue(modality).count), torch.device("cpu"))
        order = torch.randperm(len(global_batch), generator=generator).to(view.device, non_blocking=True)
        keys = gather(self.in_groups(teacher, global_batch[order[local]]))
        return keys[order.argsort()[local]]

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """Mean over this rank's queries, which are independent, and over the directions."""
        losses = {}
        for query, key in self.key_of.items():
            queue, moments = self.queue(self.modality_of[key]).rows, outputs.get(moments_name(key))
            keys = outputs[f"{key}_key"]
            losses[f"{query}_to_{key}"] = info_nce(outputs[query], keys, queue, self.config.temperature, moments)
        total = torch.stack(list(losses.values())).mean()
        return LossOutput(total, {name: loss.detach() for name, loss in losses.items()})

    def queue(self, modality: str) -> Queue:
        """The queue of a modality's newest keys."""
        return cast("Queue", self.queues[modality])

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:  # noqa: ARG002
        """Push this batch's keys, of all ranks, into the queues."""
        for key in self.key_of.values():
            keys = normalize(gather(outputs[f"{key}_key"]).float(), dim=1)
            self.queue(self.modality_of[key]).push(keys)

    def after_step(self, progress: Progress) -> None:  # noqa: ARG002
        """Move the teachers towards the students."""
        self.move_teachers(self.config.teacher_momentum)
