"""Measures video (motion, stillness) and images; images and frames get a perceptual hash.

With NumPy alone, at memory that does not grow with the length of video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.media.decode import read_video
from avssl.media.images import read_image
from data_prep.measures.near_duplicates import SMALL_PX, perceptual_hash, small_image

VIDEO_STEP_SECONDS = 0.5
MAX_VIDEO_STEPS = 32
FRAMES_PER_READ = 8
SQUARES_PER_SIDE = 16


@dataclass(frozen=True)
class VideoFacts:
    """What was measured of video. Frames are compared by the mean luma of 16 x 16 squares: the noise that a codec adds
    to still frames averages out.

    motion: mean absolute change of a square from one sampled frame to the next, in levels of 255; None for a single
    frame. still_share: fraction of these pairs in which no square changes by the threshold; 1 for a single frame.
    middle_hash, first_hash: `perceptual_hash` of the middle and the first frame.
    """

    width_px: int
    height_px: int
    motion: float | None
    still_share: float
    middle_hash: int
    first_hash: int


def sampled_frames(num_frames: int, fps: float) -> list[int]:
    """Numbers of the frames that are compared: one per half second, at most MAX_VIDEO_STEPS."""
    step = max(1, round(VIDEO_STEP_SECONDS * fps), math.ceil(num_frames / MAX_VIDEO_STEPS))
    step = min(step, max(1, num_frames - 1))  # so that even the shortest video gives two frames
    return list(range(0, num_frames, step))


def middle_frame(num_frames: int, fps: float) -> int:
    """Number of the frame near the middle that represents a video.

    It is a multiple of half a second after the start, and other lengths than whole seconds are where it moves on: in a
    copy that is a few frames shorter because of its container or encoder it is the same frame.
    """
    half_seconds = half_seconds_to_middle(num_frames / fps)
    return min(num_frames - 1, round(VIDEO_STEP_SECONDS * half_seconds * fps)) if half_seconds else num_frames // 2


def half_seconds_to_middle(seconds: float) -> int:
    """How many half seconds after the start the frame lies that represents a video of this length."""
    return math.floor((seconds / 2 + 0.15) / VIDEO_STEP_SECONDS)


def measure_video(content: bytes, num_frames: int, fps: float, still_levels: float, name: str) -> VideoFacts:
    """The facts of a video member, of which a few frames are decoded. MediaError as `read_video`.

    still_levels: two sampled frames in a row are still if no square changes by so many levels of 255.
    """
    compared, middle = sampled_frames(num_frames, fps), middle_frame(num_frames, fps)
    decoded = sorted({*compared, middle})
    hashes: dict[int, int] = {}
    changes: list[NDArray[np.float32]] = []
    before: NDArray[np.float32] | None = None
    for begin in range(0, len(decoded), FRAMES_PER_READ):
        numbers = decoded[begin : begin + FRAMES_PER_READ]
        planes = read_video(content, [number / fps for number in numbers], rgb=False, name=name).numpy()
        height_px, width_px = planes.shape[1] * 2 // 3, planes.shape[2]
        for number, plane in zip(numbers, planes, strict=True):
            small = small_image(plane[:height_px])
            if number in (0, middle):
                hashes[number] = perceptual_hash(small)
            if number in compared:
                squares = square_means(small)
                changes += [] if before is None else [np.abs(squares - before)]
                before = squares
    return VideoFacts(
        width_px=width_px,
        height_px=height_px,
        motion=float(np.mean(changes)) if changes else None,
        still_share=float(np.mean([change.max() < still_levels for change in changes])) if changes else 1.0,
        middle_hash=hashes[middle],
        first_hash=hashes[0],
    )


def square_means(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean luma of the squares of a `small_image`: float32 (SQUARES_PER_SIDE, SQUARES_PER_SIDE)."""
    side = SMALL_PX // SQUARES_PER_SIDE
    squares = small.reshape(SQUARES_PER_SIDE, side, SQUARES_PER_SIDE, side)
    return np.asarray(squares.mean(axis=(1, 3)))


def measure_image(content: bytes, name: str) -> int:
    """`perceptual_hash` of an image member. MediaError as `read_image`."""
    red, green, blue = read_image(content, name=name).numpy().astype(np.float32)
    return perceptual_hash(small_image(0.299 * red + 0.587 * green + 0.114 * blue))
