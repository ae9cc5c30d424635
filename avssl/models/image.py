"""Image encoders: torchvision's residual networks and vision transformer without their classifiers.

Every encoder maps (B, 3, H, W) float to (B, dim) and has `.dim` and `.modality == "image"`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import interpolate

from avssl.models.registry import register_encoder
from avssl.models.weights import load_weights

# {name: (kind of block, blocks of the four stages)}; resnet10 is a common small variant, the others are from He et al.
# 2016.
RESNETS: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet10": ("BasicBlock", (1, 1, 1, 1)),
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
}
# {name: (dim of the tokens, attention heads)}, from Touvron et al. 2021 (arXiv 2012.12877).
VISION_TRANSFORMERS = {"vit_tiny": (192, 3), "vit_small": (384, 6)}
POSITION_TEMPERATURE = 10_000.0


def check_image_input(image: torch.Tensor) -> None:
    """Raise ValueError unless the tensor is a batch of RGB images (B, 3, H, W)."""
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"an image encoder takes float tensors of shape (B, 3, H, W), got {tuple(image.shape)}")


@register_encoder(*RESNETS)
class ResNet(nn.Module):
    """A residual network (He et al. 2016, arXiv 1512.03385) of torchvision's blocks with a global mean.

    Args:
        name: resnet10, resnet18, resnet34 (dim 8 * width) or resnet50 (dim 32 * width).
        width: channels of the stem and of the first stage; the next stages have 2, 4 and 8 times as many. 64 is the
            published network; narrower ones are for small images.
        small_stem: a 3 x 3 convolution of stride 1 without max-pool instead of a 7 x 7 one of stride 2 with max-pool;
            it keeps the resolution, for images of about 32 px.
        zero_init_residual: the last batch norm of each block starts at 0, so that blocks start as the identity (Goyal
            et al. 2017, arXiv 1706.02677; used in the published training of Barlow Twins).
        weights: a local file with this network's state, safetensors or `torch.save`d, with or without a classifier
            (`fc.`); a name of torchvision's weights, such as IMAGENET1K_V2, which it downloads; or None for random
            weights.

    Names of modules and state are torchvision's, so its published weights load by name. Images may have any size.
    """

    modality = "image"
    source: ClassVar[dict[str, str]] = {
        "resnet10": "a common small variant",
        **dict.fromkeys(["resnet18", "resnet34", "resnet50"], "He et al. 2016, arXiv 1512.03385"),
    }

    def __init__(
        self,
        name: str,
        *,
        width: int = 64,
        small_stem: bool = False,
        zero_init_residual: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        from torchvision.models import resnet

        if width < 1:
            raise ValueError(f"{name}: width must be at least 1 channel, got {width}")
        kind, blocks = RESNETS[name]
        block = getattr(resnet, kind)
        self.dim = 8 * width * block.expansion
        if small_stem:
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, width, width, blocks[0], stride=1)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, block):
                nn.init.zeros_((module.bn3 if kind == "Bottleneck" else module.bn2).weight)
        if weights is not None:
            load_weights(self, weights, name)

    def forward_layers(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) -> activations in order: stem, layer1, layer2, layer3, layer4, pool (B, dim, 1, 1).

        layer4 is (B, dim, H / 32, W / 32), with small_stem (B, dim, H / 8, W / 8), rounded up.
        """
        check_image_input(image)
        layers: dict[str, torch.Tensor] = {}
        layers["stem"] = x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        layers["layer1"] = x = self.layer1(x)
        layers["layer2"] = x = self.layer2(x)
        layers["layer3"] = x = self.layer3(x)
        layers["layer4"] = x = self.layer4(x)
        layers["pool"] = self.avgpool(x)
        return layers

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, dim). Raises ValueError on another shape."""
        return self.forward_layers(image)["pool"].flatten(1)


def _stage(block: Any, in_channels: int, planes: int, num_blocks: int, *, stride: int) -> nn.Sequential:
    """A stage: the first block has the stride and planes * expansion channels, the others keep the shape."""
    out_channels = planes * block.expansion
    shortcut: nn.Sequential | None = None
    if stride != 1 or in_channels != out_channels:
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
    first = block(in_channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, planes) for _ in range(num_blocks - 1)))


@register_encoder(*VISION_TRANSFORMERS)
class VisionTransformer(nn.Module):
    """Torchvision's vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929); the feature is the class token.

    Args:
        name: vit_tiny (dim 192) or vit_small (dim 384).
        num_heads: of each attention; default: 3 for vit_tiny, 6 for vit_small. MoCo v3's vit_small has 12.
        depth: number of blocks.
        image_size_px, patch_size_px: sides of the square images whose positions are trained, and of their patches. For
            images of other sizes (multiples of the patch) the positions are interpolated (DINO, arXiv 2104.14294).
        fixed_positions: positions are the 2-D sines and cosines of `sincos_positions` and are not trained (MoCo v3,
            Chen et al. 2021, arXiv 2104.02057), in place of trained ones.
        freeze_patches: the patch projection keeps its random initial weights (MoCo v3, against unstable training).
    """

    modality = "image"
    source = "Touvron et al. 2021, arXiv 2012.12877"

    def __init__(
        self,
        name: str,
        *,
        num_heads: int | None = None,
        depth: int = 12,
        image_size_px: int = 224,
        patch_size_px: int = 16,
        fixed_positions: bool = False,
        freeze_patches: bool = False,
    ) -> None:
        super().__init__()
        from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

        if patch_size_px < 1 or image_size_px < 1 or image_size_px % patch_size_px:
            raise ValueError(
                f"{name}: image_size_px must be a multiple of patch_size_px, got {image_size_px} and {patch_size_px}"
            )
        dim, default_heads = VISION_TRANSFORMERS[name]
        num_heads = default_heads if num_heads is None else num_heads
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"{name}: num_heads must divide the dim {dim}, got {num_heads}")
        if depth < 1:
            raise ValueError(f"{name}: depth must be at least 1 block, got {depth}")
        self.name, self.dim, self.image_size_px, self.patch_size_px = name, dim, image_size_px, patch_size_px
        self.net: Any = TorchvisionTransformer(
            image_size=image_size_px,
            patch_size=patch_size_px,
            num_layers=depth,
            num_heads=num_heads,
            hidden_dim=dim,
            mlp_dim=4 * dim,
        )
        self.net.heads = nn.Identity()
        if fixed_positions:
            positions = sincos_positions(image_size_px // patch_size_px, dim)
            self.net.encoder.pos_embedding = nn.Parameter(positions, requires_grad=False)
        if freeze_patches:
            self.net.conv_proj.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) with H and W multiples of patch_size_px -> (B, dim). Raises ValueError on another shape."""
        check_image_input(image)
        height, width = image.shape[2:]
        if height % self.patch_size_px or width % self.patch_size_px:
            raise ValueError(
                f"{self.name} cuts images into patches of {self.patch_size_px} x {self.patch_size_px} px; got images "
                f"of {height} x {width} px, which are no multiple of it"
            )
        net, encoder = self.net, self.net.encoder
        patches = net.conv_proj(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([net.class_token.expand(len(image), -1, -1), patches], dim=1)
        tokens = tokens + self._positions(height // self.patch_size_px, width // self.patch_size_px)
        feature: torch.Tensor = encoder.ln(encoder.layers(encoder.dropout(tokens)))[:, 0]
        return feature

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """Positions (1, 1 + rows columns, dim) of the class token and of a grid of patches, trained or interpolated."""
        positions: torch.Tensor = self.net.encoder.pos_embedding
        side = self.image_size_px // self.patch_size_px
        if (rows, columns) == (side, side):
            return positions
        grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def sincos_positions(grid_size: int, dim: int) -> torch.Tensor:
    """2-D positions: float32 (1, 1 + grid_size^2, dim), zeros for the class token, then the patches row by row.

    The first half of a patch's vector encodes its row r, the second half its column c, each as sin(r w_k) followed by
    cos(r w_k), with w_k = 10000^(-4 k / dim) for k in 0 .. dim / 4 - 1 (Vaswani et al. 2017, for each axis). dim must
    be a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2-D sine positions need a dim that is a multiple of 4, got {dim}")
    count = dim // 4
    frequency = POSITION_TEMPERATURE ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid_size, dim / 2)
    rows = axis[:, None].expand(grid_size, grid_size, 2 * count)
    columns = axis[None].expand(grid_size, grid_size, 2 * count)
    patches = torch.cat([rows, columns], dim=2).reshape(1, grid_size * grid_size, dim)
    return torch.cat([patches.new_zeros(1, 1, dim), patches], dim=1).float()
