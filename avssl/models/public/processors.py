"""What a processor of transformers does to frames, as values of our views: sizes, interpolation, normalization.

A processor is code of transformers with values from a file. The values are read, and `preprocess` gives what the
processor itself makes of frames: whoever takes over the values compares the two.
"""

from __future__ import annotations

from typing import Any

import torch

from avssl.files.plain_text import brief
from avssl.models.public.encoder import Demand
from avssl.models.public.hub_files import Located
from avssl.models.public.transformers_door import processor_of, quiet

INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow
WHOLE_IMAGE_PX = 384  # ConvNeXT's processor squeezes the whole image into squares of this side or more
PROBE_PX = 64


def demands_of_processor(model: Located, modality: str, size: Demand | None, size_px: int | None) -> dict[str, Demand]:
    """The values of views that do what the processor does to a frame.

    size: what the network takes; None if it takes any size. size_px: side of the views, if it is not the model's: then
    the size to which the frame is first resized is in proportion. ValueError if views cannot do it.
    """
    processor = _processor(model, modality)
    resize, resize_px, side = _geometry(model.name, processor)
    if size is not None and size.is_fixed and side != size.value:
        raise ValueError(
            f"{model.name}: its processor makes images of {side} px, and its network takes {size.value} px only; "
            "they do not belong together"
        )
    interpolation = INTERPOLATIONS.get(int(processor.resample if processor.resample is not None else 2))
    if interpolation is None:
        raise ValueError(
            f"{model.name}: its processor resizes with Pillow's resampling {int(processor.resample)}; views can do "
            f"{' and '.join(f'{name} ({number})' for number, name in INTERPOLATIONS.items())}"
        )
    mean, std = _normalization(processor)
    return {
        "size_px": (size or Demand(side, is_fixed=False))._replace(value=side),
        "mean": Demand(mean),
        "std": Demand(std),
        "interpolation": Demand(interpolation),
        "test_resize": Demand(resize),
        "test_resize_px": Demand(resize_px if size_px is None else round(resize_px * size_px / side)),
        "test_crop_offset": Demand("floor"),
        **_frame_rate(processor, modality),
    }


def preprocess(model: Located, modality: str, frames: torch.Tensor) -> torch.Tensor:
    """What the processor makes of frames: uint8 (T, 3, H, W) -> float32 (T, 3, S, S)."""
    return _call(_processor(model, modality), frames)


def _processor(model: Located, modality: str) -> Any:
    kinds = ("AutoVideoProcessor", "AutoImageProcessor") if modality == "video" else ("AutoImageProcessor",)
    return processor_of(model, kinds)


def _call(processor: Any, frames: torch.Tensor) -> torch.Tensor:
    with quiet():
        if "Video" in type(processor).__name__ and hasattr(processor, "sample_frames"):
            made = processor(videos=[frames], return_tensors="pt", do_sample_frames=False)
            clips: list[torch.Tensor] = [value for key, value in made.items() if key.startswith("pixel_values")]
            return clips[0][0].float()
        made = processor(list(frames), return_tensors="pt")
    pixels: torch.Tensor = made["pixel_values"]
    return (pixels[0] if pixels.ndim == 5 else pixels).float()


def _geometry(name: str, processor: Any) -> tuple[str, int, int]:
    """(test_resize, test_resize_px, side of the result)."""
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    size = {key: value for key, value in size.items() if value is not None}
    crop_px = crop.get("height") if processor.do_center_crop and crop.get("height") == crop.get("width") else None
    short = size.get("shortest_edge")
    crop_fraction = getattr(processor, "crop_pct", None)
    if not processor.do_resize:
        raise ValueError(f"{name}: its processor does not resize; views are resized to squares")
    if short and crop_fraction:  # ConvNeXT
        return (
            ("short_side", int(short / crop_fraction), short)
            if short < WHOLE_IMAGE_PX
            else ("both_sides", short, short)
        )
    if short and crop_px and crop_px <= short and "longest_edge" not in size:
        return "short_side", short, crop_px
    if size.get("height") and size.get("height") == size.get("width"):
        return "both_sides", size["height"], crop_px or size["height"]
    raise ValueError(
        f"{name}: its processor resizes to {brief(size)}, crops to {crop_px or 'no square'}; views are squares, of "
        "the resized short side or of both sides"
    )


def _normalization(processor: Any) -> tuple[list[float], list[float]]:
    """(mean, std) per channel, for values in [0, 1]: those of the file if they are what the processor computes."""
    black, white = (
        _call(processor, torch.full((2, 3, PROBE_PX, PROBE_PX), value, dtype=torch.uint8))[0, :, 0, 0]
        for value in (0, 255)
    )
    std = 1 / (white - black).double()
    mean = -black.double() * std
    if processor.do_normalize and processor.do_rescale:
        listed = torch.tensor([list(processor.image_mean), list(processor.image_std)], dtype=torch.float64)
        listed = listed / (255 * processor.rescale_factor)
        if torch.allclose(listed, torch.stack([mean, std]), rtol=0, atol=1e-5):
            if abs(255 * processor.rescale_factor - 1) < 1e-9:
                return list(map(float, processor.image_mean)), list(map(float, processor.image_std))
            return listed[0].tolist(), listed[1].tolist()
    return [round(value, 6) for value in mean.tolist()], [round(value, 6) for value in std.tolist()]


def _frame_rate(processor: Any, modality: str) -> dict[str, Demand]:
    fps = getattr(processor, "fps", None) if modality == "video" else None
    return {"fps": Demand(float(fps), is_fixed=False)} if fps else {}
