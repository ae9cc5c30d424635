"""Random color operations of images and clips: how a worker draws each of them and how the device applies it.

A worker draws everything from a generator that the caller seeds; the device draws nothing. The operations run in the
order of the papers: flip, color jitter, photometric pack, grayscale, blur, solarize. All frames of a clip have the same
parameters; each of the nine patches of a jigsaw has its own.

A new operation is a row of OPERATIONS, its columns in ColorParams and NEUTRAL, and its probability in ImageAugment.
Rows are drawn in their order, so a new row at the end leaves all earlier draws of a seed as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from avssl.transforms.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
    photometric_pack,
    solarize,
)
from avssl.transforms.frame_tensors import flip_horizontally, to_device, to_float
from avssl.transforms.image_augment import ImageAugment

T = TypeVar("T")

PUBLISHED_SIZE_PX = 224  # the papers give sizes in pixels for images of this side


class ColorParams(NamedTuple, Generic[T]):
    """The color parameters that were drawn for one image, clip or patch; every number is a float.

    The parameters of a batch are the columns of one tensor, so that they travel together: torch.tensor([params, ...])
    is (B, fields), and ColorParams(*tensor.unbind(-1)) holds tensors (B,).
    """

    flip: T  # 0 or 1
    brightness: T  # factor
    contrast: T
    saturation: T
    hue: T  # turns
    order: T  # index into JITTER_ORDERS, which lists indices into JITTER
    photometric: T  # 0 or 1
    posterize_bits: T  # bits of a color that are kept, 4 to 8
    sharpness: T  # factor, 0.1 to 1.9; 1 changes nothing
    photometric_threshold: T  # of solarizing in the photometric pack, in [0, 256 / 255]
    gray: T  # 0 or 1
    blur_sigma_px: T
    solarize: T  # 0 or 1


NEUTRAL: ColorParams[float] = ColorParams(0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 8.0, 1.0, 256 / 255, 0.0, 0.0, 0.0)

Adjust = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# The operations of the color jitter: the column, which is also the strength's name in ImageAugment, and the function.
JITTER: tuple[tuple[str, Adjust], ...] = (
    ("brightness", adjust_brightness),
    ("contrast", adjust_contrast),
    ("saturation", adjust_saturation),
    ("hue", adjust_hue),
)
JITTER_ORDERS = tuple(permutations(range(len(JITTER))))


class Operation(NamedTuple):
    """An operation after the color jitter.

    column: it is applied to the clips whose value in this column of ColorParams is not neutral. probability: the field
    of ImageAugment. draw(generator, augment, size_px): {column: value} where it happens. apply(frames, params,
    blur_radius_px): float (B, T, 3, H, W) in [0, 1] -> the same, with params (B,).
    """

    column: str
    probability: str
    draw: Callable[[np.random.Generator, ImageAugment, int], dict[str, float]]
    apply: Callable[[torch.Tensor, ColorParams[torch.Tensor], int], torch.Tensor]


OPERATIONS = (
    Operation(
        "photometric",
        "photometric_probability",
        lambda generator, _, __: {
            "photometric": 1.0,
            "posterize_bits": float(generator.integers(4, 9)),
            "sharpness": float(generator.uniform(0.1, 1.9)),
            "photometric_threshold": int(generator.integers(257)) / 255,
        },
        lambda frames, params, _: photometric_pack(
            frames, params.posterize_bits, params.sharpness, params.photometric_threshold
        ),
    ),
    Operation("gray", "grayscale_probability", lambda *_: {"gray": 1.0}, lambda frames, *_: grayscale(frames)),
    Operation(
        "blur_sigma_px",
        "blur_probability",
        lambda generator, augment, size_px: {
            "blur_sigma_px": float(generator.uniform(*augment.blur_sigma_px)) * size_px / PUBLISHED_SIZE_PX
        },
        lambda frames, params, radius_px: gaussian_blur(frames, params.blur_sigma_px, radius_px),
    ),
    Operation(
        "solarize",
        "solarize_probability",
        lambda *_: {"solarize": 1.0},
        lambda frames, params, _: solarize(frames, torch.full_like(params.solarize, 0.5)),
    ),
)


def draw_color_params(generator: np.random.Generator, augment: ImageAugment, size_px: int) -> ColorParams[float]:
    """Draw the color parameters of one image, clip or patch.

    size_px: side of the modality's full images, to which the blur is scaled. For an operation with probability 0 or 1,
    no number is drawn to decide whether it happens.
    """
    params = {"order": float(JITTER_ORDERS.index(tuple(generator.permutation(len(JITTER)).tolist())))}
    jitter = {name: _draw_jitter(generator, augment, name) for name, _ in JITTER}
    params["flip"] = float(generator.random() < augment.flip_probability)
    if _happens(generator, augment.color_jitter_probability):
        params |= jitter
    for operation in OPERATIONS:
        if _happens(generator, getattr(augment, operation.probability)):
            params |= operation.draw(generator, augment, size_px)
    return NEUTRAL._replace(**params)


def _draw_jitter(generator: np.random.Generator, augment: ImageAugment, name: str) -> float:
    strength = getattr(augment, name)
    lowest, middle = (-strength, 0.0) if name == "hue" else (max(0.0, 1 - strength), 1.0)
    return float(generator.uniform(lowest, middle + strength))


def _happens(generator: np.random.Generator, probability: float) -> bool:
    return probability == 1 or (probability > 0 and generator.random() < probability)


def apply_color_params(clips: torch.Tensor, color_params: torch.Tensor, *, blur_radius_px: int) -> torch.Tensor:
    """Apply to each clip the operations that were drawn for it, in the order that was drawn for it.

    Clips that take the same operation at the same step are processed together; an operation that no clip takes costs
    nothing.

    Args:
        clips: uint8 (B, T, 3, H, W), on the device.
        color_params: float32 (B, fields of ColorParams), on the CPU: the choice of clips must not wait for the device.
        blur_radius_px: the blur's kernel has 2 * blur_radius_px + 1 pixels.

    Returns:
        A new float32 (B, T, 3, H, W) in [0, 1].
    """
    num_columns = len(ColorParams._fields)
    if clips.ndim != 5 or clips.shape[2] != 3 or color_params.shape != (len(clips), num_columns):
        raise ValueError(
            f"expected a batch (B, T, 3, H, W) and {num_columns} color parameters per clip, "
            f"got {tuple(clips.shape)} and color parameters {tuple(color_params.shape)}"
        )
    flip = ColorParams(*color_params.unbind(1)).flip > 0
    frames = to_float(flip_horizontally(clips, flip) if flip.any() else clips)
    steps = [(rows, apply) for rows, apply in _steps(color_params) if len(rows)]
    if not steps:
        return frames
    on_device = to_device(color_params, frames.device)
    all_rows = to_device(torch.cat([rows for rows, _ in steps]), frames.device)
    for rows, (_, apply) in zip(all_rows.split([len(rows) for rows, _ in steps]), steps, strict=True):
        params = ColorParams(*on_device.index_select(0, rows).unbind(1))
        frames.index_copy_(0, rows, apply(frames.index_select(0, rows), params, blur_radius_px))
    return frames


def _steps(
    color_params: torch.Tensor,
) -> list[tuple[torch.Tensor, Callable[[torch.Tensor, ColorParams[torch.Tensor], int], torch.Tensor]]]:
    """(the clips that take it, the operation) of each step, in the order of the steps."""
    params = ColorParams(*color_params.unbind(1))
    is_taken = {name: getattr(params, name) != getattr(NEUTRAL, name) for name in ColorParams._fields}
    orders = torch.tensor(JITTER_ORDERS)[params.order.long()]
    jitter = [
        ((is_taken[name] & (orders[:, step] == number)).nonzero()[:, 0], _by_column(name, adjust))
        for step in range(len(JITTER))
        for number, (name, adjust) in enumerate(JITTER)
    ]
    return jitter + [(is_taken[operation.column].nonzero()[:, 0], operation.apply) for operation in OPERATIONS]


def _by_column(name: str, adjust: Adjust) -> Callable[[torch.Tensor, ColorParams[torch.Tensor], int], torch.Tensor]:
    return lambda frames, params, _: adjust(frames, getattr(params, name))
