"""Crops of frames: random boxes for training, central boxes for evaluation, and the cropping itself."""

from __future__ import annotations

from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np
import torch

TEST_CROP_FRACTION = 0.875  # 224 of 256 px: the central part of the short side that evaluation uses


class Box(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized_crop_box(
    generator: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random box with a uniform fraction of the area and a log-uniform aspect, as torchvision's RandomResizedCrop.

    After ten boxes that do not fit into height x width, the result is the largest centered box of an allowed ratio.
    """
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = exp(generator.uniform(log(ratio[0]), log(ratio[1])))
        box_width, box_height = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(generator.integers(height - box_height + 1))
            left = int(generator.integers(width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def center_crop_box(height: int, width: int, fraction: float = TEST_CROP_FRACTION) -> Box:
    """The central square whose side is a fraction of the short side: as resizing to size / fraction and cropping."""
    side = max(1, round(min(height, width) * fraction))
    return Box((height - side) // 2, (width - side) // 2, side, side)


def evaluation_crop_boxes(height: int, width: int, num_crops: int) -> list[Box]:
    """The central crop of evaluation (num_crops 1), or three squares of the short side along the longer side (3)."""
    if num_crops == 1:
        return [center_crop_box(height, width)]
    side = min(height, width)
    offsets = [round((max(height, width) - side) * fraction) for fraction in (0.0, 0.5, 1.0)]
    return [Box(offset, 0, side, side) if height > width else Box(0, offset, side, side) for offset in offsets]


def crop_resize(
    clip: torch.Tensor, box: Box, size_px: int | tuple[int, int], interpolation: str = "bilinear"
) -> torch.Tensor:
    """Crop uint8 (T, 3, H, W) to the box and resize to uint8 (T, 3, h, w) with antialiasing, bilinear or bicubic.

    size_px: side of a square, or (h, w).
    The memory layout is that of the clip: decoded clips have channels last, and keep this until they are on the device.
    Raises ValueError if the clip has another dtype or shape, or the box does not lie inside the frame.
    """
    if clip.ndim != 4 or clip.shape[1] != 3 or clip.dtype != torch.uint8:
        raise ValueError(f"crop_resize takes uint8 clips (T, 3, H, W), got {clip.dtype} {tuple(clip.shape)}")
    top, left, height, width = box
    size = (size_px, size_px) if isinstance(size_px, int) else size_px
    is_inside = 0 <= top <= clip.shape[2] - height and 0 <= left <= clip.shape[3] - width
    if not is_inside or min(height, width, *size) < 1:
        raise ValueError(
            f"{box} at {size_px} px does not fit into frames of {tuple(clip.shape[2:])} px (height, width)"
        )
    cropped = clip[..., top : top + height, left : left + width]
    if (height, width) == size:
        return cropped.clone(memory_format=torch.channels_last if clip.stride(1) == 1 else torch.contiguous_format)
    # What torchvision's v2 resized_crop calls, without its import and dispatch.
    return torch.nn.functional.interpolate(cropped, size=size, mode=interpolation, align_corners=False, antialias=True)
