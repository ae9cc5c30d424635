"""Writing media files: the only place that encodes, and with avssl/data/decode.py the only one that knows PyAV.

`write_media` makes one whole file from arrays; `MediaWriter` is the same in small steps, at constant memory, and also
takes PyAV frames (for transcoding). The same input gives the same bytes: one encoder thread, bit-exact muxing, no
dates.

Timing: a stream's first sample or frame is shown `*_start_seconds` after the file's time 0, in every container that can
say so. The priming samples of AAC and Opus are declared in the file, so that a decoder drops them; AVI cannot declare
them, so the packets that hold only priming are left out there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.codec.context import Flags
from av.video.frame import PictureType

from data_prep.encode_settings import (
    AVI_ZEROS_BEFORE_AUDIO,
    ENCODER_ALIASES,
    AudioArray,
    AudioSettings,
    FrameClock,
    VideoArray,
    VideoSettings,
    check_settings,
    container_of,
    count_channels,
    frame_size,
    in_time_order,
    repeatable_options,
)

__all__ = ["AudioSettings", "MediaWriter", "VideoSettings", "write_media"]


class MediaWriter:
    """Writes one file, frame by frame; a context manager. An error, or leaving by an exception, leaves no file behind.

    Give video and audio in roughly the order in which they play: what one stream is ahead is held in memory.

    Args:
        destination: path, or a seekable binary file object (then container_format is needed).
        video, audio: settings of the streams, at least one.
        container_format: FFmpeg's name, e.g. "mp4", "matroska"; default: from the path's extension.

    Raises ValueError for settings that the encoder or the container cannot do.
    """

    def __init__(
        self,
        destination: str | os.PathLike[str] | io.IOBase,
        *,
        video: VideoSettings | None = None,
        audio: AudioSettings | None = None,
        container_format: str | None = None,
    ) -> None:
        if video is None and audio is None:
            raise ValueError(f"{destination}: nothing to write; give video, audio or both")
        self._path = None if isinstance(destination, io.IOBase) else Path(destination)
        if self._path is None and container_format is None:
            raise ValueError("a file object has no extension: pass container_format, e.g. 'mp4'")
        container_format = container_format or container_of(self._path or "")
        check_settings(container_format, video, audio)
        self._temporary = None if self._path is None else self._path.with_name(self._path.name + ".tmp")
        self._container = av.open(
            destination if self._temporary is None else str(self._temporary),
            "w",
            format=container_format,
            container_options={"fflags": "+bitexact"},
        )
        try:
            self._video = None if video is None else _Video(self._container, video)
            self._audio = None if audio is None else _Audio(self._container, audio, container_format)
        except BaseException:
            self._discard()
            raise

    def write_video(self, picture: VideoArray | av.VideoFrame, seconds: float | None = None) -> None:
        """Add a frame: uint8 (height, width, 3) RGB, or a PyAV frame: scaled, its times overwritten.

        seconds: when it is shown, counted from the stream's first frame; needed if variable_rate, else k / fps.
        """
        if self._video is None:
            raise ValueError("this file was opened without a video stream")
        self._container.mux(self._video.encode(picture, seconds))

    def write_audio(self, samples: AudioArray | av.AudioFrame) -> None:
        """Add samples: float (channels, samples) in [-1, 1], or a PyAV frame of any rate and format."""
        if self._audio is None:
            raise ValueError("this file was opened without an audio stream")
        self._container.mux(self._audio.encode(samples))

    def close(self) -> None:
        """Flush both encoders, finish the file and put it in place."""
        try:
            for stream in (self._video, self._audio):
                if stream is not None:
                    self._container.mux(stream.flush())
            self._container.close()
        except BaseException:
            self._discard()
            raise
        if self._temporary is not None and self._path is not None:
            self._temporary.replace(self._path)

    def _discard(self) -> None:
        self._container.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> MediaWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def write_media(
    destination: str | os.PathLike[str] | io.IOBase,
    *,
    video: Iterable[VideoArray] | None = None,
    video_fps: float | Fraction = 16.0,
    frame_times_seconds: Sequence[float] | None = None,
    audio: AudioArray | None = None,
    audio_rate_hz: int = 24_000,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    container_format: str | None = None,
    video_options: dict[str, str] | None = None,
    audio_options: dict[str, str] | None = None,
    keyframe_interval: int | None = None,
    video_start_seconds: float = 0.0,
    audio_start_seconds: float = 0.0,
    rotation_degrees: int = 0,
    pixel_format: str = "yuv420p",
) -> None:
    """Encode arrays into one media file with one video and / or one audio stream.

    Args:
        destination: path, or a seekable binary file object (then container_format is needed).
        video: uint8 (height, width, 3) RGB frames, all of one size; None for audio only.
        video_fps: frames a second; a Fraction is kept exactly. With frame_times_seconds only the nominal rate.
        frame_times_seconds: variable frame rate: when each frame is shown, from 0, increasing.
        audio: float (channels, samples) in [-1, 1], one or two channels; None for video only.
        video_codec: "libx264", "libvpx-vp9", "mpeg4", ...
        audio_codec: "aac", "flac", "libopus", "libmp3lame" (or "mp3"), ...
        video_options, audio_options: the encoders' own options, as strings.
        keyframe_interval, rotation_degrees, pixel_format, *_start_seconds: see VideoSettings and AudioSettings.

    Raises ValueError for what the encoder or the container cannot do, naming what can be done.
    """
    frames = iter(video) if video is not None else iter(())
    first = next(frames, None)
    if video is not None and first is None:
        raise ValueError(f"{destination}: video has no frames; pass None to write audio only")
    video_settings = audio_settings = None
    if first is not None:
        video_settings = VideoSettings(
            *frame_size(first),
            fps=video_fps,
            codec=video_codec,
            pixel_format=pixel_format,
            keyframe_interval=keyframe_interval,
            start_seconds=video_start_seconds,
            rotation_degrees=rotation_degrees,
            variable_rate=frame_times_seconds is not None,
            options=video_options or {},
        )
    if audio is not None:
        settings = audio_rate_hz, count_channels(audio), audio_codec, audio_start_seconds, audio_options or {}
        audio_settings = AudioSettings(*settings)
    with MediaWriter(
        destination, video=video_settings, audio=audio_settings, container_format=container_format
    ) as writer:
        for seconds, picture, block in in_time_order(
            [] if first is None else chain([first], frames),
            frame_times_seconds=frame_times_seconds,
            fps=float(video_fps),
            audio=audio,
            rate_hz=audio_rate_hz,
            audio_offset_seconds=audio_start_seconds - video_start_seconds,
        ):
            if block is not None:
                writer.write_audio(block)
            elif picture is not None:
                writer.write_video(picture, None if frame_times_seconds is None else seconds)


def _add_stream(container: Any, codec: str, rate: Fraction | int, options: dict[str, str]) -> Any:
    """A new stream that encodes in one thread and bit-exactly; ValueError says what the container takes."""
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


def _open_encoder(stream: Any) -> None:
    """Start the encoder; ValueError for options that it refuses or does not know (FFmpeg would ignore those)."""
    context, given = stream.codec_context, dict(stream.codec_context.options)
    try:
        context.open()
    except av.FFmpegError as error:
        raise ValueError(f"the encoder {context.name} refuses its settings or its options {given}: {error}") from error
    if context.options:  # what PyAV leaves here is what no one took
        raise ValueError(f"the encoder {context.name} knows no option {', '.join(sorted(context.options))}")


class _Video:
    """The video encoder and its clock."""

    def __init__(self, container: Any, settings: VideoSettings) -> None:
        self._settings = settings
        self._clock = FrameClock(settings)
        self._stream = _add_stream(container, settings.codec, self._clock.fps, repeatable_options(settings))
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = settings.width, settings.height, settings.pixel_format
        context.time_base = 1 / self._clock.ticks_per_second
        if settings.keyframe_interval is not None:
            context.gop_size = settings.keyframe_interval
        if container.format.name == "avi":
            context.max_b_frames = 0  # AVI stores no presentation times: frames must be stored as they are shown
        if settings.rotation_degrees:
            self._stream.set_display_rotation(-settings.rotation_degrees)  # PyAV counts counter-clockwise
        _open_encoder(self._stream)

    def encode(self, picture: VideoArray | av.VideoFrame, seconds: float | None) -> list[Any]:
        settings = self._settings
        ticks = self._clock.next_ticks(seconds)
        if isinstance(picture, av.VideoFrame):
            frame = picture.reformat(settings.width, settings.height, settings.pixel_format, interpolation="AREA")
        elif frame_size(picture) != (settings.width, settings.height):
            raise ValueError(f"a frame of {frame_size(picture)} pixels for {settings.width}x{settings.height} video")
        else:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=settings.pixel_format)
        frame.pts, frame.time_base = ticks, 1 / self._clock.ticks_per_second
        frame.duration = max(1, round(self._clock.ticks_per_frame))
        frame.pict_type = PictureType.NONE  # a decoded frame carries its old type, which would force a keyframe
        return list(self._stream.encode(frame))

    def flush(self) -> list[Any]:
        return list(self._stream.encode(None))


class _Audio:
    """The audio encoder and its clock."""

    def __init__(self, container: Any, settings: AudioSettings, container_format: str) -> None:
        self._settings = settings
        self._drops_priming = container_format == "avi"
        options = dict(settings.options)
        encoder = ENCODER_ALIASES.get(settings.codec, settings.codec)
        if self._drops_priming and encoder == "libmp3lame":
            options.setdefault("reservoir", "0")  # no packet may borrow bits from one that is left out
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
        return self._encode_all([*filter(None, self._resampler.resample(None)), None])
