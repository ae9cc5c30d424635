"""SwAV: swapped assignments between views (Caron et al. 2020, arXiv 2006.09882).

K prototypes, unit rows C, are shared by all views. The codes q of a large crop, soft assignments from its scores z C^T
balanced over the batch by Sinkhorn-Knopp, are predicted from every other crop:

    L = 1/2 sum_{g in large} 1/(V - 1) sum_{v != g} -1/B sum_b sum_k q^g_bk log softmax(z^v_b C^T / T)_k

without gradient through q. Codes are computed for all ranks, with `queue_size` together with a queue of earlier
embeddings of the same crop, scored with the current prototypes; the codes of the queue's rows are dropped.

As in the authors' code the prototypes are normalized around each step and not inside the loss (here after it, and at
the start), they get no update in the first steps, and the mean over crops replaces the paper's sum. There the queue is
filled from the epoch in which it is first used, and used once it is full; here it is filled from the start, so that it
is full in that epoch. Two modalities have a projector each into one space, shared prototypes, and codes and a queue
each; the video's crops predict the audio's codes and the other way round, and small video crops predict both. This is
designed by analogy, without a published result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import log_softmax, normalize

from avssl.distributed import gather, rank
from avssl.losses.base import Outputs
from avssl.losses.configs import SwAVConfig
from avssl.losses.crops import CropLoss
from avssl.losses.registry import register
from avssl.ops.clusters import usage_entropy
from avssl.ops.memory import Queue
from avssl.ops.transport import sinkhorn
from avssl.types import LossConfig, LossOutput, Progress


def swapped_prediction(
    scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor], temperature: float
) -> torch.Tensor:
    """Cross-entropy of each view's codes against the predictions of all the other views, averaged.

    Args:
        scores: (B, K) of every view against the prototypes, at least two views; any float.
        codes: (B, K) of the first len(codes) views, rows sum to 1; they get no gradient.
        temperature: > 0, divides the scores.

    Returns a float32 scalar: the mean over codes of the mean over the other views of the mean over the batch.

    >>> scores = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    >>> codes = torch.eye(2)
    >>> round(swapped_prediction([scores, scores], [codes, codes], temperature=1.0).item(), 4)
    0.0067
    """
    if not 0 < len(codes) <= len(scores) or len(scores) < 2:
        raise ValueError(
            f"swapped_prediction got scores of {len(scores)} views and codes of {len(codes)}; it needs at least two "
            "views, and codes of at least the first one"
        )
    logs = [log_softmax(score.float() / temperature, dim=1) for score in scores]
    losses = [
        -(code.detach().float() * log).sum(dim=1).mean()
        for position, code in enumerate(codes)
        for other, log in enumerate(logs)
        if other != position
    ]
    return torch.stack(losses).mean()  # each code has equally many: this is the mean of the means


@register("swav")
class SwAV(CropLoss):
    """Swapped prediction of balanced codes. State: a queue for each large crop if queue_size > 0.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = SwAV(SwAV.Config(num_small_crops=0, num_prototypes=4), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = SwAVConfig
    family: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "Caron et al. 2020, arXiv 2006.09882"
    state: ClassVar[str] = "queues (optional)"
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: SwAVConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: SwAVConfig = config
        self.prototypes = nn.Linear(config.embedding_dim, config.num_prototypes, bias=False)
        self.normalize_prototypes()
        self.queues = nn.ModuleDict()
        if config.queue_size:
            for position, name in enumerate(self.large_views):
                self.queues[name] = Queue(config.queue_size, config.embedding_dim, seed=2 * config.seed + position)

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:
        """As in the base class; a queue of whole batches of at most half the samples; frozen for an epoch at most."""
        fitted, given = super().fitted(config, num_samples, global_batch_size), cast("SwAVConfig", config)
        most = max(1, num_samples // 2 // global_batch_size) * global_batch_size
        if given.queue_size > most or given.queue_size % global_batch_size:
            fitted["queue_size"] = min(most, -(-given.queue_size // global_batch_size) * global_batch_size)
        epoch_steps = -(-num_samples // global_batch_size)
        return fitted | ({"freeze_steps": epoch_steps} if given.freeze_steps > epoch_steps else {})

    def check_batch_size(self, global_batch_size: int) -> None:
        """As in the base class; the queue must hold whole batches, so that each step replaces the oldest one."""
        super().check_batch_size(global_batch_size)
        size = self.config.queue_size
        if size % global_batch_size:
            nearest = max(1, size // global_batch_size) * global_batch_size
            raise ValueError(
                f"loss.queue_size is {size} with data.global_batch_size {global_batch_size}; it must be a multiple of "
                f"it, such as {nearest}, or 0 for no queue"
            )

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Unit embeddings and cosines to the prototypes: {view: (B, D), view + "_scores": (B, K)}, float32."""
        outputs = self.embed(views)
        with torch.autocast(self.prototypes.weight.device.type, enabled=False):  # codes need float32 scores
            scores = {f"{name}_scores": self.prototypes(z) for name, z in outputs.items()}
        return outputs | scores

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:
        """Cross-entropy over this rank's rows, with codes that were balanced over all ranks."""
        all_scores = {name: gather(outputs[f"{name}_scores"]) for name in self.large_views}
        codes = [self.codes(name, scores, len(index), progress) for name, scores in all_scores.items()]
        temperature = self.config.temperature
        total = swapped_prediction([outputs[f"{name}_scores"] for name in self.modality_of], codes, temperature)
        return LossOutput(total, {})

    @torch.no_grad()
    def diagnostics(self, outputs: Outputs) -> Outputs:
        """Those of every loss, and how the two large views of all ranks use the prototypes.

        Codes are balanced even when the network has collapsed; predictions and nearest prototypes are not.
        """
        scores = torch.cat([gather(outputs[f"{name}_scores"]) for name in self.large_views])
        predictions = (scores / self.config.temperature).softmax(dim=1)
        return super().diagnostics(outputs) | {
            "prediction_entropy": usage_entropy(predictions.mean(dim=0)),
            "assignment_entropy": usage_entropy(predictions).mean(),  # 1: each sample is assigned to all alike
            "nearest_prototypes": scores.new_zeros(scores.shape[1]).index_fill_(0, scores.argmax(dim=1), 1.0).sum(),
        }

    def codes(self, name: str, scores: torch.Tensor, num_rows: int, progress: Progress) -> torch.Tensor:
        """Codes (B, K) of this rank's rows, balanced over `scores` (W B, K) of all ranks and the queue's."""
        if self.queues and progress.epoch >= self.config.queue_from_epoch:
            queue = cast("Queue", self.queues[name])
            if queue.is_full:
                scores = torch.cat([scores, queue.rows @ self.prototypes.weight.detach().T])
        balanced = sinkhorn(scores, self.config.epsilon, self.config.sinkhorn_iterations)
        return balanced[rank() * num_rows : (rank() + 1) * num_rows]

    def before_step(self, progress: Progress) -> None:
        """Drop the prototypes' gradients in the first steps: no update, no weight decay, no momentum."""
        if progress.step < self.config.freeze_steps:
            self.prototypes.weight.grad = None

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:  # noqa: ARG002
        """Push this batch's embeddings, of all ranks, into the queues."""
        for name, queue in self.queues.items():
            cast("Queue", queue).push(gather(outputs[name]))

    def after_step(self, progress: Progress) -> None:  # noqa: ARG002
        """Normalize the prototypes, which the step has changed."""
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Make the rows unit vectors in place: the optimizer and DDP keep their references to the tensor."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))
