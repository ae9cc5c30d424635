"""Image encoders against torchvision's networks, and our additions against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet, resnet18, resnet34, resnet50
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionTransformer

from avssl.models import ENCODERS, create_encoder
from avssl.models.image import sincos_positions

# torchvision has no function resnet10, but its class can build the network.
REFERENCES: dict[str, Any] = {
    "resnet10": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]),
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
TINY_VIT = {"depth": 2, "image_size_px": 32, "patch_size_px": 8}


def reference(name: str) -> nn.Module:
    """torchvision's own network with the classifier replaced by the identity."""
    network = REFERENCES[name]()
    network.fc = nn.Identity()
    return network


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_all_image_encoders_are_listed() -> None:
    assert tuple(name for name in ENCODERS.names() if ENCODERS.find(name).modality == "image") == (
        "resnet10",
        "resnet18",
        "resnet34",
        "resnet50",
        "vit_small",
        "vit_tiny",
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["resnet10", "resnet18", "resnet50"])
def test_outputs_equal_torchvisions_with_the_same_weights(name: str) -> None:
    torch.manual_seed(0)
    theirs = reference(name)
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # at 1, 0 and 1 an exchanged norm would not show
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    ours = create_encoder(name)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    with torch.no_grad():
        for training in (False, True):
            expected = theirs.double().train(training)(images)
            torch.testing.assert_close(ours.double().train(training)(images), expected)
    assert ours.dim == expected.shape[1]


