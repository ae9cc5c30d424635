"""SeLa: self-labeling by optimal transport (Asano, Rupprecht, Vedaldi 2020, arXiv 1911.05371).

Linear heads on the features are trained on hard labels. From time to time new labels are chosen: of all labelings that
use every cluster equally often, the one that the heads find most probable. With P the predictions of a head for all N
samples this is a transport problem, solved with sharpness lambda by scaling rows and columns:

    Q_nk = c_n P_nk^lambda r_k,    sum_n Q_nk = 1/K,  sum_k Q_nk = 1/N,    label_n = argmax_k Q_nk

The loss is the mean over heads of the cross-entropy. Labels start random and balanced.

The authors re-label `num_relabelings` times, at times that are spread quadratically over the run, dense at its start.
Here an epoch that begins at or after such a time re-labels first: several times within one epoch give one
re-labeling, and the first epoch re-labels with an untrained network. The authors take the predictions from the
augmented training views with the network in train mode; here they come from deterministic views in eval mode, so that
labels do not depend on the random draws or on the batches.

Two modalities share the labels, found for the product (P_video P_audio)^(lambda / 2). This is the idea of SeLaVi
(Asano, Patrick, Rupprecht, Vedaldi 2020, arXiv 2006.13662), without its unequal cluster sizes and alignment of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn

from avssl.distributed import gather
from avssl.losses.base import EpochContext, Outputs, PairLoss
from avssl.losses.configs import SeLaConfig
from avssl.losses.registry import register
from avssl.ops.clusters import (
    check_num_clusters,
    cross_entropy_of_heads,
    describe_labels,
    fitted_num_clusters,
    usage_entropy,
)
from avssl.ops.transport import self_labels
from avssl.types import LossConfig, LossOutput, Modality, Progress

ROWS_AT_ONCE = 8192  # samples whose predictions are computed together


def relabeling_epochs(num_relabelings: int, epochs: int) -> tuple[int, ...]:
    """Epochs (0-based, ascending) that begin with new labels: epochs * (j / (n - 1))^2, rounded up, for j = 0 .. n - 1.

    Equal ones count once, and the last one, the end of the run, is left out. Raises ValueError for counts below 1.
    """
    if num_relabelings < 1 or epochs < 1:
        raise ValueError(
            f"loss.num_relabelings is {num_relabelings} and loss.relabel_epochs {epochs}; both must be at least 1"
        )
    last = max(1, num_relabelings - 1)
    # In integers, because the ceiling of a float product would sometimes be one too high.
    rounded_up = {-(-epochs * position**2 // last**2) for position in range(num_relabelings)}
    return tuple(sorted(epoch for epoch in rounded_up if epoch < epochs))


@register("sela")
class SeLa(PairLoss):
    """Classification of balanced labels. State: labels (N, H).

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = SeLa(SeLa.Config(num_clusters=4), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = SeLaConfig
    family: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "Asano et al. 2020, arXiv 1911.05371"
    state: ClassVar[str] = "labels"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("image",), ("video",), ("audio",), ("video", "audio"))
    has_one_space: ClassVar[bool] = False  # each modality has features and classifiers of its own
    compared: ClassVar[tuple[tuple[str, str], ...]] = ()
    augments: ClassVar[tuple[str, str]] = ("sela", "sela")
    labels: torch.Tensor
    label_health: torch.Tensor

    def __init__(self, config: SeLaConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: SeLaConfig = config
        check_num_clusters("num_clusters", config.num_clusters, num_samples)
        self.relabel_at = relabeling_epochs(config.num_relabelings, config.relabel_epochs)
        self.classifiers = nn.ModuleDict(
            {
                modality: nn.Linear(self.feature_dim(modality), config.num_heads * config.num_clusters)
                for modality in encoders
            }
        )
        generator = torch.Generator().manual_seed(config.seed)
        balanced = torch.arange(num_samples) % config.num_clusters
        if config.swap_labels and not self.is_cross_modal:
            raise ValueError(
                "loss.swap_labels is true, but loss.modalities names one modality; it needs video and audio"
            )
        # One set of labels for all modalities, or one from each modality's predictions.
        self.label_columns = config.num_heads * (2 if config.swap_labels else 1)
        columns = [balanced[torch.randperm(num_samples, generator=generator)] for _ in range(self.label_columns)]
        self.register_buffer("labels", torch.stack(columns, dim=1))
        self.register_buffer("label_health", torch.zeros(2))

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:  # noqa: ARG003
        """Clusters of some samples each."""
        return fitted_num_clusters("num_clusters", cast("SeLaConfig", config).num_clusters, num_samples)

    def on_epoch_start(self, context: EpochContext) -> None:
        """Find new labels for each head, in the epochs of the schedule."""
        if context.epoch not in self.relabel_at:
            return
        features = {name: context.collect(name, self.num_samples, (name,)) for name in self.modality_of}
        before = self.labels.clone()
        num_heads = self.config.num_heads
        for column in range(self.label_columns):
            logs = [self.log_probabilities(name, rows, column % num_heads) for name, rows in features.items()]
            if self.config.swap_labels:  # the first modality's labels come from the second's predictions
                log_probabilities = logs[1 - column // num_heads]
            else:  # log of the geometric mean; its rows need not sum to 1
                log_probabilities = torch.stack(logs).mean(dim=0)
            self.labels[:, column] = self_labels(log_probabilities, self.config.sharpness)
        self.label_health.copy_(describe_labels(before, self.labels, self.config.num_clusters))

    @torch.no_grad()
    def log_probabilities(self, name: str, features: torch.Tensor, head: int) -> torch.Tensor:
        """Logarithms of the predictions (N, K) of one head for the features (N, D) of a view."""
        classifier = cast("nn.Linear", self.classifiers[self.modality_of[name]])
        rows = slice(head * self.config.num_clusters, (head + 1) * self.config.num_clusters)
        weight, bias = classifier.weight[rows], classifier.bias[rows]
        blocks = [(block @ weight.T + bias).log_softmax(dim=1) for block in features.split(ROWS_AT_ONCE)]
        return torch.cat(blocks)

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Features and logits: {view: (B, D), view + "_logits": (B, H, K)}."""
        outputs: Outputs = {}
        for name, view in views.items():
            modality = self.modality_of[name]
            outputs[name] = self.encoders[modality](view)
            heads = self.classifiers[modality](outputs[name])
            outputs[f"{name}_logits"] = heads.unflatten(1, (self.config.num_heads, self.config.num_clusters))
        return outputs

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """Mean over modalities, heads and this rank's rows, which are independent."""
        all_logits = [outputs[f"{name}_logits"] for name in self.modality_of]
        label_sets = self.labels[index].split(self.config.num_heads, dim=1)
        pairs = zip(all_logits, label_sets if self.config.swap_labels else label_sets * len(all_logits), strict=True)
        total = torch.stack([cross_entropy_of_heads(logits, labels) for logits, labels in pairs]).mean()
        local_usage = torch.stack([logits.detach().float().softmax(dim=2).mean(dim=0) for logits in all_logits])
        usage = gather(local_usage[None]).mean(dim=0)  # of all ranks: the entropy of their mean is logged
        terms = {
            "label_nmi": self.label_health[0].clone(),
            "label_entropy": self.label_health[1].clone(),
            "prediction_entropy": usage_entropy(usage).mean(),  # labels are balanced by force, predictions are not
        }
        return LossOutput(total, terms)
