"""The settings of data_prep/transcode/encode.py, the checks that need no encoder, and the order of frames and audio."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VideoArray = NDArray[np.uint8]
AudioArray = NDArray[np.floating[Any]]

# File extension -> FFmpeg's name of the container.
CONTAINERS = {
    ".mp4": "mp4",
    ".m4a": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".mka": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".flac": "flac",
    ".wav": "wav",
    ".mp3": "mp3",
    ".ogg": "ogg",
    ".opus": "ogg",
}
ROTATING_CONTAINERS = ("mp4", "mov", "matroska")
# A multiple of the usual frame rates (also of 30000/1001), and small enough for the mpeg4 encoder's 16 bits.
FINE_TICKS_PER_SECOND = 60_000
AUDIO_BLOCK_SAMPLES = 4096
ENCODER_ALIASES = {"mp3": "libmp3lame", "opus": "libopus", "vp9": "libvpx-vp9", "h264": "libx264"}
# AVI cannot declare priming samples, so packets that hold only these are left out. LAME's 1105 are not a whole number
# of packets (576 or 1152 samples): with this many zeros before the audio they are. AAC's 1024 are one packet.
AVI_ZEROS_BEFORE_AUDIO = {"libmp3lame": 47}


@dataclass(frozen=True)
class VideoSettings:
    """How the video stream is written.

    width, height: pixels, even for pixel formats with half-size color planes. fps: frames per second. variable_rate:
    each frame has a time of its own (not in AVI). keyframe_interval: frames between keyframes; None: the encoder
    decides. start_seconds >= 0: when the first frame is shown. rotation_degrees: 0, 90, 180 or 270, the CLOCKWISE turn
    that players apply to the stored frame. options: the encoder's own, e.g. {"crf": "20"}.
    """

    width: int
    height: int
    fps: float | Fraction
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    keyframe_interval: int | None = None
    start_seconds: float = 0.0
    rotation_degrees: int = 0
    variable_rate: bool = False
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AudioSettings:
    """How the audio stream is written. rate_hz: samples per second; num_channels: 1 or 2; start_seconds >= 0."""

    rate_hz: int
    num_channels: int = 1
    codec: str = "aac"
    start_seconds: float = 0.0
    options: dict[str, str] = field(default_factory=dict)


def repeatable_options(settings: VideoSettings) -> dict[str, str]:
    """The encoder's options, without x264's macroblock tree unless it is set: it makes the output vary from run to run.

    It reads memory that it has not written (seen with glibc's MALLOC_PERTURB_): now and then the same frames give other
    bytes. Without it files are larger and better at the same crf, so choose a higher crf.
    """
    is_x264 = ENCODER_ALIASES.get(settings.codec, settings.codec) == "libx264"
    return {"mbtree": "0", **settings.options} if is_x264 else settings.options


class FrameClock:
    """Counts frames and converts their times to whole ticks: a tick is a frame if frames are evenly spaced from 0 on,
    otherwise 1/60000 s.
    """

    def __init__(self, settings: VideoSettings) -> None:
        self.fps = as_rational_fps(settings.fps)
        on_grid = not settings.variable_rate and settings.start_seconds == 0
        self.ticks_per_second = self.fps if on_grid else Fraction(FINE_TICKS_PER_SECOND)
        self.ticks_per_frame = self.ticks_per_second / self.fps
        self._start_ticks = round(settings.start_seconds * self.ticks_per_second)
        self._variable_rate = settings.variable_rate
        self._num_frames, self._last_ticks = 0, -1

    def next_ticks(self, seconds: float | None) -> int:
        """The next frame's ticks. seconds: after the first frame, increasing; None unless the rate is variable."""
        if (seconds is None) == self._variable_rate:
            raise ValueError(f"frame {self._num_frames}: seconds are {seconds}; give them only with variable_rate")
        from_start = self._num_frames * self.ticks_per_frame if seconds is None else seconds * self.ticks_per_second
        ticks = self._start_ticks + round(from_start)
        if ticks <= self._last_ticks:
            raise ValueError(f"frame {self._num_frames} is at {seconds} s, not after the frame before it")
        self._num_frames, self._last_ticks = self._num_frames + 1, ticks
        return ticks


def container_of(path: str | os.PathLike[str]) -> str:
    """FFmpeg's container name for the extension of a path; ValueError lists the known extensions."""
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        raise ValueError(
            f"{path}: no container is known for the extension {suffix!r}; use one of {', '.join(CONTAINERS)} "
            "or pass container_format"
        )
    return CONTAINERS[suffix]


def as_rational_fps(fps: float | Fraction) -> Fraction:
    """The frame rate as a fraction: 29.97 becomes 30000/1001, 12.5 becomes 25/2, a Fraction stays. Must be positive."""
    if fps <= 0:
        raise ValueError(f"fps is {fps}; it must be positive")
    if isinstance(fps, Fraction):
        return fps
    broadcast = Fraction(round(fps * 1.001) * 1000, 1001)
    is_broadcast = abs(fps - round(fps)) > 1e-3 and abs(float(broadcast) - fps) < 0.005
    return broadcast if is_broadcast else Fraction(fps).limit_denominator(1001)


def frame_size(frame: VideoArray) -> tuple[int, int]:
    """(width, height) in pixels; ValueError if the array is not an RGB frame."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a video frame is {frame.dtype} {frame.shape}; it must be uint8 (height, width, 3)")
    return int(frame.shape[1]), int(frame.shape[0])


def count_channels(audio: AudioArray) -> int:
    """1 or 2; ValueError if the array is not a waveform."""
    if audio.ndim != 2 or audio.shape[0] not in (1, 2) or audio.dtype.kind != "f":
        raise ValueError(f"audio is {audio.dtype} {audio.shape}; it must be float (1 or 2 channels, samples)")
    if audio.shape[1] == 0:
        raise ValueError("audio has no samples; pass None to write video only")
    return int(audio.shape[0])


def check_settings(container: str, video: VideoSettings | None, audio: AudioSettings | None) -> None:
    """ValueError for what the container cannot store, before a file is opened."""
    starts = [settings.start_seconds for settings in (video, audio) if settings is not None]
    if min(starts) < 0:
        raise ValueError(f"start_seconds is {min(starts)}; streams start at 0 or later")
    if container == "avi" and (max(starts) > 0 or (video is not None and video.variable_rate)):
        raise ValueError("AVI has no start times and only one frame rate: use mp4, mov, mkv or webm for these")
    if video is not None and video.rotation_degrees not in (0, 90, 180, 270):
        raise ValueError(f"rotation_degrees is {video.rotation_degrees}; allowed: 0, 90, 180, 270")
    if video is not None and video.rotation_degrees and container not in ROTATING_CONTAINERS:
        raise ValueError(f"{container} cannot store a rotation; use one of {', '.join(ROTATING_CONTAINERS)}")
    if video is not None and video.pixel_format.startswith("yuv420") and (video.width % 2 or video.height % 2):
        raise ValueError(
            f"frames are {video.width}x{video.height}; {video.pixel_format} needs even sizes: crop or pad by one pixel"
        )


# (seconds, frame or None, block of the waveform or None)
Timed = tuple[float, VideoArray | None, AudioArray | None]


def in_time_order(
    frames: Iterable[VideoArray],
    *,
    frame_times_seconds: Sequence[float] | None,
    fps: float,
    audio: AudioArray | None,
    rate_hz: int,
    audio_offset_seconds: float,
) -> Iterator[Timed]:
    """Frames and blocks of the waveform in the order of playing, so that neither stream is written ahead of the other.

    Seconds count from the first frame. audio_offset_seconds: the waveform's start in these seconds.
    """
    timed_frames = _timed_frames(frames, frame_times_seconds, fps)
    return heapq.merge(timed_frames, _timed_blocks(audio, rate_hz, audio_offset_seconds), key=itemgetter(0))


def _timed_frames(frames: Iterable[VideoArray], times_seconds: Sequence[float] | None, fps: float) -> Iterator[Timed]:
    """Each frame with its seconds: those in `times_seconds`, one per frame, or k / fps if that is None."""
    number = -1
    for number, frame in enumerate(frames):
        if times_seconds is not None and number >= len(times_seconds):
            raise ValueError(f"frame_times_seconds has {len(times_seconds)} entries and video more frames than that")
        yield (number / fps if times_seconds is None else times_seconds[number]), frame, None
    if times_seconds is not None and number + 1 != len(times_seconds):
        raise ValueError(f"frame_times_seconds has {len(times_seconds)} entries for {number + 1} frames")


def _timed_blocks(audio: AudioArray | None, rate_hz: int, start_seconds: float) -> Iterator[Timed]:
    """The waveform in blocks, each with the seconds at which it starts; nothing for None."""
    if audio is None:
        return
    for position in range(0, audio.shape[1], AUDIO_BLOCK_SAMPLES):
        yield start_seconds + position / rate_hz, None, audio[:, position : position + AUDIO_BLOCK_SAMPLES]
