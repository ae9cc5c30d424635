"""The activations of an encoder's stages under common names, for probing several layers.

conv2x, conv3x, conv4x and conv5x are the four stages of every residual network (He et al. 2016, table 1), of AVID's
networks and of S3D (the stages between its spatial max-pools); "pool" is the output of the encoder. An encoder without
stages, such as a transformer, has only "pool".
"""

from __future__ import annotations

import torch
from torch import nn

STAGES = ("conv2x", "conv3x", "conv4x", "conv5x")
FEATURE = "pool"
TORCHVISION_STAGES = ("layer1", "layer2", "layer3", "layer4")


def stage_activations(encoder: nn.Module, media: torch.Tensor) -> dict[str, torch.Tensor]:
    """{stage: activations} in order: maps (B, C, H, W) or (B, C, T, H, W), then "pool", (B, dim).

    media: the input of the encoder's forward. "pool" equals what forward returns.
    """
    forward_layers = getattr(encoder, "forward_layers", None)
    layers: dict[str, torch.Tensor] | None = None if forward_layers is None else forward_layers(media)
    if not layers:
        return {FEATURE: encoder(media)}
    layer_names = STAGES if STAGES[0] in layers else TORCHVISION_STAGES
    stages = {stage: layers[name] for stage, name in zip(STAGES, layer_names, strict=True)}
    return stages | {FEATURE: layers["pool"].flatten(1)}
