"""An encoder of your own:

avssl pretrain simclr --plugin own_encoder.py "encoders.image={name: patch_mixer, width: 32}" \
    views.image.size_px=32 data.shards=shards/ run=runs/mine
"""

import torch
from torch import nn

from avssl.models import register_encoder


@register_encoder("patch_mixer", modality="image")
class PatchMixer(nn.Module):
    """ConvMixer (Trockman & Kolter 2022, arXiv 2201.09792): (B, 3, H, W) -> (B, width)."""

    def __init__(self, *, width: int = 64, depth: int = 4, patch_px: int = 4) -> None:  # options are keywords
        super().__init__()
        self.dim = width
        self.patches = nn.Sequential(nn.Conv2d(3, width, patch_px, patch_px), nn.GELU(), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(width, width, 5, padding=2, groups=width), nn.GELU(), nn.BatchNorm2d(width))
                for _ in range(depth)
            )
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.patches(images)).mean(dim=(2, 3))
