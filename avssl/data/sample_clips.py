"""The clips of a shard folder's samples as a data set: every sample once over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from avssl import distributed
from avssl.data.every_sample import ClipPlan, sample_clips
from avssl.shards.shard_set import Sample, ShardSet
from avssl.transforms.config import ViewsConfig
from avssl.transforms.view_maker import RawView
from avssl.types import MediaError


@dataclass
class DecodedClips:
    """One sample, decoded. clips: {modality: raw view (K, ...)}, of what it has; none and a reason if it is left
    out."""

    index: int
    key: str
    labels: dict[str, list[str]]
    clips: dict[str, RawView]
    reason: str = ""


class SampleClips(Dataset[Any]):
    """Map-style: the clips of this process's share of a shard folder, or what is wrong with a sample as text.

    Subclasses that take other clips write `decode`, and keep all that it needs picklable.
    """

    def __init__(self, shards: str | ShardSet, config: ViewsConfig, modalities: Sequence[str], plan: ClipPlan) -> None:
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet(shards)
        self.config, self.modalities, self.plan = config, tuple(modalities), plan
        self.numbers = range(self.shards.num_samples)[distributed.rank() :: distributed.world_size()]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> DecodedClips | str:
        if position >= len(self):
            raise IndexError(position)
        number = self.numbers[position]
        try:
            sample = self.shards.read(number)
            clips, reason = self.decode(sample)
        except MediaError as error:
            return f"sample {number}: {error}"
        return DecodedClips(number, sample.info.key, sample.info.labels, clips, reason)

    def decode(self, sample: Sample) -> tuple[dict[str, RawView], str]:
        """({modality: raw view (K, ...)}, why there is nothing): the same K for every sample that has any."""
        return sample_clips(sample, self.config, self.modalities, self.plan), ""
