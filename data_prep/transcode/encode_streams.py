"""The video and the audio encoder of a file that data_prep/transcode/encode.py writes, each with its clock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.codec.context import Flags
from av.video.frame import PictureType

from data_prep.transcode.encode_settings import (
    AVI_ZEROS_BEFORE_AUDIO,
    ENCODER_ALIASES,
    AudioArray,
    AudioSettings,
    FrameClock,
    VideoArray,
    VideoSettings,
    count_channels,
    frame_size,
    repeatable_options,
)

os.environ.setdefault("SVT_LOG", "1")  # errors only: by default libsvtav1 prints its settings for every file


def _add_stream(container: Any, codec: str, rate: Fraction | int, options: dict[str, str]) -> Any:
    """A new stream that encodes in one thread and bit-exactly. ValueError if the container cannot hold this codec."""
    name = ENCODER_ALIASES.get(codec, codec)
    try:
        stream = container.add_stream(name, rate=rate, options=dict(options))
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(
            f"cannot write {codec!r} into {container.format.name!r} ({error}); pairs that work: libx264 + aac in mp4 "
            "or mov, libvpx-vp9 + libopus in webm, mpeg4 + libmp3lame in avi, libx264 + flac in mkv"
        ) from error
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.bitexact
    return stream


@contextmanager
def kept_priority() -> Iterator[None]:
    """Leave the process as ordinary as it was where libsvtav1 is opened.

    As root it makes the thread that opens it, and its own ones, real-time threads, which all else has to wait for.
    """
    if not hasattr(os, "sched_getscheduler"):  # only Linux has it, and the fault
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setscheduler(int(thread.name), policy, priority)


def _open_encoder(stream: Any) -> None:
    """Start the encoder; ValueError for options that it refuses or does not know (FFmpeg would ignore those)."""
    context, options = stream.codec_context, dict(stream.codec_context.options)
    try:
        with kept_priority():
            context.open()
    except av.FFmpegError as error:
        raise ValueError(f"the encoder {context.name} refuses its settings or options {options}: {error}") from error
    if context.options:  # PyAV leaves the options here that the encoder did not use
        raise ValueError(f"the encoder {context.name} knows no option {', '.join(sorted(context.options))}")


class VideoStream:
    """The video encoder and its clock."""

    def __init__(self, container: Any, settings: VideoSettings) -> None:
        self._settings = settings
        self._clock = FrameClock(settings)
        self._stream = _add_stream(container, settings.codec, self._clock.fps, repeatable_options(settings))
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = settings.width, settings.height, settings.pixel_format
        context.time_base = self._time_base = 1 / self._clock.ticks_per_second
        self._frame_ticks = max(1, round(self._clock.ticks_per_frame))
        if settings.keyframe_interval is not None:
            context.gop_size = settings.keyframe_interval
        if container.format.name == "avi":
            context.max_b_frames = 0  # AVI stores no presentation times: frames must be stored as they are shown
        if settings.rotation_degrees:
            self._stream.set_display_rotation(-settings.rotation_degrees)  # PyAV counts counter-clockwise
        _open_encoder(self._stream)

    def encode(self, pixels: VideoArray | av.VideoFrame, seconds: float | None) -> list[Any]:
        """The packets that the encoder gives after one more frame. seconds: as `FrameClock.next_ticks`."""
        settings = self._settings
        ticks = self._clock.next_ticks(seconds)
        if isinstance(pixels, av.VideoFrame):
            frame = pixels.reformat(settings.width, settings.height, settings.pixel_format, interpolation="AREA")
        elif frame_size(pixels) != (settings.width, settings.height):
            raise ValueError(f"a frame of {frame_size(pixels)} pixels for {settings.width}x{settings.height} video")
        else:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=settings.pixel_format)
        frame.pts, frame.time_base, frame.duration = ticks, self._time_base, self._frame_ticks
        frame.pict_type = PictureType.NONE  # a decoded frame has the type of its source, which would force a keyframe
        return list(self._stream.encode(frame))

    def flush(self) -> list[Any]:
        """The packets that the encoder still holds; it takes no frame afterwards."""
        return list(self._stream.encode(None))


class AudioStream:
    """The audio encoder and its clock."""

    def __init__(self, container: Any, settings: AudioSettings, container_format: str) -> None:
        self._settings = settings
        self._drops_priming = container_format == "avi"
        options = dict(settings.options)
        encoder = ENCODER_ALIASES.get(settings.codec, settings.codec)
        if self._drops_priming and encoder == "libmp3lame":
            options.setdefault("reservoir", "0")  # otherwise a packet may need bits of a packet that is left out
        self._stream = _add_stream(container, encoder, settings.rate_hz, options)
        context = self._stream.codec_context
        allowed = context.codec.audio_rates
        if allowed and settings.rate_hz not in allowed:
            raise ValueError(f"{settings.codec} cannot do {settings.rate_hz} Hz; allowed: {sorted(allowed)}")
        self._layout = "mono" if settings.num_channels == 1 else "stereo"
        context.layout = self._layout
        context.time_base = Fraction(1, settings.rate_hz)
        _open_encoder(self._stream)
        self._resampler = AudioResampler(format=context.format, layout=self._layout, rate=settings.rate_hz)
        self._next_sample = round(settings.start_seconds * settings.rate_hz)
        num_zeros = AVI_ZEROS_BEFORE_AUDIO.get(encoder, 0) if self._drops_priming else 0
        if num_zeros:
            self._next_sample -= num_zeros
            # The frame is shorter than a packet: the encoder keeps it and gives nothing yet.
            self.encode(np.zeros((settings.num_channels, num_zeros), dtype=np.float32))

    def encode(self, samples: AudioArray | av.AudioFrame) -> list[Any]:
        """The packets that the encoder gives after more samples."""
        if isinstance(samples, av.AudioFrame):
            frame = samples
        elif count_channels(samples) != self._settings.num_channels:
            raise ValueError(f"audio has {samples.shape[0]} channels; the stream has {self._settings.num_channels}")
        else:
            planes = np.ascontiguousarray(np.clip(samples, -1, 1), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._layout)
            frame.sample_rate = self._settings.rate_hz
        frame.pts = None
        return self._encode_all(self._resampler.resample(frame))

    def _encode_all(self, frames: list[Any]) -> list[Any]:
        packets: list[Any] = []
        for frame in frames:
            if frame is not None:
                frame.pts, frame.time_base = self._next_sample, Fraction(1, self._settings.rate_hz)
                self._next_sample += frame.samples
            packets += self._stream.encode(frame)
        return [packet for packet in packets if packet.pts >= 0] if self._drops_priming else packets

    def flush(self) -> list[Any]:
        """The packets of the samples that resampler and encoder still hold; it takes none afterwards."""
        return self._encode_all([*filter(None, self._resampler.resample(None)), None])
