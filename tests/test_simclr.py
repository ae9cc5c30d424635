"""SimCLR's loss against the textbook, its known values and its limits."""

import math

import numpy as np
import pytest
import torch

from avssl.losses.simclr import nt_xent, two_way_cross_entropy
from tests.textbook import simclr as textbook
from tests.textbook.gradients import gradient

Z1, Z2 = np.random.default_rng(0).normal(size=(2, 5, 4))


@pytest.mark.parametrize("name", ["nt_xent", "two_way_cross_entropy"])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_value_and_gradient_equal_the_textbook(name, temperature):
    ours = {"nt_xent": nt_xent, "two_way_cross_entropy": two_way_cross_entropy}[name]
    theirs = getattr(textbook, name)
    z1, z2 = (torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in (Z1, Z2))
    value = ours(z1, z2, temperature)
    value.backward()
    assert value.item() == pytest.approx(theirs(Z1, Z2, temperature), rel=1e-5)
    for mine, expected in zip((z1, z2), gradient(lambda a, b: theirs(a, b, temperature), Z1, Z2), strict=True):
        np.testing.assert_allclose(mine.grad, expected, atol=1e-5 * np.abs(expected).max())


def test_at_a_high_temperature_the_loss_is_the_logarithm_of_the_number_of_candidates():
    z1, z2 = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    assert nt_xent(z1, z2, 1e6).item() == pytest.approx(math.log(2 * 16 - 1), rel=1e-4)
    assert two_way_cross_entropy(z1, z2, 1e6).item() == pytest.approx(math.log(16), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [nt_xent, two_way_cross_entropy])
def test_identical_half_precision_embeddings_give_finite_float32_losses_and_gradients(loss, dtype):
    z = torch.ones(8, 16, dtype=dtype, requires_grad=True)
    value = loss(z, z, 0.05)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert z.grad.isfinite().all()
