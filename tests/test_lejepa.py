"""LeJEPA against the textbook and the exact integral, on Gaussian and on collapsed embeddings."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.lejepa import LeJEPA, LeJEPAConfig, epps_pulley, random_directions, sigreg
from avssl.ops.sampling import generator_for
from avssl.types import Progress
from tests.small_encoders import Identity
from tests.textbook import lejepa as textbook
from tests.textbook.gradients import gradient

Z = np.random.default_rng(0).normal(size=(7, 4))
DIRECTIONS = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0][:, :3]
PAIRS = [("image", "image"), ("audio", "audio"), ("video", "audio")]


def make(pair=("image", "image"), **options):
    torch.manual_seed(0)
    small = {"projector_hidden_dims": (8,), "embedding_dim": 4, "num_small_crops": 2, "num_directions": 5}
    config = LeJEPAConfig(modalities=pair, **(small | options))
    return LeJEPA(config, {modality: Identity() for modality in set(pair)}, num_samples=20)


def views(loss, batch=8):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(batch, 4, generator=generator) for name in loss.modality_of}


def test_value_and_gradient_of_the_regularizer_equal_the_textbook():
    z = torch.tensor(Z, dtype=torch.float32, requires_grad=True)
    value = sigreg(z, torch.tensor(DIRECTIONS, dtype=torch.float32))
    value.backward()
    assert value.item() == pytest.approx(textbook.sigreg(Z, DIRECTIONS), rel=1e-5)
    (expected,) = gradient(lambda a: textbook.sigreg(a, DIRECTIONS), Z)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(z.grad, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.5])
def test_the_statistic_is_the_integral_over_the_whole_line_in_closed_form(scale):
    samples = scale * np.random.default_rng(2).normal(size=60)
    value = epps_pulley(torch.tensor(samples, dtype=torch.float32)[:, None]).item()
    assert value == pytest.approx(textbook.exact(samples), rel=1e-3, abs=1e-3)


def test_the_whole_loss_equals_the_textbook_with_the_directions_of_its_batch_and_logs_both_terms():
    loss = make(sigreg_weight=0.2)
    loss.projectors["image"] = nn.Identity()
    raw = dict(zip(loss.modality_of, np.random.default_rng(3).normal(size=(4, 7, 4)), strict=True))
    outputs = loss({name: torch.tensor(z, dtype=torch.float32) for name, z in raw.items()})
    progress = Progress(batch=3)
    result = loss.loss(outputs, torch.arange(7), progress)
    directions = random_directions(4, 5, generator_for(loss.config.seed, 3, torch.device("cpu"))).numpy()
    (first, second, *small), one = raw.values(), 1e-5
    assert result.total.item() == pytest.approx(textbook.lejepa([first, second], small, directions, 0.2), rel=one)
    assert result.terms["agreement"].item() == pytest.approx(
        textbook.lejepa([first, second], small, directions, 0.0), rel=one
    )
    assert result.terms["sigreg"].item() == pytest.approx(
        textbook.lejepa([first, second], small, directions, 1.0), rel=one
    )


def test_directions_are_unit_vectors_that_change_with_the_batch_and_not_with_the_process():
    made = [random_directions(16, 400, generator_for(0, batch, torch.device("cpu"))) for batch in (0, 0, 1)]
    torch.testing.assert_close(made[0].norm(dim=0), torch.ones(400))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    # Of all directions alike: the mean of a a^T is I / D, to 4 deviations of its 400 samples.
    torch.testing.assert_close(made[0] @ made[0].T / 400, torch.eye(16) / 16, atol=4 * 16**-1 / 400**0.5, rtol=0)


def test_gaussian_embeddings_cost_least_and_other_means_spreads_shapes_and_collapse_cost_more():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 8, generator=generator)
    directions = random_directions(8, 64, generator)
    best = sigreg(z, directions)
    line = z[:, :1].expand(-1, 8)
    others = {"mean": z + 1, "narrow": 0.5 * z, "wide": 2 * z, "line": line, "collapsed": 0 * z}
    expected = (2 * np.pi) ** 0.5 - (2 * np.pi / 3) ** 0.5  # the integral of (1 - exp(-t^2)) exp(-t^2 / 2)
    assert best.item() == pytest.approx(expected, rel=0.3)
    for name, other in others.items():
        assert sigreg(other, directions) > 10 * best, name
    two_points = torch.sign(z[:, :1])  # mean 0 and variance 1, as VICReg wants it, but not normal
    assert sigreg(two_points, torch.ones(1, 1)) > 100


def test_descending_it_makes_the_embeddings_isotropic():
    z = nn.Parameter(0.1 * torch.randn(256, 4, generator=torch.Generator().manual_seed(0)) + 1)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(150):
        optimizer.zero_grad()
        sigreg(z, random_directions(4, 16, generator_for(0, step, z.device))).backward()
        optimizer.step()
    assert z.mean(dim=0).abs().max() < 0.15
    torch.testing.assert_close(z.detach().T.cov(), torch.eye(4), atol=0.2, rtol=0)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_parameter_gets_a_finite_gradient(pair):
    loss = make(pair)
    loss.loss(loss(views(loss)), torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert set(loss.projectors) == set(pair)
    assert len(loss.modality_of) == (2 if pair == ("audio", "audio") else 4)


def test_constant_embeddings_keep_the_gradient_finite():
    z = torch.zeros(8, 4, requires_grad=True)
    sigreg(z, torch.eye(4)).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_float32_values(dtype):
    z = (300 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    value = sigreg(z, torch.eye(16))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_a_batch_of_one_and_weights_out_of_range_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"at least 2 samples; given: 1.*global_batch_size"):
        sigreg(torch.ones(1, 4), torch.eye(4))
    with pytest.raises(ValueError, match=r"global_batch_size is 1.*at least 2"):
        make().check_batch_size(1)
    for weight in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"sigreg_weight is .*between 0 and 1"):
            make(sigreg_weight=weight)
    with pytest.raises(ValueError, match=r"num_directions is 0.*at least 1"):
        make(num_directions=0)
