"""Several clips of every sample, evenly spaced or drawn from a seed: the input of probes, tests and evaluations.

The first of n evenly spaced clips begins with the media and the last ends with them (`uniform_clip_times`); clips of
video and audio are centered on the same times. The frames of a clip are cropped at their center, or to three squares
with the whole short side: at the beginning, the middle and the end of the longer side (Wang et al. 2018, arXiv
1711.07971). An image is one clip. Each process reads its own samples, so that all are read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from avssl.data.batch import Collate, RawBatch, stack_raw_views
from avssl.data.loader_config import LoaderConfig
from avssl.data.read_views import decode_audio_clip, decode_video_clip
from avssl.data.workers import start_worker
from avssl.distributed import rank, world_size
from avssl.media.decode import read_audio
from avssl.media.images import read_image
from avssl.media.sources import Source
from avssl.processes.timeouts import all_batches
from avssl.processes.worker_server import worker_context
from avssl.shards.shard_set import Sample, ShardSet, spans
from avssl.transforms.config import AudioViewConfig, ImageViewConfig, VideoViewConfig, ViewsConfig, clip_lengths
from avssl.transforms.crop import crop_resize, evaluation_crop_boxes
from avssl.transforms.raw_view import RawView, raw_audio, raw_image
from avssl.transforms.time_sampling import random_clip_times, snap_to_frames, uniform_clip_times
from avssl.types import MediaError, Span

NUM_CROPS = (1, 3)


@dataclass(frozen=True)
class ClipPlan:
    """Which clips of a sample to take; they are the same every time.

    num_clips: evenly spaced, at the same times in video and audio; 1 is the middle. random: clips are drawn from `seed`
    and the sample's index instead, and with them two factors for the audio, uniform in these ranges: speed, by which it
    is played faster (and higher), and volume, by which the waveform is multiplied.
    """

    num_clips: int = 1
    random: bool = False
    speed: tuple[float, float] = (1.0, 1.0)
    volume: tuple[float, float] = (1.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for fewer than one clip and for ranges whose ends are not positive and in order."""
        if self.num_clips < 1:
            raise ValueError(f"the number of clips is {self.num_clips}; it must be at least 1")
        for name, (low, high) in (("speed", self.speed), ("volume", self.volume)):
            if not 0 < low <= high:
                raise ValueError(f"{name} is drawn from {low} to {high}; both must be above 0, the lower one first")


def clip_set(
    sample: Sample, config: ViewsConfig, modalities: Sequence[str], num_clips: int, num_crops: int = 1
) -> dict[str, RawView]:
    """As `sample_clips`, evenly spaced and of all the modalities; raises MediaError if the sample lacks one.

    If the image is the only modality, it is one clip.
    """
    media = {"video": sample.video, "audio": sample.audio, "image": sample.image}
    for modality in modalities:
        if media[modality] is None:
            raise MediaError(f"no_{modality}", f"sample {sample.info.key} has no {modality}")  # type: ignore[arg-type]
    plan = ClipPlan(1 if tuple(modalities) == ("image",) else num_clips)
    return sample_clips(sample, config, modalities, plan, num_crops)


def sample_clips(
    sample: Sample, config: ViewsConfig, modalities: Sequence[str], plan: ClipPlan, num_crops: int = 1
) -> dict[str, RawView]:
    """{modality: raw view (K, ...)} of those of the modalities that the sample has; all clips have the same image.

    K is the plan's num_clips times num_crops: all crops of the first clip, then those of the next. All crops of a clip
    have the same audio.
    """
    views: dict[str, RawView] = {}
    key = sample.info.key
    if "image" in modalities and sample.image is not None:
        images = _crops("image", read_image(sample.image, name=key)[None], config.image, num_crops)
        views["image"] = stack_raw_views(images * plan.num_clips)["view"]
    video, audio = (
        span if name in modalities else None for name, span in zip(("video", "audio"), spans(sample), strict=True)
    )
    if video is None and audio is None:
        return views
    lengths = replace(clip_lengths(config), max_offset_seconds=0.0)
    speeds, volumes = [1.0] * plan.num_clips, [1.0] * plan.num_clips
    if plan.random:
        generators = [np.random.default_rng((plan.seed, sample.info.index, number)) for number in range(plan.num_clips)]
        speeds = [float(generator.uniform(*plan.speed)) for generator in generators]
        volumes = [float(generator.uniform(*plan.volume)) for generator in generators]
        clip_times = [
            random_clip_times(video, audio, replace(lengths, audio_seconds=lengths.audio_seconds * speed), generator)
            for speed, generator in zip(speeds, generators, strict=True)
        ]
    else:
        clip_times = uniform_clip_times(video, audio, lengths, plan.num_clips)
    if video is not None and sample.video is not None:
        clip_times = [snap_to_frames(times, video, sample.info.video_fps) for times in clip_times]
        starts = [float(times.video_start_seconds or 0.0) for times in clip_times]
        clips = [decode_video_clip(sample.video, start, config.video, video, key) for start in starts]
        crops = [crop for clip in clips for crop in _crops("video", clip, config.video, num_crops)]
        views["video"] = stack_raw_views(crops)["view"]
    if audio is not None and sample.audio is not None:
        waveforms = []
        for times, speed, volume in zip(clip_times, speeds, volumes, strict=True):
            start = float(times.audio_start_seconds or 0.0)
            waveform = volume * _decode_audio_faster(sample.audio, start, speed, config.audio, audio, key)
            copies = num_crops if video is not None else 1
            waveforms += [{"view": raw_audio(waveform, config.audio, None)}] * copies
        views["audio"] = stack_raw_views(waveforms)["view"]
    return views


