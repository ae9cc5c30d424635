"""Media of a sample decoded as a whole, to cut clips from: what is cut is equal to what decode.py reads, to the bit.

Only what can be cut exactly is decoded: a video whose frames change their size or are not in order of time is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avssl.media.ffmpeg import (
    audio_stream,
    decode_frames,
    exact_start,
    holds_frames_in_order,
    open_container,
    require_decodable,
    video_stream,
)
from avssl.media.frames import resampled, to_array
from avssl.media.gapless_audio import GaplessAudio
from avssl.media.info import FRAME_TIME_TOLERANCE_SECONDS, AudioBlock, audio_span, placed_excerpt
from avssl.media.sources import Source
from avssl.media.stream_info import orientation_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DecodedVideo:
    """All frames of a video.

    frames: uint8 (N, H, W, 3), RGB, upright. ticks: int64 (N,), rising: when each frame begins, in units of
    tick_seconds from the beginning of the stream.
    """

    frames: NDArray[np.uint8]
    ticks: NDArray[np.int64]
    tick_seconds: float

    def read(self, times_seconds: Sequence[float]) -> torch.Tensor:
        """As decode.read_video in RGB: uint8 (T, 3, H, W), channels last. Frames in a row are a view."""
        import torch  # here, as in decode.py

        tick = self.tick_seconds
        targets = [int((seconds + FRAME_TIME_TOLERANCE_SECONDS) // tick) for seconds in times_seconds]
        numbers = np.maximum(np.searchsorted(self.ticks, targets, side="right") - 1, 0)
        first, last = int(numbers[0]), int(numbers[-1])
        in_a_row = np.array_equal(numbers, np.arange(first, last + 1))
        frames = self.frames[first : last + 1] if in_a_row else self.frames[numbers]
        return torch.from_numpy(frames).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class DecodedAudio:
    """The whole waveform of an audio stream. samples: float32 (n,), mono, at the stream's rate_hz."""

    samples: AudioBlock
    rate_hz: int

    def read(self, start_seconds: float, num_samples: int, rate_hz: int, padding: float = 0.0) -> torch.Tensor:
        """As decode.read_audio: float32 (1, num_samples)."""
        import torch  # here, as in decode.py

        def excerpt(first: int, count: int) -> AudioBlock:
            span = audio_span(first, count, self.rate_hz, rate_hz)
            return resampled(self.samples[span.first : span.last], span, self.rate_hz, rate_hz, count)

        return torch.from_numpy(placed_excerpt(excerpt, start_seconds, num_samples, rate_hz, padding))[None]


def decode_whole_video(source: Source, num_frames: int, max_bytes: int, *, name: str = "") -> DecodedVideo | None:
    """The whole video; None if its pixels take more than max_bytes, or if it cannot be cut exactly.

    num_frames: as stated; the first frame of this size already tells whether the video is too large. Raises MediaError
    as decode.read_video.
    """
    with open_container(source, name, in_order=holds_frames_in_order(source)) as (container, label):
        stream = require_decodable(video_stream(container), "no_video", label)
        start = exact_start(container, stream)
        frames, ticks = _pixels(decode_frames(container, stream, label), num_frames, max_bytes)
        tick_seconds = float(stream.time_base)
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        return None
    times = np.array(ticks, np.int64)
    if (np.diff(times) <= 0).any():
        return None
    return DecodedVideo(np.stack(frames), times - (ticks[0] if start is None else start), tick_seconds)


def _pixels(
    decoded: Iterator[tuple[int, Any]], num_frames: int, max_bytes: int
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """The upright frames and their ticks; none if they are too large."""
    frames: list[NDArray[np.uint8]] = []
    ticks: list[int] = []
    orientation = None
    for at, frame in decoded:
        orientation = orientation or orientation_of(frame)
        pixels = to_array(frame, True, *orientation).copy()  # the decoder may still need the frame's memory
        frames.append(pixels)
        ticks.append(at)
        if pixels.nbytes * max(num_frames, len(frames)) > max_bytes:
            return [], []
    return frames, ticks


def decode_whole_audio(source: Source, num_samples: int, max_bytes: int, *, name: str = "") -> DecodedAudio | None:
    """The whole waveform; None if it takes more than max_bytes. num_samples: as stated, at the stream's rate.

    Raises MediaError as decode.read_audio.
    """
    if num_samples * np.dtype(np.float32).itemsize > max_bytes:
        return None
    with open_container(source, name) as (container, label):
        stream = require_decodable(audio_stream(container), "no_audio", label)
        reader = GaplessAudio(container, stream, label)
        if reader.start_ticks is None and reader.find_first() is None:
            return None
        blocks = reader.blocks(0, may_seek=False)
        parts: list[AudioBlock] = []
        reached = 0
        for _, position, block in blocks or ():
            parts += [np.zeros(max(0, position - reached), np.float32), block[max(0, reached - position) :]]
            reached = max(reached, position + len(block))
            if reached * block.itemsize > max_bytes:
                return None
        rate_hz = reader.rate_hz
    return DecodedAudio(np.concatenate(parts), rate_hz) if parts else None
