"""A hash of 64 bits of what a sound sounds like: the same for a copy at another rate, loudness or compression.

The whole sound is drawn as an image of 32 parts of its time by 32 bands of frequency, whose levels are in decibels, and
gets the perceptual hash of images (near_duplicates.py): another loudness adds a constant, which the hash ignores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.measures.near_duplicates import SMALL_PX, area_weights, perceptual_hash

WINDOW_SECONDS = 0.064
BAND_EDGES_HZ = np.geomspace(100.0, 3400.0, SMALL_PX + 1)  # what telephones and low rates keep, too
MAX_COLUMNS = 512  # of windows in memory; then two and two are added up
RANGE_DB = 50.0  # below the loudest part everything is alike: noise of codecs
SILENT_POWER = 1e-6  # mean square of the loudest part: -60 dBFS; a fainter sound has no hash


class SoundHasher:
    """The hash of mono audio that is added piece by piece, in memory that does not grow with it."""

    def __init__(self, rate_hz: int) -> None:
        self._window = max(2, round(WINDOW_SECONDS * rate_hz))
        self._taper = np.hanning(self._window + 1)[:-1].astype(np.float32)
        frequencies = np.fft.rfftfreq(self._window, 1 / rate_hz)
        band_of = np.searchsorted(BAND_EDGES_HZ, frequencies, "right") - 1
        scale = 2 / (self._window * float((self._taper**2).sum()))  # so that the bands sum up to a mean square
        self._in_band = (band_of[:, None] == np.arange(SMALL_PX)) * scale
        self._rest = np.zeros(0, np.float32)
        self._columns: list[NDArray[np.float64]] = []
        self._sum, self._num_summed, self._per_column = np.zeros(SMALL_PX), 0, 1

    def add(self, samples: NDArray[np.float32]) -> None:
        """Add the next samples: float32 (n,) in [-1, 1]."""
        samples = np.concatenate([self._rest, samples])
        num_whole = len(samples) // self._window
        whole = samples[: num_whole * self._window].reshape(num_whole, self._window)
        self._rest = samples[num_whole * self._window :]
        powers = np.abs(np.fft.rfft(whole * self._taper, axis=1)) ** 2
        for bands in powers @ self._in_band:
            self._add_window(bands)

    def _add_window(self, bands: NDArray[np.float64]) -> None:
        self._sum += bands
        self._num_summed += 1
        if self._num_summed < self._per_column:
            return
        self._columns.append(self._sum / self._num_summed)
        self._sum, self._num_summed = np.zeros(SMALL_PX), 0
        if len(self._columns) == MAX_COLUMNS:
            pairs = np.array(self._columns).reshape(-1, 2, SMALL_PX)
            self._columns, self._per_column = list(pairs.mean(axis=1)), 2 * self._per_column

    def hash(self) -> int | None:
        """The hash of all that was added; None for a sound that is silent, shorter than a window, or all alike."""
        if not self._columns:
            return None
        columns = np.array(self._columns).T
        parts = area_weights(columns.shape[1]).astype(np.float64) @ columns.T
        if parts.sum(axis=1).max() < SILENT_POWER:
            return None
        levels = 10 * np.log10(np.maximum(parts, parts.max() * 10 ** (-RANGE_DB / 10)))
        return perceptual_hash(levels.astype(np.float32)) or None
