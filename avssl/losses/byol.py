"""BYOL: bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733).

The online network (encoder, projector, predictor) predicts the output of a target network (encoder, projector) for the
other view; no sample is compared with another one:

    L = || p1 - sg(t2) ||^2 + || p2 - sg(t1) ||^2 = (2 - 2 cos(p1, t2)) + (2 - 2 cos(p2, t1)),   p, t made unit

averaged over the batch; before training, cosines are about 0 and L is about 4. The target starts with random weights
of its own, as in the authors' code (or as a copy: `teacher_start`), and follows the online network after each step:

    target <- m_k target + (1 - m_k) online,    m_k = 1 - (1 - m_0) (1 + cos(pi k / K)) / 2,   k = 0 ... K - 1

for parameters only; its batch norms use the statistics of their own batches, because it runs in train mode. Each view
is a batch of its own for batch norm. Otherwise rows are independent, so the loss is a mean over each process's rows.

Hidden linear layers have no bias, which the batch norm after them would cancel. Across modalities each one has its own
online network, target and predictor: the video's prediction regresses the audio's target and the other way round. The
independent start redraws every layer by PyTorch's default rule (ops/teacher.py). In a run of some hundred steps, a copy
learns more (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import BYOLConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.teacher import check_momentum, cosine_momentum, frozen_copy
from avssl.types import LossConfig, LossOutput, Progress


def regression(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of 2 - 2 cos(prediction, target), eq. 2: 0 for equal directions, 4 for opposite ones.

    Args:
        predictions, targets: (B, D), row by row of the same sample; need not be normalized; any float. Targets get
            no gradient.

    Returns a float32 scalar.

    >>> z = torch.eye(4)
    >>> regression(z, z).item(), regression(z, -z).item()
    (0.0, 4.0)
    """
    return 2 - 2 * cosine_similarity(predictions.float(), targets.detach().float(), dim=1).mean()


@register("byol")
class BYOL(PairLoss):
    """Regression of a slow teacher's embedding of the other view. State: a teacher per modality.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = BYOL(BYOL.Config(projector_hidden_dims=(16,), predictor_hidden_dims=(16,)), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = BYOLConfig
    family: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "Grill et al. 2020, arXiv 2006.07733"
    state: ClassVar[str] = "EMA teacher"
    augments: ClassVar[tuple[str, str]] = ("byol_first", "byol_second")
    compared: ClassVar[tuple[tuple[str, str], ...]] = (
        ("first_prediction", "second_target"),
        ("second_prediction", "first_target"),
    )
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: BYOLConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: BYOLConfig = config
        check_momentum(config.teacher_momentum)
        dim = config.embedding_dim
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, dim)
            self.projectors[modality] = mlp(dims, batch_norm=True, final_bias=False)
            # Keyed by the modality of the view that predicts.
            dims = (dim, *config.predictor_hidden_dims, dim)
            self.predictors[modality] = mlp(dims, batch_norm=True, final_bias=False)
            # Drawn from torch's generator like all weights: the same on every rank, a function of the run's seed.
            self.teachers[modality] = frozen_copy(
                self.student(modality), independent=config.teacher_start == "independent"
            )

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """{"first_prediction": (B, D), "first_target": (B, D), and the same for "second"}."""
        predictions = self.on_each_view(self.predictors, self.project_each(views))
        targets = self.teach_each(views)
        outputs = {f"{name}_prediction": rows for name, rows in predictions.items()}
        return outputs | {f"{name}_target": rows for name, rows in targets.items()}

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """The sum of both directions, each a mean over this rank's rows."""
        terms = {
            "first_to_second": regression(outputs["first_prediction"], outputs["second_target"]),
            "second_to_first": regression(outputs["second_prediction"], outputs["first_target"]),
        }
        total = terms["first_to_second"] + terms["second_to_first"]
        return LossOutput(total, {name: term.detach() for name, term in terms.items()})

    def after_step(self, progress: Progress) -> None:
        """Move the teachers towards the online networks, which the step has just changed."""
        self.move_teachers(cosine_momentum(self.config.teacher_momentum, progress.step - 1, progress.total_steps))
