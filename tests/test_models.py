"""Encoders: published names, golden activations, shapes, errors."""

from __future__ import annotations

import copy
import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avssl.models import ENCODERS, create_encoder
from avssl.models.heads import mlp, on_each

GOLDEN = Path(__file__).parent / "golden"
LAYERS = ["conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool"]


def published_entries() -> list[tuple[str, list[int], str]]:
    """(name, shape, kind) of every entry of a published AVID-CMA checkpoint, in the checkpoint's order."""
    return [tuple(row) for row in json.loads((GOLDEN / "avid_cma_network_keys.json").read_text())["keys"]]


def golden_fill() -> dict[str, torch.Tensor]:
    """The fill rule of the golden outputs: sin(arange(n) * (0.37 + 0.013 i) + i), scaled by kind (golden/README.md)."""
    filled = {}
    for position, (name, shape, kind) in enumerate(published_entries()):
        if kind == "num_batches_tracked":
            filled[name] = torch.tensor(1)
            continue
        wave = np.sin(np.arange(prod(shape), dtype=np.float64) * (0.37 + 0.013 * position) + position).reshape(shape)
        if kind == "weight":
            value = wave * np.sqrt(4 / prod(shape[1:]))
        elif kind == "bn_weight":
            value = 1 + 0.1 * wave
        elif kind == "running_var":
            value = 1 + 0.5 * wave**2
        else:
            value = 0.1 * wave
        filled[name] = torch.from_numpy(value.astype(np.float32))
    return filled


