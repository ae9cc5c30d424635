"""What one decoded frame and the header say of a stream, and decoded sound as one gapless mono signal.

Works on PyAV's objects without importing PyAV; see decode.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from avssl.data.timeline import AUDIO_GAP_SECONDS, AudioBlock, AudioInfo, VideoInfo, mix_to_mono, parse_clock
from avssl.types import MediaError


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
    )


def audio_info(stream: Any, ticks: int, frame: Any) -> AudioInfo:
    """Facts of an audio stream; ticks, frame: its first decoded block."""
    return AudioInfo(
        codec=stream.codec_context.name,
        rate_hz=frame.sample_rate,
        channels=frame.layout.nb_channels,
        start_seconds=float(ticks * stream.time_base),
        duration_seconds=_header_seconds(stream, ticks),
    )


def _header_seconds(stream: Any, start_ticks: int) -> float | None:
    """How long the header says that the stream is."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION")  # Matroska; the time of the stream's end
    end_seconds = None if tag is None else parse_clock(tag)
    return None if end_seconds is None else max(0.0, end_seconds - float(start_ticks * stream.time_base))


def mono_blocks(
    frames: Iterable[tuple[int, Any]], stream: Any, start_ticks: int | None, label: str
) -> Iterator[tuple[int, int, AudioBlock]]:
    """(rate_hz, position of the block's first sample, float32 (samples,)) of decoded frames.

    Positions count source samples from start_ticks (None: the first frame's). A pause becomes a block of zeros, an
    overlap is cut, so that blocks follow each other without a gap.
    """
    expected: int | None = None
    rate = 0
    for ticks, frame in frames:
        if start_ticks is None:
            start_ticks = ticks
        if frame.sample_rate != rate and rate:
            raise MediaError("decode_error", f"{label}: the sample rate changes from {rate} to {frame.sample_rate} Hz")
        rate = frame.sample_rate
        position = round((ticks - start_ticks) * stream.time_base * rate)
        names = tuple(channel.name for channel in frame.layout.channels)
        block = mix_to_mono(frame.to_ndarray(), frame.format.is_planar, names)
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
