"""Which clips of a sample evaluation takes, and their decoding: evenly spaced, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from avssl import distributed
from avssl.data.clips import Windows, random_windows, snap_to_frames, uniform_windows
from avssl.data.decode import read_audio
from avssl.data.pictures import read_image
from avssl.data.shards import Sample, ShardSet
from avssl.data.view_config import ViewsConfig, clip_lengths
from avssl.data.views import (
    RawView,
    decode_audio_clip,
    decode_video_clip,
    raw_audio,
    raw_picture,
    spans,
    stack_raw_views,
)
from avssl.types import MediaError


@dataclass(frozen=True)
class ClipPlan:
    """Which clips of a sample to take, the same ones every time.

    num_clips: evenly spaced ones, the same instants in video and sound; 1 is the middle. random: drawn from `seed` and
    the sample's index instead. For sound with random: speed, the range of a factor drawn uniformly by which it is
    played faster (and higher), and volume, the range of a factor on the waveform.
    """

    num_clips: int = 1
    random: bool = False
    speed: tuple[float, float] = (1.0, 1.0)
    volume: tuple[float, float] = (1.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError for no clip and for ranges that are none."""
        if self.num_clips < 1:
            raise ValueError(f"the number of clips is {self.num_clips}; it must be at least 1")
        for name, (low, high) in (("speed", self.speed), ("volume", self.volume)):
            if not 0 < low <= high:
                raise ValueError(f"{name} is drawn from {low} to {high}; both must be above 0, the lower one first")


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


def sample_clips(sample: Sample, config: ViewsConfig, modalities: Sequence[str], plan: ClipPlan) -> dict[str, RawView]:
    """{modality: raw view (K, ...)} of the modalities that the sample has; a picture is the same in all clips."""
    found: dict[str, RawView] = {}
    key = sample.info.key
    if "image" in modalities and sample.image is not None:
        picture = raw_picture("image", read_image(sample.image, name=key)[None], config.image, None, None)
        found["image"] = stack_raw_views([{"view": picture}] * plan.num_clips)["view"]
    video, audio = spans(sample)
    video, audio = (span if name in modalities else None for name, span in (("video", video), ("audio", audio)))
    if video is None and audio is None:
        return found
    lengths = replace(clip_lengths(config), max_offset_seconds=0.0)
    draws = [np.random.default_rng((plan.seed, sample.info.index, number)) for number in range(plan.num_clips)]
    speeds, volumes = [1.0] * plan.num_clips, [1.0] * plan.num_clips
    windows: Sequence[Windows]
    if plan.random:
        speeds = [float(draw.uniform(*plan.speed)) for draw in draws]
        volumes = [float(draw.uniform(*plan.volume)) for draw in draws]
        windows = [
            random_windows(video, audio, replace(lengths, audio_seconds=lengths.audio_seconds * speed), draw)
            for speed, draw in zip(speeds, draws, strict=True)
        ]
    else:
        windows = uniform_windows(video, audio, lengths, plan.num_clips)
    if video is not None:
        windows = [snap_to_frames(window, video, sample.info.video_fps) for window in windows]
        frames = [
            decode_video_clip(sample.video, float(window.video_start_seconds or 0.0), config.video, video, key)
            for window in windows
            if sample.video is not None
        ]
        pictures = [{"view": raw_picture("video", clip, config.video, None, None)} for clip in frames]
        found["video"] = stack_raw_views(pictures)["view"]
    if audio is not None and sample.audio is not None:
        waves = []
        for window, speed, volume in zip(windows, speeds, volumes, strict=True):
            start = float(window.audio_start_seconds or 0.0)
            if speed == 1.0:
                wave = decode_audio_clip(sample.audio, start, config.audio, audio, key)
            else:  # read at another rate and taken for the usual one, it is faster or slower, and still band-limited
                num_samples, rate_hz = round(config.audio.seconds * config.audio.rate_hz), config.audio.rate_hz
                begin = start - audio.start_seconds
                wave = read_audio(sample.audio, begin, num_samples, round(rate_hz / speed), name=key)
            waves.append({"view": raw_audio(volume * wave, config.audio, None)})
        found["audio"] = stack_raw_views(waves)["view"]
    return found
