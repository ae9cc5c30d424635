"""Distillation against the textbook, and what becomes of the teacher's rows."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses.distil import Distil, DistilConfig, regression, similarity_divergence
from avssl.types import Progress, TooFewSamplesError
from tests.small_encoders import Identity
from tests.textbook import distil as textbook
from tests.textbook.gradients import gradient

GENERATOR = np.random.default_rng(0)
STUDENT, TEACHER, QUEUE = (GENERATOR.normal(size=(count, 4)) for count in (5, 5, 7))
TEMPERATURES = {"student_temperature": 0.3, "teacher_temperature": 0.15}


def make(modalities=("image",), dim=4, **options):
    torch.manual_seed(0)
    config = DistilConfig(modalities=modalities, **({"projector_hidden_dims": (8,), "queue_size": 7} | options))
    config.teacher.dim = dim
    return Distil(config, {modality: Identity() for modality in modalities}, num_samples=20)


def tensor(rows, **options):
    return torch.tensor(rows, dtype=torch.float32, **options)


def test_value_and_gradient_of_the_similarities_equal_the_textbook():
    z = tensor(STUDENT, requires_grad=True)
    value = similarity_divergence(z, tensor(TEACHER), tensor(QUEUE), **TEMPERATURES)
    value.backward()
    of_student = lambda a: textbook.similarity_divergence(a, TEACHER, QUEUE, 0.3, 0.15)  # noqa: E731
    assert value.item() == pytest.approx(of_student(STUDENT), rel=1e-5)
    (expected,) = gradient(of_student, STUDENT)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(z.grad, expected, atol=1e-5 * np.abs(expected).max())


def test_value_and_gradient_of_the_regression_equal_the_textbook():
    z = tensor(STUDENT, requires_grad=True)
    value = regression(z, tensor(TEACHER))
    value.backward()
    assert value.item() == pytest.approx(textbook.regression(STUDENT, TEACHER), rel=1e-5)
    (expected,) = gradient(lambda a: textbook.regression(a, TEACHER), STUDENT)
    np.testing.assert_allclose(z.grad, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("modalities", [("audio",), ("video", "audio")])
def test_the_whole_loss_equals_the_textbook_and_logs_its_terms(modalities, weights):
    loss = make(modalities, regression_weight=weights[0], similarity_weight=weights[1], **TEMPERATURES)
    loss.projectors = nn.ModuleDict({modality: nn.Identity() for modality in modalities})
    if weights[1]:
        loss.queue.push(tensor(QUEUE))
    students = [GENERATOR.normal(size=(5, 4)) for _ in modalities]
    views = {name: tensor(z) for name, z in zip(("first", "second"), students, strict=False)}
    result = loss.loss(loss(views | {"teacher": tensor(TEACHER)}), torch.arange(5), Progress())
    assert result.total.item() == pytest.approx(textbook.distil(students, TEACHER, QUEUE, weights, 0.3, 0.15), rel=1e-5)
    kept = {"regression": (1, 0), "similarity": (0, 1)}
    assert set(result.terms) == {name for name, weight in zip(kept, weights, strict=True) if weight}
    for name, term in result.terms.items():
        assert term.item() == pytest.approx(textbook.distil(students, TEACHER, QUEUE, kept[name], 0.3, 0.15), rel=1e-5)


def test_a_student_that_gives_the_teachers_rows_has_learned_all_and_any_other_has_not():
    t, queue = tensor(TEACHER), tensor(QUEUE)
    same = {"student_temperature": 0.2, "teacher_temperature": 0.2}
    assert similarity_divergence(3 * t, t, queue, **same).item() == pytest.approx(0, abs=1e-6)
    for other in (-t, t.roll(1, dims=0), tensor(STUDENT)):
        assert similarity_divergence(other, t, queue, **same) > 0.1
        assert regression(other, t) > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_small_temperatures_give_finite_float32_values(dtype):
    z, t = (100 * tensor(rows).to(dtype) for rows in (STUDENT, TEACHER))
    z.requires_grad_()
    value = similarity_divergence(z, t, tensor(QUEUE), student_temperature=0.01, teacher_temperature=1e-4)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_the_queue_holds_the_teachers_newest_unit_rows_and_is_read_before_it_is_written():
    loss = make()
    outputs = loss({"first": tensor(STUDENT), "teacher": tensor(TEACHER)})
    before = loss.queue.rows.clone()
    loss.loss(outputs, torch.arange(5), Progress())
    assert torch.equal(loss.queue.rows, before)
    loss.update(outputs, torch.arange(5))
    torch.testing.assert_close(loss.queue.rows[:5], tensor(np.array([textbook.unit(row) for row in TEACHER])))
    assert torch.equal(loss.queue.rows[5:], before[5:])


def test_the_teacher_gets_no_gradient_and_is_in_no_state():
    loss = make()
    rows = tensor(TEACHER, requires_grad=True)
    loss.loss(loss({"first": tensor(STUDENT), "teacher": rows}), torch.arange(5), Progress()).total.backward()
    assert rows.grad is None
    assert {name.split(".")[0] for name in loss.state_dict()} == {"projectors", "queue"}
    assert {name.split(".")[0] for name, _ in make(similarity_weight=0.0).state_dict().items()} == {"projectors"}


def test_students_embed_in_the_teachers_space_and_what_is_logged_is_theirs():
    loss = make(("video", "audio"), dim=6).eval()
    rows = loss.embedding("audio", tensor(STUDENT))
    assert rows.shape == (5, 6)
    outputs = loss({"first": tensor(STUDENT), "second": tensor(STUDENT), "teacher": torch.randn(5, 6)})
    logged = loss.diagnostics(outputs)
    assert {"first_effective_rank", "second_embedding_spread", "first_teacher_alignment"} <= set(logged)
    assert not [name for name in logged if name.startswith("teacher")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regression_weight": -1.0}, "regression_weight is -1.0; it must be at least 0"),
        ({"regression_weight": 0.0, "similarity_weight": 0.0}, "both 0, so nothing is learned"),
        ({"student_temperature": 0.0}, "student_temperature is 0.0; it must be above 0"),
        ({"dim": 0}, r"loss.teacher.dim is 0.*fills in when it opens the teacher"),
        ({"modalities": ("image", "audio")}, r"loss distil runs on \[image\]; \[video\]; \[audio\]; \[video, audio\]"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_queue_for_more_samples_than_there_are_is_refused_and_fitted():
    with pytest.raises(TooFewSamplesError, match=r"queue_size is 21 with 20 samples.*at most 20"):
        make(queue_size=21)
    config = DistilConfig()
    assert Distil.fitted(config, 1000, 64) == {"queue_size": 960}
    assert Distil.fitted(config, 10, 64) == {"queue_size": 10}
    assert Distil.fitted(config, 100_000, 64) == {}
