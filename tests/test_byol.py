"""BYOL against the textbook: its regression, its two directions, its teacher."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.byol import BYOL, BYOLConfig, regression
from avssl.ops.teacher import frozen_copy
from avssl.types import Progress
from tests.small_encoders import Linear
from tests.textbook import byol as textbook
from tests.textbook.gradients import gradient

P1, P2, T1, T2 = np.random.default_rng(0).normal(size=(4, 5, 6))
PAIRS = [("image", "image"), ("audio", "audio"), ("video", "audio")]


def make(pair=("image", "image"), seed=0, **options):
    torch.manual_seed(seed)
    small = {"projector_hidden_dims": (8,), "predictor_hidden_dims": (8,), "embedding_dim": 6}
    config = BYOLConfig(modalities=pair, **(small | options))
    return BYOL(config, {modality: Linear(6) for modality in set(pair)}, num_samples=20)


def views(seed=1, batch=8):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 4, generator=generator) for name in ("first", "second")}


def one_step(loss, optimizer, progress, seed):
    result = loss.loss(loss(views(seed)), torch.arange(8), progress)
    optimizer.zero_grad()
    result.total.backward()
    optimizer.step()
    progress.step += 1
    loss.after_step(progress)
    return result.total.item()


def test_regression_equals_the_textbook_in_value_and_gradient_and_its_target_gets_none():
    predictions, targets = (torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (P1, T2))
    value = regression(predictions, targets)
    value.backward()
    assert value.item() == pytest.approx(textbook.regression(P1, T2), rel=1e-5)
    (expected,) = gradient(lambda p: textbook.regression(p, T2), P1)
    np.testing.assert_allclose(predictions.grad, expected, atol=1e-5 * np.abs(expected).max())
    assert targets.grad is None


def test_regression_is_0_for_equal_2_for_orthogonal_and_4_for_opposite_directions_of_any_length():
    x = torch.eye(4)
    assert regression(3 * x, 7 * x).item() == pytest.approx(0, abs=1e-6)
    assert regression(x, x.roll(1, dims=0)).item() == pytest.approx(2)
    assert regression(x, -5 * x).item() == pytest.approx(4)


def test_each_view_predicts_the_target_of_the_other_one():
    raw = {"first_prediction": P1, "second_prediction": P2, "first_target": T1, "second_target": T2}
    outputs = {name: torch.tensor(x, dtype=torch.float32, requires_grad=True) for name, x in raw.items()}
    result = make().loss(outputs, torch.arange(5), Progress())
    result.total.backward()
    assert result.total.item() == pytest.approx(textbook.byol(**raw), rel=1e-5)
    expected = gradient(lambda a, b: textbook.byol(a, b, T1, T2), P1, P2)
    for name, value in zip(("first_prediction", "second_prediction"), expected, strict=True):
        np.testing.assert_allclose(outputs[name].grad, value, atol=1e-5 * np.abs(value).max())
        assert outputs[name.replace("prediction", "target")].grad is None


def test_an_independent_teacher_makes_the_loss_start_near_4():
    loss = make(embedding_dim=256, projector_hidden_dims=(64,), predictor_hidden_dims=(64,))
    value = loss.loss(loss(views(batch=64)), torch.arange(64), Progress()).total.item()
    assert value == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_trainable_parameter_gets_a_finite_gradient_and_no_teacher_does(pair):
    loss = make(pair)
    loss.loss(loss(views()), torch.arange(8), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        if name.startswith("teachers."):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0 or name.endswith(".0.bias"), name
    assert set(loss.predictors) == set(loss.teachers) == set(pair)


def test_projector_and_predictor_are_a_hidden_layer_with_batch_norm_and_a_linear_layer_without_bias():
    loss = BYOL(BYOLConfig(), {"image": Linear(6)}, num_samples=20)
    for head, width in ((loss.projectors["image"], 6), (loss.predictors["image"], 256)):
        assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert head[0].weight.shape == (4096, width)
        assert head[3].weight.shape == (256, 4096)
        assert head[3].bias is None


def test_a_teacher_starts_with_weights_of_its_own_which_the_seed_determines():
    loss, same, other = make(), make(), make(seed=1)
    for name, weight in loss.teachers.named_parameters():
        online = dict(loss.student("image").named_parameters())[name.removeprefix("image.")]
        assert torch.equal(weight, dict(same.teachers.named_parameters())[name])
        if weight.ndim > 1:
            assert not torch.equal(weight, online), name
            assert not torch.equal(weight, dict(other.teachers.named_parameters())[name]), name


def test_a_teacher_that_starts_as_a_copy_has_the_weights_of_its_student_and_follows_it():
    loss = make(teacher_start="copy", teacher_momentum=0.5)
    online = dict(loss.student("image").named_parameters())
    for name, weight in loss.teachers["image"].named_parameters():
        assert torch.equal(weight, online[name])
        assert weight.data_ptr() != online[name].data_ptr()
        assert not weight.requires_grad


def test_an_independent_teacher_of_a_transformer_has_attention_of_its_own():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    online = dict(layer.named_parameters())
    for name, weight in frozen_copy(layer, independent=True).named_parameters():
        assert weight.ndim < 2 or not torch.equal(weight, online[name]), name


def test_the_teacher_follows_the_weights_after_each_step_with_the_momentum_of_the_step_just_made():
    loss = make(teacher_momentum=0.9)
    progress = Progress(total_steps=4)
    optimizer = torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.5)
    names = [name for name, _ in loss.student("image").named_parameters()]

    def values(module):
        return {name: dict(module.named_parameters())[name].detach().double().numpy().copy() for name in names}

    start, students = values(loss.teachers["image"]), []
    for step in range(4):
        one_step(loss, optimizer, progress, seed=step)
        students.append(values(loss.student("image")))
    for name, weight in values(loss.teachers["image"]).items():
        expected = textbook.teacher(start[name], [student[name] for student in students], 0.9, 4)
        np.testing.assert_allclose(weight, expected, atol=1e-6, err_msg=name)


def test_with_a_constant_student_the_initial_teacher_keeps_the_product_of_the_momenta():
    loss = make(teacher_momentum=0.99)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.fill_(0.0)
        for parameter in loss.teachers.parameters():
            parameter.fill_(1.0)
    for step in range(1, 11):
        loss.after_step(Progress(step=step, total_steps=10**9))  # so long a run keeps the first momentum
    for parameter in loss.teachers.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.99**10))


def test_the_teacher_normalizes_by_its_own_batch_and_takes_no_running_statistics_from_the_student():
    loss = make()
    norm, own = loss.teachers["image"][1][1], loss.projectors["image"][1]
    given = views()
    teacher = loss.teachers["image"]
    outputs = loss(given)
    hidden = teacher[1][0](teacher[0](given["first"])).double()
    unit = (hidden - hidden.mean(dim=0)) / (hidden.var(dim=0, unbiased=False) + norm.eps).sqrt()
    expected = teacher[1][3](unit.float().relu())
    torch.testing.assert_close(outputs["first_target"], expected, rtol=1e-4, atol=1e-5)
    before = norm.running_mean.clone()
    loss.after_step(Progress(step=1, total_steps=2))
    assert torch.equal(norm.running_mean, before)
    assert not torch.equal(norm.running_mean, own.running_mean)


def test_loss_and_update_write_no_state():
    loss = make()
    outputs = loss(views())
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    loss.loss(outputs, torch.arange(8), Progress())
    loss.update(outputs, torch.arange(8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_a_single_view_in_eval_mode_gives_only_its_own_outputs():
    loss = make(("video", "audio")).eval()
    assert set(loss({"second": views()["second"]})) == {"second_prediction", "second_target"}


def test_a_run_goes_on_identically_from_its_state():
    def optimizer_of(loss):
        return torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.1)

    straight, progress = make(), Progress(total_steps=6)
    optimizer = optimizer_of(straight)
    for step in range(3):
        one_step(straight, optimizer, progress, seed=step)
    resumed = make(seed=7)
    resumed.load_state_dict(straight.state_dict())
    other, later = optimizer_of(resumed), Progress(step=3, total_steps=6)
    for step in range(3, 6):
        assert one_step(straight, optimizer, progress, step) == one_step(resumed, other, later, step)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_float32_values_and_gradients(dtype):
    x = torch.full((4, 16), 100.0, dtype=dtype, requires_grad=True)
    value = regression(x, x)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert x.grad.isfinite().all()


def test_a_momentum_out_of_range_a_wrong_pair_and_a_batch_of_one_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"teacher_momentum is 1\.5.*from 0 to 1"):
        make(teacher_momentum=1.5)
    with pytest.raises(ValueError, match=r"modalities is \[audio, video\].*\[video, audio\]"):
        make(("audio", "video"))
    with pytest.raises(ValueError, match=r"global_batch_size is 1.*at least 2"):
        make().check_batch_size(1)


def test_images_get_the_papers_two_sets_and_others_the_runs_own():
    assert [view.augment for view in BYOL.views(BYOLConfig())] == ["byol_first", "byol_second"]
    assert [view.augment for view in BYOL.views(BYOLConfig(modalities=("video", "audio")))] == ["train", "train"]
