"""SimSiam against the textbook, its known values and its constant learning rate of the predictor."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.simsiam import SimSiam, SimSiamConfig, negative_cosine
from avssl.optim.build import build_optimizer, set_schedules
from avssl.optim.config import OptimConfig
from avssl.types import Progress
from tests.small_encoders import Linear
from tests.textbook import simsiam as textbook
from tests.textbook.gradients import gradient

P1, P2, Z1, Z2 = np.random.default_rng(0).normal(size=(4, 5, 6))
PAIRS = [("image", "image"), ("audio", "audio"), ("video", "audio")]


def make(pair=("image", "image"), **options):
    torch.manual_seed(0)
    small = {"projector_hidden_dims": (8, 8), "predictor_hidden_dims": (5,), "embedding_dim": 8}
    config = SimSiamConfig(modalities=pair, **(small | options))
    return SimSiam(config, {modality: Linear(6) for modality in set(pair)}, num_samples=20)


def views(batch=8):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(batch, 4, generator=generator) for name in ("first", "second")}


def test_negative_cosine_equals_the_textbook_in_value_and_gradient_and_its_target_gets_none():
    predictions, targets = (torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (P1, Z2))
    value = negative_cosine(predictions, targets)
    value.backward()
    assert value.item() == pytest.approx(textbook.negative_cosine(P1, Z2), rel=1e-5)
    (expected,) = gradient(lambda p: textbook.negative_cosine(p, Z2), P1)
    np.testing.assert_allclose(predictions.grad, expected, atol=1e-5 * np.abs(expected).max())
    assert targets.grad is None


def test_both_directions_are_averaged_and_only_predictions_get_a_gradient():
    raw = {"first_prediction": P1, "second_prediction": P2, "first": Z1, "second": Z2}
    outputs = {name: torch.tensor(x, dtype=torch.float32, requires_grad=True) for name, x in raw.items()}
    result = make().loss(outputs, torch.arange(5), Progress())
    result.total.backward()
    assert result.total.item() == pytest.approx(textbook.simsiam(**raw), rel=1e-5)
    expected = gradient(lambda a, b: textbook.simsiam(a, b, Z1, Z2), P1, P2)
    for name, value in zip(("first_prediction", "second_prediction"), expected, strict=True):
        np.testing.assert_allclose(outputs[name].grad, value, atol=1e-5 * np.abs(value).max())
        assert outputs[name.removesuffix("_prediction")].grad is None


def test_the_loss_starts_near_0_and_is_minus_1_for_equal_directions():
    loss = make(projector_hidden_dims=(64, 64), embedding_dim=512, predictor_hidden_dims=(64,))
    start = loss.loss(loss(views(batch=64)), torch.arange(64), Progress()).total.item()
    assert start == pytest.approx(0, abs=0.15)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert negative_cosine(2 * x, 3 * x).item() == pytest.approx(-1)


def test_the_log_tells_a_spread_out_start_from_a_collapse():
    loss = make(projector_hidden_dims=(64, 64), embedding_dim=512)
    healthy = loss.diagnostics(loss(views(batch=64)))["first_embedding_spread"].item()
    collapsed = loss.diagnostics({"first": torch.ones(64, 512)})["first_embedding_spread"].item()
    assert healthy > 0.8
    assert collapsed == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_parameter_gets_a_finite_gradient(pair):
    loss = make(pair)
    loss.loss(loss(views()), torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert set(loss.projectors) == set(loss.predictors) == set(pair)


def test_the_projector_ends_in_a_norm_without_scale_and_the_predictor_in_a_linear_layer_with_bias():
    loss = make()
    last = loss.projectors["image"][-1]
    assert isinstance(last, nn.BatchNorm1d)
    assert not last.affine
    z = loss(views())["first"]
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    assert isinstance(loss.predictors["image"][-1], nn.Linear)
    assert loss.predictors["image"][-1].bias is not None


def test_the_predictor_keeps_its_learning_rate_while_the_others_follow_the_cosine():
    loss = make()
    config = OptimConfig(name="sgd", lr=0.1, schedule="cosine")
    optimizer = build_optimizer(config, loss.param_groups())
    grouped = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(grouped) == sorted(id(one) for one in loss.parameters())
    set_schedules(optimizer, config, 90, 100)
    predictor = {id(one) for one in loss.predictors.parameters()}
    for group in optimizer.param_groups:
        expected = 0.1 if id(group["params"][0]) in predictor else 0.1 * 0.5 * (1 + np.cos(0.9 * np.pi))
        assert group["lr"] == pytest.approx(expected)


def test_a_single_view_in_eval_mode_gives_only_its_own_outputs():
    loss = make(("video", "audio")).eval()
    assert set(loss({"second": views()["second"]})) == {"second", "second_prediction"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_float32_values_and_gradients(dtype):
    x = torch.full((4, 16), 100.0, dtype=dtype, requires_grad=True)
    value = negative_cosine(x, x)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(-1)
    assert x.grad.isfinite().all()


def test_a_wrong_pair_and_a_batch_of_one_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"modalities is \[audio, video\].*\[video, audio\]"):
        make(("audio", "video"))
    with pytest.raises(ValueError, match=r"global_batch_size is 1.*at least 2"):
        make().check_batch_size(1)
