"""What one decoded frame and the header say of a stream, and decoded sound as one gapless mono signal.

Works on PyAV's objects without importing PyAV; see decode.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avssl.data.timeline import (
    AUDIO_GAP_SECONDS,
    LATE_SECONDS,
    UPRIGHT,
    AudioBlock,
    AudioInfo,
    Orientation,
    VideoInfo,
    is_clear_length,
    mix_to_mono,
    parse_clock,
)
from avssl.types import MediaError

# Here the sound is one row of bytes: stamps are FFmpeg's arithmetic with numbers of the header or of rounded durations.
FORMATS_WITHOUT_STAMPS = ("wav", "w64", "aiff", "au", "caf")
# A stamp is this much off at most because it was rounded (to milliseconds, or to a duration that was).
STAMP_ROUNDING_SECONDS = 0.002
AVI_LEAST_UNLISTED_SHARE = 0.1  # of the file behind the last chunk that the index lists
AVI_INDEX_ENTRY_BYTES = 16
AVI_UNKNOWN_COUNTS = (0, 1 << 30, (1 << 31) - 1, (1 << 32) - 1, -1)  # what writers put there for want of a number
LEAST_INDEXED_SHARE = 0.8  # of the bytes of a fragmented file, before what it lists is all
MOST_UNLISTED_SHARE = 2.0


class Sound(NamedTuple):
    """A decoded block of sound. samples: (channels, n) if planar, else (1, channels * n), of any of FFmpeg's types."""

    sample_rate: int
    channel_names: tuple[str, ...]
    samples: NDArray[Any]
    is_planar: bool

    @property
    def num_samples(self) -> int:
        """Of each channel."""
        return self.samples.size // len(self.channel_names)


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
        duration_seconds=_header_seconds(stream, ticks),
        pixel_format=frame.format.name,
        pixel_aspect=1 / aspect if rotation % 180 else aspect,
        stream_index=stream.index,
        num_streams=_num_alike(stream),
        is_mirrored=is_mirrored,
    )


def audio_info(stream: Any, ticks: int, sound: Sound) -> AudioInfo:
    """Facts of an audio stream; ticks, sound: its first decoded block."""
    return AudioInfo(
        codec=stream.codec_context.name,
        rate_hz=sound.sample_rate,
        channels=len(sound.channel_names),
        start_seconds=float(ticks * stream.time_base),
        duration_seconds=_header_seconds(stream, ticks),
        stream_index=stream.index,
        num_streams=_num_alike(stream),
    )


def file_seconds(container: Any) -> float | None:
    """How long the header says that the file is.

    Streams are believed before the file as a whole: programs that cut or join files leave its duration as it was. In
    FORMATS_COUNTED_FROM_ANYWHERE it may be the time of the end.
    """
    whole = None if container.duration is None else container.duration / 1e6
    if container.format.name == "avi":
        if all(_avi_index_seconds(stream) is None and _is_without_count(stream) for stream in container.streams):
            return None
        ends = [_avi_index_seconds(stream) for stream in container.streams.video[:1]]
    elif container.format.name == "matroska,webm":
        ends = [parse_clock(stream.metadata.get("DURATION", "")) for stream in container.streams]
    elif any(map(_is_fragmented, container.streams)):
        return _fragmented_seconds(container)
    elif any(map(_is_flac_in_ogg, container.streams)):
        return None
    else:
        return whole
    known = [end for end in ends if end is not None]
    return min(whole, max(known)) if whole is not None and known and len(known) == len(ends) else whole


def _is_fragmented(stream: Any) -> bool:
    """Is it a track of an mp4 whose header lists no frames? Its duration is then the time of its end."""
    return bool("mp4" in stream.container.format.name and not stream.frames and stream.duration)


def _is_flac_in_ogg(stream: Any) -> bool:
    """FFmpeg counts its frames from 0, wherever they begin, and takes the end from the last page."""
    context = stream.codec_context
    return bool(stream.container.format.name == "ogg" and context is not None and context.name == "flac")


def _fragmented_seconds(container: Any) -> float | None:
    """From the first stream's start to the last one's end."""
    streams = [one for one in container.streams if one.start_time is not None and one.duration is not None]
    starts = [float(one.start_time * one.time_base) for one in streams]
    lengths = [_header_seconds(one, one.start_time) for one in streams]
    if not streams or any(length is None for length in lengths):
        return None
    return max(start + (length or 0.0) for start, length in zip(starts, lengths, strict=True)) - min(starts)


