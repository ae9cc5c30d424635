"""Detects silent audio and still video. A meter stops measuring once it has heard a sound or seen motion."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_SECONDS = 0.1
SQUARES_PER_SIDE = 16
LEAST_SQUARE_PX = 8


class SilenceMeter:
    """Detects whether a waveform stays below a level all the time.

    The level is the root mean square of each tenth of a second, in dB of full scale (a full-scale sine has -3 dBFS), so
    that a single click counts as silence.

    Args:
        threshold_dbfs: audio that never reaches this level is silent. rate_hz: samples per second.
    """

    def __init__(self, threshold_dbfs: float, rate_hz: int) -> None:
        self._threshold = 10 ** (threshold_dbfs / 10)
        self._window = max(1, round(WINDOW_SECONDS * rate_hz))
        self._rest = np.empty(0, np.float32)
        self._is_loud = False

    def add(self, samples: NDArray[np.float32]) -> None:
        """Add the next samples: float (samples,) in [-1, 1]."""
        if self._is_loud:
            return
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // self._window * self._window
        windows = samples[:whole].reshape(-1, self._window)
        self._is_loud = self._has_sound(windows)
        self._rest = samples[whole:]

    @property
    def is_silent(self) -> bool:
        """Whether all that was added is silent."""
        return not self._is_loud and not (len(self._rest) and self._has_sound(self._rest[None]))

    def _has_sound(self, windows: NDArray[np.float32]) -> bool:
        return bool((np.square(windows, dtype=np.float64).mean(axis=1) >= self._threshold).any())


class StillnessMeter:
    """Detects whether all frames look like the first one.

    The frame is cut into squares, 16 along its short side (each at least 8 px), and the mean luma of each is compared
    with that of the first frame: noise and compression artifacts average out, a small object that moves does not.

    Args:
        threshold_levels: video in which no square changes by this many levels of 255 is still.
    """

    def __init__(self, threshold_levels: float) -> None:
        self._threshold = threshold_levels
        self._first: NDArray[np.float64] | None = None
        self._moves = False

    def add(self, frame: Any) -> None:
        """Add the next frame: an av.VideoFrame whose first plane is 8-bit luma. All must have one size."""
        if self._moves:
            return
        means = _square_means(frame)
        if self._first is None:
            self._first = means
        self._moves = bool(np.abs(means - self._first).max() >= self._threshold)

    @property
    def is_still(self) -> bool:
        """Whether all that was added is still."""
        return not self._moves


def _square_means(frame: Any) -> NDArray[np.float64]:
    """Mean luma of each square of a frame, float64 (rows, columns). Pixels beyond the last whole square are ignored."""
    plane = frame.planes[0]
    luma = np.frombuffer(plane, np.uint8)[: plane.line_size * frame.height].reshape(frame.height, plane.line_size)
    short = min(frame.width, frame.height)
    side = min(short, max(LEAST_SQUARE_PX, short // SQUARES_PER_SIDE))
    rows, columns = frame.height // side, frame.width // side
    squares = luma[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float64))
