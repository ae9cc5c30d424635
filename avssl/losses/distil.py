"""Distillation of a frozen teacher into encoders of the same or of another modality, without labels.

The teacher is a network that somebody trained, or the rows that it gave: train/teacher.py opens it, and every batch has
its outputs t (B, D) beside the views. The student is an encoder with a projector to the teacher's D dimensions, z. With
rows made unit and weights that are options:

    L = w_r R + w_s S
    R = mean_i || z_i - t_i ||^2 = mean_i (2 - 2 cos(z_i, t_i))                                           regression
    S = mean_i KL( p_i || q_i )                                                                          similarities
        p_i = softmax( [t_i . t_i, t_i . queue_1, ..., t_i . queue_K] / T_t )
        q_i = softmax( [z_i . t_i, z_i . queue_1, ..., z_i . queue_K] / T_s )

R is SimReg (Navaneet et al. 2022, arXiv 2201.05131): a deep head, dropped afterwards, and the distance of unit
features. S is SEED (Fang et al. 2021, arXiv 2101.04731), which writes the cross-entropy: it differs from KL by the
entropy of p, which has no gradient; without the sample's own column and with T_t = T_s it is CompRess with one queue
(Koohpayegani et al. 2020, arXiv 2010.14713). The queue has the teacher's outputs of the K newest samples, and a batch
enters it after its loss.

The papers show both networks the same augmented image. Here the teacher sees the test view, of its own size and rate,
of the seconds that the student sees, so that its outputs may be computed once. Two students of a sample, video and
audio, learn the same row t, and so they share its space; this is designed by analogy, without a published result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax, normalize

from avssl.distributed import gather
from avssl.losses.base import Outputs, PairLoss
from avssl.losses.byol import regression
from avssl.losses.configs import DistilConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.memory import Queue
from avssl.types import LossConfig, LossOutput, Modality, Progress, TooFewSamplesError

TEACHER = "teacher"  # the view and the output with the teacher's rows


def similarity_divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    queue: torch.Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> torch.Tensor:
    """KL divergence of the student's similarities to [its teacher row, queue] from the teacher's: mean over the batch.

    Args:
        student: (B, D) with gradient; need not be normalized; any float.
        teacher: (B, D), row by row of the same samples; likewise; detached here.
        queue: (K, D) rows of the teacher for other samples; likewise; detached here.
        student_temperature, teacher_temperature: > 0.

    Returns a float32 scalar >= 0; 0 if both have the same similarities at the same temperature.

    >>> t, queue = torch.eye(4)[:2], torch.eye(4)[2:]
    >>> similarity_divergence(t, t, queue, student_temperature=0.1, teacher_temperature=0.1).item()
    0.0
    """
    student, teacher, queue = (normalize(x.float(), dim=1) for x in (student, teacher.detach(), queue.detach()))
    of_teacher, of_student = (
        torch.cat([(rows * teacher).sum(dim=1, keepdim=True), rows @ queue.T], dim=1) for rows in (teacher, student)
    )
    wanted = log_softmax(of_teacher / teacher_temperature, dim=1)
    given = log_softmax(of_student / student_temperature, dim=1)
    return kl_div(given, wanted, reduction="batchmean", log_target=True)


@register("distil")
class Distil(PairLoss):
    """Regression of a frozen teacher's rows, and similarities to a queue of them. State: the queue (K, D), if any.

    The teacher is in no state and no optimizer; its rows are `views["teacher"]`.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> config = Distil.Config(queue_size=8, projector_hidden_dims=(16,))
    >>> config.teacher.dim = 12
    >>> loss = Distil(config, encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "teacher": torch.rand(4, 12)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = DistilConfig
    family: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "Fang et al. 2021, arXiv 2101.04731; Navaneet et al. 2022, arXiv 2201.05131"
    state: ClassVar[str] = "queue (optional)"
    augments: ClassVar[tuple[str, str]] = ("deepcluster", "deepcluster")  # crop and flip
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("image",), ("video",), ("audio",), ("video", "audio"))
    compared: ClassVar[tuple[tuple[str, str], ...]] = (("first", TEACHER), ("second", TEACHER), ("first", "second"))
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: DistilConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: DistilConfig = config
        _check(config)
        if config.similarity_weight:
            if config.queue_size > num_samples:
                raise TooFewSamplesError(
                    f"loss.queue_size is {config.queue_size} with {num_samples} samples: the queue would hold samples "
                    f"more than once; choose at most {num_samples}"
                )
            self.queue = Queue(config.queue_size, config.teacher.dim, seed=config.seed)
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.teacher.dim)
            self.projectors[modality] = mlp(dims, batch_norm=True)

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:
        """A queue of whole batches of at most all samples."""
        config = cast("DistilConfig", config)
        if config.queue_size <= num_samples:
            return {}
        return {"queue_size": max(1, num_samples // global_batch_size) * min(global_batch_size, num_samples)}

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Rows of the students {"first": (B, D)}, "second" for two modalities, and "teacher" (B, D) as it was given."""
        outputs = {name: self.project(name, view) for name, view in views.items() if name != TEACHER}
        return outputs | ({TEACHER: views[TEACHER].detach()} if TEACHER in views else {})

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """Mean over this rank's rows, which are independent, and over the students; terms are logged unweighted."""
        config, students = self.config, [outputs[name] for name in self.modality_of]
        parts: list[tuple[str, float, list[torch.Tensor]]] = []
        if config.regression_weight:
            distances = [regression(rows, outputs[TEACHER]) for rows in students]
            parts.append(("regression", config.regression_weight, distances))
        if config.similarity_weight:
            temperatures = {
                "student_temperature": config.student_temperature,
                "teacher_temperature": config.teacher_temperature,
            }
            divergences = [
                similarity_divergence(rows, outputs[TEACHER], self.queue.rows, **temperatures) for rows in students
            ]
            parts.append(("similarity", config.similarity_weight, divergences))
        terms = {name: torch.stack(values).mean() for name, _, values in parts}
        total = torch.stack([weight * terms[name] for name, weight, _ in parts]).sum()
        return LossOutput(total, {name: term.detach() for name, term in terms.items()})

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:  # noqa: ARG002
        """Push the teacher's rows of this batch, of all ranks, into the queue."""
        if self.config.similarity_weight:
            self.queue.push(normalize(gather(outputs[TEACHER]).float(), dim=1))

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """As in the base class, of the students alone: how the teacher's rows lie is no matter of this training."""
        scalars = super().diagnostics(outputs)
        own = (f"{TEACHER}_embedding_spread", f"{TEACHER}_effective_rank", f"{TEACHER}_uniformity")
        return {name: value for name, value in scalars.items() if name not in own}


def _check(config: DistilConfig) -> None:
    """Raise ValueError for weights, temperatures or a teacher's dim that are not allowed."""
    for name in ("regression_weight", "similarity_weight"):
        if getattr(config, name) < 0:
            raise ValueError(f"loss.{name} is {getattr(config, name)}; it must be at least 0")
    if not config.regression_weight and not config.similarity_weight:
        raise ValueError(
            "loss.regression_weight and loss.similarity_weight are both 0, so nothing is learned; set one of them above"
        )
    for name in ("student_temperature", "teacher_temperature"):
        if getattr(config, name) <= 0:
            raise ValueError(f"loss.{name} is {getattr(config, name)}; it must be above 0")
    if config.teacher.dim < 1:
        raise ValueError(
            f"loss.teacher.dim is {config.teacher.dim}; it is the dim of the teacher's output, which `avssl pretrain` "
            "fills in when it opens the teacher"
        )
