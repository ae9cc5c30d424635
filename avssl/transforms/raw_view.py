"""One view of a sample or a batch as a worker makes it: the decoded media, and the parameters drawn for the device."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from avssl.transforms.audio import draw_audio_params
from avssl.transforms.color_augment import PUBLISHED_SIZE_PX, ColorParams, draw_color_params
from avssl.transforms.config import AudioViewConfig, ImageViewConfig, VideoViewConfig, view_size_px
from avssl.transforms.crop import Box, center_crop_box, crop_resize, random_resized_crop_box
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.jigsaw import (
    GRID,
    NUM_TILES,
    Jigsaw,
    JigsawSize,
    centered_jigsaw,
    cut_patches,
    draw_jigsaw,
    jigsaw_size,
)
from avssl.transforms.test_view import frames_of_test_view


@dataclass
class RawView:
    """One view of a batch as a worker sends it; for a single sample the same without the batch axis.

    media: uint8 (B, T, 3, S, S), for a jigsaw (B, 9, T, 3, P, P), for an image with T = 1, channels last in memory as
    decoded; or float32 (B, 1, samples). The other fields are parameters that were drawn; None if there are none.

    >>> sorted(RawView("audio", torch.zeros(2, 1, 48_000)).tensors())
    ['media']
    """

    modality: str
    media: torch.Tensor
    color_params: torch.Tensor | None = None  # float32 (B, fields of ColorParams), for a jigsaw (B, 9, fields)
    audio_params: torch.Tensor | None = None  # float32 (B, fields of AudioParams)
    background: torch.Tensor | None = None  # float32 (B, 1, samples), to be mixed in
    tiles: torch.Tensor | None = None  # int64 (B, 9), the order of the tiles of a spectrogram

    def tensors(self) -> dict[str, Any]:
        """{name: tensor} of the fields that hold one."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    def pin_memory(self) -> RawView:
        """A copy in pinned memory."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})


class ViewParams(NamedTuple):
    """All parameters of one view of one sample; color_params has one entry, or one for each patch of the jigsaw."""

    box: Box
    color_params: list[ColorParams[float]]
    jigsaw: Jigsaw | None


def draw_view_params(
    generator: np.random.Generator,
    height: int,
    width: int,
    augment: ImageAugment,
    *,
    size_px: int = PUBLISHED_SIZE_PX,
    jigsaw_size: JigsawSize | None = None,
) -> ViewParams:
    """Draw all random parameters of one view of an image or clip of height x width px.

    size_px: side of the modality's full images, to which the blur is scaled. jigsaw_size: None if the view is no
    jigsaw.
    """
    color_params = draw_color_params(generator, augment, size_px)
    # The box is drawn after the colors because only the box takes a varying number of draws for the same augment.
    box = random_resized_crop_box(generator, height, width, augment.crop_scale, augment.crop_ratio)
    if jigsaw_size is None:
        return ViewParams(box, [color_params], None)
    jigsaw = draw_jigsaw(generator, jigsaw_size)
    others = [draw_color_params(generator, augment, size_px) for _ in range(NUM_TILES - 1)]
    return ViewParams(box, [color_params, *others], jigsaw)


def raw_image(
    modality: str,
    clip: torch.Tensor,
    config: ImageViewConfig | VideoViewConfig,
    augment: ImageAugment | None,
    generator: np.random.Generator | None,
) -> RawView:
    """Crop, resize and, for a jigsaw, cut one clip, uint8 (T, 3, H, W), with parameters drawn from the generator.

    Without a generator or an augmentation set the crop is the central one. Without a generator, the set still decides
    the size and whether the view is a jigsaw.
    """
    height, width = clip.shape[2:]
    size_px = view_size_px(augment, config)
    jigsaw_px = jigsaw_size(size_px) if augment is not None and augment.jigsaw else None
    color_params = None
    if augment is None or generator is None:
        box, jigsaw = center_crop_box(height, width), None if jigsaw_px is None else centered_jigsaw(jigsaw_px)
    else:
        box, drawn, jigsaw = draw_view_params(
            generator, height, width, augment, size_px=config.size_px, jigsaw_size=jigsaw_px
        )
        color_params = torch.tensor(drawn if jigsaw is not None else drawn[0])
    if jigsaw_px is None or jigsaw is None:
        if color_params is None and size_px == config.size_px:
            return RawView(modality, frames_of_test_view(clip, config))
        return RawView(modality, crop_resize(clip, box, size_px, config.interpolation), color_params)
    grid_px = GRID * jigsaw_px.cell_px
    patches = cut_patches(crop_resize(clip, box, grid_px, config.interpolation), jigsaw, jigsaw_px)
    return RawView(modality, patches, color_params)


def raw_audio(audio: torch.Tensor, config: AudioViewConfig, generator: np.random.Generator | None) -> RawView:
    """The view of one waveform (1, samples), with audio parameters if there is a generator to draw them from."""
    if generator is None:
        return RawView("audio", audio)
    audio_params = torch.tensor(draw_audio_params(generator, config.augment, config.rate_hz))
    return RawView("audio", audio, audio_params=audio_params)