class Published(nn.Module):
    """Our encoders and heads under the names of the published checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.video_model = create_encoder("avid_video")
        self.audio_model = create_encoder("avid_audio")
        self.video_proj = nn.ModuleDict({"projection": mlp((512, 512, 512, 128))})
        self.audio_proj = nn.ModuleDict({"projection": mlp((512, 512, 512, 128))})


@pytest.fixture(scope="module")
def published() -> Published:
    network = Published()
    network.load_state_dict(golden_fill(), strict=True)
    return network.eval()


def golden_input(modality: str) -> torch.Tensor:
    shape, speed = {"video": ((2, 3, 8, 64, 64), 0.011), "audio": ((2, 1, 200, 257), 0.017)}[modality]
    return torch.from_numpy(np.sin(np.arange(prod(shape)) * speed).astype(np.float32).reshape(shape))


def test_state_names_and_shapes_are_those_of_the_published_checkpoint() -> None:
    ours = {name: list(value.shape) for name, value in Published().state_dict().items()}
    assert ours == {name: shape for name, shape, _ in published_entries()}


@pytest.mark.quick(1)
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_outputs_equal_the_golden_ones(published: Published, modality: str) -> None:
    golden = np.load(GOLDEN / "avid_cma_network.npz")
    encoder = getattr(published, f"{modality}_model")
    with torch.no_grad():
        layers = encoder.forward_layers(golden_input(modality))
        pooled = encoder(golden_input(modality))
        projected = getattr(published, f"{modality}_proj")["projection"](pooled)
    assert list(layers) == LAYERS
    compared = [name for name in LAYERS if f"{modality}_{name}_shape" in golden]
    assert len(compared) >= 5
    for name in compared:
        assert list(layers[name].shape) == list(golden[f"{modality}_{name}_shape"]), name
        ours = np.array([layers[name].double().mean().item(), layers[name].double().std().item()])
        np.testing.assert_allclose(ours, golden[f"{modality}_{name}_mean_std"], rtol=1e-4, atol=1e-5, err_msg=name)
    for ours, name in ((pooled, "pool"), (projected, "projection")):
        expected = golden[f"{modality}_{name}"]
        assert np.abs(ours.numpy() - expected).max() <= 1e-4 * np.abs(expected).max(), name
    torch.testing.assert_close(layers["pool"].flatten(1), pooled)


@pytest.mark.parametrize(
    ("name", "options", "millions"),
    [
        ("avid_video", {}, 15.38),
        ("avid_video", {"depth": 10, "stem_pool": False}, 7.02),
        ("avid_audio", {}, 4.73),
        ("r2plus1d_18", {}, 31.3),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, options: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        encoder = create_encoder(name, **options)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("stem_pool", "depth", "shapes"),
    [
        (True, 10, [(64, 8, 56, 56), (64, 8, 56, 56), (128, 4, 28, 28), (256, 2, 14, 14), (512, 1, 7, 7)]),
        (False, 34, [(64, 8, 112, 112), (64, 8, 112, 112), (128, 4, 56, 56), (256, 2, 28, 28), (512, 1, 14, 14)]),
    ],
)
def test_video_stages_have_the_specified_shapes(
    stem_pool: bool, depth: int, shapes: list[tuple[int, int, int, int]]
) -> None:
    with torch.device("meta"):
        layers = create_encoder("avid_video", depth=depth, stem_pool=stem_pool).forward_layers(
            torch.empty(2, 3, 8, 224, 224)
        )
    assert [tuple(layers[name].shape[1:]) for name in LAYERS[:5]] == shapes


@pytest.mark.parametrize(
    ("first_stride", "size", "shapes"),
    [
        (2, (200, 257), [(64, 100, 129), (64, 50, 65), (128, 25, 33), (256, 13, 17), (512, 13, 17)]),
        (1, (100, 129), [(64, 50, 65), (64, 50, 65), (128, 25, 33), (256, 13, 17), (512, 13, 17)]),
    ],
)
def test_audio_stages_have_the_specified_shapes(
    first_stride: int, size: tuple[int, int], shapes: list[tuple[int, int, int]]
) -> None:
    with torch.device("meta"):
        layers = create_encoder("avid_audio", first_stride=first_stride).forward_layers(torch.empty(2, 1, *size))
    assert [tuple(layers[name].shape[1:]) for name in LAYERS[:5]] == shapes


@pytest.mark.quick(8)
@pytest.mark.parametrize("name", ENCODERS.names())
def test_every_encoder_gives_dim_features(name: str) -> None:
    with torch.device("meta"):
        encoder = create_encoder(name).eval()
        usual = (3, 224, 224) if encoder.modality == "image" else (3, 8, 64, 64)
        size = {"mvit_v2_s": (3, 16, 224, 224), "avid_audio": (1, 100, 65)}.get(name, usual)
        feature = encoder(torch.empty(2, *size))
    assert feature.shape == (2, encoder.dim)
    assert encoder.modality == ENCODERS[name].modality
    assert ENCODERS[name].modality == encoder.modality


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "size"), [("r3d_18", (8, 32, 32)), ("s3d", (16, 224, 224))])
def test_torchvision_features_are_what_its_own_classifier_reads(name: str, size: tuple[int, int, int]) -> None:
    import torchvision

    torch.manual_seed(0)
    encoder = create_encoder(name).eval()
    whole = getattr(torchvision.models.video, name)(weights=None).eval()
    states = encoder.net.state_dict()
    assert set(whole.load_state_dict(states, strict=False).missing_keys) == {
        key for key in whole.state_dict() if key.startswith(("fc.", "classifier."))
    }
    clip = torch.randn(1, 3, *size)
    if name == "s3d":
        head = whole.classifier[1]
        head_on_ours = head.weight.flatten(1), head.bias
    else:
        head_on_ours = whole.fc.weight, whole.fc.bias
    with torch.no_grad():
        logits = nn.functional.linear(encoder(clip), *head_on_ours)
        torch.testing.assert_close(logits, whole(clip), rtol=1e-4, atol=1e-5)


def test_narrow_encoders_train() -> None:
    torch.manual_seed(0)
    for name, options, shape in (
        ("avid_video", {"depth": 10, "width": 4}, (4, 3, 4, 32, 32)),
        ("avid_audio", {"width": 4, "first_stride": 1}, (4, 1, 40, 33)),
    ):
        encoder = create_encoder(name, **options)
        assert encoder.dim == 32
        encoder(torch.randn(shape)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("avid_vidoe", {}, ["Did you mean 'avid_video'", "mvit_v2_s"]),
        ("resnet", {}, ["no encoder is called 'resnet'", "avid_audio"]),
        ("avid_video", {"widht": 8}, ["did you mean 'width'", "depth, width, stem_pool"]),
        ("avid_video", {"depth": 50}, ["[10, 18, 34]", "50"]),
        ("avid_video", {"width": 0}, ["at least 1"]),
        ("avid_audio", {"width": -1}, ["at least 1"]),
        ("avid_audio", {"first_stride": 3}, ["1 or 2", "3"]),
        ("r3d_18", {"weights": "IMAGENET1K_V1"}, ["no weights IMAGENET1K_V1", "KINETICS400_V1"]),
        ("s3d", {"depth": 18}, ["no option 'depth'", "weights"]),
    ],
)
def test_wrong_names_and_options_are_explained(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        create_encoder(name, **options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("avid_video", (2, 8, 3, 32, 32), "(B, 3, T, H, W)"),
        ("r3d_18", (2, 3, 32, 32), "(B, 3, T, H, W)"),
        ("avid_audio", (2, 1, 48000), "(B, 1, frames, bins)"),
        ("mvit_v2_s", (2, 3, 8, 224, 224), "16 x 224 x 224"),
    ],
)
def test_wrong_input_shapes_are_explained(name: str, shape: tuple[int, ...], word: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError) as error:
        create_encoder(name)(torch.empty(shape))
    assert word in str(error.value)
    assert str(shape[-1]) in str(error.value)


def test_mlp_has_the_layers_of_its_dims() -> None:
    assert [type(layer).__name__ for layer in mlp((4, 8, 2))] == ["Linear", "ReLU", "Linear"]
    names = [type(layer).__name__ for layer in mlp((4, 8, 2), batch_norm=True, final_batch_norm=True)]
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    with_norm = mlp((4, 8, 2), batch_norm=True)
    assert with_norm[0].bias is None
    assert with_norm[3].bias is not None
    with pytest.raises(ValueError, match="at least two positive numbers"):
        mlp((4,))


def test_mlp_equals_the_textbook_formula() -> None:
    torch.manual_seed(0)
    head = mlp((5, 7, 3)).double()
    x = np.random.default_rng(0).normal(size=(4, 5))
    w1, b1, w2, b2 = (p.detach().numpy() for p in head.parameters())
    expected = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_allclose(head(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_head_on_each_of_several_batches_is_the_head_on_one_after_the_other(batch_norm: bool) -> None:
    """Values, gradients and the running statistics of batch norm, which must not see the batches together."""
    torch.manual_seed(0)
    head = mlp((6, 5, 4), batch_norm=batch_norm, final_batch_norm=batch_norm).double()  # float32 sums depend on the CPU
    found = []
    for together in (False, True):
        torch.manual_seed(1)
        own = copy.deepcopy(head)
        batches = [(1 + number) * torch.randn(7, 6, dtype=torch.float64).requires_grad_() for number in range(3)]
        outputs = on_each(own, batches) if together else [own(batch) for batch in batches]
        torch.stack(outputs).pow(3).sum().backward()
        found.append([*outputs, *(one.grad for one in own.parameters()), *own.buffers()])
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected)
    assert [one.shape for one in on_each(nn.Identity(), [torch.ones(2, 3)] * 2)] == [(2, 3)] * 2
