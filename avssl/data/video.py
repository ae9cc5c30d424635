"""Video transforms: the crop that a worker makes, and batched colour and layout operations on the device.

The device side draws nothing: every random parameter is a tensor with one entry per sample, drawn before by
`draw_video_parameters` from a generator that the caller seeds. A clip keeps its parameters over all its frames.
Layouts: decoded clips (T, 3, H, W) uint8; batches (B, T, 3, H, W); models read (B, 3, T, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TEST_CROP_SHARE = 0.875  # 224 of 256: the central part that is looked at in evaluation
LUMA = (0.2989, 0.587, 0.114)
COLOUR_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class VideoAugment:
    """Random changes of a training clip. The defaults are AVID's; a strength of 0 switches a colour operation off.

    size_px: side of the square output. crop_scale: share of the frame's area, crop_ratio: width / height of the crop.
    brightness, contrast, saturation s: factor uniform in [max(0, 1 - s), 1 + s]; hue h <= 0.5: shift in [-h, h] turns.
    """

    size_px: int = 224
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise ValueError(f"size_px must be at least 1, got {self.size_px}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be 0 < low <= high <= 1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be 0 < low <= high, got {self.crop_ratio}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must be in [0, 1], got {self.flip_probability}")
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"colour strengths must not be negative and hue at most 0.5, got {self}")


class Box(NamedTuple):
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


class VideoParameters(NamedTuple):
    """What was drawn for one clip. order lists the colour operations, by position in COLOUR_OPERATIONS."""

    box: Box
    flip: bool
    factors: tuple[float, float, float, float]
    order: tuple[int, int, int, int]


class ColourBatch(NamedTuple):
    """Colour parameters of a batch: factors float32 (B,), or None for an operation that nobody uses; order (B, 4).

    order stays on the CPU: which samples take which operation next must be known without waiting for the device.
    """

    brightness: torch.Tensor | None
    contrast: torch.Tensor | None
    saturation: torch.Tensor | None
    hue: torch.Tensor | None
    order: torch.Tensor


def draw_video_parameters(
    generator: np.random.Generator, height: int, width: int, augment: VideoAugment
) -> VideoParameters:
    """Draw everything that is random about one training clip of height x width px."""
    strengths = (augment.brightness, augment.contrast, augment.saturation)
    order = generator.permutation(4).tolist()
    factors = [float(generator.uniform(max(0.0, 1 - strength), 1 + strength)) for strength in strengths]
    hue = float(generator.uniform(-augment.hue, augment.hue))
    flip = bool(generator.random() < augment.flip_probability)
    # The box comes last because it alone takes a varying number of draws.
    box = random_resized_crop_box(generator, height, width, augment.crop_scale, augment.crop_ratio)
    return VideoParameters(box, flip, (factors[0], factors[1], factors[2], hue), tuple(order))


def random_resized_crop_box(
    generator: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Box with a uniform share of the area and a log-uniform aspect ratio, as torchvision's RandomResizedCrop draws it.

    After ten boxes that do not fit into height x width, the largest centred box of an allowed ratio is taken.
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


def centre_crop_box(height: int, width: int, share: float = TEST_CROP_SHARE) -> Box:
    """The central square of `share` of the short side: the same view as resizing to size / share and cropping."""
    side = max(1, round(min(height, width) * share))
    return Box((height - side) // 2, (width - side) // 2, side, side)


def crop_resize(clip: torch.Tensor, box: Box, size_px: int) -> torch.Tensor:
    """Crop uint8 (T, 3, H, W) to the box and resize to (T, 3, size_px, size_px), bilinear with antialiasing, uint8.

    Raises ValueError if the clip has another form or the box does not lie inside the frame.
    """
    if clip.ndim != 4 or clip.shape[1] != 3 or clip.dtype != torch.uint8:
        raise ValueError(f"crop_resize takes uint8 clips (T, 3, H, W), got {clip.dtype} {tuple(clip.shape)}")
    top, left, height, width = box
    inside = 0 <= top <= clip.shape[2] - height and 0 <= left <= clip.shape[3] - width
    if not inside or min(height, width, size_px) < 1:
        raise ValueError(
            f"{box} at {size_px} px does not fit into frames of {tuple(clip.shape[2:])} px (height, width)"
        )
    cropped = clip[..., top : top + height, left : left + width]
    if (height, width) == (size_px, size_px):
        return cropped.contiguous()
    # What torchvision's v2 resized_crop calls, without its import and dispatch.
    return torch.nn.functional.interpolate(
        cropped, size=(size_px, size_px), mode="bilinear", align_corners=False, antialias=True
    ).contiguous()


def stack_colour(parameters: Sequence[VideoParameters], augment: VideoAugment) -> ColourBatch:
    """Parameters of a batch's clips as CPU tensors; an operation of strength 0 becomes None, hence free."""
    factors = torch.tensor([each.factors for each in parameters], dtype=torch.float32).reshape(-1, 4)
    brightness, contrast, saturation, hue = (
        factors[:, position] if getattr(augment, name) > 0 else None for position, name in enumerate(COLOUR_OPERATIONS)
    )
    order = torch.tensor([each.order for each in parameters]).reshape(-1, 4)
    return ColourBatch(brightness, contrast, saturation, hue, order)


