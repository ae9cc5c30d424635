"""Readers of one stream of a file from given seconds on, in constant memory: video frames, or audio mixed to mono.

The result is the same as decoding from the beginning gives, but what lies before is skipped if the container can seek.
Times are seconds from the stream's own first frame or sample. See decode.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from avssl.media.cursor import FrameCursor, SeekError
from avssl.media.ffmpeg import (
    audio_stream,
    check_not_truncated,
    decode_frames,
    media_errors,
    open_container,
    require_decodable,
    video_stream,
)
from avssl.media.frames import Resampler, to_array
from avssl.media.gapless_audio import GaplessAudio
from avssl.media.info import (
    FRAME_TIME_TOLERANCE_SECONDS,
    UPRIGHT,
    AudioBlock,
    AudioInfo,
    Orientation,
    VideoInfo,
    audio_span,
)
from avssl.media.random_access import RandomAccessContainer
from avssl.media.skipping import SkippingContainer
from avssl.media.sources import Source
from avssl.media.stream_info import audio_info, file_seconds, orientation_of, video_info

# Audio is resampled in blocks of at least so many samples: a call costs as much as some hundred samples.
BLOCK_SAMPLES = 16_384
# A seek may have to be repeated to an earlier keyframe, so shorter distances are read without seeking.
LEAST_SEEK_SECONDS = 1.0
# In these the clock does not begin with the file.
FORMATS_OF_RUNNING_CLOCKS = ("mpegts", "mpegtsraw", "mpeg")


class Frame(NamedTuple):
    """A decoded frame: shown `seconds` after the first one, for `duration_seconds` (its own, or by the frame rate).

    frame: av.VideoFrame, as stored; orientation: how to make it upright.

    >>> reader = VideoReader(clip)
    >>> round(reader.on_screen(0.52).seconds, 2)
    0.5
    >>> reader.close()
    """

    seconds: float
    duration_seconds: float
    frame: Any
    orientation: Orientation = UPRIGHT


class _Reader:
    """An open file of which one stream is read; a context manager that closes it."""

    def __init__(self, source: Source, name: str = "") -> None:
        self._source, self._name = source, name
        self._open()

    def _open(self) -> None:
        self._opening = open_container(self._source, self._name)
        self._container, self.label = self._opening.__enter__()
        self.container_name: str = self._container.format.name
        self.container_seconds = file_seconds(self._container)
        self.first_seconds = (self._container.start_time or 0) / 1e6

    def close(self) -> None:
        """Close the file."""
        self._opening.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class VideoReader(_Reader):
    """The video frames of a file. info: None if it has no video stream with a decodable frame.

    Raises MediaError as decode.probe does, at opening and while reading.

    >>> reader = VideoReader(clip)
    >>> reader.pixels(reader.on_screen(0.5)).shape
    (48, 64, 3)
    >>> reader.close()
    """

    def __init__(self, source: Source, name: str = "") -> None:
        super().__init__(source, name)
        self.info: VideoInfo | None = None
        self.orientation = UPRIGHT  # of the first frame, used for all
        self._requested_seconds = 0.0
        self._expected: list[int] = []  # ticks
        self._cursor: FrameCursor | None = None
        try:
            self._find_first(may_seek=True)
        except BaseException:
            self.close()
            raise

    def _find_first(self, *, may_seek: bool) -> None:
        stream = video_stream(self._container)
        if stream is None:
            return
        self._stream = require_decodable(stream, "no_video", self.label)
        container = RandomAccessContainer(self._container, self._stream)
        skipping = SkippingContainer(container, self._expected)
        expected, self._expected[:] = self._expected.copy(), []  # the first frame is decoded in any case
        with media_errors(self.label):
            decode = partial(decode_frames, skipping, self._stream, self.label)
            self._cursor = FrameCursor(container, self._stream, None, may_seek, decode)
        self._expected.extend(expected)
        first = self._cursor.first
        if first is None:
            check_not_truncated(self._stream, self.label)
        self.info = None if first is None else video_info(self._stream, *first)
        self.orientation = UPRIGHT if first is None else orientation_of(first[1])

    def play(self, from_seconds: float = 0.0) -> Iterator[Frame]:
        """The frames from the one on screen at from_seconds to the end, as stored, not turned. Call it once."""
        if self.info is None or self._cursor is None:
            return
        tick = float(self._stream.time_base)
        frame_seconds = 1 / float(self._stream.average_rate) if self._stream.average_rate else 0.0
        start, target = self._cursor.start_ticks, self._ticks(from_seconds)
        with media_errors(self.label):
            try:
                current = None if from_seconds <= 0 else self._cursor.seek_to(target)
            except SeekError:
                self.close()
                self._open()
                self._find_first(may_seek=False)
                current = self._cursor.seek_to(target)
            frames = self._cursor.rest()
            for ticks, frame in frames if current is None else itertools.chain([current], frames):
                seconds = frame.duration * tick if frame.duration else frame_seconds
                yield Frame((ticks - start) * tick, seconds, frame, self.orientation)

    def on_screen(self, seconds: float) -> Frame | None:
        """The frame on screen at a time, as stored, for `pixels`; None if nothing can be decoded.

        Times must not decrease from call to call. Over long distances it seeks. Do not use it together with `play`.
        """
        if self.info is None or self._cursor is None:
            return None
        tick, start, target = float(self._stream.time_base), self._cursor.start_ticks, self._ticks(seconds)
        is_far = seconds - self._requested_seconds > LEAST_SEEK_SECONDS
        self._requested_seconds = seconds
        with media_errors(self.label):
            try:
                shown = self._cursor.seek_to(target) if is_far else self._cursor.read_to(target)
            except SeekError:
                self.close()
                self._open()
                self._find_first(may_seek=False)
                shown = self._cursor.read_to(target)
        if shown is None:
            return None
        return Frame((shown[0] - start) * tick, shown[1].duration * tick, shown[1], self.orientation)

    def expect(self, times_seconds: Sequence[float]) -> None:
        """Announce the next calls of `on_screen`: exactly these rising seconds, up to the last of them.

        Frames that are on screen only between these times need not be decoded.
        """
        first = self._cursor.first if self._cursor is not None else None
        if first is not None and not first[1].interlaced_frame:  # two packets may hold one field each
            self._expected[:] = map(self._ticks, times_seconds)

    def _ticks(self, seconds: float) -> int:
        assert self._cursor is not None  # callers have checked
        tick = float(self._stream.time_base)
        return self._cursor.start_ticks + int((seconds + FRAME_TIME_TOLERANCE_SECONDS) // tick)

    @staticmethod
    def pixels(frame: Frame) -> NDArray[np.uint8]:
        """The pixels of a frame, uint8 (H, W, 3), RGB, upright; they may share the decoder's memory."""
        return to_array(frame.frame, True, *frame.orientation)


