"""Clips and views: a sample of a shard -> raw views (in a worker) -> model-ready tensors (on the device).

A worker decodes once and does only what makes the data smaller: which seconds, which crop. Colour, flips, normalisation
and spectrograms are batched tensor operations on the device. What is random about a sample is a function of (seed,
epoch, index, view name) and of nothing else: not of the worker, the rank or the batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from avssl.data.audio import AudioAugment, BinNormalize, LogMel, LogSpectrogram, draw_volume, scale_volume
from avssl.data.clips import ClipLengths, Span, centre_windows, frame_times_seconds, random_windows, snap_to_frames
from avssl.data.decode import Source, read_audio, read_video
from avssl.data.shards import Sample
from avssl.data.video import (
    ColourBatch,
    VideoAugment,
    VideoParameters,
    centre_crop_box,
    crop_resize,
    draw_video_parameters,
    flip_horizontally,
    jitter_colour,
    normalize,
    stack_colour,
    to_float,
    to_model_layout,
)
from avssl.types import Clip, MediaError, View


@dataclass
class VideoViewConfig:
    """A clip of num_frames at fps, cropped and resized to augment.size_px."""

    num_frames: int = 8
    fps: float = 16.0
    augment: VideoAugment = field(default_factory=VideoAugment)


@dataclass
class AudioViewConfig:
    """Seconds of mono sound as a spectrogram of num_frames x bins, normalised per bin by the corpus' statistics."""

    seconds: float = 2.0
    rate_hz: int = 24_000
    transform: Literal["log_spectrogram", "log_mel"] = "log_spectrogram"
    window_samples: int = 1024
    hop_samples: int = 240
    num_frames: int = 200
    bins_averaged: int = 2  # log_spectrogram: adjacent frequencies that make one bin
    num_mels: int = 80  # log_mel: filters
    augment: AudioAugment = field(default_factory=AudioAugment)


@dataclass
class ViewsConfig:
    """Both modalities, and how far the video clip may reach out of the audio clip in training."""

    video: VideoViewConfig = field(default_factory=VideoViewConfig)
    audio: AudioViewConfig = field(default_factory=AudioViewConfig)
    max_offset_seconds: float = 0.5
    statistics_samples: int = 1000  # samples from which the per-bin statistics are measured


@dataclass
class RawView:
    """One view of a batch as a worker sends it.

    media: uint8 (B, T, 3, S, S) or float32 (B, 1, samples). The other fields are the drawn parameters, None in
    deterministic views.
    """

    modality: str
    media: torch.Tensor
    flip: torch.Tensor | None = None
    colour: ColourBatch | None = None
    volume: torch.Tensor | None = None
    parameters: VideoParameters | None = None  # of a single sample, before stacking

    def pin_memory(self) -> RawView:
        """The same with the media in pinned memory."""
        return replace(self, media=self.media.pin_memory())


def clip_lengths(config: ViewsConfig) -> ClipLengths:
    """The two clip lengths in seconds."""
    return ClipLengths(config.video.num_frames / config.video.fps, config.audio.seconds, config.max_offset_seconds)


def spans(sample: Sample) -> tuple[Span | None, Span | None]:
    """Where the video and the audio of a sample lie on its clock."""
    info = sample.info
    video = audio = None
    if sample.video is not None:
        start = info.video_start_seconds
        video = Span(start, start + info.num_frames / info.video_fps)
    if sample.audio is not None:
        start = info.audio_start_seconds
        audio = Span(start, start + info.num_audio_samples / info.audio_rate_hz)
    return video, audio


def read_clip(
    sample: Sample,
    config: ViewsConfig,
    modalities: set[str],
    generator: np.random.Generator | None,
) -> Clip:
    """Decode one clip of each modality; generator None takes the centre, else a random pair of AVID's intervals.

    Raises MediaError when a modality that is asked for is missing or cannot be decoded.
    """
    video_span, audio_span = spans(sample)
    for modality, span in (("video", video_span), ("audio", audio_span)):
        if modality in modalities and span is None:
            raise MediaError(f"no_{modality}", f"sample {sample.info.key} has no {modality}")  # type: ignore[arg-type]
    video_span = video_span if "video" in modalities else None
    audio_span = audio_span if "audio" in modalities else None
    lengths = clip_lengths(config)
    if generator is None:
        windows = centre_windows(video_span, audio_span, replace(lengths, max_offset_seconds=0.0))
    else:
        windows = random_windows(video_span, audio_span, lengths, generator)
    if video_span is not None:
        windows = snap_to_frames(windows, video_span, sample.info.video_fps)
    key, video_start, audio_start = sample.info.key, windows.video_start_seconds, windows.audio_start_seconds
    video = audio = None
    if sample.video is not None and video_span is not None and video_start is not None:
        video = decode_video_clip(sample.video, video_start, config.video, video_span, key)
    if sample.audio is not None and audio_span is not None and audio_start is not None:
        audio = decode_audio_clip(sample.audio, audio_start, config.audio, audio_span, key)
    return Clip(sample.info.index, key, video, audio, video_start or 0.0, audio_start or 0.0)


