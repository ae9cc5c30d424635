"""Color operations on batches of clips, on any device: each takes one parameter per clip and draws nothing.

Clips are float (B, T, 3, H, W) in [0, 1]; an image, or a patch of a jigsaw, is a clip of one frame. All frames of a
clip are changed alike.
"""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, pad

LUMA = (0.2989, 0.587, 0.114)


def adjust_brightness(clips: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """clips * factor, clamped to [0, 1]; factor: float (B,) >= 0, as in all adjust_* functions but adjust_hue."""
    return (clips * _per_clip(factor)).clamp_(0, 1)


def adjust_contrast(clips: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean gray of each frame: factor 0 is uniform gray, 1 the original."""
    # Row by row first: PyTorch divides a sum to a single number among its threads, which changes the last bits.
    gray = _gray(clips).mean(dim=-1, keepdim=True).mean(dim=-2, keepdim=True)
    return _blend(clips, gray, factor)


def adjust_saturation(clips: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the gray frame: factor 0 is gray, 1 the original."""
    return _blend(clips, _gray(clips), factor)


def adjust_hue(clips: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue by shift (B,) in [-0.5, 0.5] turns, keeping value and saturation (HSV)."""
    red, green, blue = clips.unbind(-3)
    value, lowest = clips.amax(-3), clips.amin(-3)
    chroma = value - lowest
    safe = torch.where(chroma > 0, chroma, 1.0)
    # The hue in sixths of a turn: 0 red, 2 green, 4 blue. Of equal maxima the first one decides.
    sixths = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixths = torch.where(value == red, (green - blue) / safe, sixths) + 6 * _per_clip(shift)[..., 0]
    # Each color is the value minus the chroma times a trapezoid over the hue, shifted by a third of a turn. The offsets
    # 5, 3, 1 are made on the device: copying a list there would wait for all work that is queued on the device.
    offsets = (5 - 2 * torch.arange(3, device=clips.device, dtype=clips.dtype))[:, None, None]
    distance = (sixths.unsqueeze(-3) + offsets).remainder_(6)
    trapezoid = distance.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)  # min(distance, 4 - distance), in place
    return torch.addcmul(value.unsqueeze(-3), chroma.unsqueeze(-3), trapezoid, value=-1).clamp_(0, 1)


def posterize(clips: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Round colors to 8 bits and keep the highest `bits` of them, (B,) in 1 to 8."""
    step = _per_clip(2 ** (8 - bits))
    return (clips * 255).round_().div_(step).floor_().mul_(step / 255)


def adjust_sharpness(clips: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed frame: factor 0 is smooth, 1 the original, above 1 sharper. Border pixels do not change.

    The smoothed frame is the mean of 3 x 3 pixels in which the middle one counts five times, as in Pillow.
    """
    smooth = clips.clone()
    kernel = clips.new_ones(3, 3)
    kernel[1, 1] = 5
    kernel /= 13
    inner = smooth[..., 1:-1, 1:-1]
    inner.copy_(_convolve(clips, kernel.expand(len(clips), 3, 3)).view(inner.shape))
    return _blend(clips, smooth, factor)


def solarize(clips: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Replace the values x that are at least the threshold (B,) by 1 - x."""
    return torch.where(clips >= _per_clip(threshold), 1 - clips, clips)


def autocontrast(clips: torch.Tensor) -> torch.Tensor:
    """Stretch each color channel to [0, 1], by its lowest and highest value in the whole clip."""
    from torchvision.transforms.v2.functional import autocontrast as torchvision_autocontrast

    tall = clips.transpose(1, 2).flatten(2, 3)  # the frames stacked vertically: (B, 3, T * H, W)
    frames: torch.Tensor = torchvision_autocontrast(tall).unflatten(2, (clips.shape[1], -1)).transpose(1, 2)
    return frames


def photometric_pack(
    clips: torch.Tensor, bits: torch.Tensor, sharpness: torch.Tensor, threshold: torch.Tensor
) -> torch.Tensor:
    """PIRL's pack: posterize, sharpen, solarize and stretch the contrast, in this order; parameters (B,)."""
    return autocontrast(solarize(adjust_sharpness(posterize(clips, bits), sharpness), threshold))


def grayscale(clips: torch.Tensor) -> torch.Tensor:
    """The luma in all three channels: a view (B, T, 3, H, W) of one channel in memory."""
    return _gray(clips).expand_as(clips)


def gaussian_blur(clips: torch.Tensor, sigma_px: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Gaussian blur of sigma_px (B,) > 0, cut off after radius_px; frames are reflected at their borders.

    The radius is limited to the shorter side minus 1. The width is blurred first, then the height.
    """
    height, width = clips.shape[-2:]
    radius_px = min(radius_px, height - 1, width - 1)
    offsets = torch.arange(-radius_px, radius_px + 1, device=clips.device)
    weights = torch.exp(-0.5 * (offsets / sigma_px[:, None]).square())
    weights = weights / weights.sum(dim=1, keepdim=True)
    padded = pad(clips.flatten(1, 2), [radius_px] * 4, mode="reflect")[:, :, None]
    return _convolve(_convolve(padded, weights[:, None, :]), weights[:, :, None]).view(clips.shape).clamp_(0, 1)


def _convolve(clips: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Convolve each clip of (B, ..., H, W) with its own kernel of (B, h, w), in single precision, without padding.

    All planes become the channels of one image: only in this form is grouped convolution fast.
    """
    planes = clips.reshape(1, -1, *clips.shape[-2:])
    kernels = kernels.repeat_interleave(planes.shape[1] // len(clips), dim=0)[:, None]
    with torch.autocast(clips.device.type, enabled=False):
        result: torch.Tensor = conv2d(planes, kernels, groups=len(kernels))
    return result.view(*clips.shape[:-2], *result.shape[-2:])


def _per_clip(factor: torch.Tensor) -> torch.Tensor:
    return factor[:, None, None, None, None]


def _gray(clips: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, H, W) -> luma (B, T, 1, H, W)."""
    red, green, blue = clips.unbind(-3)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(-3)


def _blend(clips: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(other, clips, _per_clip(factor)).clamp_(0, 1)