def _decode_audio_faster(
    source: Source, start_seconds: float, speed: float, config: AudioViewConfig, span: Span, name: str
) -> torch.Tensor:
    """As `decode_audio_clip`, played faster by a factor."""
    if speed == 1.0:
        return decode_audio_clip(source, start_seconds, config, span, name)
    # Audio that is read at a lower rate and played at the usual one is faster, and still band-limited.
    num_samples, rate_hz = round(config.seconds * config.rate_hz), round(config.rate_hz / speed)
    start = start_seconds - span.start_seconds
    return read_audio(source, start, num_samples, rate_hz, name=name, padding=config.padding)


def _crops(
    modality: str, clip: torch.Tensor, config: VideoViewConfig | ImageViewConfig, num_crops: int
) -> list[dict[str, RawView]]:
    """The raw views of a clip's crops, each as {"view": raw view}."""
    if num_crops == 1:
        return [{"view": raw_image(modality, clip, config, None, None)}]
    boxes = evaluation_crop_boxes(clip.shape[2], clip.shape[3], num_crops)
    return [{"view": RawView(modality, crop_resize(clip, box, config.size_px, config.interpolation))} for box in boxes]


@dataclass
class DecodedClips:
    """One decoded sample.

    clips: {modality: raw view (K, ...)} of the modalities that it has; empty, with a reason, if the sample is left out.
    """

    index: int
    key: str
    labels: dict[str, list[str]]
    clips: dict[str, RawView]
    reason: str = ""


class SampleClips(Dataset[Any]):
    """A map-style dataset of the samples that this process reads: their clips, or an error as text.

    Subclasses that take other clips override `decode`; their attributes must be picklable.
    """

    def __init__(self, shards: str | ShardSet, config: ViewsConfig, modalities: Sequence[str], plan: ClipPlan) -> None:
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet(shards)
        self.config, self.modalities, self.plan = config, tuple(modalities), plan
        self.numbers = range(rank(), self.shards.num_samples, world_size())

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
        """({modality: raw view (K, ...)}, "") with one K for all samples, or ({}, reason) to leave the sample out."""
        return sample_clips(sample, self.config, self.modalities, self.plan), ""

    def load(self, num_workers: int) -> Iterator[DecodedClips | str]:
        """All samples of this process in order, decoded by `num_workers` processes (0: in this process)."""
        collate: Any = _InSharedMemory()  # of one sample, where the library's type says a list of them
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_size=None,
            collate_fn=collate,
            num_workers=num_workers,
            multiprocessing_context=worker_context() if num_workers else None,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(0),  # so that the global one, used by the networks, is unchanged
        )
        for item in all_batches(loader, LoaderConfig.worker_timeout_seconds):
            yield replace(item.sample, clips=item.sent.views) if isinstance(item, _Sent) else item


class _Sent(NamedTuple):
    """A sample on its way from a worker: its clips apart, in shared memory."""

    sample: DecodedClips
    sent: RawBatch


class _InSharedMemory:
    """A collate function of single samples, whose clips a worker sends as it sends the batches of a training.

    PyTorch by itself takes room in /dev/shm for them: ten clips of 32 frames of 224 px are 48 MB, and containers have
    64 MiB there.
    """

    def __init__(self) -> None:
        self.collate = Collate()

    def __call__(self, item: DecodedClips | str) -> DecodedClips | str | _Sent:
        if get_worker_info() is None or isinstance(item, str) or not item.clips:
            return item
        return _Sent(replace(item, clips={}), self.collate.sent(item.clips, [item.index]))


class ClipSets(SampleClips):
    """Evenly spaced clips x crops of the samples that have all of the modalities, as `clip_set`; others are errors."""

    def __init__(
        self, shards: ShardSet, config: ViewsConfig, modalities: Sequence[str], num_clips: int, num_crops: int
    ) -> None:
        if num_crops not in NUM_CROPS:
            raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
        super().__init__(shards, config, modalities, ClipPlan(num_clips))
        self.num_crops = num_crops

    def decode(self, sample: Sample) -> tuple[dict[str, RawView], str]:
        """The `clip_set` of the sample."""
        return clip_set(sample, self.config, self.modalities, self.plan.num_clips, self.num_crops), ""
