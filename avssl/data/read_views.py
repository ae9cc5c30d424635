"""Decoded clips and raw views of one sample of a shard. Only the modalities that are needed are decoded, each once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from avssl.data.decoded import DecodedAudio, DecodedVideo
from avssl.media.decode import read_audio, read_video
from avssl.media.images import read_image
from avssl.media.sources import Source
from avssl.shards.format import SampleInfo
from avssl.shards.shard_set import spans
from avssl.transforms.config import (
    AUDIO_SETS,
    AudioViewConfig,
    VideoViewConfig,
    ViewsConfig,
    clip_lengths,
    image_augment,
    own_augment,
)
from avssl.transforms.jigsaw import NUM_TILES
from avssl.transforms.own import apply_augment
from avssl.transforms.raw_view import RawView, raw_audio, raw_image
from avssl.transforms.time_sampling import (
    TIME_TOLERANCE_SECONDS,
    center_clip_times,
    clip_times_around,
    equal_parts,
    frame_times_seconds,
    random_clip_times,
    snap_to_frames,
)
from avssl.types import Clip, MediaError, Span, View


class AnySample(Protocol):
    """A stored sample, or one whose media were decoded before."""

    @property
    def info(self) -> SampleInfo:
        """Its json."""

    @property
    def video(self) -> bytes | DecodedVideo | None:
        """Its video; None if it lacks one."""

    @property
    def audio(self) -> bytes | DecodedAudio | None:
        """Its audio; None if it lacks one."""

    @property
    def image(self) -> bytes | torch.Tensor | None:
        """Its image; None if it lacks one."""


class Shards(Protocol):
    """What samples are read from: a ShardSet, or DecodedShards over one."""

    @property
    def num_samples(self) -> int:
        """The number of samples."""

    def read(self, index: int, /) -> AnySample:
        """The sample with this index. Raises MediaError."""


def read_clip(
    sample: AnySample,
    config: ViewsConfig,
    modalities: set[str],
    generator: np.random.Generator | None,
    center_seconds: float | None = None,
    part: Span | None = None,
) -> Clip:
    """Decode one clip of each modality: the center without a generator, otherwise a random pair from AVID's intervals.

    center_seconds: of the clips, on the sample's clock, in place of both. part: of the sample, from which a random pair
    is drawn. An image is read whole, without a random draw. Raises MediaError if one of the modalities is missing or
    cannot be decoded.
    """
    key, index = sample.info.key, sample.info.index
    video_span, audio_span = spans(sample)
    is_there = {"video": video_span is not None, "audio": audio_span is not None, "image": sample.info.has_image}
    for modality in sorted(modalities):
        if not is_there[modality]:
            raise MediaError(f"no_{modality}", f"sample {key} has no {modality}")  # type: ignore[arg-type]
    image = decode_image(sample.image, key) if "image" in modalities and sample.image is not None else None
    video_span = video_span if "video" in modalities else None
    audio_span = audio_span if "audio" in modalities else None
    if video_span is None and audio_span is None:
        return Clip(index, key, None, None, 0.0, 0.0, image)
    lengths = clip_lengths(config)
    if center_seconds is not None:
        clip_times = clip_times_around(center_seconds, video_span, audio_span, lengths)
    elif generator is None:
        clip_times = center_clip_times(video_span, audio_span, replace(lengths, max_offset_seconds=0.0))
    else:
        streams = (video_span, audio_span) if part is None else (part, part)
        clip_times = random_clip_times(*streams, lengths, generator)
    if video_span is not None:
        clip_times = snap_to_frames(clip_times, video_span, sample.info.video_fps)
    video_start, audio_start = clip_times
    video = audio = None
    if video_span is not None and video_start is not None and sample.video is not None:
        video = decode_video_clip(sample.video, video_start, config.video, video_span, key)
    if audio_span is not None and audio_start is not None and sample.audio is not None:
        audio = decode_audio_clip(sample.audio, audio_start, config.audio, audio_span, key)
    return Clip(index, key, video, audio, video_start or 0.0, audio_start or 0.0, image)


def moment_parts(
    sample: AnySample, config: ViewsConfig, num_moments: int, generator: np.random.Generator
) -> list[Span]:
    """Equal parts of a sample in random order, from each of which one pair is cut.

    Raises MediaError("no_video", "no_audio") for a missing stream, ("too_short") for parts shorter than a clip.
    """
    key, lengths, (video, audio) = sample.info.key, clip_lengths(config), spans(sample)
    if video is None or audio is None:
        missing = "video" if video is None else "audio"
        raise MediaError(f"no_{missing}", f"sample {key} has no {missing}")  # type: ignore[arg-type]
    parts = equal_parts(video, audio, num_moments)
    seconds = parts[-1].end_seconds - parts[0].start_seconds
    needed = num_moments * max(lengths.video_seconds, lengths.audio_seconds)
    if seconds < needed - TIME_TOLERANCE_SECONDS:
        raise MediaError(
            "too_short",
            f"sample {key} has {seconds:.3g} s of both video and audio; loss.num_negatives_same_clip="
            f"{num_moments - 1} needs {needed:g} s for {num_moments} clips one after another: lower it, shorten the "
            "clips, or leave short samples out by `avssl prep write --min-duration-seconds`",
        )
    return [parts[number] for number in generator.permutation(num_moments)]


def read_background(shards: Shards, index: int, config: ViewsConfig, generator: np.random.Generator) -> torch.Tensor:
    """Random seconds of the audio of a random sample other than `index`: float32 (1, samples).

    The sample depends only on the generator, so that a view is the same in any batch. Raises MediaError if that sample
    cannot be read: then the view with which it would be mixed fails, too.
    """
    other = (index + 1 + int(generator.integers(max(1, shards.num_samples - 1)))) % shards.num_samples
    try:
        audio = read_clip(shards.read(other), config, {"audio"}, generator).audio
    except MediaError as error:
        raise MediaError(error.reason, f"to be mixed into sample {index}: {error.message}") from error
    assert audio is not None  # read_clip raises for a missing modality
    return audio


def decode_image(source: bytes | torch.Tensor, name: str) -> torch.Tensor:
    """An image, uint8 (3, H, W), channels last."""
    return source if isinstance(source, torch.Tensor) else read_image(source, name=name)


def decode_video_clip(
    source: Source | DecodedVideo, start_seconds: float, config: VideoViewConfig, span: Span, name: str
) -> torch.Tensor:
    """Frames uint8 (T, 3, H, W) from `start_seconds` on, on the sample's clock; repeated after the end of the video."""
    times = frame_times_seconds(start_seconds, config.num_frames, config.fps, span) - span.start_seconds
    if isinstance(source, DecodedVideo):
        return source.read(times.tolist())
    return read_video(source, times.tolist(), name=name)


