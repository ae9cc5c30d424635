"""The members of a sample, encoded step by step: an mp4 of the frames on screen at every k / fps, and a FLAC file."""

from __future__ import annotations

import heapq
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from avssl.media.frames import UprightFilter
from avssl.media.info import FRAME_TIME_TOLERANCE_SECONDS, AudioInfo, VideoInfo, fitted_size
from avssl.media.readers import AudioReader, Frame, VideoReader
from avssl.shards.keys import Segment
from avssl.types import MediaError
from data_prep.transcode.encode import MediaWriter
from data_prep.transcode.encode_settings import AudioSettings, VideoSettings, as_rational_fps
from data_prep.transcode.options import WriteOptions
from data_prep.transcode.screening import SilenceMeter, StillnessMeter

MAX_SIDE_PX = 16_384  # the limit of x264; only damaged headers exceed it


@dataclass(frozen=True)
class Window:
    """The seconds of a stream that become its member, counted from the stream's own first frame or sample.

    start: where the member begins. length: its greatest length. late: how long after the start of the segment it
    begins.
    """

    start: float
    length: float
    late: float

    @classmethod
    def of(cls, stream_start: float, segment: Segment) -> Window:
        """The window of a segment. stream_start: seconds after the start of the stream that starts first."""
        begin, end = segment
        late = max(0.0, stream_start - begin)
        return cls(max(0.0, begin - stream_start), max(0.0, end - begin - late), late)


def on_grid(frames: Iterable[Frame], fps: Fraction, window: Window) -> Iterator[Any]:
    """The frame on screen at window.start + k / fps, k = 0, 1, ..., until the frames or the window ends.

    frames: the first is the one on screen at window.start. A frame may be yielded several times. The last frame of a
    stream ends after its duration; a single frame without a duration is yielded once.
    """
    rate, length = float(fps), window.length
    shown: Any = None
    num_frames, end_seconds = 0, 0.0
    for frame in frames:
        seconds = frame.seconds - window.start
        if shown is not None:
            until = min(seconds, length) - FRAME_TIME_TOLERANCE_SECONDS
            while num_frames / rate < until:
                yield shown
                num_frames += 1
        if num_frames and num_frames / rate + FRAME_TIME_TOLERANCE_SECONDS >= length:
            return
        shown, end_seconds = frame.frame, max(end_seconds, seconds + frame.duration_seconds)
    until = min(end_seconds, length) - FRAME_TIME_TOLERANCE_SECONDS
    is_lone = num_frames == 0 and window.start == 0 and length > 0
    while shown is not None and (num_frames / rate < until or is_lone):
        yield shown
        num_frames += 1
        is_lone = False


class VideoMember:
    """The mp4 of a window of a stream. content: its bytes once `store` has ended; None if there is no frame."""

    name = "video"

    def __init__(self, stream: VideoReader, info: VideoInfo, window: Window, options: WriteOptions) -> None:
        self.info, self.window = info, window
        self.content: bytes | None = None
        self.num_frames = 0
        self.fps = as_rational_fps(options.fps)
        self.stillness = StillnessMeter(options.still_levels) if options.on_still_video == "skip" else None
        self._stream, self._options = stream, options
        self._size = fitted_size(info.width, info.height, info.pixel_aspect, options.short_side_px)
        if max(self._size) > MAX_SIDE_PX:
            shape = f"{info.width}x{info.height} pixels with an aspect of {info.pixel_aspect:g}"
            raise MediaError("decode_error", f"{stream.label}: its frames have {shape}; a side may have {MAX_SIDE_PX}")

    @property
    def seconds(self) -> float:
        """Seconds that are stored so far."""
        return float(self.num_frames / self.fps)

    def store(self) -> Iterator[float]:
        """Encode the member; yields the seconds that are stored so far."""
        options = self._options
        settings = VideoSettings(
            *self._size,
            self.fps,
            codec=options.video_codec,
            keyframe_interval=options.keyframe_interval,
            options=options.encoder_options(),
        )
        rate, last = float(self.fps), None
        output = io.BytesIO()
        with MediaWriter(output, video=settings, container_format="mp4") as writer:
            for frame in on_grid(self._stream.play(self.window.start), self.fps, self.window):
                if frame is not last:  # a frame that is stored several times is scaled once
                    if last is None:
                        turns, is_mirrored = self._stream.orientation
                        upright = UprightFilter(turns, self._size, is_mirrored)
                    scaled, last = upright(frame), frame
                    if self.stillness is not None:
                        self.stillness.add(scaled)
                writer.write_video(scaled)
                self.num_frames += 1
                yield self.num_frames / rate
        self.content = output.getvalue() if self.num_frames else None


class AudioMember:
    """The FLAC of a window of a stream. content: its bytes once `store` has ended; None if there are no samples."""

    name = "audio"

    def __init__(self, stream: AudioReader, info: AudioInfo, window: Window, options: WriteOptions) -> None:
        self.info, self.window = info, window
        self.content: bytes | None = None
        self.num_samples = 0
        self.rate_hz = options.audio_rate_hz
        skips = options.on_silent_audio == "skip"
        self.silence = SilenceMeter(options.silence_dbfs, self.rate_hz) if skips else None
        self._stream = stream

    @property
    def seconds(self) -> float:
        """Seconds that are stored so far."""
        return self.num_samples / self.rate_hz

    @property
    def grid_seconds(self) -> float:
        """Seconds from the window's start to the first stored sample: at most half a sample, earlier or later."""
        return round(self.window.start * self.rate_hz) / self.rate_hz - self.window.start

    def store(self) -> Iterator[float]:
        """Encode the member; yields the seconds that are stored so far."""
        length = self.window.length
        output = io.BytesIO()
        settings = AudioSettings(self.rate_hz, num_channels=1, codec="flac")
        with MediaWriter(output, audio=settings, container_format="flac") as writer:
            for block in self._stream.play(self.rate_hz, round(self.window.start * self.rate_hz)):
                most = len(block) if math.isinf(length) else round(length * self.rate_hz) - self.num_samples
                if most <= 0:
                    break
                samples = block[:most]
                if self.silence is not None:
                    self.silence.add(samples)
                writer.write_audio(samples[None])
                self.num_samples += len(samples)
                yield self.seconds
        self.content = output.getvalue() if self.num_samples else None


class Storing(Protocol):
    """A member of a sample while it is stored."""

    def store(self) -> Iterator[float]:
        """Store step by step; yields the seconds that are stored so far."""


def store_in_turn(members: Iterable[Storing]) -> None:
    """Store all members in steps, each time of the member with the fewest seconds: a stream that is far ahead of the
    other holds much in memory.
    """
    steps = [(0.0, number, member.store()) for number, member in enumerate(members)]
    while steps:
        _, number, step = heapq.heappop(steps)
        seconds = next(step, None)
        if seconds is not None:
            heapq.heappush(steps, (seconds, number, step))
