"""SimSiam: exploring simple Siamese representation learning (Chen & He 2021, arXiv 2011.10566).

This is BYOL without a teacher: a predictor on one side and a stopped gradient on the other prevent collapse.

    L = ( D(p1, sg(z2)) + D(p2, sg(z1)) ) / 2,    D(p, z) = -mean over the batch of cos(p, z)            (eq. 1 to 4)

L is near 0 before training and -1 at best, in a solution and in a collapse; `first_embedding_spread` in the log tells
which (near 1 spread out, 0 collapsed). Each view is a batch of its own for batch norm, as in the paper's algorithm 1.

The projector ends in a batch norm without scale and shift, the predictor in a plain linear layer. The predictor keeps
its learning rate while the others follow the schedule. The authors freeze the bias before the last batch norm, where
it has no effect; here linear layers before a batch norm have none. Across modalities each one has its own projector
and predictor, keyed by the modality that predicts. Rows are independent except in batch norm, so the loss is a mean
over each process's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from avssl.losses.base import Outputs, PairLoss
from avssl.losses.configs import SimSiamConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.types import LossConfig, LossOutput, Progress


def negative_cosine(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-mean over the batch of cos(prediction, target), eq. 1: -1 for equal directions, 1 for opposite ones.

    Args:
        predictions, targets: (B, D), row by row of the same sample; need not be normalized; any float. Targets get
            no gradient.

    Returns a float32 scalar.

    >>> z = torch.eye(4)
    >>> negative_cosine(z, z).item()
    -1.0
    """
    return -cosine_similarity(predictions.float(), targets.detach().float(), dim=1).mean()


@register("simsiam")
class SimSiam(PairLoss):
    """Regression of the other view's embedding with a stopped gradient. State: none.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = SimSiam(SimSiam.Config(), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = SimSiamConfig
    family: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "Chen & He 2021, arXiv 2011.10566"
    augments: ClassVar[tuple[str, str]] = ("moco_v2", "moco_v2")
    compared: ClassVar[tuple[tuple[str, str], ...]] = (("first_prediction", "second"), ("second_prediction", "first"))
    min_global_batch_size: ClassVar[int] = 2

    def __init__(self, config: SimSiamConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: SimSiamConfig = config
        dim = config.embedding_dim
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_hidden_dims, dim)
            self.projectors[modality] = mlp(dims, batch_norm=True, final_batch_norm=True, final_affine=False)
            # Keyed by the modality of the view that predicts.
            self.predictors[modality] = mlp((dim, *config.predictor_hidden_dims, dim), batch_norm=True)

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """{"first": (B, D) embeddings, "first_prediction": (B, D), and the same for "second"}."""
        outputs = self.project_each(views)
        predictions = self.on_each_view(self.predictors, outputs)
        return outputs | {f"{name}_prediction": rows for name, rows in predictions.items()}

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """Mean of both directions, each a mean over this rank's rows."""
        terms = {
            "first_to_second": negative_cosine(outputs["first_prediction"], outputs["second"]),
            "second_to_first": negative_cosine(outputs["second_prediction"], outputs["first"]),
        }
        total = (terms["first_to_second"] + terms["second_to_first"]) / 2
        return LossOutput(total, {name: term.detach() for name, term in terms.items()})

    def param_groups(self) -> list[dict[str, object]]:
        """Encoders and projectors follow the schedule, predictors keep the full learning rate."""
        scheduled = [*self.encoders.parameters(), *self.projectors.parameters()]
        return [
            {"params": [parameter for parameter in scheduled if parameter.requires_grad]},
            {"params": list(self.predictors.parameters()), "constant_lr": True},
        ]
