"""What one decoded frame and the header say of a stream, and decoded sound as one gapless mono signal.

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

# Here the sound is one row of bytes: stamps are FFmpeg's arithmetic with numbers of the header or of rounded durations.
FORMATS_WITHOUT_STAMPS = ("wav", "w64", "aiff", "au", "caf")
# A stamp is this much off at most because it was rounded (to milliseconds, or to a duration that was).
STAMP_ROUNDING_SECONDS = 0.002


def orientation_of(frame: Any) -> Orientation:
    """What makes the stored picture upright. Of a stream the first frame says it for all: others may say nothing."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else orientation(np.frombuffer(matrix, np.int32).tolist())


def orientation(matrix: Sequence[int]) -> Orientation:
    """Of a display matrix (a, b, u, c, d, v, ...): point (x, y) of the stored picture goes to (ax + cy, bx + dy).

    The nearest quarter turn; a matrix that leaves nothing of the picture says nothing.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if a * d == b * c:
        return UPRIGHT
    is_mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(-b, -a) if is_mirrored else math.atan2(b, a))
    return Orientation(round(degrees / 90) % 4, is_mirrored)


def video_info(stream: Any, ticks: int, frame: Any) -> VideoInfo:
    """Facts of a video stream; ticks, frame: its first decoded frame."""
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


def audio_info(stream: Any, ticks: int, sound: AudioFrame) -> AudioInfo:
    """Facts of an audio stream; ticks, sound: its first decoded block."""
    return AudioInfo(
        codec=stream.codec_context.name,
        rate_hz=sound.sample_rate,
        channels=len(sound.channel_names),
        start_seconds=float(ticks * stream.time_base),
        duration_seconds=header_seconds(stream, ticks),
        stream_index=stream.index,
        num_streams=_num_alike(stream),
    )


def _num_alike(stream: Any) -> int:
    """How many streams of its kind the file has."""
    return sum(other.type == stream.type for other in stream.container.streams)


def _has_stamps(stream: Any) -> bool:
    """Can the stamps of an audio stream tell of a gap? AVI's can where each chunk is one tick, for empty ones count."""
    name, entries = stream.container.format.name, stream.index_entries
    if name == "avi":
        return len(entries) > 1 and entries[1].timestamp - entries[0].timestamp == 1
    return name not in FORMATS_WITHOUT_STAMPS


class _SampleClock:
    """Where blocks of sound lie, in samples from start_ticks (None: the first block's) on.

    Blocks follow each other. Stamps only tell of true gaps: what they stray from the count a little at each step is
    rounding or a clock that goes wrong, however much it adds up to; in formats that have no stamps FFmpeg makes them
    from a header that may be untrue.
    """

    def __init__(self, stream: Any, start_ticks: int | None, rate: int) -> None:
        self._start, self._rate = start_ticks, rate
        ratio = Fraction(stream.time_base) * rate
        self._numerator, self._denominator = ratio.numerator, ratio.denominator  # fractions themselves are slow
        self._has_stamps = _has_stamps(stream)
        self._stamp_end: int | None = None
        self._next = 0
        self._strayed = self._leapt = 0  # samples: by all steps, by those that are more than rounding

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
        """How much later than the end of the one before a block begins, step: by its stamp; negative: they overlap."""
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
    sounds: Iterable[tuple[int, AudioFrame | Passed]],
    stream: Any,
    start_ticks: int | None,
    label: str,
    first: int = 0,
    counter: Any = None,
) -> Iterator[tuple[int, int, AudioBlock]]:
    """(rate_hz, position of the block's first sample, float32 (samples,)) of decoded blocks.

    Positions count source samples from start_ticks (None: the first block's). A pause becomes a block of zeros, an
    overlap is cut, so that blocks follow each other without a gap; those that end before sample `first` are left out.
    counter.position is the position reached, for who chooses what is decoded.
    """
    expected: int | None = None
    rate = 0
    clock: _SampleClock | None = None
    for ticks, sound in sounds:
        if isinstance(sound, AudioFrame):
            if rate and sound.sample_rate != rate:
                where = f"after {(expected or 0) / rate:.2f} s"
                raise MediaError("decode_error", f"{label}: {where} {_changed_rate(rate, sound.sample_rate)}")
            rate = sound.sample_rate
        clock = clock or _SampleClock(stream, start_ticks, rate)
        position = clock.place(ticks, sound.num_samples)
        expected = position if expected is None else expected
        expected = max(expected, min(first, position))
        while expected < position:
            pause = np.zeros(min(rate, position - expected), np.float32)
            yield rate, expected, pause
            expected += len(pause)
        end = max(expected, position + sound.num_samples)
        if isinstance(sound, AudioFrame) and expected < end and end > first:
            block = _mono(sound, label)[expected - position :]
            yield rate, expected, block
        expected = end
        if counter is not None:
            counter.position = expected


def _mono(sound: AudioFrame, label: str) -> AudioBlock:
    """float32 (samples,). Raises MediaError for what are no numbers."""
    block = mix_to_mono(sound.samples, sound.is_planar, sound.channel_names)
    if sound.samples.dtype.kind == "f" and not np.isfinite(block).all():
        raise MediaError("decode_error", f"{label}: its sound holds samples that are no numbers (NaN or infinite)")
    return block


def _changed_rate(before: int, after: int) -> str:
    """What happened, and what to do."""
    return (
        f"the sample rate changes from {before} to {after} Hz; one rate is read: cut the file there, "
        "or encode it anew with one rate"
    )