def to_float(video: torch.Tensor) -> torch.Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1], any shape."""
    if video.dtype != torch.uint8:
        raise ValueError(f"to_float takes uint8 frames, got {video.dtype}")
    return video.to(torch.float32).mul_(1 / 255)


def flip_horizontally(video: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Mirror the clips of (B, T, 3, H, W), any dtype, where flip, bool (B,), is true."""
    _check_batch(video, flip)
    return torch.where(flip.to(video.device)[:, None, None, None, None], video.flip(-1), video)


def normalize(
    video: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """(x - mean) / std per colour, for float (..., 3, H, W) in [0, 1]."""
    mean_rgb, std_rgb = (video.new_tensor(values)[:, None, None] for values in (mean, std))
    return (video - mean_rgb) / std_rgb


def to_model_layout(video: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, H, W) -> (B, 3, T, H, W), contiguous."""
    return video.transpose(1, 2).contiguous()


def adjust_brightness(video: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """video * factor, in [0, 1]. video: float (B, T, 3, H, W) in [0, 1]; factor (B,) >= 0. So for all adjust_*."""
    return (video * _per_clip(factor)).clamp_(0, 1)


def adjust_contrast(video: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with each frame's own mean grey: factor 0 is flat grey, 1 the original."""
    return _blend(video, _grey(video).mean(dim=(-3, -2, -1), keepdim=True), factor)


def adjust_saturation(video: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the grey picture: factor 0 is grey, 1 the original."""
    return _blend(video, _grey(video), factor)


def adjust_hue(video: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue by shift (B,) in [-0.5, 0.5] turns, keeping value and saturation (HSV)."""
    red, green, blue = video.unbind(-3)
    value, lowest = video.amax(-3), video.amin(-3)
    chroma = value - lowest
    safe = torch.where(chroma > 0, chroma, 1.0)
    # The hue in sixths of a turn: 0 red, 2 green, 4 blue. Of equal maxima the first counts.
    sixths = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixths = torch.where(value == red, (green - blue) / safe, sixths) + 6 * _per_clip(shift)[..., 0]
    # Each colour is the value less the chroma times a trapezium over the hue, shifted by a third of a turn.
    offsets = video.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    distance = (sixths.unsqueeze(-3) + offsets).remainder_(6)
    trapezium = distance.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)  # min(distance, 4 - distance), in place
    return torch.addcmul(value.unsqueeze(-3), chroma.unsqueeze(-3), trapezium, value=-1).clamp_(0, 1)


_ADJUST: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


def jitter_colour(video: torch.Tensor, colour: ColourBatch) -> torch.Tensor:
    """Apply each clip's colour operations in the clip's own order, with the same factors in all its frames.

    video: float32 (B, T, 3, H, W) in [0, 1]; the result is a new tensor in [0, 1]. At each of the four places the
    clips are grouped by their operation, so a clip is worked on once per operation that is in use, and in use at all.
    """
    _check_batch(video, colour.order)
    factors = [None if each is None else each.to(video.device, non_blocking=True) for each in colour[:4]]
    if all(each is None for each in factors):
        return video
    video = video.clone()
    for place in range(4):
        for operation, factor in enumerate(factors):
            rows = (colour.order[:, place] == operation).nonzero()[:, 0]
            if factor is not None and len(rows):
                rows = rows.to(video.device, non_blocking=True)
                video[rows] = _ADJUST[operation](video[rows], factor[rows])
    return video


def _check_batch(video: torch.Tensor, parameter: torch.Tensor) -> None:
    if video.ndim != 5 or video.shape[2] != 3 or len(parameter) != len(video):
        raise ValueError(
            "expected a batch (B, T, 3, H, W) and one parameter per clip, "
            f"got {tuple(video.shape)} and parameters {tuple(parameter.shape)}"
        )


def _per_clip(factor: torch.Tensor) -> torch.Tensor:
    return factor[:, None, None, None, None]


def _grey(video: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, H, W) -> luma (B, T, 1, H, W)."""
    red, green, blue = video.unbind(-3)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(-3)


def _blend(video: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(other, video, _per_clip(factor)).clamp_(0, 1)
