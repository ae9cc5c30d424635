"""Several clips of a sample, evenly spaced or drawn from a seed, and every sample once over all processes. Classifiers
are tested on them.

Of n clips the first begins where the media begin and the last ends where they end (`uniform_clip_times`); clips of
video and audio share their instants. A clip is its center crop, or three squares of the whole short side: at the
beginning, the middle and the end of the longer side (Wang et al. 2018, arXiv 1711.07971). An image has no time and is
one clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from avssl.data.batch import stack_raw_views
from avssl.data.loader_config import LoaderConfig
from avssl.data.read_views import decode_audio_clip, decode_video_clip
from avssl.data.workers import start_worker
from avssl.distributed import rank, world_size
from avssl.media.decode import read_audio
from avssl.media.images import read_image
from avssl.processes.timeouts import all_batches
from avssl.processes.worker_server import worker_context
from avssl.shards.shard_set import Sample, ShardSet, spans
from avssl.transforms.config import ImageViewConfig, VideoViewConfig, ViewsConfig, clip_lengths
from avssl.transforms.crop import crop_resize, evaluation_crop_boxes
from avssl.transforms.raw_view import RawView, raw_audio, raw_image
from avssl.transforms.time_sampling import ClipTimes, random_clip_times, snap_to_frames, uniform_clip_times
from avssl.types import MediaError

NUM_CROPS = (1, 3)


@dataclass(frozen=True)
class ClipPlan:
    """Which clips of a sample to take, the same ones every time.

    num_clips: evenly spaced, at the same instants in video and audio; 1 is the middle. random: clips are drawn from
    `seed` and the sample's index instead. With random, two factors are drawn uniformly for audio: speed, the range of
    the factor by which it is played faster (and higher), and volume, the range of a factor on the waveform.
    """

    num_clips: int = 1
    random: bool = False
    speed: tuple[float, float] = (1.0, 1.0)
    volume: tuple[float, float] = (1.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for less than one clip and for ranges whose ends are not positive and in order."""
        if self.num_clips < 1:
            raise ValueError(f"the number of clips is {self.num_clips}; it must be at least 1")
        for name, (low, high) in (("speed", self.speed), ("volume", self.volume)):
            if not 0 < low <= high:
                raise ValueError(f"{name} is drawn from {low} to {high}; both must be above 0, the lower one first")


def clip_set(
    sample: Sample, config: ViewsConfig, modalities: Sequence[str], num_clips: int, num_crops: int = 1
) -> dict[str, RawView]:
    """{modality: raw view of num_clips * num_crops clips}; MediaError for a modality that the sample lacks.

    An image alone is one clip.
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
    """{modality: raw view (K, ...)} of the modalities that the sample has; an image is the same in all clips.

    K is the plan's num_clips times num_crops: all crops of the first clip, then those of the next. The audio of a clip
    is the same for all its crops.
    """
    views: dict[str, RawView] = {}
    key = sample.info.key
    if "image" in modalities and sample.image is not None:
        images = _crops("image", read_image(sample.image, name=key)[None], config.image, num_crops)
        views["image"] = stack_raw_views(images * plan.num_clips)["view"]
    video, audio = spans(sample)
    video, audio = (span if name in modalities else None for name, span in (("video", video), ("audio", audio)))
    if video is None and audio is None:
        return views
    lengths = replace(clip_lengths(config), max_offset_seconds=0.0)
    draws = [np.random.default_rng((plan.seed, sample.info.index, number)) for number in range(plan.num_clips)]
    speeds, volumes = [1.0] * plan.num_clips, [1.0] * plan.num_clips
    windows: Sequence[ClipTimes]
    if plan.random:
        speeds = [float(draw.uniform(*plan.speed)) for draw in draws]
        volumes = [float(draw.uniform(*plan.volume)) for draw in draws]
        windows = [
            random_clip_times(video, audio, replace(lengths, audio_seconds=lengths.audio_seconds * speed), draw)
            for speed, draw in zip(speeds, draws, strict=True)
        ]
    else:
        windows = uniform_clip_times(video, audio, lengths, plan.num_clips)
    if video is not None:
        windows = [snap_to_frames(window, video, sample.info.video_fps) for window in windows]
        frames = [
            decode_video_clip(sample.video, float(window.video_start_seconds or 0.0), config.video, video, key)
            for window in windows
            if sample.video is not None
        ]
        crops = [crop for clip in frames for crop in _crops("video", clip, config.video, num_crops)]
        views["video"] = stack_raw_views(crops)["view"]
    if audio is not None and sample.audio is not None:
        waves = []
        for window, speed, volume in zip(windows, speeds, volumes, strict=True):
            start = float(window.audio_start_seconds or 0.0)
            if speed == 1.0:
                wave = decode_audio_clip(sample.audio, start, config.audio, audio, key)
            else:  # audio read at another rate and taken for the usual one is faster or slower, and still band-limited
                num_samples, rate_hz = round(config.audio.seconds * config.audio.rate_hz), config.audio.rate_hz
                begin = start - audio.start_seconds
                wave = read_audio(sample.audio, begin, num_samples, round(rate_hz / speed), name=key)
            copies = num_crops if video is not None else 1
            waves += [{"view": raw_audio(volume * wave, config.audio, None)}] * copies
        views["audio"] = stack_raw_views(waves)["view"]
    return views


def _crops(
    modality: str, clip: torch.Tensor, config: VideoViewConfig | ImageViewConfig, num_crops: int
) -> list[dict[str, RawView]]:
    if num_crops == 1:
        return [{"view": raw_image(modality, clip, config, None, None)}]
    boxes = evaluation_crop_boxes(clip.shape[2], clip.shape[3], num_crops)
    return [{"view": RawView(modality, crop_resize(clip, box, config.size_px))} for box in boxes]


@dataclass
class DecodedClips:
    """One decoded sample. clips: {modality: raw view (K, ...)} of the modalities that it has; empty, with a reason, if
    the sample is left out.
    """

    index: int
    key: str
    labels: dict[str, list[str]]
    clips: dict[str, RawView]
    reason: str = ""


class SampleClips(Dataset[Any]):
    """A map-style dataset: the clips of each sample that this process reads, or the error of a sample as text.

    Subclasses that take other clips override `decode`, and keep all that it needs picklable.
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
        """({modality: raw view (K, ...)}, why there is nothing): the same K for every sample that has any."""
        return sample_clips(sample, self.config, self.modalities, self.plan), ""

    def load(self, num_workers: int) -> Iterator[DecodedClips | str]:
        """All samples of this process in order, decoded by that many workers (0: in this process)."""
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context=worker_context() if num_workers else None,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(0),  # the global one belongs to the networks
        )
        yield from all_batches(loader, LoaderConfig.worker_timeout_seconds)


class ClipSets(SampleClips):
    """Samples that have all of the modalities, as evenly spaced clips x crops: clip by clip, of each its crops.

    All modalities of a sample have as many clips. A sample without one of them is text that says so.
    """

    def __init__(
        self, shards: ShardSet, config: ViewsConfig, modalities: Sequence[str], num_clips: int, num_crops: int
    ) -> None:
        if num_crops not in NUM_CROPS:
            raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")
        super().__init__(shards, config, modalities, ClipPlan(num_clips))
        self.num_crops = num_crops

    def decode(self, sample: Sample) -> tuple[dict[str, RawView], str]:
        """As `clip_set`."""
        return clip_set(sample, self.config, self.modalities, self.plan.num_clips, self.num_crops), ""
