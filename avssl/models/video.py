"""Video encoders: the AVID R(2+1)D network and torchvision's video networks without their classifiers.

Every encoder maps (B, 3, T, H, W) float to (B, dim) and has `.dim` and `.modality == "video"`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import nn

from avssl.models.registry import register_encoder
from avssl.models.weights import load_weights

BLOCKS_PER_STAGE: dict[int, tuple[int, int, int, int]] = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
MVIT_CLIP_SHAPE = (16, 224, 224)
# The name in `features` of the last block of each stage of S3D: the one before a spatial max-pool, and the last of all.
S3D_STAGES = {"layer1": "3", "layer2": "6", "layer3": "12", "layer4": "15"}


def check_video_input(video: torch.Tensor) -> None:
    """Raise ValueError unless the tensor is a batch of RGB clips (B, 3, T, H, W)."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(
            f"a video encoder takes float tensors of shape (B, 3, T, H, W), got {tuple(video.shape)}; "
            "decoded clips are (B, T, 3, H, W): use avssl.transforms.frame_tensors.to_model_layout"
        )


class FactorizedBlock(nn.Module):
    """Residual block of AVID: spatial, temporal, spatial and temporal convolution, each to `out_channels`.

    The last batch norm follows the addition of the shortcut, so it normalizes the sum. Unlike in torchvision's R(2+1)D
    the intermediate results have out_channels, too.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        spatial: dict[str, Any] = {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "bias": False}
        temporal: dict[str, Any] = {"kernel_size": (3, 1, 1), "padding": (1, 0, 0), "bias": False}
        self.spt_conv1 = nn.Conv3d(in_channels, out_channels, stride=(1, stride, stride), **spatial)
        self.spt_bn1 = nn.BatchNorm3d(out_channels)
        self.tmp_conv1 = nn.Conv3d(out_channels, out_channels, stride=(stride, 1, 1), **temporal)
        self.tmp_bn1 = nn.BatchNorm3d(out_channels)
        self.spt_conv2 = nn.Conv3d(out_channels, out_channels, **spatial)
        self.spt_bn2 = nn.BatchNorm3d(out_channels)
        self.tmp_conv2 = nn.Conv3d(out_channels, out_channels, **temporal)
        self.out_bn = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.res_conv: nn.Conv3d | None = None
        if stride != 1 or in_channels != out_channels:
            self.res_conv = nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, T, H, W) -> (B, out_channels, T / stride, H / stride, W / stride), rounded up."""
        shortcut = x if self.res_conv is None else self.res_conv(x)
        x = self.relu(self.spt_bn1(self.spt_conv1(x)))
        x = self.relu(self.tmp_bn1(self.tmp_conv1(x)))
        x = self.relu(self.spt_bn2(self.spt_conv2(x)))
        x = self.tmp_conv2(x)
        out: torch.Tensor = self.relu(self.out_bn(x + shortcut))
        return out


