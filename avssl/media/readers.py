"""One stream of a file from given seconds on, at constant memory: its pictures, or its sound as one mono signal.

What comes out is what decoding from the beginning gives there, but what lies before is skipped where the container can
seek. Times are seconds from the stream's own first frame or sample. See decode.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from avssl.media.cursor import FrameCursor, SeekMissed
from avssl.media.entry_points import EntryContainer
from avssl.media.ffmpeg import (
    Source,
    audio_stream,
    check_empty,
    frames_from_here,
    opened,
    require,
    translated,
    video_stream,
)
from avssl.media.frames import Cutter, Resampler, to_array
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
from avssl.media.lengths import file_seconds
from avssl.media.packets import FORMATS_TO_SHARE, SharedContainer
from avssl.media.skipping import SkippingContainer
from avssl.media.streams import audio_info, orientation_of, video_info

# Sound is resampled in pieces of about this many samples: a call costs as much as some hundred of them.
BATCH_SAMPLES = 16_384
# A jump to a keyframe may have to be made again from the one before it, so a short way is read.
LEAST_JUMP_SECONDS = 1.0


class Frame(NamedTuple):
    """A decoded frame: shown `seconds` after the first one, for `duration_seconds` (its own or the header's claim).

    frame: av.VideoFrame, as stored; orientation: what makes it upright.
    """

    seconds: float
    duration_seconds: float
    frame: Any
    orientation: Orientation = UPRIGHT


class _Open:
    """An open file and one of its streams; a context manager. beside: another reader whose open file is read along."""

    def __init__(self, source: Source, name: str = "", beside: _Open | None = None) -> None:
        self._source, self._name, self._beside = source, name, beside
        self._opening: AbstractContextManager[tuple[Any, str]] | None = None
        self._container: Any = None
        self.label = ""
        self._open()

    def _open(self) -> None:
        if self._beside is not None and isinstance(self._beside._container, SharedContainer):
            self._opening, self._container, self.label = None, self._beside._container, self._beside.label
        else:
            self._opening = opened(self._source, self._name)
            self._container, self.label = self._opening.__enter__()
        self.container_name: str = self._container.format.name
        self.container_seconds = file_seconds(self._container)

    def close(self) -> None:
        """Close the file, unless it is another reader's."""
        if self._opening is not None:
            self._opening.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class VideoReader(_Open):
    """The pictures of a file. info: None if it has no video stream, or one that holds nothing decodable.

    shares: a AudioReader may be opened beside it, where the format allows; then both play from the beginning, in turn.
    Raises MediaError as decode.probe does, when it is opened and while it plays.
    """

    def __init__(self, source: Source, name: str = "", *, shares: bool = False) -> None:
        super().__init__(source, name)
        self.info: VideoInfo | None = None
        self.orientation = UPRIGHT  # of all its pictures: the first one's
        self._asked_seconds = 0.0
        self._expected: list[int] = []  # ticks
        self._cursor: FrameCursor | None = None
        self._cut = Cutter()
        try:
            if shares and self.container_name in FORMATS_TO_SHARE:
                streams = video_stream(self._container), audio_stream(self._container)
                self._container = SharedContainer(self._container, [one for one in streams if one is not None])
            self._find_first(may_seek=True)
        except BaseException:
            self.close()
            raise

    def _find_first(self, *, may_seek: bool) -> None:
        stream = video_stream(self._container)
        if stream is None:
            return
        self._stream = require(stream, "no_video", self.label)
        entering = EntryContainer(self._container, self._stream)
        choosing = SkippingContainer(entering, self._expected)
        expected, self._expected[:] = self._expected.copy(), []  # the first frame, whatever is wanted
        with translated(self.label):
            decode = partial(frames_from_here, choosing, self._stream, self.label)
            self._cursor = FrameCursor(entering, self._stream, None, may_seek, decode)
        self._expected.extend(expected)
        first = self._cursor.first
        if first is None:
            check_empty(self._stream, self.label)
        self.info = None if first is None else video_info(self._stream, *first)
        self.orientation = UPRIGHT if first is None else orientation_of(first[1])

    def play(self, from_seconds: float = 0.0) -> Iterator[Frame]:
        """From the frame that is on screen at from_seconds to the end; frames as stored, not turned. Call it once."""
        if self.info is None or self._cursor is None:
            return
        tick = float(self._stream.time_base)
        frame_seconds = 1 / float(self._stream.average_rate) if self._stream.average_rate else 0.0
        start, target = self._cursor.start_ticks, self._ticks(from_seconds)
        with translated(self.label):
            try:
                current = None if from_seconds <= 0 else self._cursor.jump_to(target)
            except SeekMissed:
                self.close()
                self._open()
                self._find_first(may_seek=False)
                current = self._cursor.jump_to(target)
            frames = self._cursor.rest()
            for ticks, frame in frames if current is None else itertools.chain([current], frames):
                seconds = frame.duration * tick if frame.duration else frame_seconds
                yield Frame((ticks - start) * tick, seconds, frame, self.orientation)

    def on_screen(self, seconds: float) -> Frame | None:
        """The frame on screen at seconds that do not decrease from call to call; None where nothing can be decoded.

        Long stretches that nobody asks for are jumped over. The frame as stored, for `pixels`. Not beside `play`.
        """
        if self.info is None or self._cursor is None:
            return None
        tick, start, target = float(self._stream.time_base), self._cursor.start_ticks, self._ticks(seconds)
        is_far = seconds - self._asked_seconds > LEAST_JUMP_SECONDS
        self._asked_seconds = seconds
        with translated(self.label):
            try:
                found = self._cursor.jump_to(target) if is_far else self._cursor.walk_to(target)
            except SeekMissed:
                self.close()
                self._open()
                self._find_first(may_seek=False)
                found = self._cursor.walk_to(target)
        if found is None:
            return None
        return Frame((found[0] - start) * tick, found[1].duration * tick, found[1], self.orientation)

    def expect(self, times_seconds: Sequence[float]) -> None:
        """The rising seconds that `on_screen` will be asked for next, and none other before the last of them.

        What is on screen only between them need not be decoded.
        """
        first = self._cursor.first if self._cursor is not None else None
        if first is not None and not first[1].interlaced_frame:  # else two packets may hold a field of it each
            self._expected[:] = map(self._ticks, times_seconds)

    def _ticks(self, seconds: float) -> int:
        assert self._cursor is not None  # callers have looked
        tick = float(self._stream.time_base)
        return self._cursor.start_ticks + int((seconds + FRAME_TIME_TOLERANCE_SECONDS) // tick)

    @staticmethod
    def pixels(picture: Frame) -> NDArray[np.uint8]:
        """uint8 (H, W, 3), RGB, upright."""
        return to_array(picture.frame, True, *picture.orientation)

    def part(self, picture: Frame, box_of: Callable[[int, int], tuple[int, int, int, int]]) -> NDArray[np.uint8]:
        """The pixels of box_of(height, width) -> (top, left, height, width) alone, in memory of their own.

        Rows may lie apart.
        """
        frame, (turns, is_mirrored) = picture.frame, picture.orientation
        size = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        return self._cut(frame, turns, box_of(*size), is_mirrored)


class AudioReader(_Open):
    """The sound of a file. info: None if it has no audio stream, or one that holds nothing decodable.

    Raises MediaError as decode.probe does, when it is opened and while it plays.
    """

    def __init__(self, source: Source, name: str = "", beside: VideoReader | None = None) -> None:
        super().__init__(source, name, beside)
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
        self._stream = require(stream, "no_audio", self.label)
        with translated(self.label):
            self._reader = GaplessAudio(self._container, self._stream, self.label)
            first = self._reader.find_first()
        if first is None:
            check_empty(self._stream, self.label)
        self.info = None if first is None else audio_info(self._stream, *first)

    def play(self, rate_hz: int, first_output: int = 0) -> Iterator[AudioBlock]:
        """float32 (samples,) in [-1, 1]: blocks of the resampled stream from its sample first_output on. Call it once.

        They lie on the grid of resampling from the beginning; pauses in the stream come as zeros.
        """
        if self.info is None:
            return
        span = audio_span(first_output, 1, self.info.rate_hz, rate_hz)
        resample = Resampler(self.info.rate_hz, rate_hz)
        skip = span.skip
        for block in itertools.chain(_in_batches(self._source_blocks(span.first)), [None]):
            ready = resample(block)
            if skip:
                ready, skip = ready[skip:], max(0, skip - len(ready))
            if len(ready):
                yield ready

    def _source_blocks(self, first: int) -> Iterator[AudioBlock]:
        """Mono blocks at the source's rate from its sample `first` on, without a gap."""
        with translated(self.label):
            blocks = self._reader.blocks(first)
            if blocks is None:  # it jumped, and came out wrong
                self.close()
                self._open()
                self._find_first()
                blocks = self._reader.blocks(first, may_jump=False)
            for _, position, block in blocks or ():
                piece = block[max(0, first - position) :]
                if len(piece):
                    yield piece


def _in_batches(blocks: Iterator[AudioBlock]) -> Iterator[AudioBlock]:
    """The same samples in blocks of at least BATCH_SAMPLES, the last one shorter."""
    waiting: list[AudioBlock] = []
    num_samples = 0
    for block in blocks:
        waiting.append(block)
        num_samples += len(block)
        if num_samples >= BATCH_SAMPLES:
            yield np.concatenate(waiting)
            waiting, num_samples = [], 0
    if waiting:
        yield np.concatenate(waiting)