class AudioReader(_Reader):
    """The audio of a file. info: None if it has no audio stream with a decodable sample.

    Raises MediaError as decode.probe does, at opening and while reading.

    >>> reader = AudioReader(clip)
    >>> next(reader.play(rate_hz=16000)).dtype
    dtype('float32')
    >>> reader.close()
    """

    def __init__(self, source: Source, name: str = "") -> None:
        super().__init__(source, name)
        self.info: AudioInfo | None = None
        try:
            self._find_first()
        except BaseException:
            self.close()
            raise

    def _find_first(self) -> None:
        stream = audio_stream(self._container)
        if stream is None:
            return
        self._stream = require_decodable(stream, "no_audio", self.label)
        with media_errors(self.label):
            self._reader = GaplessAudio(self._container, self._stream, self.label)
            first = self._reader.find_first()
        if first is None:
            check_not_truncated(self._stream, self.label)
        self.info = None if first is None else audio_info(self._stream, *first)

    def play(self, rate_hz: int, first_output: int = 0) -> Iterator[AudioBlock]:
        """Blocks of the resampled stream from its sample first_output on, float32 (samples,) in [-1, 1]. Call it once.

        The samples lie on the same grid as when resampling from the beginning; pauses in the stream are zeros.
        """
        if self.info is None:
            return
        span = audio_span(first_output, 1, self.info.rate_hz, rate_hz)
        resample = Resampler(self.info.rate_hz, rate_hz)
        skip = span.skip
        for block in itertools.chain(_in_large_blocks(self._source_blocks(span.first)), [None]):
            ready = resample(block)
            if skip:
                ready, skip = ready[skip:], max(0, skip - len(ready))
            if len(ready):
                yield ready

    def _source_blocks(self, first: int) -> Iterator[AudioBlock]:
        """Mono blocks at the source's rate from its sample `first` on, without a gap."""
        with media_errors(self.label):
            blocks = self._reader.blocks(first)
            if blocks is None:  # a seek led to a wrong position
                self.close()
                self._open()
                self._find_first()
                blocks = self._reader.blocks(first, may_seek=False)
            for _, position, block in blocks or ():
                remaining = block[max(0, first - position) :]
                if len(remaining):
                    yield remaining


def on_one_clock(video: VideoReader, audio: AudioReader) -> tuple[VideoInfo | None, AudioInfo | None]:
    """The facts of a video and of a sound that lies in another file, both played from their own time 0.

    In MPEG transport and program streams time 0 is when the sender was switched on: such a file is played from its
    beginning, but of two the clock is the same. In MP3 it is what the encoder adds before the first sample.
    """
    seen, heard = video.info, audio.info
    are_running = [reader.container_name in FORMATS_OF_RUNNING_CLOCKS for reader in (video, audio)]
    if seen is not None and are_running == [True, False]:
        seen = replace(seen, start_seconds=seen.start_seconds - video.first_seconds)
    if heard is not None and are_running == [False, True]:
        heard = replace(heard, start_seconds=heard.start_seconds - audio.first_seconds)
    if heard is not None and audio.container_name == "mp3":
        heard = replace(heard, start_seconds=0.0)
    return seen, heard


def _in_large_blocks(blocks: Iterator[AudioBlock]) -> Iterator[AudioBlock]:
    """The same samples in blocks of at least BLOCK_SAMPLES, the last one shorter."""
    waiting: list[AudioBlock] = []
    num_samples = 0
    for block in blocks:
        waiting.append(block)
        num_samples += len(block)
        if num_samples >= BLOCK_SAMPLES:
            yield np.concatenate(waiting)
            waiting, num_samples = [], 0
    if waiting:
        yield np.concatenate(waiting)
