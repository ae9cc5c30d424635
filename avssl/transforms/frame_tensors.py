"""Tensors of frames on the device: conversion to float, flips, normalization, and the layout that models read.

Layouts: decoded clips are uint8 (T, 3, H, W), where an image is a clip of one frame; batches are (B, T, 3, H, W);
models read videos as (B, 3, T, H, W) and images as (B, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avssl.transforms.image_augment import IMAGENET_MEAN, IMAGENET_STD


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1], any shape."""
    if frames.dtype != torch.uint8:
        raise ValueError(f"to_float takes uint8 frames, got {frames.dtype}")
    return frames.to(torch.float32).mul_(1 / 255)


def flip_horizontally(clips: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Mirror those clips of (B, T, 3, H, W), any dtype, for which flip, bool (B,), is true."""
    if clips.ndim != 5 or flip.shape != clips.shape[:1]:
        raise ValueError(f"one flag per clip of (B, T, 3, H, W): got {tuple(flip.shape)} for {tuple(clips.shape)}")
    return torch.where(to_device(flip, clips.device)[:, None, None, None, None], clips.flip(-1), clips)


def normalize(
    frames: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """(x - mean) / std per color channel, for float (..., 3, H, W) in [0, 1]."""
    # Filled on the device: copying a list there would wait for all work that is queued on the device.
    mean_rgb, std_rgb = (
        torch.stack([frames.new_full((), value) for value in values])[:, None, None] for values in (mean, std)
    )
    return (frames - mean_rgb).div_(std_rgb)


def to_model_layout(frames: torch.Tensor) -> torch.Tensor:
    """(..., T, 3, H, W) -> (..., 3, T, H, W), contiguous."""
    return frames.transpose(-4, -3).contiguous()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. Only with CUDA does the call return before the copy is done.

    For CUDA the batches are pinned, and PyTorch keeps pinned memory until it has been read. MPS reads pageable memory
    some time later, when a worker may already have written its next batch there.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
