"""The deterministic view of a frame or an image: which part is kept, and how it becomes a square.

The three ways of `test_resize`, for a side of S = size_px and R = test_resize_px (0: S):
    crop         the central square of 0.875 of the short side is resized to S x S: what avssl itself trains with
    short_side   the short side is resized to R, then the central S x S are cut, as torchvision, timm and transformers
    both_sides   both sides are resized to R, whatever the aspect, then the central S x S are cut
Where an odd number of pixels is left over, test_crop_offset says whether half of them is rounded down (transformers) or
to even (torchvision, timm).
"""

from __future__ import annotations

from typing import Protocol

import torch

from avssl.transforms.crop import Box, center_crop_box, crop_resize


class Pixels(Protocol):
    """The keys of ImageViewConfig and VideoViewConfig that decide the test view."""

    @property
    def size_px(self) -> int:
        """Height and width of the view."""

    @property
    def interpolation(self) -> str:
        """How pixels are resized, as `crop_resize` takes it."""

    @property
    def test_resize(self) -> str:
        """What is done before the square is cut: crop, short_side or both_sides."""

    @property
    def test_resize_px(self) -> int:
        """Length of the shorter side, or of both, once it is resized; 0 stands for size_px."""

    @property
    def test_crop_offset(self) -> str:
        """How half of an odd number of pixels is rounded: floor, or round (halves to the even number)."""


def frames_of_test_view(clip: torch.Tensor, config: Pixels) -> torch.Tensor:
    """uint8 (T, 3, H, W) -> uint8 (T, 3, S, S)."""
    top, left, height, width = kept_box(clip.shape[2], clip.shape[3], config)
    return square_of_kept(clip[..., top : top + height, left : left + width], config)


def kept_box(height: int, width: int, config: Pixels) -> Box:
    """The part of a frame that the test view is made of."""
    return center_crop_box(height, width) if config.test_resize == "crop" else Box(0, 0, height, width)


def square_of_kept(part: torch.Tensor, config: Pixels) -> torch.Tensor:
    """The test view of the parts of frames that `kept_box` has: uint8 (T, 3, h, w) -> uint8 (T, 3, S, S)."""
    height, width = part.shape[2:]
    whole, side = Box(0, 0, height, width), config.size_px
    if config.test_resize == "crop":
        return crop_resize(part, whole, (side, side), config.interpolation)
    size = resized_size(height, width, config)
    resized = crop_resize(part, whole, size, config.interpolation)
    top, left = (_offset(length - side, config) for length in size)
    return resized[..., top : top + side, left : left + side]


def resized_size(height: int, width: int, config: Pixels) -> tuple[int, int]:
    """(height, width) to which a frame is resized before the center is cut; the longer side is rounded down."""
    short = config.test_resize_px or config.size_px
    if config.test_resize == "both_sides":
        return short, short
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _offset(left_over: int, config: Pixels) -> int:
    return left_over // 2 if config.test_crop_offset == "floor" else round(left_over / 2)
