"""DeepCluster-v2: clusters of the last epoch's embeddings as labels (Caron et al. 2020, arXiv 2006.09882).

Two memories keep each sample's last unit embeddings from training, of the large crops "first" and "second". Before an
epoch, for every head h, spherical k-means on one of the memories, in turn, gives centroids C_h and a label y_h for each
sample. All crops of a sample are classified by its labels, with the centroids as a classifier that is not trained:

    L = 1/H sum_h  mean over crops and batch of  -log softmax(z C_h^T / T)_{y_h}

Before the first epoch one pass fills the memories. As in the authors' code k-means starts from random rows, and an
empty cluster keeps its centroid. There each process holds the memories of its own samples and adds up sums over all
processes; here every process holds all rows and computes the same.

Across modalities each crop is labeled by the other modality: the video's crops are classified by labels and centroids
of the audio memory, and the other way round. This is designed by analogy, without a published result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.functional import normalize

from avssl.distributed import gather
from avssl.losses.base import EpochContext, Outputs
from avssl.losses.configs import DeepClusterV2Config
from avssl.losses.crops import CropLoss
from avssl.losses.registry import register
from avssl.ops.clusters import cross_entropy_of_heads, describe_labels
from avssl.ops.kmeans import spherical_kmeans
from avssl.ops.memory import MemoryBank
from avssl.ops.sampling import generator_for
from avssl.types import LossConfig, LossOutput, Progress


@register("deepcluster_v2")
class DeepClusterV2(CropLoss):
    """Cross-entropy with cluster labels. State: two memories (N, D), labels (N, H, S), prototypes (S, H, K, D).

    S counts sources of labels: one; across modalities one per modality, in the order of config.modalities.

    >>> encoders = {"image": create_encoder("resnet10", width=8)}
    >>> loss = DeepClusterV2(DeepClusterV2.Config(num_small_crops=0, num_prototypes=4), encoders, num_samples=8)
    >>> views = {"first": torch.rand(4, 3, 32, 32), "second": torch.rand(4, 3, 32, 32)}
    >>> loss.loss(loss(views), torch.arange(4), Progress()).total.item() < torch.inf
    True
    """

    Config: ClassVar[type[LossConfig]] = DeepClusterV2Config
    family: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "Caron et al. 2020, arXiv 2006.09882"
    state: ClassVar[str] = "embedding memories, labels, centroids"
    labels: torch.Tensor
    prototypes: torch.Tensor
    label_health: torch.Tensor

    def __init__(self, config: DeepClusterV2Config, encoders: Mapping[str, nn.Module], num_samples: int) -> None:
        super().__init__(config, encoders, num_samples)
        self.config: DeepClusterV2Config = config
        self.memories = nn.ModuleDict(
            {
                name: MemoryBank(num_samples, config.embedding_dim, seed=2 * config.seed + position)
                for position, name in enumerate(self.large_views)
            }
        )
        shape = (self.num_sources, config.num_heads, config.num_prototypes, config.embedding_dim)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
        self.register_buffer("prototypes", normalize(noise, dim=-1))
        # The samples are the first axis: by its size, a run that starts from another one recognizes other samples.
        self.register_buffer("labels", torch.zeros(num_samples, config.num_heads, shape[0], dtype=torch.int64))
        self.register_buffer("label_health", torch.zeros(2))

    @property
    def num_sources(self) -> int:
        """S, the number of clusterings per head."""
        return 2 if self.is_cross_modal else 1

    def source_of(self, name: str) -> int:
        """The number of the source that labels a view: across modalities the other modality."""
        return int(self.is_cross_modal and self.modality_of[name] == self.modality_of["first"])

    def on_epoch_start(self, context: EpochContext) -> None:
        """Cluster the memories of the last epoch; before the first epoch, fill them."""
        if context.epoch == 0:
            self.fill_memories(context)
        before, config = self.labels.clone(), self.config
        for source in range(self.num_sources):
            for head in range(config.num_heads):
                memory = self.large_views[source if self.is_cross_modal else head % 2]
                draw = (context.epoch * config.num_heads + head) * self.num_sources + source
                centroids, assignments = spherical_kmeans(
                    cast("MemoryBank", self.memories[memory]).rows,
                    config.num_prototypes,
                    config.kmeans_iterations,
                    generator_for(config.seed, draw, torch.device("cpu")),
                )
                self.prototypes[source, head] = centroids
                self.labels[:, head, source] = assignments
        self.label_health.copy_(describe_labels(before.flatten(1), self.labels.flatten(1), config.num_prototypes))

    def fill_memories(self, context: EpochContext) -> None:
        """Fill the memories in one pass without augmentation, where views of one modality are equal and read once."""
        rows = {name: context.collect(name, self.num_samples, (name,)) for name in self.large_views[: self.num_sources]}
        for name, memory in self.memories.items():
            cast("MemoryBank", memory).rows.copy_(normalize(rows.get(name, rows["first"]), dim=1))

    def forward(self, views: dict[str, torch.Tensor]) -> Outputs:
        """Unit embeddings {view: (B, D)}."""
        return self.embed(views)

    def loss(self, outputs: Outputs, index: torch.Tensor, progress: Progress) -> LossOutput:  # noqa: ARG002
        """Mean over crops, heads and this rank's rows, which are independent."""
        losses = []
        for name in self.modality_of:
            source = self.source_of(name)
            scores = torch.einsum("bd,hkd->bhk", outputs[name].float(), self.prototypes[source])
            losses.append(cross_entropy_of_heads(scores / self.config.temperature, self.labels[index][..., source]))
        terms = {"label_nmi": self.label_health[0].clone(), "label_entropy": self.label_health[1].clone()}
        return LossOutput(torch.stack(losses).mean(), terms)

    def update(self, outputs: Outputs, index: torch.Tensor) -> None:
        """Write this batch's embeddings of the large crops into the memories, in place of the old ones."""
        index = gather(index)
        for name, memory in self.memories.items():
            cast("MemoryBank", memory).update(index, gather(outputs[name]), momentum=0.0)