@pytest.mark.parametrize("name", list(REFERENCES))
def test_parameters_are_torchvisions_without_the_classifier(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_encoder(name), reference(name)
    assert num_parameters(ours) == num_parameters(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(
    ("name", "millions"),
    # torchvision's documented counts, less the 1000-way classifier: 11689512, 21797672 and 25557032
    [("resnet18", 11.689512 - 0.513), ("resnet34", 21.797672 - 0.513), ("resnet50", 25.557032 - 2.049)],
)
def test_parameter_counts_are_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert num_parameters(create_encoder(name)) == round(millions * 1e6)


def test_weights_start_as_torchvisions_do() -> None:
    """Kaiming normal over the outputs; the last batch norm of a block starts at 1, or at 0."""
    torch.manual_seed(0)
    encoder = create_encoder("resnet18")
    for convolution in (encoder.conv1, encoder.layer4[1].conv2, encoder.layer2[0].downsample[0]):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert encoder.layer1[0].bn2.weight.unique().tolist() == [1.0]


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_zero_init_residual_makes_every_block_start_as_its_shortcut(name: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name, width=4, zero_init_residual=True).eval()
    x = torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        for stage in (encoder.layer1, encoder.layer2):
            for block in stage:
                shortcut = x if block.downsample is None else block.downsample(x)
                torch.testing.assert_close(block(x), shortcut.relu())
                x = block(x)


def test_zero_init_residual_changes_the_same_weights_as_torchvisions() -> None:
    ours, theirs = (
        {key for key, value in network.state_dict().items() if key.endswith("weight") and not value.any()}
        for network in (create_encoder("resnet50", zero_init_residual=True), resnet50(zero_init_residual=True))
    )
    assert ours == theirs
    assert len(ours) == 3 + 4 + 6 + 3


def test_the_small_stem_keeps_the_resolution() -> None:
    with torch.device("meta"):
        small = create_encoder("resnet18", small_stem=True).forward_layers(torch.empty(1, 3, 32, 32))
        usual = create_encoder("resnet18").forward_layers(torch.empty(1, 3, 224, 224))
    assert [tuple(layer.shape[1:]) for layer in small.values()] == [
        (64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 1, 1),
    ]  # fmt: skip
    assert [tuple(layer.shape[1:]) for layer in usual.values()] == [
        (64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 17), (96, 64)])
@pytest.mark.parametrize("small_stem", [True, False])
def test_resnets_take_images_of_any_size(size: tuple[int, int], small_stem: bool) -> None:
    torch.manual_seed(0)
    encoder = create_encoder("resnet10", width=4, small_stem=small_stem)
    feature = encoder(torch.randn(2, 3, *size))
    assert feature.shape == (2, encoder.dim)
    feature.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("name", list(REFERENCES))
def test_width_scales_every_layer(name: str) -> None:
    with torch.device("meta"):
        narrow, usual = create_encoder(name, width=16), create_encoder(name)
    assert narrow.dim * 4 == usual.dim
    for (key, small), (other, large) in zip(narrow.named_parameters(), usual.named_parameters(), strict=True):
        assert key == other
        inputs = 1 if large.ndim == 1 or key == "conv1.weight" else 4
        assert (large.shape[0], large.shape[1:2].numel()) == (4 * small.shape[0], inputs * small.shape[1:2].numel())
        assert large.shape[2:] == small.shape[2:]


@pytest.mark.quick(1)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_local_file_without_its_classifier(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    state = resnet18().state_dict()  # with fc
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = create_encoder("resnet18", weights=str(path)).state_dict()
    assert state.keys() - loaded.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    with pytest.raises(ValueError, match="are not this network's"):
        create_encoder("resnet10", weights=str(path))
    path.write_text("no weights")
    with pytest.raises(ValueError, match=f"weights{suffix} cannot be read"):
        create_encoder("resnet18", weights=str(path))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        create_encoder("resnet18", weights=str(tmp_path / "none.pth"))


def test_a_vision_transformer_is_torchvisions_with_the_usual_widths() -> None:
    """vit_tiny and vit_small against torchvision's class; DeiT's published counts hold a 1000-way classifier."""
    for name, width, heads, published in (("vit_tiny", 192, 3, 5_717_416), ("vit_small", 384, 6, 22_050_664)):
        with torch.device("meta"):
            encoder = create_encoder(name)
            theirs = TorchvisionTransformer(224, 16, 12, heads, width, 4 * width)
        assert encoder.dim == width
        assert encoder.net.encoder.layers[0].self_attention.num_heads == heads
        assert num_parameters(encoder) == num_parameters(theirs) - 1000 * (width + 1) == published - 1000 * (width + 1)
    torch.manual_seed(0)
    theirs = TorchvisionTransformer(32, 8, 2, 12, 384, 1536).eval()
    theirs.heads = nn.Identity()
    ours = create_encoder("vit_small", num_heads=12, **TINY_VIT).eval()
    ours.net.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(images), theirs.double()(images))


@pytest.mark.parametrize(("grid_size", "width"), [(4, 16), (3, 192)])
def test_fixed_positions_equal_the_formula(grid_size: int, width: int) -> None:
    expected = np.zeros((1 + grid_size**2, width))
    quarter = width // 4
    for row in range(grid_size):
        for column in range(grid_size):
            for k in range(quarter):
                frequency = 1 / 10000 ** (4 * k / width)
                patch = expected[1 + row * grid_size + column]
                patch[k], patch[quarter + k] = np.sin(row * frequency), np.cos(row * frequency)
                patch[2 * quarter + k] = np.sin(column * frequency)
                patch[3 * quarter + k] = np.cos(column * frequency)
    found = sincos_positions(grid_size, width)
    assert found.shape == (1, 1 + grid_size**2, width)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-7)


def test_fixed_positions_sit_in_the_network_where_the_patches_are() -> None:
    encoder = create_encoder("vit_tiny", fixed_positions=True, **TINY_VIT)
    positions = encoder.net.encoder.pos_embedding
    assert not positions.requires_grad
    np.testing.assert_array_equal(positions.detach().numpy(), sincos_positions(4, 192).numpy())
    # torchvision's order of patches is row by row: an image whose only bright patch is row 0, column 1 ...
    with torch.no_grad():
        encoder.net.conv_proj.weight.fill_(1.0)
        image = torch.zeros(1, 3, 32, 32)
        image[:, :, 0:8, 8:16] = 1.0
        tokens = encoder.net._process_input(image)
    # ... is token 1, whose position says row 0 (sines 0, cosines 1) and column 1.
    assert tokens[0].sum(dim=1).argmax().item() == 1
    position = positions[0, 1 + 1].detach()
    np.testing.assert_allclose(position[[0, 48, 96, 144]].numpy(), [0, 1, np.sin(1), np.cos(1)], atol=1e-7)


