"""Facts of a stream from one decoded frame and the header, and decoded audio as one gapless mono signal.

Works on PyAV's objects without importing PyAV; see decode.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from avssl.media.info import (
    AUDIO_GAP_SECONDS,
    UPRIGHT,
    AudioBlock,
    AudioFrame,
    AudioInfo,
    Orientation,
    Passed,
    VideoInfo,
    mix_to_mono,
)
from avssl.media.lengths import header_seconds
from avssl.types import MediaError

# In these audio is one run of bytes: FFmpeg computes time stamps from numbers of the header or from rounded durations.
FORMATS_WITHOUT_STAMPS = ("wav", "w64", "aiff", "au", "caf")
# The largest error of a time stamp by rounding (to milliseconds, or of durations that are summed).
STAMP_ROUNDING_SECONDS = 0.002


def orientation_of(frame: Any) -> Orientation:
    """How to make the stored frame upright. The first frame of a stream decides for all: others may not state it."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else orientation(np.frombuffer(matrix, np.int32).tolist())


def orientation(matrix: Sequence[int]) -> Orientation:
    """The orientation of a display matrix (a, b, u, c, d, v, ...), which maps point (x, y) to (ax + cy, bx + dy).

    It is rounded to a quarter turn; a singular matrix counts as upright.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if a * d == b * c:
        return UPRIGHT
    is_mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(-b, -a) if is_mirrored else math.atan2(b, a))
    return Orientation(round(degrees / 90) % 4, is_mirrored)


def video_info(stream: Any, ticks: int, frame: Any) -> VideoInfo:
    """Facts of a video stream; ticks, frame: of its first decoded frame."""
    turns, is_mirrored = orientation_of(frame)
    rotation = 90 * turns
    width, height = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    return VideoInfo(
        codec=stream.codec_context.name,
        width=width,
        height=height,
        fps=float(stream.average_rate or stream.guessed_rate or 0),
        rotation_degrees=rotation,
        start_seconds=float(ticks * stream.time_base),
        duration_seconds=header_seconds(stream, ticks),
        pixel_format=frame.format.name,
        pixel_aspect=1 / aspect if rotation % 180 else aspect,
        stream_index=stream.index,
        num_streams=_num_alike(stream),
        is_mirrored=is_mirrored,
    )


def audio_info(stream: Any, ticks: int, frame: AudioFrame) -> AudioInfo:
    """Facts of an audio stream; ticks, frame: of its first decoded block."""
    return AudioInfo(
        codec=stream.codec_context.name,
        rate_hz=frame.sample_rate,
        channels=len(frame.channel_names),
        start_seconds=float(ticks * stream.time_base),
        duration_seconds=header_seconds(stream, ticks),
        stream_index=stream.index,
        num_streams=_num_alike(stream),
    )


def _num_alike(stream: Any) -> int:
    """The number of streams of its kind in the file."""
    return sum(other.type == stream.type for other in stream.container.streams)


def _has_stamps(stream: Any) -> bool:
    """Whether time stamps of an audio stream show gaps. In AVI they do if each chunk is a tick: empty chunks count."""
    name, entries = stream.container.format.name, stream.index_entries
    if name == "avi":
        return len(entries) > 1 and entries[1].timestamp - entries[0].timestamp == 1
    return name not in FORMATS_WITHOUT_STAMPS


class _SampleClock:
    """The positions of audio blocks, in samples from start_ticks on (None: from the first block).

    Blocks follow each other, and time stamps are used only to find true gaps. Small differences between stamps and the
    count of samples at each step are rounding or a wrong clock, however large their sum is. In formats without stamps
    FFmpeg computes them from a header that may be wrong.
    """

    def __init__(self, stream: Any, start_ticks: int | None, rate: int) -> None:
        self._start, self._rate = start_ticks, rate
        ratio = Fraction(stream.time_base) * rate
        self._numerator, self._denominator = ratio.numerator, ratio.denominator  # fractions themselves are slow
        self._has_stamps = _has_stamps(stream)
        self._stamp_end: int | None = None
        self._next = 0
        self._strayed = self._leapt = 0  # samples: the sum of all differences, and of those above rounding

    def place(self, ticks: int, num_samples: int) -> int:
        """The position of the next block."""
        if self._start is None:
            self._start = ticks
        stamp = (2 * (ticks - self._start) * self._numerator + self._denominator) // (2 * self._denominator)
        if self._stamp_end is None:
            self._next = stamp
        else:
            self._next += self._gap(stamp - self._stamp_end)
        self._stamp_end = stamp + num_samples
        position, self._next = self._next, self._next + num_samples
        return position

    def _gap(self, step: int) -> int:
        """Samples between the previous block and this one, negative if they overlap; step: the same by stamps."""
        if not self._has_stamps:
            return 0
        self._strayed += step
        if abs(step) > STAMP_ROUNDING_SECONDS * self._rate:
            self._leapt += step
        least = AUDIO_GAP_SECONDS * self._rate
        if not (min(self._strayed, self._leapt) > least or max(self._strayed, self._leapt) < -least):
            return 0
        gap, self._strayed, self._leapt = self._leapt, 0, 0
        return gap


def mono_blocks(
    frames: Iterable[tuple[int, AudioFrame | Passed]],
    stream: Any,
    start_ticks: int | None,
    label: str,
    first: int = 0,
    counter: Any = None,
) -> Iterator[tuple[int, int, AudioBlock]]:
    """(rate_hz, position of the block's first sample, float32 (samples,)) of decoded blocks.

    Positions count source samples from start_ticks (None: from the first block). A pause becomes a block of zeros, and
    overlaps are cut, so that blocks follow each other without gaps. Blocks that end before sample `first` are left out.
    counter.position is set to the position that was reached (gapless_audio.Passing uses it).
    """
    expected: int | None = None
    rate = 0
    clock: _SampleClock | None = None
    for ticks, frame in frames:
        if isinstance(frame, AudioFrame):
            if rate and frame.sample_rate != rate:
                where = f"after {(expected or 0) / rate:.2f} s"
                raise MediaError("decode_error", f"{label}: {where} {_changed_rate(rate, frame.sample_rate)}")
            rate = frame.sample_rate
        clock = clock or _SampleClock(stream, start_ticks, rate)
        position = clock.place(ticks, frame.num_samples)
        expected = position if expected is None else expected
        expected = max(expected, min(first, position))
        while expected < position:
            pause = np.zeros(min(rate, position - expected), np.float32)
            yield rate, expected, pause
            expected += len(pause)
        end = max(expected, position + frame.num_samples)
        if isinstance(frame, AudioFrame) and expected < end and end > first:
            block = _mono(frame, label)[expected - position :]
            yield rate, expected, block
        expected = end
        if counter is not None:
            counter.position = expected


def _mono(frame: AudioFrame, label: str) -> AudioBlock:
    """The mono mix, float32 (samples,). Raises MediaError for NaN and infinite samples."""
    block = mix_to_mono(frame.samples, frame.is_planar, frame.channel_names)
    if frame.samples.dtype.kind == "f" and not np.isfinite(block).all():
        raise MediaError("decode_error", f"{label}: its audio holds samples that are no numbers (NaN or infinite)")
    return block


def _changed_rate(before: int, after: int) -> str:
    """The error message for a change of the sample rate."""
    return (
        f"the sample rate changes from {before} to {after} Hz; only one rate can be read: cut the file there, "
        "or encode it again with one rate"
    )
