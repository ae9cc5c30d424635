"""Barlow Twins against the textbook, at its known values and with constant dimensions."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.barlow_twins import BarlowTwins, BarlowTwinsConfig, barlow_twins, normalize_over_batch
from avssl.optim.build import build_optimizer
from avssl.optim.config import OptimConfig
from avssl.types import Progress
from tests.small_encoders import Identity
from tests.textbook import barlow_twins as textbook
from tests.textbook.gradients import gradient

Z1, Z2 = np.random.default_rng(0).normal(size=(2, 7, 4))
PAIRS = [("image", "image"), ("audio", "audio"), ("video", "audio")]


def make(pair=("image", "image"), **options):
    torch.manual_seed(0)
    config = BarlowTwinsConfig(modalities=pair, **({"projector_hidden_dims": (8,), "embedding_dim": 6} | options))
    return BarlowTwins(config, {modality: Identity() for modality in set(pair)}, num_samples=20)


def views(batch=8):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(batch, 4, generator=generator) for name in ("first", "second")}


@pytest.mark.parametrize("redundancy_weight", [0.0051, 1.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_value_and_gradient_equal_the_textbook_at_any_scale_of_the_embeddings(redundancy_weight, scale):
    z1, z2 = (torch.tensor(scale * z, dtype=torch.float32, requires_grad=True) for z in (Z1, Z2))
    value = barlow_twins(z1, z2, redundancy_weight)
    value.backward()
    assert value.item() == pytest.approx(textbook.barlow_twins(Z1, Z2, redundancy_weight), rel=1e-5)
    expected = gradient(lambda a, b: textbook.barlow_twins(a, b, redundancy_weight), Z1, Z2)
    for mine, theirs in zip((z1, z2), expected, strict=True):
        np.testing.assert_allclose(scale * mine.grad, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_whole_loss_is_the_function_of_the_projected_views():
    loss = make(redundancy_weight=0.1)
    loss.projectors["image"] = nn.Identity()
    raw = {"first": Z1, "second": Z2}
    outputs = loss({name: torch.tensor(z, dtype=torch.float32) for name, z in raw.items()})
    total = loss.loss(outputs, torch.arange(7), Progress()).total.item()
    assert total == pytest.approx(textbook.barlow_twins(Z1, Z2, 0.1), rel=1e-5)


def test_identical_views_have_a_diagonal_of_one():
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 8)
    unit = normalize_over_batch(z)
    rounding = 2 * 64 * 2.0**-24  # sums of 64 squares that add up to 64, over a deviation of as many
    torch.testing.assert_close((unit.T @ unit / 64).diagonal(), torch.ones(8), atol=rounding, rtol=0)
    assert barlow_twins(z, z, 0.0).item() == pytest.approx(0, abs=8 * rounding**2)


def test_views_that_do_not_correlate_cost_their_number_of_dimensions():
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # two columns without correlation
    assert barlow_twins(signs, signs.flip(1), 0.0).item() == pytest.approx(2)
    assert barlow_twins(signs, signs.flip(1), 0.5).item() == pytest.approx(2 + 0.5 * 2)


@pytest.mark.parametrize("constant", [0.0, 0.1, 12345.678])  # the mean of seven of the last one is rounded
@pytest.mark.parametrize("both", [True, False])
def test_a_constant_dimension_correlates_with_nothing_and_keeps_value_and_gradient_finite(constant, both):
    first, second = Z1.copy(), Z2.copy()
    first[:, 1] = constant
    if both:
        second[:, 1] = constant
    z1, z2 = (torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in (first, second))
    value = barlow_twins(z1, z2, 0.0051)
    value.backward()
    assert value.item() == pytest.approx(textbook.barlow_twins(first, second, 0.0051), rel=1e-5)
    assert z1.grad.isfinite().all()
    assert z2.grad.isfinite().all()
    assert z1.grad.abs().max() < 1e5


@pytest.mark.parametrize("pair", PAIRS)
def test_every_parameter_gets_a_finite_gradient(pair):
    loss = make(pair)
    loss.loss(loss(views()), torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert set(loss.projectors) == set(pair)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_identical_half_precision_embeddings_give_finite_float32_values_and_gradients(dtype):
    z = torch.full((8, 16), 300.0, dtype=dtype, requires_grad=True)
    value = barlow_twins(z, z, 0.0051)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(16)
    assert z.grad.isfinite().all()


def test_biases_have_a_learning_rate_of_their_own_in_the_published_recipe():
    from avssl.config import RunConfig, parse
    from tests.conftest import ROOT

    optim = parse(RunConfig, [str(ROOT / "recipes/configs/barlow_twins.yaml")]).optim
    optimizer = build_optimizer(OptimConfig(**{**vars(optim), "warmup_steps": 0}), make().param_groups())
    scale = {group["params"][0].ndim > 1: group["lr_scale"] for group in optimizer.param_groups}
    assert optim.lr * scale[True] == pytest.approx(0.2 * 2048 / 256)
    assert optim.lr * scale[False] == pytest.approx(0.0048 * 2048 / 256)


def test_a_batch_of_one_and_a_negative_weight_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"at least 2 samples; given: 1.*global_batch_size"):
        barlow_twins(torch.ones(1, 4), torch.ones(1, 4), 0.0051)
    with pytest.raises(ValueError, match=r"global_batch_size is 1.*at least 2"):
        make().check_batch_size(1)
    with pytest.raises(ValueError, match=r"redundancy_weight is -1.*0 or more"):
        make(redundancy_weight=-1.0)
