"""Colors of a batch on the device: every operation takes one parameter per clip and draws nothing.

Clips are (B, T, 3, H, W); a picture, or a patch of a jigsaw, is a clip of one frame. All frames of a clip are treated
alike. `apply_looks` gives each clip its own operations in its own order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import conv2d, pad

from avssl.transforms.draw import JITTER_ORDERS, ColorParams
from avssl.transforms.geometry import flip_horizontally, to_device, to_float

LUMA = (0.2989, 0.587, 0.114)
Adjust = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Operation = Callable[[torch.Tensor, ColorParams[torch.Tensor]], torch.Tensor]


def apply_looks(pictures: torch.Tensor, looks: torch.Tensor, *, blur_radius_px: int) -> torch.Tensor:
    """Flip, jitter, photometric pack, gray, blur and solarize, as drawn for each clip.

    Clips that take the same operation at the same place are worked on together, so that each is worked on only by what
    it takes, and an operation that nobody takes costs nothing.

    Args:
        pictures: uint8 (B, T, 3, H, W), on the device.
        looks: float32 (B, fields of Look), on the CPU: who takes what must be known without waiting for the device.
        blur_radius_px: half of the blur's kernel, without its middle.

    Returns a new float32 (B, T, 3, H, W) in [0, 1].
    """
    if pictures.ndim != 5 or pictures.shape[2] != 3 or looks.shape != (len(pictures), len(ColorParams._fields)):
        raise ValueError(
            f"expected a batch (B, T, 3, H, W) and a look of {len(ColorParams._fields)} numbers per clip, "
            f"got {tuple(pictures.shape)} and looks {tuple(looks.shape)}"
        )
    flip = ColorParams(*looks.unbind(1)).flip > 0
    frames = to_float(flip_horizontally(pictures, flip) if flip.any() else pictures)
    steps = [(rows, operation) for rows, operation in _steps(looks, blur_radius_px) if len(rows)]
    if not steps:
        return frames
    on_device = to_device(looks, frames.device)
    places = to_device(torch.cat([rows for rows, _ in steps]), frames.device)
    for rows, (_, operation) in zip(places.split([len(rows) for rows, _ in steps]), steps, strict=True):
        look = ColorParams(*on_device.index_select(0, rows).unbind(1))
        frames.index_copy_(0, rows, operation(frames.index_select(0, rows), look))
    return frames


def _steps(looks: torch.Tensor, blur_radius_px: int) -> list[tuple[torch.Tensor, Operation]]:
    """The operations in their order, each with the clips that take it then."""
    look = ColorParams(*looks.unbind(1))
    orders = torch.tensor(JITTER_ORDERS)[look.order.long()]
    later: list[tuple[torch.Tensor, Operation]] = [
        (look.photometric > 0, _photometric),
        (look.gray > 0, lambda frames, _: _gray(frames).expand_as(frames)),
        (look.blur_sigma_px > 0, lambda frames, look: gaussian_blur(frames, look.blur_sigma_px, blur_radius_px)),
        (look.solarize > 0, lambda frames, look: solarize(frames, torch.full_like(look.solarize, 0.5))),
    ]
    jitter: list[tuple[torch.Tensor, Operation]] = [
        ((getattr(look, name) != neutral) & (orders[:, place] == number), partial(_jitter, name, adjust))
        for place in range(len(_JITTER))
        for number, (name, neutral, adjust) in enumerate(_JITTER)
    ]
    return [(takes.nonzero()[:, 0], operation) for takes, operation in jitter + later]


def _jitter(name: str, adjust: Adjust, frames: torch.Tensor, look: ColorParams[torch.Tensor]) -> torch.Tensor:
    return adjust(frames, getattr(look, name))


def _photometric(frames: torch.Tensor, look: ColorParams[torch.Tensor]) -> torch.Tensor:
    """PIRL's pack: the four in this order."""
    frames = adjust_sharpness(posterize(frames, look.posterize_bits), look.sharpness)
    return autocontrast(solarize(frames, look.photometric_threshold))