def decode_video_clip(
    source: Source, start_seconds: float, config: VideoViewConfig, span: Span, name: str
) -> torch.Tensor:
    """uint8 (T, 3, H, W) from `start_seconds` on the media's common clock, tiled at the end of the video."""
    times = frame_times_seconds(start_seconds, config.num_frames, config.fps, span) - span.start_seconds
    return read_video(source, times.tolist(), name=name)


def decode_audio_clip(
    source: Source, start_seconds: float, config: AudioViewConfig, span: Span, name: str
) -> torch.Tensor:
    """float32 (1, samples) from `start_seconds` on the media's common clock, zeros beyond the stream."""
    num_samples = round(config.seconds * config.rate_hz)
    return read_audio(source, start_seconds - span.start_seconds, num_samples, config.rate_hz, name=name)


def raw_views(sample: Sample, views: Sequence[View], config: ViewsConfig, seed: int, epoch: int) -> dict[str, RawView]:
    """All views of one sample. epoch -1 gives the deterministic clip and crop, whatever the views' augment."""
    index = sample.info.index
    clip_generator = None if epoch < 0 else np.random.default_rng((seed, epoch, index))
    clip = read_clip(sample, config, {view.modality for view in views}, clip_generator)
    result = {}
    for view in views:
        generator = None
        if epoch >= 0 and view.augment != "test":
            generator = np.random.default_rng((seed, epoch, index, zlib.crc32(view.name.encode())))
        if view.modality == "video" and clip.video is not None:
            result[view.name] = raw_video(clip.video, config.video.augment, generator)
        elif view.modality == "audio" and clip.audio is not None:
            result[view.name] = raw_audio(clip.audio, config.audio.augment, generator)
    return result


def raw_video(video: torch.Tensor, augment: VideoAugment, generator: np.random.Generator | None) -> RawView:
    """Crop and resize one clip (T, 3, H, W); a generator draws the box and the parameters of the rest."""
    height, width = video.shape[2:]
    if generator is None:
        return RawView("video", crop_resize(video, centre_crop_box(height, width), augment.size_px))
    parameters = draw_video_parameters(generator, height, width, augment)
    return RawView("video", crop_resize(video, parameters.box, augment.size_px), parameters=parameters)


def raw_audio(audio: torch.Tensor, augment: AudioAugment, generator: np.random.Generator | None) -> RawView:
    """One waveform (1, samples) with its volume factor."""
    volume = None if generator is None else torch.tensor(draw_volume(generator, augment))
    return RawView("audio", audio, volume=volume)


def stack_raw_views(rows: Sequence[Mapping[str, RawView]], augment: VideoAugment) -> dict[str, RawView]:
    """Batch of raw views from single samples."""
    result = {}
    for name in rows[0]:
        views = [row[name] for row in rows]
        stacked = RawView(views[0].modality, torch.stack([view.media for view in views]))
        parameters = [view.parameters for view in views if view.parameters is not None]
        if parameters:
            stacked.flip = torch.tensor([each.flip for each in parameters])
            stacked.colour = stack_colour(parameters, augment)
        volumes = [view.volume for view in views if view.volume is not None]
        if volumes:
            stacked.volume = torch.stack(volumes)
        result[name] = stacked
    return result


class ViewMaker(nn.Module):
    """Raw views -> model-ready tensors on the device: video (B, 3, T, S, S), audio (B, 1, frames, bins).

    Its only state are the per-bin statistics of the spectrogram, which belong to the run.
    """

    def __init__(self, config: ViewsConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        if "audio" in modalities:
            audio = config.audio
            options: dict[str, Any] = {
                "rate_hz": audio.rate_hz,
                "window_samples": audio.window_samples,
                "hop_samples": audio.hop_samples,
                "num_frames": audio.num_frames,
            }
            self.spectrogram: LogSpectrogram | LogMel
            if audio.transform == "log_mel":
                self.spectrogram = LogMel(num_bins=audio.num_mels, **options)
            else:
                self.spectrogram = LogSpectrogram(bins_averaged=audio.bins_averaged, **options)
            self.normalize_audio = BinNormalize(self.spectrogram.num_bins)

    @torch.no_grad()
    def forward(self, raw: Mapping[str, RawView], device: torch.device) -> dict[str, torch.Tensor]:
        """Every view of a batch."""
        return {
            name: self.video(view, device) if view.modality == "video" else self.audio(view, device)
            for name, view in raw.items()
        }

    def video(self, view: RawView, device: torch.device) -> torch.Tensor:
        """uint8 (B, T, 3, S, S) -> float32 (B, 3, T, S, S), flipped, colour-jittered and normalised."""
        media = view.media.to(device, non_blocking=True)
        if view.flip is not None:
            media = flip_horizontally(media, view.flip)
        frames = to_float(media)
        if view.colour is not None:
            frames = jitter_colour(frames, view.colour)
        return to_model_layout(normalize(frames))

    def audio(self, view: RawView, device: torch.device) -> torch.Tensor:
        """float32 (B, 1, samples) -> normalised spectrogram (B, 1, frames, bins)."""
        waveform = view.media.to(device, non_blocking=True)
        if view.volume is not None:
            waveform = scale_volume(waveform, view.volume.to(device))
        return self.normalize_audio(self.spectrogram(waveform))  # type: ignore[no-any-return]
