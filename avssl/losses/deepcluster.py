"""DeepCluster: k-means clusters of a network's own features as labels (Caron et al. 2018, arXiv 1807.05520).

Before each epoch, or every `cluster_every_epochs` epochs if an epoch of a small corpus has too few steps to learn a
new classifier, the features of all samples, in eval mode and without augmentation, are whitened to `pca_dim`
principal components, normalized and clustered by k-means with a new seed. The classifier, a linear layer on the
rectified features, starts anew from N(0, 0.01^2) with bias 0, and network and classifier are trained with the clusters
y as labels. Sampling uniformly over clusters is replaced by its equivalent, a weight for each sample:

    L = 1/B sum_b w(y_b) * -log softmax(W relu(f_b) + b)_{y_b},    w(y) = N / (non-empty clusters * samples in y)

whose mean over the data set is 1. Without it, large clusters grow until all samples are in one.

Features are taken before the last ReLU of the paper's AlexNet classifier, two layers of 4096 (projector_dims; its
dropout and the fixed Sobel filter in front of the network are left out). The classifier's optimizer is plain SGD: its
parameter group sets momentum 0, which the optimizers sgd and lars follow.

Across modalities the labels are swapped: each modality's clusters are the other one's labels (see xdc.py).
Every process holds the features of all samples, float32 (N, D), to cluster them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize, relu

from avssl.losses.base import EpochContext, Outputs, PairLoss
from avssl.losses.configs import DeepClusterConfig
from avssl.losses.registry import register
from avssl.models.heads import mlp
from avssl.ops.clusters import check_num_clusters, describe_labels, fitted_num_clusters
from avssl.ops.kmeans import kmeans, whiten
from avssl.ops.sampling import generator_for
from avssl.options.counts import check_counts
from avssl.types import LossConfig, LossOutput, Modality, Progress, TooFewSamplesError


def cluster_weights(labels: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """The weight of the samples of each label, inverse to the cluster's size: labels int64 (N,) -> float32 (K,).

    The mean over the N samples of their weights is 1; an empty cluster has weight 0.
    """
    sizes = torch.bincount(labels, minlength=num_clusters)
    weights = len(labels) / ((sizes > 0).sum() * sizes.clamp_min(1))
    return torch.where(sizes > 0, weights, 0).float()


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the weighted cross-entropy; it is not divided by the sum of the weights.

    logits (B, K) any float, labels int64 (B,), weights (K,) of the labels. Returns a float32 scalar.

    >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
    >>> round(balanced_cross_entropy(logits, labels, weights=torch.tensor([2 / 3, 2.0])).item(), 4)
    0.6931
    """
    return (weights[labels] * cross_entropy(logits.float(), labels, reduction="none")).mean()


