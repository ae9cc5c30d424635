"""VICReg against the textbook, at its known values and with constant dimensions."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.vicreg import VICReg, VICRegConfig, vicreg, vicreg_terms
from avssl.types import Progress
from tests.small_encoders import Identity
from tests.textbook import vicreg as textbook
from tests.textbook.gradients import gradient

Z1, Z2 = 0.8 * np.random.default_rng(0).normal(size=(2, 7, 4))  # deviations on both sides of the hinge
PAIRS = [("image", "image"), ("audio", "audio"), ("video", "audio")]


def make(pair=("image", "image"), **options):
    torch.manual_seed(0)
    config = VICRegConfig(modalities=pair, **({"projector_hidden_dims": (8,), "embedding_dim": 6} | options))
    return VICReg(config, {modality: Identity() for modality in set(pair)}, num_samples=20)


def views(batch=8):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(batch, 4, generator=generator) for name in ("first", "second")}


@pytest.mark.quick(2)
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_value_and_gradient_equal_the_textbook(weights):
    z1, z2 = (torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in (Z1, Z2))
    value = vicreg(z1, z2, *weights)
    value.backward()
    assert value.item() == pytest.approx(textbook.vicreg(Z1, Z2, *weights), rel=1e-5)
    expected = gradient(lambda a, b: textbook.vicreg(a, b, *weights), Z1, Z2)
    for mine, theirs in zip((z1, z2), expected, strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(mine.grad, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_whole_loss_weighs_the_terms_of_the_projected_views_and_logs_them_unweighted():
    loss = make()
    loss.projectors["image"] = nn.Identity()
    raw = {"first": Z1, "second": Z2}
    outputs = loss({name: torch.tensor(z, dtype=torch.float32) for name, z in raw.items()})
    result = loss.loss(outputs, torch.arange(7), Progress())
    assert result.total.item() == pytest.approx(textbook.vicreg(Z1, Z2, 25, 25, 1), rel=1e-5)
    assert result.terms["invariance"].item() == pytest.approx(textbook.invariance(Z1, Z2), rel=1e-5)
    variance = (textbook.variance(Z1) + textbook.variance(Z2)) / 2
    assert result.terms["variance"].item() == pytest.approx(variance, rel=1e-5)
    covariance = textbook.redundancy(Z1) + textbook.redundancy(Z2)
    assert result.terms["covariance"].item() == pytest.approx(covariance, rel=1e-5)


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_constant_embeddings_cost_the_hinge_alone_and_keep_the_gradient_finite(constant):
    z1, z2 = (torch.full((8, 4), constant, requires_grad=True) for _ in range(2))
    terms = vicreg_terms(z1, z2)
    terms.weighted(25, 25, 1).backward()
    assert terms.variance.item() == pytest.approx(1 - 1e-2, rel=1e-5)
    assert terms.invariance.item() == terms.covariance.item() == 0
    assert z1.grad.isfinite().all()
    assert z2.grad.isfinite().all()


def test_embeddings_with_deviation_above_one_and_no_covariance_cost_nothing():
    signs = 2 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert vicreg(signs, signs, 25, 25, 1).item() == 0
    doubled = torch.cat([signs, signs], dim=1)  # Cov = 16/3 between each column and its copy: 2 pairs, both orders
    assert vicreg(doubled, doubled, 25, 25, 1).item() == pytest.approx(2 * 4 * (16 / 3) ** 2 / 4)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_parameter_gets_a_finite_gradient(pair):
    loss = make(pair)
    loss.loss(loss(views()), torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert set(loss.projectors) == set(pair)


def test_the_projector_ends_in_a_linear_layer_without_bias():
    last = make().projectors["image"][-1]
    assert isinstance(last, nn.Linear)
    assert last.bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_float32_values_and_gradients(dtype):
    z = (300 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    value = vicreg(z, -z, 25, 25, 1)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()


def test_a_batch_of_one_and_a_negative_weight_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"at least 2 samples; given: 1.*global_batch_size"):
        vicreg(torch.ones(1, 4), torch.ones(1, 4), 25, 25, 1)
    with pytest.raises(ValueError, match=r"global_batch_size is 1.*at least 2"):
        make().check_batch_size(1)
    with pytest.raises(ValueError, match=r"variance_weight.*none may be below 0"):
        make(variance_weight=-1.0)
