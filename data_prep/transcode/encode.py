"""Writes media files: the only module that encodes.

`write_media` makes a whole file from arrays; `MediaWriter` does the same in small steps, at constant memory, and also
takes PyAV frames (for transcoding). The same input gives the same bytes: one encoder thread, bit-exact muxing, no
creation dates.

Timing: a stream's first sample or frame is played `*_start_seconds` after the file's time 0, in every container that
can store this. The priming samples of AAC and Opus are declared in the file, so that a decoder drops them; AVI cannot
declare them, so packets that hold only these are left out there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType

import av

from data_prep.transcode.encode_settings import (
    AudioArray,
    AudioSettings,
    VideoArray,
    VideoSettings,
    check_settings,
    container_of,
    count_channels,
    frame_size,
    in_time_order,
)
from data_prep.transcode.encode_streams import AudioStream, VideoStream


class MediaWriter:
    """Writes one file, frame by frame; a context manager. After an error there is no file.

    Write video and audio in roughly the order of playing: packets of a stream that is ahead are held in memory.

    Args:
        destination: path, or a seekable binary file object (then container_format is needed).
        video, audio: settings of the streams, at least one.
        container_format: FFmpeg's name, e.g. "mp4", "matroska"; default: from the path's extension.

    Raises ValueError for settings that the encoder or the container does not support.
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
            self._video = None if video is None else VideoStream(self._container, video)
            self._audio = None if audio is None else AudioStream(self._container, audio, container_format)
        except BaseException:
            self._discard()
            raise

    def write_video(self, frame: VideoArray | av.VideoFrame, seconds: float | None = None) -> None:
        """Add a frame: uint8 (height, width, 3) RGB, or a PyAV frame, which is scaled and gets new times.

        seconds: when it is shown, counted from the stream's first frame; needed if variable_rate, else k / fps.
        """
        if self._video is None:
            raise ValueError("this file was opened without a video stream")
        self._container.mux(self._video.encode(frame, seconds))

    def write_audio(self, samples: AudioArray | av.AudioFrame) -> None:
        """Add samples: float (channels, samples) in [-1, 1], or a PyAV frame of any rate and format."""
        if self._audio is None:
            raise ValueError("this file was opened without an audio stream")
        self._container.mux(self._audio.encode(samples))

    def close(self) -> None:
        """Flush both encoders, finish the file and move it to its final path."""
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


def why_not_encode(settings: VideoSettings) -> str | None:
    """The reason why this machine cannot encode with these settings; None if it can."""
    try:
        MediaWriter(io.BytesIO(), video=settings, container_format="mp4")._discard()
    except ValueError as error:
        return str(error)
    return None


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
        video_fps: frames per second; a Fraction is kept exactly. With frame_times_seconds only the nominal rate.
        frame_times_seconds: for a variable frame rate: when each frame is shown, from 0, increasing.
        audio: float (channels, samples) in [-1, 1], one or two channels; None for video only.
        video_codec: "libx264", "libvpx-vp9", "mpeg4", ...
        audio_codec: "aac", "flac", "libopus", "libmp3lame" (or "mp3"), ...
        video_options, audio_options: the encoders' own options, as strings.
        keyframe_interval, rotation_degrees, pixel_format, *_start_seconds: see VideoSettings and AudioSettings.

    Raises ValueError for what the encoder or the container does not support, with what they support.
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
        for seconds, frame, block in in_time_order(
            [] if first is None else chain([first], frames),
            frame_times_seconds=frame_times_seconds,
            fps=float(video_fps),
            audio=audio,
            rate_hz=audio_rate_hz,
            audio_offset_seconds=audio_start_seconds - video_start_seconds,
        ):
            if block is not None:
                writer.write_audio(block)
            elif frame is not None:
                writer.write_video(frame, None if frame_times_seconds is None else seconds)
