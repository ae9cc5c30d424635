"""What one decoded frame and the header say of a stream, and decoded sound as one gapless mono signal.

Works on PyAV's objects without importing PyAV; see decode.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avssl.data.timeline import AUDIO_GAP_SECONDS, AudioBlock, AudioInfo, VideoInfo, mix_to_mono, parse_clock
from avssl.types import MediaError

AVI_LEAST_UNLISTED_SHARE = 0.1  # of the file behind the last chunk that the index lists
AVI_INDEX_ENTRY_BYTES = 16


class Sound(NamedTuple):
    """A decoded block of sound. samples: (channels, n) if planar, else (1, channels * n), of any of FFmpeg's types."""

    sample_rate: int
    channel_names: tuple[str, ...]
    samples: NDArray[Any]
    is_planar: bool


def quarter_turns(frame: Any) -> int:
    """How many clockwise quarter turns, 0 to 3, make the stored picture upright."""
    return int(round(-frame.rotation / 90) % 4)


def video_info(stream: Any, ticks: int, frame: Any) -> VideoInfo:
    """Facts of a video stream; ticks, frame: its first decoded frame."""
    rotation = 90 * quarter_turns(frame)
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

    Streams are believed before the file as a whole: programs that cut or join files leave its duration as it was.
    """
    whole = None if container.duration is None else container.duration / 1e6
    if container.format.name == "avi":
        ends = [_avi_index_seconds(stream) for stream in container.streams.video[:1]]
    elif container.format.name == "matroska,webm":
        ends = [parse_clock(stream.metadata.get("DURATION", "")) for stream in container.streams]
    else:
        return whole
    known = [end for end in ends if end is not None]
    return min(whole, max(known)) if whole is not None and known and len(known) == len(ends) else whole


def _num_alike(stream: Any) -> int:
    """How many streams of its kind the file has."""
    return sum(other.type == stream.type for other in stream.container.streams)


def _header_seconds(stream: Any, start_ticks: int) -> float | None:
    """How long the header says that the stream is, from its first decodable frame on."""
    start_seconds = float(start_ticks * stream.time_base)
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
        if stream.type == "video" and stream.start_time is not None:  # sound may begin with priming, which is no loss
            seconds -= max(0.0, start_seconds - float(stream.start_time * stream.time_base))
        in_index = _avi_index_seconds(stream) if stream.container.format.name == "avi" else None
        return max(0.0, seconds if in_index is None else min(seconds, in_index))
    tag = stream.metadata.get("DURATION")  # Matroska; the time of the stream's end
    end_seconds = None if tag is None else parse_clock(tag)
    return None if end_seconds is None else max(0.0, end_seconds - start_seconds)


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


def mono_blocks(
    sounds: Iterable[tuple[int, Sound]], stream: Any, start_ticks: int | None, label: str
) -> Iterator[tuple[int, int, AudioBlock]]:
    """(rate_hz, position of the block's first sample, float32 (samples,)) of decoded blocks.

    Positions count source samples from start_ticks (None: the first block's). A pause becomes a block of zeros, an
    overlap is cut, so that blocks follow each other without a gap.
    """
    expected: int | None = None
    rate = 0
    for ticks, sound in sounds:
        if start_ticks is None:
            start_ticks = ticks
        if sound.sample_rate != rate and rate:
            raise MediaError("decode_error", f"{label}: the sample rate changes from {rate} to {sound.sample_rate} Hz")
        if sound.sample_rate != rate:
            rate = sound.sample_rate
            samples_a_tick = stream.time_base * rate
            if samples_a_tick.denominator == 1:  # whole numbers are quicker
                samples_a_tick = int(samples_a_tick)
        position = round((ticks - start_ticks) * samples_a_tick)
        block = mix_to_mono(sound.samples, sound.is_planar, sound.channel_names)
        if sound.samples.dtype.kind == "f" and not np.isfinite(block).all():
            raise MediaError("decode_error", f"{label}: its sound holds samples that are no numbers (NaN or infinite)")
        if expected is not None and abs(position - expected) <= AUDIO_GAP_SECONDS * rate:
            position = expected
        while expected is not None and expected < position:
            pause = np.zeros(min(rate, position - expected), np.float32)
            yield rate, expected, pause
            expected += len(pause)
        if expected is not None and position < expected:
            block, position = block[expected - position :], expected
        if len(block):
            yield rate, position, block
            expected = position + len(block)