@register_encoder("avid_video")
class AVIDVideo(nn.Module):
    """The video network of AVID: an R(2+1)D residual network with a global maximum.

    Args:
        depth: 10, 18 or 34 (1-1-1-1, 2-2-2-2 or 3-4-6-3 blocks). The published network is 18.
        width: channels of the stem and of conv2x; each later stage doubles them. `dim` is 8 * width.
        stem_pool: a max-pool after the stem that halves the frame, as in the published network (224 x 224); the
            small network of the paper's analysis (112 x 112) has none.

    Module names follow the published checkpoints, so their weights load by name. No convolution has a bias;
    weights start at PyTorch's defaults. The defaults give dim 512 and 15.38 M parameters.
    """

    modality = "video"
    source = "Morgado et al. 2021, arXiv 2004.12943; R(2+1)D: Tran et al. 2018, arXiv 1711.11248"

    def __init__(self, *, depth: int = 18, width: int = 64, stem_pool: bool = True) -> None:
        super().__init__()
        if depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"avid_video: depth must be one of {sorted(BLOCKS_PER_STAGE)}, got {depth!r}")
        if width < 1:
            raise ValueError(f"avid_video: width must be at least 1 channel, got {width}")
        self.dim = 8 * width
        stem: list[nn.Module] = [
            nn.Conv3d(3, width, kernel_size=(3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        ]
        if stem_pool:
            stem.append(nn.MaxPool3d(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))
        blocks = BLOCKS_PER_STAGE[depth]
        self.conv1 = nn.Sequential(*stem)
        self.conv2x = _stage(width, width, blocks[0], stride=1)
        self.conv3x = _stage(width, 2 * width, blocks[1], stride=2)
        self.conv4x = _stage(2 * width, 4 * width, blocks[2], stride=2)
        self.conv5x = _stage(4 * width, 8 * width, blocks[3], stride=2)
        self.pool = nn.AdaptiveMaxPool3d(1)

    def forward_layers(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, T, H, W) -> activations in order: conv1, conv2x, conv3x, conv4x, conv5x, pool (B, dim, 1, 1, 1)."""
        check_video_input(video)
        layers: dict[str, torch.Tensor] = {}
        layers["conv1"] = x = self.conv1(video)
        layers["conv2x"] = x = self.conv2x(x)
        layers["conv3x"] = x = self.conv3x(x)
        layers["conv4x"] = x = self.conv4x(x)
        layers["conv5x"] = x = self.conv5x(x)
        layers["pool"] = self.pool(x)
        return layers

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B, dim). Raises ValueError on another shape."""
        return self.forward_layers(video)["pool"].flatten(1)


def _stage(in_channels: int, out_channels: int, num_blocks: int, *, stride: int) -> nn.Sequential:
    """A stage: the first block has the stride and the new number of channels, the others keep the shape."""
    first = FactorizedBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(FactorizedBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


@register_encoder("r2plus1d_18", "r3d_18", "mc3_18", "s3d", "mvit_v2_s")
class TorchvisionVideo(nn.Module):
    """One of torchvision's video networks with its classification head removed.

    Args:
        name: r2plus1d_18, r3d_18, mc3_18 (dim 512), s3d (dim 1024) or mvit_v2_s (dim 768).
        weights: a local file with this network's state under torchvision's names, safetensors or `torch.save`d, with
            or without a classifier; a name of torchvision's weights, such as KINETICS400_V1, which it downloads; or
            None for random weights.

    s3d returns the global mean of its last feature map, which for a 16 x 224 x 224 clip is also what torchvision's
    classifier averages; smaller clips are possible. mvit_v2_s has position tables for 16 x 224 x 224 clips and takes no
    other size.
    """

    modality = "video"
    source: ClassVar[dict[str, str]] = {
        **dict.fromkeys(["r2plus1d_18", "r3d_18", "mc3_18"], "Tran et al. 2018, arXiv 1711.11248"),
        "s3d": "Xie et al. 2018, arXiv 1712.04851",
        "mvit_v2_s": "Li et al. 2022, arXiv 2112.01526",
    }

    def __init__(self, name: str, *, weights: str | None = None) -> None:
        super().__init__()
        from torchvision.models import video as torchvision_video

        self.name = name
        self.net: nn.Module = getattr(torchvision_video, name)(weights=None)
        if name == "s3d":
            self.dim = int(self.net.classifier[1].in_channels)
            self.net = nn.Sequential(OrderedDict(features=self.net.features, avgpool=nn.AdaptiveAvgPool3d(1)))
        elif name == "mvit_v2_s":
            self.dim = int(self.net.head[1].in_features)
            self.net.head = nn.Identity()
        else:
            self.dim = int(self.net.fc.in_features)
            self.net.fc = nn.Identity()
        if weights is not None:
            load_weights(self.net, weights, name)

    def forward_layers(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, T, H, W) -> activations in order: layer1 .. layer4, pool (B, dim, 1, 1, 1); {} for mvit_v2_s.

        The layers are the stages of a residual network; for s3d the maps before each spatial max-pool and the last map.
        """
        check_video_input(video)
        layers: dict[str, torch.Tensor] = {}
        if self.name == "mvit_v2_s":
            return layers
        if self.name == "s3d":
            stage_of = {block: stage for stage, block in S3D_STAGES.items()}
            x = video
            for name, block in self.net.get_submodule("features").named_children():
                x = block(x)
                if name in stage_of:
                    layers[stage_of[name]] = x
        else:
            x = self.net.get_submodule("stem")(video)
            for stage in S3D_STAGES:
                layers[stage] = x = self.net.get_submodule(stage)(x)
        layers["pool"] = self.net.get_submodule("avgpool")(x)
        return layers

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B, dim). Raises ValueError on a shape that the network does not take."""
        check_video_input(video)
        if self.name == "mvit_v2_s" and tuple(video.shape[2:]) != MVIT_CLIP_SHAPE:
            raise ValueError(
                f"mvit_v2_s takes clips of T x H x W = 16 x 224 x 224 only, got {tuple(video.shape[2:])}; "
                "read 16 frames at 224 px or choose another video encoder"
            )
        feature: torch.Tensor = self.net(video)
        return feature.flatten(1)