def _num_alike(stream: Any) -> int:
    """How many streams of its kind the file has."""
    return sum(other.type == stream.type for other in stream.container.streams)


def _header_seconds(stream: Any, start_ticks: int) -> float | None:
    """How long the header says that the stream is, from its first decodable frame on."""
    start_seconds = float(start_ticks * stream.time_base)
    container = stream.container.format.name
    file_start = (stream.container.start_time or 0) / 1e6
    if _is_flac_in_ogg(stream):
        return None
    if _is_fragmented(stream):
        return _seconds_to_end(stream, start_ticks, is_late=file_start > LATE_SECONDS)
    if stream.duration is None:
        return _tagged_seconds(stream, start_seconds, container, file_start)
    seconds = float(stream.duration * stream.time_base)
    in_index = _avi_index_seconds(stream) if container == "avi" else None
    if in_index is not None:
        return max(0.0, min(seconds, in_index))
    if not is_clear_length(seconds, container, file_start) or (container == "avi" and _is_without_count(stream)):
        return None
    if stream.type == "video" and stream.start_time is not None:  # sound may begin with priming, which is no loss
        seconds -= max(0.0, start_seconds - float(stream.start_time * stream.time_base))
    return max(0.0, seconds)


def _tagged_seconds(stream: Any, start_seconds: float, container: str, file_start: float) -> float | None:
    """By Matroska's tag: the time of the stream's end, or its length."""
    end_seconds = parse_clock(stream.metadata.get("DURATION", ""))
    if end_seconds is None or not is_clear_length(end_seconds, container, file_start):
        return None
    is_length = file_start > LATE_SECONDS  # else it would not be clear
    return end_seconds if is_length else max(0.0, end_seconds - start_seconds)


def _seconds_to_end(stream: Any, start_ticks: int, *, is_late: bool) -> float | None:
    """From that time to the end of a fragmented track. None if it ends before, by a clock of its own.

    The header of a file that begins late may speak of the whole film, of which the file holds some fragments. Then
    these count, if FFmpeg has listed them; with an index of fragments (sidx) it lists the first one and believes that.
    """
    entries = stream.index_entries
    begin = entries[0].timestamp if len(entries) else stream.start_time  # ends are counted as frames are stored
    length = int(stream.duration) - begin
    if is_late and len(entries) > 1:
        last, before = entries[len(entries) - 1].timestamp, entries[len(entries) - 2].timestamp
        listed = 2 * last - before - begin
        is_all = entries[len(entries) - 1].pos > LEAST_INDEXED_SHARE * stream.container.size
        length = listed if is_all and length > MOST_UNLISTED_SHARE * listed else length
    length -= max(0, start_ticks - stream.start_time)
    return float(length * stream.time_base) if length > 0 else None


def _is_without_count(stream: Any) -> bool:
    """Does the header of an AVI not know how long a stream is? Then FFmpeg guesses from the number of bytes."""
    return stream.frames in AVI_UNKNOWN_COUNTS


def _avi_index_seconds(stream: Any) -> float | None:
    """Where a stream of an AVI file ends according to its index, for the length in the header is not always true.

    None if the index is not complete: it stands at the file's end, and FFmpeg makes up for a missing one on the way.
    """
    entries, size = stream.index_entries, stream.container.size
    if len(entries) < 2:
        return None
    last, before = entries[len(entries) - 1], entries[len(entries) - 2]
    if size - last.pos - last.size > AVI_LEAST_UNLISTED_SHARE * size + 2 * AVI_INDEX_ENTRY_BYTES * len(entries):
        return None
    return float((2 * last.timestamp - before.timestamp) * stream.time_base)


def _has_stamps(stream: Any) -> bool:
    """Can the stamps of an audio stream tell of a gap? AVI's can where each chunk is one tick, for empty ones count."""
    name, entries = stream.container.format.name, stream.index_entries
    if name == "avi":
        return len(entries) > 1 and entries[1].timestamp - entries[0].timestamp == 1
    return name not in FORMATS_WITHOUT_STAMPS


class Passed(NamedTuple):
    """Samples that were counted, not decoded, for nobody will hear them."""

    num_samples: int


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
    sounds: Iterable[tuple[int, Sound | Passed]],
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
        if isinstance(sound, Sound):
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
        if isinstance(sound, Sound) and expected < end and end > first:
            block = _mono(sound, label)[expected - position :]
            yield rate, expected, block
        expected = end
        if counter is not None:
            counter.position = expected


def _mono(sound: Sound, label: str) -> AudioBlock:
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
