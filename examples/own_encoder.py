"""An encoder of your own in the recipe:

python -m examples.own_encoder recipes/configs/simclr.yaml "encoders.image={name: patch_mixer, width: 32}" \
    views.image.size_px=32 data.shards=shards/ run=runs/mine
"""

import sys

import torch
from torch import nn

from avssl import config
from avssl.models import register_encoder
from recipes import pretrain


@register_encoder("patch_mixer")
class PatchMixer(nn.Module):
    """ConvMixer (Trockman & Kolter 2022, arXiv 2201.09792): (B, 3, H, W) -> (B, width)."""

    modality = "image"

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


if __name__ == "__main__":
    sys.exit(pretrain.main(config.load(config.RunConfig, sys.argv[1:])))
