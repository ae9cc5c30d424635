"""DINO against the textbook: its loss, center, temperatures and teacher."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl import config
from avssl.losses.dino import DINO, DINOConfig
from avssl.types import Progress
from tests.small_encoders import Linear
from tests.textbook import byol, gradients
from tests.textbook import dino as textbook

PAIRS = [("image", "image"), ("video", "video"), ("audio", "audio")]
BATCH, DIM, CLASSES = 8, 4, 5


def make(pair=("image", "image"), seed=0, **options):
    torch.manual_seed(seed)
    small = {"projector_hidden_dims": (8,), "embedding_dim": DIM, "num_prototypes": CLASSES, "num_small_crops": 2}
    settings = DINOConfig(modalities=pair, **(small | options))
    return DINO(settings, {modality: Linear(6) for modality in set(pair)}, num_samples=20)


def views(loss, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(BATCH, 4, generator=generator) for name in loss.modality_of}


def one_step(loss, optimizer, progress, seed):
    outputs = loss(views(loss, seed))
    result = loss.loss(outputs, torch.arange(BATCH), progress)
    optimizer.zero_grad()
    result.total.backward()
    loss.before_step(progress)
    optimizer.step()
    loss.update(outputs, torch.arange(BATCH))
    progress.step += 1
    loss.after_step(progress)
    return outputs


def test_value_and_gradient_equal_the_textbook_and_the_teacher_gets_none():
    loss = make(num_small_crops=1, temperature=0.2, teacher_temperature=0.07, teacher_temperature_start=0.05)
    generator = np.random.default_rng(0)
    prototypes, taught, center = (generator.normal(size=size) for size in ((CLASSES, DIM), (CLASSES, DIM), CLASSES))
    raw = generator.normal(size=(3, BATCH, DIM))
    targets = textbook.scores(generator.normal(size=(2 * BATCH, DIM)), taught).reshape(2, BATCH, CLASSES)

    def whole(first, second, small, classes):
        student = [textbook.scores(z, classes) for z in (first, second, small)]
        return textbook.loss(student, targets, center, 0.2, 0.07)

    with torch.no_grad():
        loss.prototypes.weight.copy_(torch.tensor(prototypes))
        loss.center.copy_(torch.tensor(center)[None])
    z = [torch.tensor(rows, dtype=torch.float32, requires_grad=True) for rows in raw]
    loss.project_crops = lambda views: dict(zip(views, z, strict=True))
    outputs = loss(views(loss))
    for name, rows in zip(("first", "second"), targets, strict=True):
        assert not outputs[f"{name}_target"].requires_grad
        outputs[f"{name}_target"] = torch.tensor(rows, dtype=torch.float32)
    value = loss.loss(outputs, torch.arange(BATCH), Progress()).total
    value.backward()
    assert value.item() == pytest.approx(whole(*raw, prototypes), rel=1e-5)
    expected = gradients.gradient(whole, *raw, prototypes)
    for found, right in zip([*(rows.grad for rows in z), loss.prototypes.weight.grad], expected, strict=True):
        assert np.abs(right).max() > 1e-4
        np.testing.assert_allclose(found, right, atol=2e-5 * np.abs(right).max())


def test_scores_are_cosines_with_prototypes_of_any_length():
    loss = make()
    before = loss(views(loss))["first_scores"]
    with torch.no_grad():
        loss.prototypes.weight.mul_(7)
    torch.testing.assert_close(loss(views(loss))["first_scores"], before)
    assert before.abs().max() <= 1 + 1e-6


def test_the_center_is_used_before_its_batch_moves_it_and_is_the_mean_over_both_views_of_past_batches():
    loss = make(center_momentum=0.7)
    optimizer, progress, batches = torch.optim.SGD(loss.parameters(), lr=0.1), Progress(total_steps=4), []
    for step in range(3):
        before = loss.center.clone()
        outputs = one_step(loss, optimizer, progress, step)
        assert torch.equal(
            loss.targets(outputs, 1.0)[0] == loss.targets(outputs, 1.0)[0], torch.ones(BATCH, CLASSES) > 0
        )
        batches.append([outputs["first_target"], outputs["second_target"]])
        expected = textbook.center(np.zeros(CLASSES), batches, 0.7)
        np.testing.assert_allclose(loss.center[0], expected, atol=1e-6)
        assert not torch.equal(before, loss.center)


def test_small_crops_are_cut_from_both_videos_and_predict_both_targets():
    loss = make(("video", "video"))
    assert [(view.name, view.augment, view.clip) for view in loss.views(loss.config)] == [
        ("first", "train", 0), ("second", "train", 1), ("small1", "dino_small", 0), ("small2", "dino_small", 1),
    ]  # fmt: skip
    outputs = loss(views(loss))
    student = [outputs[f"{name}_scores"].detach() for name in ("first", "second", "small1", "small2")]
    expected = textbook.loss(student, [outputs["first_target"], outputs["second_target"]], np.zeros(CLASSES), 0.1, 0.04)
    assert loss.loss(outputs, torch.arange(BATCH), Progress()).total.item() == pytest.approx(expected, rel=1e-5)


def test_video_and_audio_are_not_compared():
    with pytest.raises(ValueError, match=r"modalities is \[video, audio\]; loss dino runs on \[image, image\]; .video"):
        DINO.views(DINOConfig(modalities=("video", "audio")))


@pytest.mark.parametrize("epochs", [0, 1, 2, 30])
def test_the_teachers_temperature_rises_linearly_over_its_epochs(epochs):
    loss = make(teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_epochs=epochs)
    for epoch in range(32):
        # With a single epoch numpy's line is its start; the value at which it arrives is the useful one.
        expected = 0.07 if epochs == 1 else textbook.teacher_temperature(0.04, 0.07, epochs, epoch)
        assert loss.teacher_temperature(epoch) == pytest.approx(expected)


def test_the_teacher_starts_as_a_copy_and_follows_encoder_projector_and_prototypes_after_each_step():
    loss = make(teacher_momentum=0.8, freeze_epochs=0)
    pairs = [
        *zip(loss.teachers["image"].parameters(), loss.student("image").parameters(), strict=True),
        (loss.teacher_prototypes.weight, loss.prototypes.weight),
    ]
    assert all(torch.equal(slow, fast) for slow, fast in pairs)
    starts, seen = [slow.detach().clone() for slow, _ in pairs], [[] for _ in pairs]
    optimizer, progress = torch.optim.SGD(loss.parameters(), lr=0.5), Progress(total_steps=4)
    for step in range(4):
        one_step(loss, optimizer, progress, step)
        for (_, fast), values in zip(pairs, seen, strict=True):
            values.append(fast.detach().clone().numpy())
    for (slow, fast), start, values in zip(pairs, starts, seen, strict=True):
        np.testing.assert_allclose(slow, byol.teacher(start, values, 0.8, 4), atol=1e-6)
        assert not torch.equal(slow, fast)


def test_prototypes_rest_in_the_first_epochs_and_decay_does_not_move_them():
    loss = make(freeze_epochs=1)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.1, weight_decay=0.5)
    before = loss.prototypes.weight.detach().clone()
    one_step(loss, optimizer, Progress(total_steps=4), 0)
    assert torch.equal(loss.prototypes.weight, before)
    one_step(loss, optimizer, Progress(total_steps=4, epoch=1), 0)
    assert not torch.equal(loss.prototypes.weight, before)


def test_a_projector_is_gelu_between_layers_that_start_small():
    loss = make(projector_hidden_dims=(2048, 2048))
    kinds = [type(layer) for layer in loss.projectors["image"]]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    weight = loss.projectors["image"][2].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert not loss.projectors["image"][2].bias.any()
    normed = [type(layer) for layer in make(projector_batch_norm=True).projectors["image"]]
    assert normed == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear]


def test_diagnostics_tell_uniform_targets_from_a_class_that_takes_all():
    loss = make()
    outputs = loss(views(loss))
    uniform = {**outputs, "first_target": torch.zeros(BATCH, CLASSES), "second_target": torch.zeros(BATCH, CLASSES)}
    one = torch.zeros(BATCH, CLASSES)
    one[:, 2] = 1
    taken = {**outputs, "first_target": one, "second_target": one}
    each = {**outputs, **{f"{name}_target": torch.eye(CLASSES).repeat(2, 1)[:BATCH] for name in ("first", "second")}}
    found = [loss.diagnostics(case) for case in (uniform, taken, each)]
    entropies = [(one["assignment_entropy"].item(), one["prediction_entropy"].item()) for one in found]
    assert entropies[0] == pytest.approx((1, 1), abs=1e-5)
    assert entropies[1] == pytest.approx((0, 0), abs=1e-5)
    assert entropies[2] == pytest.approx((0, 0.98), abs=0.02)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_parameter_of_the_student_gets_a_finite_gradient_and_no_other_one(pair):
    loss = make(pair)
    loss.loss(loss(views(loss)), torch.arange(BATCH), Progress()).total.backward()
    for name, parameter in loss.named_parameters():
        is_taught = name.startswith("teacher")
        assert (parameter.grad is None) == is_taught == (not parameter.requires_grad), name
        assert is_taught or (parameter.grad.isfinite().all() and parameter.grad.any()), name


@pytest.mark.parametrize(
    ("options", "entropies"),
    [
        ({}, ((0.02, 0.5), (0.4, 1))),
        ({"center_momentum": 1.0}, ((0, 0.02), (0, 0.02))),  # no centering: one class takes all
        ({"teacher_temperature": 0.2}, ((0.98, 1.01), (0.98, 1.01))),  # no sharpening: uniform targets
    ],
)
def test_centering_and_sharpening_prevent_a_collapse_that_comes_without_either(options, entropies):
    loss = make(freeze_epochs=0, teacher_momentum=0.9, num_small_crops=0, num_prototypes=16, embedding_dim=8, **options)
    generator = torch.Generator().manual_seed(0)
    optimizer, progress = torch.optim.AdamW(loss.parameters(), lr=2e-2), Progress(total_steps=200)
    for _ in range(200):
        sample = torch.randn(64, 4, generator=generator)
        outputs = loss({name: sample + 0.2 * torch.randn(64, 4, generator=generator) for name in ("first", "second")})
        optimizer.zero_grad()
        loss.loss(outputs, torch.arange(64), progress).total.backward()
        optimizer.step()
        loss.update(outputs, torch.arange(64))
        progress.step += 1
        loss.after_step(progress)
    found = loss.diagnostics(outputs)
    for name, (low, high) in zip(("assignment_entropy", "prediction_entropy"), entropies, strict=True):
        assert low <= found[name].item() <= high, name


def test_numbers_out_of_range_are_refused_with_what_is_allowed():
    for change, words in {
        "teacher_momentum=1.5": "teacher_momentum is 1.5; it must be from 0 to 1",
        "center_momentum=-0.1": "center_momentum is -0.1; it must be from 0 to 1",
    }.items():
        name, value = change.split("=")
        with pytest.raises(ValueError, match=words):
            make(**{name: float(value)})
    for change in ("num_prototypes=1", "teacher_temperature=0", "freeze_epochs=-1", "optim.final_weight_decay=-1"):
        key = change if change.startswith("optim") else f"loss.{change}"
        with pytest.raises(ValueError, match=rf"{key.partition('=')[0]} is .*must be"):
            config.parse(config.RunConfig, ["loss.name=dino", key])