@register("deepcluster")
class DeepCluster(PairLoss):
    """Classification of clusters. State: labels (N, M) and weights (M, K) for the clusters of M modalities.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = DeepCluster(DeepCluster.Config(num_clusters=2, pca_dim=4), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = DeepClusterConfig
    family: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "Caron et al. 2018, arXiv 1807.05520"
    state: ClassVar[str] = "labels"
    pairs: ClassVar[tuple[tuple[Modality, ...], ...]] = (("image",), ("video",), ("audio",), ("video", "audio"))
    has_one_space: ClassVar[bool] = False  # each modality has features and classifiers of its own
    compared: ClassVar[tuple[tuple[str, str], ...]] = ()
    augments: ClassVar[tuple[str, str]] = ("deepcluster", "deepcluster")
    labels: torch.Tensor
    weights: torch.Tensor
    label_health: torch.Tensor

    def __init__(self, config: DeepClusterConfig, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: DeepClusterConfig = config
        check_num_clusters("num_clusters", config.num_clusters, num_samples)
        check_counts(config, "loss")
        self.classifiers = nn.ModuleDict()
        for modality in encoders:
            dims = (self.feature_dim(modality), *config.projector_dims)
            self.projectors[modality] = mlp(dims) if config.projector_dims else nn.Identity()
            self.classifiers[modality] = nn.Linear(dims[-1], config.num_clusters)
            if not 0 < config.pca_dim <= min(dims[-1], num_samples - 1):
                raise (TooFewSamplesError if config.pca_dim >= num_samples else ValueError)(
                    f"loss.pca_dim is {config.pca_dim}; {num_samples} samples with {modality} features of dim "
                    f"{dims[-1]} allow 1 to {min(dims[-1], num_samples - 1)}: lower it, or raise loss.projector_dims"
                )
        columns = len(config.modalities)
        self.register_buffer("labels", torch.zeros(num_samples, columns, dtype=torch.int64))
        self.register_buffer("weights", torch.ones(columns, config.num_clusters))
        self.register_buffer("label_health", torch.zeros(2))

    @classmethod
    def fitted(cls, config: LossConfig, num_samples: int, global_batch_size: int) -> dict[str, int]:  # noqa: ARG003
        """Clusters of some samples each, and principal components of which half of the samples could have as many."""
        config = cast("DeepClusterConfig", config)
        most = max(1, num_samples // 2)
        components = {"pca_dim": most} if config.pca_dim > most else {}
        return fitted_num_clusters("num_clusters", config.num_clusters, num_samples) | components

    def on_epoch_start(self, context: EpochContext) -> None:
        """Cluster the features and reset the classifiers every `cluster_every_epochs` epochs."""
        if context.epoch % self.config.cluster_every_epochs:
            return
        before, config = self.labels.clone(), self.config
        clusterings = []  # no state is changed before the last pass over the samples has ended
        for column, (name, modality) in enumerate(self.modality_of.items()):
            draw = context.epoch * len(self.modality_of) + column
            generator = generator_for(config.seed, draw, torch.device("cpu"))
            features = normalize(whiten(context.collect(name, self.num_samples, (name,)), config.pca_dim), dim=1)
            _, assignments = kmeans(features, config.num_clusters, config.kmeans_iterations, generator)
            clusterings.append((assignments, modality, generator))
        for column, (assignments, modality, generator) in enumerate(clusterings):
            self.labels[:, column] = assignments
            self.weights[column] = cluster_weights(assignments, config.num_clusters)
            self.reset_classifier(modality, generator)
        self.label_health.copy_(describe_labels(before, self.labels, config.num_clusters))
        context.reset_optimizer_state(list(self.classifiers.parameters()))

    @torch.no_grad()
    def reset_classifier(self, modality: str, generator: torch.Generator) -> None:
        """Set weights from N(0, 0.01^2) and biases to 0, in place: the optimizer and DDP keep their references."""
        classifier = cast("nn.Linear", self.classifiers[modality])
        classifier.weight.copy_(0.01 * torch.randn(classifier.weight.shape, generator=generator))
        classifier.bias.zero_()

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Features and logits: {view: (B, D), view + "_logits": (B, K)}."""
        outputs = {name: self.project(name, view) for name, view in views.items()}
        logits = {f"{name}_logits": self.classifiers[self.modality_of[name]](relu(f)) for name, f in outputs.items()}
        return outputs | logits

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """Mean over modalities and this rank's rows, which are independent."""
        losses = []
        for position, name in enumerate(self.modality_of):
            column = 1 - position if self.is_cross_modal else position
            labels = self.labels[index, column]
            losses.append(balanced_cross_entropy(outputs[f"{name}_logits"], labels, self.weights[column]))
        terms = {"label_nmi": self.label_health[0].clone(), "label_entropy": self.label_health[1].clone()}
        return LossOutput(torch.stack(losses).mean(), terms)

    def param_groups(self) -> list[dict[str, object]]:
        """Encoders and projectors with the run's options; classifiers without momentum."""
        heads = list(self.classifiers.parameters())
        return [
            {"params": [*self.encoders.parameters(), *self.projectors.parameters()]},
            {"params": heads, "momentum": 0.0},
        ]

    def diagnostics(self, outputs: Outputs) -> Outputs:
        """As in the base class, of the features without the logits."""
        return super().diagnostics({name: outputs[name] for name in self.modality_of})
