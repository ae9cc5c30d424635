"""Geometry and layout of pictures and clips: the crop that a worker makes, and what the device does around the colors.

Layouts: decoded clips (T, 3, H, W) uint8, a picture is a clip of one frame; batches (B, T, 3, H, W); models read videos
(B, 3, T, H, W) and pictures (B, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avssl.transforms.draw import Box

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def crop_resize(clip: torch.Tensor, box: Box, size_px: int) -> torch.Tensor:
    """Crop uint8 (T, 3, H, W) to the box and resize to (T, 3, size_px, size_px), bilinear with antialiasing, uint8.

    In the memory layout of the clip: decoded ones have channels last, and stay so until they are on the device.
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
        return cropped.clone(memory_format=torch.channels_last if clip.stride(1) == 1 else torch.contiguous_format)
    # What torchvision's v2 resized_crop calls, without its import and dispatch.
    return torch.nn.functional.interpolate(
        cropped, size=(size_px, size_px), mode="bilinear", align_corners=False, antialias=True
    )


def to_float(video: torch.Tensor) -> torch.Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1], any shape."""
    if video.dtype != torch.uint8:
        raise ValueError(f"to_float takes uint8 frames, got {video.dtype}")
    return video.to(torch.float32).mul_(1 / 255)


def flip_horizontally(video: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Mirror the clips of (B, T, 3, H, W), any dtype, where flip, bool (B,), is true."""
    if video.ndim != 5 or flip.shape != video.shape[:1]:
        raise ValueError(f"one flag per clip of (B, T, 3, H, W): got {tuple(flip.shape)} for {tuple(video.shape)}")
    return torch.where(to_device(flip, video.device)[:, None, None, None, None], video.flip(-1), video)


def normalize(
    video: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """(x - mean) / std per color, for float (..., 3, H, W) in [0, 1]."""
    # Filled on the device: a list would be copied there, which waits for all that the device still has to do.
    mean_rgb, std_rgb = (
        torch.stack([video.new_full((), value) for value in values])[:, None, None] for values in (mean, std)
    )
    return (video - mean_rgb).div_(std_rgb)


def to_model_layout(video: torch.Tensor) -> torch.Tensor:
    """(..., T, 3, H, W) -> (..., 3, T, H, W), contiguous."""
    return video.transpose(-4, -3).contiguous()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; only CUDA is not waited for.

    Batches are pinned for it, and PyTorch keeps pinned memory until it was read. MPS reads pageable memory some time
    later, when a worker may have written its next batch there.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
