"""MoCo v3: an empirical study of training self-supervised vision transformers (Chen, Xie, He 2021, arXiv 2104.02057).

There is no queue: each prediction q is classified as its own sample's key among the keys of the whole batch, in both
directions (algorithm 1, rows of unit norm):

    ctr(q, k) = 2 T mean_i -log( exp(q_i k_i / T) / sum_j exp(q_i k_j / T) )
    L = ctr(q_first, k_second) + ctr(q_second, k_first)

q comes from encoder, projector and predictor; k, without gradient, from a teacher of encoder and projector whose
momentum goes from `teacher_momentum` to 1 by a cosine. The authors move it before the keys of step t are computed, with
the momentum of t; here it moves after step t - 1, which is the same. Each view passes through the networks by itself.

Across modalities there is an encoder, projector, predictor and teacher for each: the video's prediction is compared
with the audio keys and the other way round. The heads' defaults are those for ResNet; a vision transformer has
`projector_hidden_dims=[4096,4096]`, `predictor_final_batch_norm=true` and T = 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from avssl.distributed import gather, rank
from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import MoCoV3Config
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.teacher import check_momentum, cosine_momentum, frozen_copy
from avssl.types import LossConfig, LossOutput, Progress


def contrast(queries: torch.Tensor, keys: torch.Tensor, temperature: float, first_row: int = 0) -> torch.Tensor:
    """Cross-entropy of each query's own key among all keys, times 2 T: the mean over the B queries.

    Args:
        queries: (B, D) predictions with gradient; need not be normalized; any float.
        keys: (C, D), C >= B; likewise; detached here. Query i's own key is row first_row + i.
        temperature: > 0.
        first_row: where this rank's rows begin among the keys of all ranks.

    Returns a float32 scalar; finite also where cosines are 1 and the temperature is small.
    """
    scores = normalize(queries.float(), dim=1) @ normalize(keys.detach().float(), dim=1).T / temperature
    key_rows = first_row + torch.arange(len(scores), device=scores.device)
    return 2 * temperature * cross_entropy(scores, key_rows)


@register("moco_v3")
class MoCoV3(PairLoss):
    """Symmetric contrast of predictions with a momentum teacher's keys in the batch. State: a teacher per modality.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = MoCoV3(MoCoV3.Config(projector_hidden_dims=(16,), predictor_hidden_dims=(16,)), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = MoCoV3Config
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "Chen et al. 2021, arXiv 2104.02057"
    state: ClassVar[str] = "EMA teacher"
    augments: ClassVar[tuple[str, str]] = ("moco_v3_first", "moco_v3_second")
    compared: ClassVar[tuple[tuple[str, str], ...]] = (("first", "second_key"), ("second", "first_key"))
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: MoCoV3Config, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: MoCoV3Config = config
        check_momentum(config.teacher_momentum)
        dim = config.embedding_dim
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, dim)
            self.projectors[modality] = mlp(dims, batch_norm=True, final_batch_norm=True, final_affine=False)
            self.predictors[modality] = mlp(
                (dim, *config.predictor_hidden_dims, dim),
                batch_norm=True,
                final_batch_norm=config.predictor_final_batch_norm,
                final_affine=False,
                final_bias=False,
            )
            self.teachers[modality] = frozen_copy(self.student(modality))

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Predictions {"first": (B, D), "second": (B, D)} and keys {"first_key": (B, D), "second_key": (B, D)}."""
        keys = {f"{name}_key": rows for name, rows in self.teach_each(views).items()}
        return self.on_each_view(self.predictors, self.project_each(views)) | keys

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """The sum of both directions, each of this rank's predictions against the keys of all ranks."""
        first_row = rank() * len(index)
        terms: dict[str, torch.Tensor] = {}
        for query, key in (("first", "second"), ("second", "first")):
            keys = gather(outputs[f"{key}_key"])
            terms[f"{query}_to_{key}"] = contrast(outputs[query], keys, self.config.temperature, first_row)
        total = cast("torch.Tensor", sum(terms.values()))
        return LossOutput(total, {name: term.detach() for name, term in terms.items()})

    def after_step(self, progress: Progress) -> None:
        """Move the teachers, with the momentum of the next step."""
        self.move_teachers(cosine_momentum(self.config.teacher_momentum, progress.step, progress.total_steps))