def adjust_brightness(video: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """video * factor, in [0, 1]. video: float (B, T, 3, H, W) in [0, 1]; factor (B,) >= 0. So for all adjust_*."""
    return (video * _per_clip(factor)).clamp_(0, 1)


def adjust_contrast(video: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with each frame's own mean gray: factor 0 is flat gray, 1 the original."""
    return _blend(video, _gray(video).mean(dim=(-3, -2, -1), keepdim=True), factor)


def adjust_saturation(video: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the gray picture: factor 0 is gray, 1 the original."""
    return _blend(video, _gray(video), factor)


def adjust_hue(video: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue by shift (B,) in [-0.5, 0.5] turns, keeping value and saturation (HSV)."""
    red, green, blue = video.unbind(-3)
    value, lowest = video.amax(-3), video.amin(-3)
    chroma = value - lowest
    safe = torch.where(chroma > 0, chroma, 1.0)
    # The hue in sixths of a turn: 0 red, 2 green, 4 blue. Of equal maxima the first counts.
    sixths = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixths = torch.where(value == red, (green - blue) / safe, sixths) + 6 * _per_clip(shift)[..., 0]
    # Each color is the value less the chroma times a trapezium over the hue, shifted by a third of a turn.
    # 5, 3, 1, made on the device: a list would be copied there, which waits for all that the device still has to do.
    offsets = (5 - 2 * torch.arange(3, device=video.device, dtype=video.dtype))[:, None, None]
    distance = (sixths.unsqueeze(-3) + offsets).remainder_(6)
    trapezium = distance.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)  # min(distance, 4 - distance), in place
    return torch.addcmul(value.unsqueeze(-3), chroma.unsqueeze(-3), trapezium, value=-1).clamp_(0, 1)


def posterize(video: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep the highest `bits`, (B,) of 1 to 8, of colors rounded to 8 bits."""
    step = _per_clip(2 ** (8 - bits))
    return (video * 255).round_().div_(step).floor_().mul_(step / 255)


def adjust_sharpness(video: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed picture: factor 0 is smooth, 1 the original, more is sharper. The border stays.

    Smooth is the mean of 3 x 3 pixels of which the middle one counts five times, as in Pillow.
    """
    smooth = video.clone()
    kernel = video.new_ones(3, 3)
    kernel[1, 1] = 5
    kernel /= 13
    inner = smooth[..., 1:-1, 1:-1]
    inner.copy_(_convolve(video, kernel.expand(len(video), 3, 3)).view(inner.shape))
    return _blend(video, smooth, factor)


def solarize(video: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert what is at least the threshold (B,)."""
    return torch.where(video >= _per_clip(threshold), 1 - video, video)


def autocontrast(video: torch.Tensor) -> torch.Tensor:
    """Stretch each color to [0, 1], by the lowest and highest value that it has in the whole clip."""
    from torchvision.transforms.v2.functional import autocontrast as torchvision_autocontrast

    tall = video.transpose(1, 2).flatten(2, 3)  # the frames one below the other: (B, 3, T * H, W)
    frames: torch.Tensor = torchvision_autocontrast(tall).unflatten(2, (video.shape[1], -1)).transpose(1, 2)
    return frames


def gaussian_blur(video: torch.Tensor, sigma_px: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Gaussian of sigma_px (B,) > 0, cut off after radius_px, the picture reflected at its borders.

    The radius is at most the shorter side less 1. Along the width, then along the height.
    """
    height, width = video.shape[-2:]
    radius_px = min(radius_px, height - 1, width - 1)
    places = torch.arange(-radius_px, radius_px + 1, device=video.device)
    weights = torch.exp(-0.5 * (places / sigma_px[:, None]).square())
    weights = weights / weights.sum(dim=1, keepdim=True)
    padded = pad(video.flatten(1, 2), [radius_px] * 4, mode="reflect")[:, :, None]
    return _convolve(_convolve(padded, weights[:, None, :]), weights[:, :, None]).view(video.shape).clamp_(0, 1)


def _convolve(video: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Each clip of (B, ..., H, W) with its own kernel of (B, h, w), in single precision, without padding.

    All planes are the channels of one picture: grouped convolution is fast in this form alone.
    """
    planes = video.reshape(1, -1, *video.shape[-2:])
    kernels = kernels.repeat_interleave(planes.shape[1] // len(video), dim=0)[:, None]
    with torch.autocast(video.device.type, enabled=False):
        result: torch.Tensor = conv2d(planes, kernels, groups=len(kernels))
    return result.view(*video.shape[:-2], *result.shape[-2:])


def _per_clip(factor: torch.Tensor) -> torch.Tensor:
    return factor[:, None, None, None, None]


def _gray(video: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, H, W) -> luma (B, T, 1, H, W)."""
    red, green, blue = video.unbind(-3)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(-3)


def _blend(video: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(other, video, _per_clip(factor)).clamp_(0, 1)


# Name (in the order of COLOR_OPERATIONS), the factor that changes nothing, the operation.
_JITTER: tuple[tuple[str, float, Adjust], ...] = (
    ("brightness", 1.0, adjust_brightness),
    ("contrast", 1.0, adjust_contrast),
    ("saturation", 1.0, adjust_saturation),
    ("hue", 0.0, adjust_hue),
)
