"""DINO: self-distillation with no labels (Caron et al. 2021, arXiv 2104.14294).

Scores s = z C^T of unit embeddings z against K unit prototypes C are logits of K classes that nobody names. The
student's prediction for each crop shall be the teacher's for every other large crop:

    L = mean over pairs (g, v), g large, v != g, of  -1/B sum_b sum_k q^g_bk log softmax(s^v_b / T)_k
    q^g = softmax((t^g - c) / T_t),   T_t < T

t are scores of the teacher, which has encoder, projector and prototypes of its own. It starts as a copy of the student
and follows it after each step with BYOL's momentum, which goes to 1. Two things that act against each other prevent
collapse: the low temperature T_t sharpens the targets, so that they do not become uniform, and the center c, an average
of t over past batches of all ranks, keeps one class from taking all. c is moved after it has been used.

T_t may begin lower and rise linearly over the first epochs. The prototypes get no update in the first epoch. Their rows
are made unit inside the forward pass: this is the last layer of the authors' code, with weight norm of fixed length 1;
so the optimizer's weight decay changes nothing but the size of their steps. The projector is a multi-layer perceptron
with GELU; its weights start from a normal distribution with deviation 0.02.

It compares views of one modality. Across video and audio, with prototypes in common and a center each, the targets
became uniform (docs/decisions.md).

The networks that a run hands on are the student's, as with every other loss here. The authors evaluate the teacher,
which in short runs was behind the student (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import linear, normalize

from avssl.distributed import gather
from avssl.losses.base import Outputs
from avssl.losses.configs import DINOConfig
from avssl.losses.crops import MultiCropLoss
from avssl.losses.registry import register
from avssl.losses.swav import swapped_prediction
from avssl.models.heads import mlp
from avssl.ops.clusters import fitted_num_clusters, usage_entropy
from avssl.ops.teacher import check_momentum, cosine_momentum, follow, frozen_copy
from avssl.types import LossConfig, LossOutput, Modality, Progress

START_DEVIATION = 0.02  # of the projector's weights


@register("dino")
class DINO(MultiCropLoss):
    """Predictions of a slow teacher's classes. State: the teacher, and the center of its scores.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> config = DINO.Config(num_small_crops=0, projector_hidden_dims=(16,), embedding_dim=8, num_prototypes=12)
    >>> loss = DINO(config, encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = DINOConfig
    family: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "Caron et al. 2021, arXiv 2104.14294"
    state: ClassVar[str] = "EMA teacher, center"
    augments: ClassVar[tuple[str, str]] = ("dino_first", "dino_second")
    small_augment: ClassVar[str] = "dino_small"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("image", "image"), ("video", "video"), ("audio", "audio"))
    center: torch.Tensor

    def __init__(self, config: DINOConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: DINOConfig = config
        check_momentum(config.teacher_momentum)
        if not 0 <= config.center_momentum <= 1:
            raise ValueError(f"loss.center_momentum is {config.center_momentum}; it must be from 0 to 1")
        self.prototypes = nn.Linear(config.embedding_dim, config.num_prototypes, bias=False)
        self.teacher_prototypes = frozen_copy(self.prototypes)
        self.register_buffer("center", torch.zeros(1, config.num_prototypes))
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, config.embedding_dim)
            projector = mlp(dims, batch_norm=config.projector_batch_norm, gelu=True)
            for layer in projector:
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=START_DEVIATION)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
            self.projectors[modality] = projector
            self.teachers[modality] = frozen_copy(self.student(modality))

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:  # noqa: ARG003
        """Prototypes for some samples each."""
        return fitted_num_clusters("num_prototypes", cast("DINOConfig", config).num_prototypes, num_samples)

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """{view: unit (B, D), view + "_scores": (B, K)}, and of large views view + "_target": (B, K), float32.

        The last ones are the teacher's scores, without gradient.
        """
        outputs = {name: normalize(z, dim=1) for name, z in self.project_crops(views).items()}
        taught = self.teach_crops({name: views[name] for name in self.large_views})
        scores = {f"{name}_scores": _scores(z, self.prototypes) for name, z in outputs.items()}
        with torch.no_grad():
            targets = {
                f"{name}_target": _scores(normalize(z, dim=1), self.teacher_prototypes) for name, z in taught.items()
            }
        return outputs | scores | targets

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """Cross-entropy over this rank's rows."""
        targets = self.targets(outputs, self.teacher_temperature(progress.epoch))
        scores = [outputs[f"{name}_scores"] for name in self.modality_of]
        return LossOutput(swapped_prediction(scores, targets, self.config.temperature), {})

    def targets(self, outputs: Outputs, temperature: float) -> list[torch.Tensor]:
        """The teacher's predictions (B, K) of the large views, centered and sharpened."""
        return [((outputs[f"{name}_target"] - self.center) / temperature).softmax(dim=1) for name in self.large_views]

    def teacher_temperature(self, epoch: int) -> float:
        """T_t of an epoch: from its start to its end value in `teacher_temperature_epochs` epochs, both included."""
        start, end = self.config.teacher_temperature_start, self.config.teacher_temperature
        last = self.config.teacher_temperature_epochs - 1
        return end if epoch >= last else start + (end - start) * epoch / last

    @torch.no_grad()
    def diagnostics(self, outputs: Outputs) -> Outputs:
        """Those of every loss, and how the teacher's and the student's large views of all ranks use the prototypes.

        Of the teacher's predictions: assignment_entropy is near 1 where all are uniform, prediction_entropy near 0
        where one class takes all. Both are at the temperature at which the teacher arrives.
        """
        targets = torch.cat([gather(one) for one in self.targets(outputs, self.config.teacher_temperature)])
        scores = torch.cat([gather(outputs[f"{name}_scores"]) for name in self.large_views])
        return super().diagnostics(outputs) | {
            "assignment_entropy": usage_entropy(targets).mean(),
            "prediction_entropy": usage_entropy(targets.mean(dim=0)),
            "nearest_prototypes": scores.new_zeros(scores.shape[1]).index_fill_(0, scores.argmax(dim=1), 1.0).sum(),
        }

    def before_step(self, progress: Progress) -> None:
        """Drop the prototypes' gradients in the first epochs: no update, no weight decay, no momentum."""
        if progress.epoch < self.config.freeze_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def update(self, outputs: Outputs, index: torch.Tensor) -> None:  # noqa: ARG002
        """Move the center towards the mean of this batch's scores of the teacher, over all ranks."""
        mean = torch.cat([outputs[f"{name}_target"] for name in self.large_views]).mean(dim=0, keepdim=True)
        mean = gather(mean).mean(dim=0, keepdim=True)  # ranks have as many rows
        self.center.lerp_(mean, 1 - self.config.center_momentum)

    def after_step(self, progress: Progress) -> None:
        """Move the teachers towards the student, which the step has just changed."""
        self.move_teachers(cosine_momentum(self.config.teacher_momentum, progress.step - 1, progress.total_steps))

    def move_teachers(self, momentum: float) -> None:
        """As in the base class, with the teacher's prototypes."""
        super().move_teachers(momentum)
        follow(self.teacher_prototypes, self.prototypes, momentum)


def _scores(z: torch.Tensor, prototypes: nn.Linear) -> torch.Tensor:
    """Cosines (B, K) of unit rows z with the prototypes, in float32: targets divide them by a low temperature."""
    with torch.autocast(z.device.type, enabled=False):
        return linear(z.float(), normalize(prototypes.weight, dim=1))
