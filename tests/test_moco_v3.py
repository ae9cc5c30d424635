"""MoCo v3 against the textbook: its cross-entropy, its directions, its heads, its teacher."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses import moco_v3
from avssl.losses.moco_v3 import MoCoV3, MoCoV3Config, contrast
from avssl.types import Progress
from tests.small_encoders import Linear
from tests.textbook import moco_v3 as textbook
from tests.textbook.gradients import gradient
from tests.thread_ranks import run_as_ranks

Q1, Q2, K1, K2 = np.random.default_rng(0).normal(size=(4, 6, 5))


def make(pair=("image", "image"), **options):
    torch.manual_seed(0)
    small = {"projector_hidden_dims": (8,), "predictor_hidden_dims": (8,), "embedding_dim": 5}
    config = MoCoV3Config(modalities=pair, **(small | options))
    return MoCoV3(config, {modality: Linear(5) for modality in set(pair)}, num_samples=20)


def views(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(6, 4, generator=generator) for name in ("first", "second")}


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("first_row", [0, 2])
def test_contrast_equals_the_textbook_in_value_and_gradient_and_keys_get_none(temperature, first_row):
    queries = Q1[:4]
    q, k = (torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (queries, K2))
    value = contrast(q, k, temperature, first_row)
    value.backward()
    assert value.item() == pytest.approx(textbook.contrast(queries, K2, temperature, first_row), rel=1e-5)
    (expected,) = gradient(lambda x: textbook.contrast(x, K2, temperature, first_row), queries)
    np.testing.assert_allclose(q.grad, expected, atol=1e-5 * np.abs(expected).max())
    assert k.grad is None


def test_at_a_high_temperature_the_contrast_is_the_logarithm_of_the_batch_times_twice_the_temperature():
    q, k = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    assert contrast(q, k, 1e4).item() == pytest.approx(2e4 * math.log(16), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_identical_half_precision_embeddings_give_finite_float32_losses_and_gradients(dtype):
    z = torch.full((8, 16), 100.0, dtype=dtype, requires_grad=True)
    value = contrast(z, z, 0.05)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.1 * math.log(8), rel=1e-5)
    assert z.grad.isfinite().all()


def outputs_of(rows=slice(None)):
    raw = {"first": Q1, "second": Q2, "first_key": K1, "second_key": K2}
    return {name: torch.tensor(x[rows], dtype=torch.float32, requires_grad=True) for name, x in raw.items()}


@pytest.mark.parametrize("pair", [("image", "image"), ("video", "audio")])
def test_each_view_is_compared_with_the_keys_of_the_other_one_and_both_directions_are_added(pair):
    outputs = outputs_of()
    result = make(pair, temperature=0.2).loss(outputs, torch.arange(6), Progress())
    result.total.backward()
    assert result.total.item() == pytest.approx(textbook.symmetric(Q1, Q2, K1, K2, 0.2), rel=1e-5)
    expected = gradient(lambda a, b: textbook.symmetric(a, b, K1, K2, 0.2), Q1, Q2)
    for name, value in zip(("first", "second"), expected, strict=True):
        np.testing.assert_allclose(outputs[name].grad, value, atol=1e-5 * np.abs(value).max())
    assert result.terms["first_to_second"].item() == pytest.approx(textbook.contrast(Q1, K2, 0.2), rel=1e-5)


def test_two_ranks_have_the_mean_loss_and_the_gradient_of_one_process(monkeypatch):
    loss = make(temperature=0.2)
    whole = outputs_of()
    alone = loss.loss(whole, torch.arange(6), Progress()).total
    alone.backward()

    def half(rank):
        outputs = outputs_of(slice(3 * rank, 3 * rank + 3))
        total = loss.loss(outputs, torch.arange(3), Progress()).total
        total.backward()
        return total.item(), outputs

    ranks = run_as_ranks(monkeypatch, moco_v3, 2, half)
    assert np.mean([value for value, _ in ranks]) == pytest.approx(alone.item(), rel=1e-5)
    for name in ("first", "second"):
        gradients = torch.cat([outputs[name].grad for _, outputs in ranks]) / 2  # a mean over ranks, as DDP's
        torch.testing.assert_close(gradients, whole[name].grad)


def layers(head):
    """A head as (in, out) of linear layers with "+bias", and "norm" with "+affine"."""
    found = []
    for module in head:
        if isinstance(module, nn.Linear):
            found.append(f"{module.in_features}-{module.out_features}{'+bias' if module.bias is not None else ''}")
        elif isinstance(module, nn.BatchNorm1d):
            found.append(f"norm{'+affine' if module.affine else ''}")
        else:
            found.append(type(module).__name__)
    return found


def test_heads_are_those_of_the_paper_for_a_residual_network_and_for_a_transformer():
    with torch.device("meta"):
        network = MoCoV3(MoCoV3Config(), {"image": Linear(2048)}, 20)
        transformer = MoCoV3Config(projector_hidden_dims=(4096, 4096), predictor_final_batch_norm=True)
        transformer = MoCoV3(transformer, {"image": Linear(384)}, 20)
    hidden = ["norm+affine", "ReLU"]
    assert layers(network.projectors["image"]) == ["2048-4096", *hidden, "4096-256", "norm"]
    assert layers(network.predictors["image"]) == ["256-4096", *hidden, "4096-256"]
    expected = ["384-4096", *hidden, "4096-4096", *hidden, "4096-256", "norm"]
    assert layers(transformer.projectors["image"]) == expected
    assert layers(transformer.predictors["image"]) == ["256-4096", *hidden, "4096-256", "norm"]


def test_keys_come_from_the_teachers_encoder_and_projector_each_view_a_batch_of_its_own():
    loss, given = make(), views()
    outputs = loss(given)
    for name, view in given.items():
        projection = loss.projectors["image"](loss.encoders["image"](view))  # the teacher starts as its student
        torch.testing.assert_close(outputs[f"{name}_key"], projection.detach())
        torch.testing.assert_close(outputs[name], loss.predictors["image"](projection))
        assert not outputs[f"{name}_key"].requires_grad
    assert set(loss.eval()({"second": given["second"]})) == {"second", "second_key"}


def test_a_step_sees_the_teacher_moved_with_its_own_momentum():
    loss = make(teacher_momentum=0.9)
    optimizer = torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.5)

    def values(module):
        return {name: p.detach().double().numpy().copy() for name, p in module.named_parameters()}

    start, students, progress = values(loss.student("image")), [], Progress(total_steps=5)
    for seed in range(5):
        loss.loss(loss(views(seed)), torch.arange(6), progress).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        loss.after_step(progress)
        students.append(values(loss.student("image")))
        for name, weight in values(loss.teachers["image"]).items():
            expected = textbook.teacher(start[name], [student[name] for student in students], 0.9, 5)
            np.testing.assert_allclose(weight, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("pair", [("image", "image"), ("video", "audio")])
def test_every_trainable_parameter_gets_a_finite_gradient_and_no_teacher_does(pair):
    loss = make(pair)
    loss.loss(loss(views()), torch.arange(6), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        assert (parameter.grad is None) == name.startswith("teachers."), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert set(loss.predictors) == set(loss.teachers) == set(pair)


def test_images_get_the_papers_two_sets_and_what_cannot_work_is_refused():
    assert [view.augment for view in MoCoV3.views(MoCoV3Config())] == ["moco_v3_first", "moco_v3_second"]
    with pytest.raises(ValueError, match="teacher_momentum is 2"):
        make(teacher_momentum=2.0)
    with pytest.raises(ValueError, match=r"global_batch_size is 1.*at least 2"):
        make().check_batch_size(1)