def decode_audio_clip(
    source: Source | DecodedAudio, start_seconds: float, config: AudioViewConfig, span: Span, name: str
) -> torch.Tensor:
    """Waveform float32 (1, samples) from `start_seconds` on, on the sample's clock; config.padding after the stream."""
    num_samples, start = round(config.seconds * config.rate_hz), start_seconds - span.start_seconds
    if isinstance(source, DecodedAudio):
        return source.read(start, num_samples, config.rate_hz, config.padding)
    return read_audio(source, start, num_samples, config.rate_hz, name=name, padding=config.padding)


def raw_views(
    shards: Shards,
    index: int,
    views: Sequence[View],
    config: ViewsConfig,
    seed: int,
    epoch: int,
    beside: tuple[View, ViewsConfig] | None = None,
) -> dict[str, RawView]:
    """All views of one sample. epoch -1: deterministic clips and crops, regardless of the views' `augment` and `clip`.

    Views with the same clip number are made from one decoded clip of the modalities that they need; an image is decoded
    once. beside: a view of another network, with sizes and rates of its own, without augmentation: the middle of its
    clip is that of clip 0. Raises MediaError as `read_clip`.
    """
    sample = shards.read(index)
    by_clip: dict[int, list[View]] = {}
    for view in views:
        by_clip.setdefault(view.clip if epoch >= 0 and view.modality != "image" else 0, []).append(view)
    num_others = len({view.clip for view in views if view.other_moment})
    parts: list[Span] = []
    result: dict[str, RawView] = {}
    pair: Clip | None = None
    for number, group in by_clip.items():
        # Clip 0 is drawn as if there were no other clip, but for other moments, which divide the sample among them.
        clip_seed = (seed, epoch, index) if number == 0 else (seed, epoch, index, number)
        generator = None if epoch < 0 else np.random.default_rng(clip_seed)
        if number == 0 and num_others and generator is not None:
            parts = moment_parts(sample, config, 1 + num_others, generator)
        part = parts.pop() if parts and (number == 0 or group[0].other_moment) else None
        clip = read_clip(sample, config, {view.modality for view in group}, generator, part=part)
        pair = clip if number == 0 else pair
        for view in group:
            generator = None
            if epoch >= 0 and view.augment != "test":
                generator = np.random.default_rng((seed, epoch, index, zlib.crc32(view.name.encode())))
            result[view.name] = _raw_view(clip, view, config, shards, generator)
    if beside is not None:
        view, own = beside
        center_seconds = None if pair is None else _center_seconds(pair, config, view.modality)
        result[view.name] = _raw_view(
            read_clip(sample, own, {view.modality}, None, center_seconds), view, own, shards, None
        )
    return result


def _center_seconds(clip: Clip, config: ViewsConfig, modality: str) -> float | None:
    """The middle of a decoded clip, of this modality if it has it; None for an image."""
    lengths = clip_lengths(config)
    middles = {}
    if clip.audio is not None:
        middles["audio"] = clip.audio_start_seconds + lengths.audio_seconds / 2
    if clip.video is not None:
        middles["video"] = clip.video_start_seconds + lengths.video_seconds / 2
    return middles.get(modality, next(iter(middles.values()), None))


def _raw_view(
    clip: Clip, view: View, config: ViewsConfig, shards: Shards, generator: np.random.Generator | None
) -> RawView:
    """One view of a decoded clip, which has the view's modality."""
    image = None if clip.image is None else clip.image[None]
    media = {"image": image, "video": clip.video, "audio": clip.audio}[view.modality]
    if media is None:
        raise ValueError(f"view {view.name!r} needs the modality {view.modality!r}, which the clip lacks: {clip.key}")
    own = own_augment(view, config) if generator is not None else ""
    if own and generator is not None:  # it draws from a generator of its own: the draws below stay the same
        media = apply_augment(own, view.modality, media, generator.spawn(1)[0], clip.key)
    if view.modality == "image":
        return raw_image("image", media, config.image, image_augment(view, config), generator)
    if view.modality == "video":
        return raw_image("video", media, config.video, image_augment(view, config), generator)
    if view.augment not in AUDIO_SETS:  # an augment of the user's own is the only change
        return raw_audio(media, config.audio, None)
    raw = raw_audio(media, config.audio, generator)
    if generator is not None and config.audio.augment.mixup_ratio > 0:
        raw.background = read_background(shards, clip.index, config, generator)
    if view.augment == "jigsaw":
        order = np.arange(NUM_TILES) if generator is None else generator.permutation(NUM_TILES)
        raw.tiles = torch.from_numpy(order)
    return raw
