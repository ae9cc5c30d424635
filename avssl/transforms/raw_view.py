"""One view of a sample or a batch as a worker makes it: what is cut out, and what was drawn for the device to do."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from avssl.transforms.audio import (
    draw_audio_params,
)
from avssl.transforms.config import (
    AudioViewConfig,
    ImageViewConfig,
    VideoViewConfig,
    picture_size_px,
)
from avssl.transforms.draw import ImageAugment, center_crop_box, draw_view_params
from avssl.transforms.geometry import crop_resize
from avssl.transforms.jigsaw import GRID, centered_jigsaw, cut_patches, jigsaw_size


@dataclass
class RawView:
    """One view of a batch as a worker sends it; of a single sample the same without the batch axis.

    media: uint8 (B, T, 3, S, S), of a jigsaw (B, 9, T, 3, P, P), a picture with T = 1; in memory as it was decoded,
    channels last; or float32 (B, 1, samples).
    The other fields are what was drawn, None where nothing is.
    """

    modality: str
    media: torch.Tensor
    looks: torch.Tensor | None = None  # float32 (B, fields of Look), of a jigsaw (B, 9, fields)
    sounds: torch.Tensor | None = None  # float32 (B, fields of Sound)
    background: torch.Tensor | None = None  # float32 (B, 1, samples), to be mixed in
    tiles: torch.Tensor | None = None  # int64 (B, 9), the order of a spectrogram's tiles

    def tensors(self) -> dict[str, Any]:
        """The fields that are there."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    def pin_memory(self) -> RawView:
        """The same in pinned memory."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})


def raw_image(
    modality: str,
    clip: torch.Tensor,
    config: ImageViewConfig | VideoViewConfig,
    augment: ImageAugment | None,
    generator: np.random.Generator | None,
) -> RawView:
    """Crop, resize and, for a jigsaw, cut one clip, uint8 (T, 3, H, W). A generator draws where and how.

    Without a generator, or a set, it is the central crop; the set still says which size and whether it is a jigsaw.
    """
    height, width = clip.shape[2:]
    size_px = picture_size_px(augment, config)
    cut = jigsaw_size(size_px) if augment is not None and augment.jigsaw else None
    looks = None
    if augment is None or generator is None:
        box, jigsaw = center_crop_box(height, width), None if cut is None else centered_jigsaw(cut)
    else:
        box, drawn, jigsaw = draw_view_params(
            generator, height, width, augment, size_px=config.size_px, jigsaw_size=cut
        )
        looks = torch.tensor(drawn if jigsaw is not None else drawn[0])
    if cut is None or jigsaw is None:
        return RawView(modality, crop_resize(clip, box, size_px), looks)
    return RawView(modality, cut_patches(crop_resize(clip, box, GRID * cut.cell_px), jigsaw, cut), looks)


def raw_audio(audio: torch.Tensor, config: AudioViewConfig, generator: np.random.Generator | None) -> RawView:
    """One waveform (1, samples) with what a generator draws for it."""
    if generator is None:
        return RawView("audio", audio)
    return RawView("audio", audio, sounds=torch.tensor(draw_audio_params(generator, config.augment, config.rate_hz)))
