"""Features of a shard folder from frozen networks: evenly spaced or random clips, chosen layers, every sample once.

The networks are in eval mode (batch norm uses its running statistics and keeps them), without gradients. Under torchrun
every process reads some of the samples, and each of them gets the whole table.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from avssl import distributed
from avssl.data.every_sample import ClipPlan, DecodedClips, SampleClips
from avssl.eval.labels import FeatureSet
from avssl.files.progress import track
from avssl.models.layers import FEATURE, stage_activations
from avssl.shards.shard_set import ShardSet
from avssl.transforms.raw_view import RawView

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder

POOLED_DIM = 9216  # the most numbers per layer: 64 x 12 x 12, as published for AVID and for images (see `pooled`)
OUTPUTS = ("feature", "embedding")  # the output of the encoder; the unit vector after the projector


def extract(
    embedder: Embedder,
    shards: str | ShardSet,
    modalities: Sequence[str],
    layers: Sequence[str],
    plan: ClipPlan,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
) -> FeatureSet:
    """Features of every sample of a shard folder.

    layers: "feature", "embedding", or conv2x .. conv5x (models/layers.py), pooled as `pooled` says. Under
    torchrun it is a collective: all processes must call it alike.

    Raises:
        ValueError: an encoder lacks a layer; a sample cannot be read; no sample has one of the modalities.
        FileNotFoundError: a shard is missing.
    """
    dataset = SampleClips(shards, embedder.config.views, modalities, plan)
    return extract_from(embedder, dataset, layers, batch_size=batch_size, num_workers=num_workers)


def extract_from(
    embedder: Embedder, dataset: SampleClips, layers: Sequence[str], *, batch_size: int = 64, num_workers: int = 0
) -> FeatureSet:
    """Features of the clips that a data set decodes; for everything else see `extract`."""
    shards = dataset.shards
    if shards.num_samples == 0:
        raise ValueError(f"{shards.location} holds no samples; see skipped.jsonl there for why")
    collector = _FeatureCollector(embedder, dataset.modalities, layers, batch_size)
    failures: list[str] = []
    samples = dataset.load(num_workers)
    for sample in track(samples, "features", len(dataset), "sample", shown=distributed.rank() == 0):
        if isinstance(sample, str):
            failures.append(sample)
        else:
            collector.add(sample)
    refuse_failures(failures, shards)
    return collector.table(shards)


def refuse_failures(failures: Sequence[str], shards: ShardSet) -> None:
    """ValueError on every process if any process could not read a sample: the others would wait for one that raised."""
    all_failures = [text for of_rank in distributed.gather_objects(list(failures)) for text in of_rank]
    if all_failures:
        raise ValueError(
            f"{len(all_failures)} samples of {shards.location} could not be read, the first is {all_failures[0]}. A "
            "smaller test set would be another test set: run `avssl prep verify`, write the shards again "
            "without them"
        )


def pooled(activation: torch.Tensor, modality: str) -> torch.Tensor:
    """An inner layer as a vector: (B, C, H, W) or (B, C, T, H, W) -> (B, D), D <= 9216.

    Adaptive pooling to s x s with s = floor(sqrt(9216 / C)), over all of T: 12, 8, 6 and 4 for 64, 128, 256 and 512
    channels, which is what AVID publishes for conv2x to conv5x (9216, 8192, 9216 and 8192 numbers), and 6, 4, 3 and 2
    for 256 to 2048 channels, which is what Goyal et al. 2019 (arXiv 1905.01235) take of a ResNet-50. The maximum for
    video, the mean for audio and images. Never finer than the layer itself.
    """
    side = max(1, isqrt(POOLED_DIM // activation.shape[1]))
    size = (min(side, activation.shape[-2]), min(side, activation.shape[-1]))
    if activation.ndim == 5:
        return nn.functional.adaptive_max_pool3d(activation, (1, *size)).flatten(1)
    if modality == "video":
        return nn.functional.adaptive_max_pool2d(activation, size).flatten(1)
    return nn.functional.adaptive_avg_pool2d(activation, size).flatten(1)


@torch.inference_mode()
def encode_layers(
    embedder: Embedder, modality: str, raw: RawView, layers: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """{layer: float32 (B, D)} of a batch of raw clips."""
    view = embedder.views({"view": raw}, embedder.device)["view"]
    activations = stage_activations(embedder.encoders[modality], view)
    feature = activations.pop(FEATURE)
    unknown = [layer for layer in layers if layer not in activations and layer not in OUTPUTS]
    if unknown:
        raise ValueError(
            f"the {modality} encoder has no layer {', '.join(unknown)}; it has {', '.join([*activations, *OUTPUTS])}"
        )
    features = {layer: pooled(activations[layer], modality) for layer in layers if layer in activations}
    features["feature"] = feature
    if "embedding" in layers:
        features["embedding"] = embedder.loss.embedding(modality, feature)
    return {layer: features[layer].float().cpu().numpy() for layer in layers}


class _FeatureCollector:
    """Sends batches of clips through the networks and collects the rows; `table` gathers those of all processes."""

    def __init__(self, embedder: Embedder, modalities: Sequence[str], layers: Sequence[str], batch_size: int) -> None:
        self.embedder, self.modalities, self.layers = embedder, tuple(modalities), tuple(layers)
        self.batch_size = batch_size
        self.samples: list[tuple[int, str, dict[str, list[str]], str]] = []
        self.waiting: dict[str, list[RawView]] = {modality: [] for modality in modalities}
        self.owners: dict[str, list[int]] = {modality: [] for modality in modalities}
        self.batches: dict[str, list[dict[str, NDArray[np.float32]]]] = {modality: [] for modality in modalities}

    def add(self, sample: DecodedClips) -> None:
        """Encode the waiting clips of a modality as soon as they fill a batch."""
        self.samples.append((sample.index, sample.key, sample.labels, sample.reason))
        for modality, clips in sample.clips.items():
            self.owners[modality].append(sample.index)
            self.waiting[modality].append(clips)
            if sum(len(view.media) for view in self.waiting[modality]) >= self.batch_size:
                self._run(modality)

    def _run(self, modality: str) -> None:
        if not self.waiting[modality]:
            return
        media = torch.cat([view.media for view in self.waiting[modality]])
        self.waiting[modality] = []
        for batch in media.split(self.batch_size):
            self.batches[modality].append(encode_layers(self.embedder, modality, RawView(modality, batch), self.layers))

    def table(self, shards: ShardSet) -> FeatureSet:
        """The samples of all processes in the order of their index. RuntimeError unless each came exactly once."""
        rows_of_ranks = [row for of_rank in distributed.gather_objects(self.samples) for row in of_rank]
        samples = sorted(rows_of_ranks, key=lambda row: row[0])
        if [row[0] for row in samples] != list(range(shards.num_samples)):
            raise RuntimeError(
                f"{shards.location}: {len(samples)} of {shards.num_samples} samples were read, not each once"
            )
        present, rows = {}, {}
        for modality in self.modalities:
            self._run(modality)
            owners = np.array(
                [index for of_rank in distributed.gather_objects(self.owners[modality]) for index in of_rank], int
            )
            if len(owners) == 0:
                reasons = sorted({row[3] for row in samples if row[3]})
                raise ValueError(
                    f"no sample of {shards.location} has {modality} to evaluate"
                    + (f" ({', '.join(reasons)})" if reasons else "; evaluate another modality")
                )
            present[modality] = np.isin(np.arange(len(samples)), owners)
            rows[modality] = {
                layer: self._rows_of_samples(modality, layer, owners, len(samples)) for layer in self.layers
            }
        keys, labels = [row[1] for row in samples], [row[2] for row in samples]
        return FeatureSet(keys, labels, present, rows, [row[3] for row in samples])

    def _rows_of_samples(
        self, modality: str, layer: str, owners: NDArray[Any], num_samples: int
    ) -> NDArray[np.float32]:
        batches = [batch[layer] for batch in self.batches[modality]]
        dim = max(distributed.gather_objects(batches[0].shape[1] if batches else 0))
        rows = torch.from_numpy(np.concatenate(batches) if batches else np.zeros((0, dim), np.float32))
        device = self.embedder.device if distributed.is_active() else torch.device("cpu")
        everything = distributed.gather_uneven(rows.to(device)).cpu().numpy()
        num_clips = len(everything) // len(owners)  # the same of every sample that has any
        result = np.full((num_samples, num_clips, dim), np.nan, np.float32)
        result[owners] = everything.reshape(len(owners), num_clips, dim)
        return result
