"""Measures frames that come one after the other: motion, stillness, shots, brightness, entropy and perceptual hashes.

Frames come on a grid of GRID_FPS. Every frame is compared with the one before to find cuts; half a second apart (at
most MAX_SAMPLES of a video, then further apart) they are compared for motion, as video.py does for `stats`. Memory does
not grow with the length of a video but for 8 bytes per frame of the grid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.measures.near_duplicates import NO_HASH, perceptual_hash, small_image
from data_prep.measures.video import VIDEO_STEP_SECONDS, half_seconds_to_middle, square_means

GRID_FPS = 8
MAX_SAMPLES = 64
# A cut: the mean change of luma and both chroma from a frame to the next is at least CUT_LEVELS of 255, and CUT_RATIO
# times the mean change around it (CUT_REACH frames on both sides), so that fast motion is none.
CUT_LEVELS, CUT_RATIO, CUT_REACH = 18.0, 3.0, 2
LEAST_SHOT_SECONDS = 0.5
BLACK, WHITE = 16.0, 235.0  # luma of yuv420p in limited range

Small = NDArray[np.float32]


@dataclass(frozen=True)
class FrameFacts:
    """What was measured of the frames of a video; of an image motion and still_share are None and num_shots is 1.

    motion, still_share, middle_hash, first_hash: as VideoFacts; a hash of a flat frame is None. num_shots: 1 + the
    number of hard cuts. brightness: mean luma from 0, black, to 1, white. entropy_bits: of the distribution of 256
    levels of luma, 0 to 8, mean of the sampled frames.
    """

    motion: float | None
    still_share: float | None
    num_shots: int
    brightness: float
    entropy_bits: float
    middle_hash: int | None
    first_hash: int | None


@dataclass(frozen=True)
class _Sampled:
    """A frame that is compared half a second later. number: in the grid."""

    number: int
    luma: Small
    brightness: float
    entropy_bits: float


class FrameMeter:
    """Measures the FrameFacts of frames that are added in order.

    still_levels: two sampled frames in a row are still if no square of 16 x 16 changes by so many levels of 255.
    """

    def __init__(self, still_levels: float) -> None:
        self._still_levels = still_levels
        self._step = round(VIDEO_STEP_SECONDS * GRID_FPS)
        self._count = 0
        self._planes: NDArray[np.uint8] | None = None
        self._small: list[Small] = []
        self._changes: list[float] = []
        self._sampled: list[_Sampled] = []
        self._last: _Sampled | None = None

    def add(self, planes: NDArray[np.uint8]) -> None:
        """Add the next frame of the grid: uint8 (H * 3 / 2, W), yuv420p; the same object again for the same frame."""
        if planes is not self._planes:
            small = [small_image(plane) for plane in split_planes(planes)]
            change = sum(float(np.abs(new - old).mean()) for new, old in zip(small, self._small, strict=False))
            self._planes, self._small = planes, small
        else:
            change = 0.0
        if self._count:
            self._changes.append(change)
        if self._count % self._step == 0:
            self._sampled.append(self._sample())
            if len(self._sampled) > MAX_SAMPLES:
                self._sampled, self._step = self._sampled[::2], 2 * self._step
        self._count += 1

    def _sample(self) -> _Sampled:
        assert self._planes is not None
        luma = split_planes(self._planes)[0]
        brightness = float(np.clip((luma.mean(dtype=np.float64) - BLACK) / (WHITE - BLACK), 0, 1))
        return _Sampled(self._count, self._small[0], brightness, entropy_bits(luma))

    def facts(self) -> FrameFacts:
        """The facts of all frames that were added, at least one; to be called once."""
        sampled = self._sampled
        middle = self._middle()
        if len(sampled) == 1 and self._count > 1:  # so that even the shortest video gives two frames
            self._count -= 1
            sampled = [*sampled, self._sample()]
        squares = [square_means(one.luma) for one in sampled]
        changes = [np.abs(new - old) for old, new in itertools.pairwise(squares)]
        return FrameFacts(
            motion=float(np.mean(changes)) if changes else None,
            still_share=float(np.mean([change.max() < self._still_levels for change in changes])) if changes else 1.0,
            num_shots=1 + num_cuts(np.array(self._changes)),
            brightness=float(np.mean([one.brightness for one in sampled])),
            entropy_bits=float(np.mean([one.entropy_bits for one in sampled])),
            middle_hash=hash_or_none(middle.luma),
            first_hash=hash_or_none(sampled[0].luma),
        )

    def _middle(self) -> _Sampled:
        """The sampled frame near the middle: the last one at or before a whole number of half seconds."""
        number = half_seconds_to_middle(self._count / GRID_FPS) * round(VIDEO_STEP_SECONDS * GRID_FPS)
        return self._sampled[min(len(self._sampled) - 1, number // self._step)]


def image_facts(pixels: NDArray[np.uint8]) -> FrameFacts:
    """The facts of an image: uint8 (3, H, W), RGB, or (H, W), gray. middle_hash is that of the image."""
    if pixels.ndim == 2:
        luma = pixels.astype(np.float32)
    else:
        red, green, blue = pixels.astype(np.float32)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
    levels = np.clip(np.rint(luma), 0, 255).astype(np.uint8)
    value = hash_or_none(small_image(luma))
    return FrameFacts(None, None, 1, float(luma.mean(dtype=np.float64) / 255), entropy_bits(levels), value, value)


def split_planes(planes: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The Y, U and V planes of a frame in yuv420p: uint8 (H, W), (H / 2, W / 2) twice."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    return [planes[:height], chroma[0], chroma[1]]


def entropy_bits(luma: NDArray[np.uint8]) -> float:
    """Entropy in bits of the distribution of the levels of an image, 0 (one level) to 8 (all alike often)."""
    shares = np.bincount(luma.reshape(-1), minlength=256) / luma.size
    shares = shares[shares > 0]
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def num_cuts(changes: NDArray[np.float64]) -> int:
    """The number of hard cuts. changes: (n,), of each frame of the grid to the next. Fades and dissolves are none."""
    if not len(changes):
        return 0
    kernel = np.ones(2 * CUT_REACH + 1)
    kernel[CUT_REACH] = 0
    padded = np.pad(changes, CUT_REACH)
    around = np.convolve(padded, kernel, "valid") / np.convolve(
        np.pad(np.ones_like(changes), CUT_REACH), kernel, "valid"
    ).clip(1)
    is_cut = (changes >= CUT_LEVELS) & (changes >= CUT_RATIO * around)
    count, last = 0, -np.inf
    for number in np.flatnonzero(is_cut).tolist():
        if number - last >= LEAST_SHOT_SECONDS * GRID_FPS:
            count, last = count + 1, number
    return count


def hash_or_none(small: Small) -> int | None:
    """`perceptual_hash`, None instead of NO_HASH."""
    value = perceptual_hash(small)
    return None if value == NO_HASH else value