def test_frozen_patches_keep_their_start_and_everything_else_learns() -> None:
    torch.manual_seed(0)
    frozen = create_encoder("vit_tiny", freeze_patches=True, fixed_positions=True, **TINY_VIT)
    torch.manual_seed(0)
    usual = create_encoder("vit_tiny", **TINY_VIT)
    assert torch.equal(frozen.net.conv_proj.weight, usual.net.conv_proj.weight)
    for encoder in (frozen, usual):
        encoder(torch.randn(2, 3, 32, 32)).square().sum().backward()
    without = {name for name, parameter in frozen.net.named_parameters() if parameter.grad is None}
    assert without == {"conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert all(parameter.grad is not None for parameter in usual.parameters())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {"width": 0}, ["resnet18", "at least 1", "0"]),
        ("resnet18", {"widht": 8}, ["did you mean 'width'", "small_stem"]),
        ("resnet50", {"depth": 34}, ["no option 'depth'"]),
        ("resnet101", {}, ["Did you mean 'resnet10'", "resnet50"]),
        ("vit_tiny", {"image_size_px": 100}, ["multiple of patch_size_px", "100", "16"]),
        ("vit_tiny", {"patch_size_px": 0}, ["multiple of patch_size_px", "0"]),
        ("vit_small", {"num_heads": 7}, ["must divide the dim 384", "7"]),
        ("vit_small", {"depth": 0}, ["at least 1 block", "0"]),
    ],
)
def test_wrong_names_and_options_are_explained(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        create_encoder(name, **options)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(ValueError, match="a multiple of 4, got 6"):
        sincos_positions(2, 6)


@pytest.mark.parametrize("shape", [(2, 3, 8, 32, 32), (2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
@pytest.mark.parametrize("name", ["resnet10", "vit_tiny"])
def test_wrong_input_shapes_are_explained(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"), pytest.raises(ValueError) as error:
        create_encoder(name)(torch.empty(shape))
    assert "(B, 3, H, W)" in str(error.value)
    assert str(shape) in str(error.value)


def test_a_vision_transformer_names_the_sizes_that_it_takes() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="patches of 16 x 16 px; got images of 32 x 40 px"):
        create_encoder("vit_tiny")(torch.empty(2, 3, 32, 40))


def test_positions_of_other_sizes_are_interpolated_as_those_of_transformers() -> None:
    from transformers.models.vit.modeling_vit import ViTConfig, ViTEmbeddings

    torch.manual_seed(0)
    ours = create_encoder("vit_tiny", **TINY_VIT).eval()
    torch.nn.init.normal_(ours.net.encoder.pos_embedding)
    theirs = ViTEmbeddings(ViTConfig(hidden_size=192, image_size=32, patch_size=8))
    with torch.no_grad():
        theirs.position_embeddings.copy_(ours.net.encoder.pos_embedding)
    for rows, columns in ((4, 4), (2, 3), (7, 4)):
        expected = theirs.interpolate_pos_encoding(torch.zeros(1, 1 + rows * columns, 192), 8 * rows, 8 * columns)
        torch.testing.assert_close(ours._positions(rows, columns), expected)
    of_this_size = create_encoder("vit_tiny", **TINY_VIT | {"image_size_px": 24}).eval()
    state = ours.state_dict() | {"net.encoder.pos_embedding": ours._positions(3, 3)}
    of_this_size.load_state_dict(state)
    image = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(ours(image), of_this_size(image))
