"""Audio encoders on spectrograms: (B, 1, frames, bins) float -> (B, dim)."""

from __future__ import annotations

import torch
from torch import nn

from avssl.models.registry import register_encoder


class AudioBlock(nn.Module):
    """Two 3 x 3 convolutions, the first with the stride, each followed by batch norm and ReLU, without a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, frames, bins) -> (B, out_channels, frames / stride, bins / stride), rounded up."""
        x = self.relu(self.bn1(self.conv1(x)))
        out: torch.Tensor = self.relu(self.bn2(self.conv2(x)))
        return out


@register_encoder("avid_audio")
class AVIDAudio(nn.Module):
    """The audio network of AVID: nine convolutions on a log spectrogram and a global maximum.

    Args:
        width: channels of the stem and of block1; block2 to block4 have 2, 4 and 8 times as many. `dim` is 8 * width.
        first_stride: stride of block1, 2 as published (for 200 x 257) or 1 for the paper's small inputs (100 x 129).

    Module names follow the published checkpoints; `forward_layers` names block1 to block4 conv2x to conv5x, as in the
    papers. The defaults give dim 512 and 4.73 M parameters.
    """

    modality = "audio"
    source = "Morgado et al. 2021, arXiv 2004.12943"

    def __init__(self, *, width: int = 64, first_stride: int = 2) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"avid_audio: width must be at least 1 channel, got {width}")
        if first_stride not in (1, 2):
            raise ValueError(f"avid_audio: first_stride must be 1 or 2, got {first_stride!r}")
        self.dim = 8 * width
        self.conv1 = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.block1 = AudioBlock(width, width, stride=first_stride)
        self.block2 = AudioBlock(width, 2 * width, stride=2)
        self.block3 = AudioBlock(2 * width, 4 * width, stride=2)
        self.block4 = AudioBlock(4 * width, 8 * width, stride=1)
        self.pool = nn.AdaptiveMaxPool2d(1)

    def forward_layers(self, spectrogram: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 1, frames, bins) -> activations in order: conv1, conv2x .. conv5x, pool (B, dim, 1, 1)."""
        if spectrogram.ndim != 4 or spectrogram.shape[1] != 1:
            raise ValueError(
                "an audio encoder takes float spectrograms of shape (B, 1, frames, bins), "
                f"got {tuple(spectrogram.shape)}; waveforms go through "
                "avssl.transforms.spectrogram.LogSpectrogram first"
            )
        layers: dict[str, torch.Tensor] = {}
        layers["conv1"] = x = self.conv1(spectrogram)
        layers["conv2x"] = x = self.block1(x)
        layers["conv3x"] = x = self.block2(x)
        layers["conv4x"] = x = self.block3(x)
        layers["conv5x"] = x = self.block4(x)
        layers["pool"] = self.pool(x)
        return layers

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """(B, 1, frames, bins) -> (B, dim). Raises ValueError on another shape."""
        return self.forward_layers(spectrogram)["pool"].flatten(1)
