"""MoCo against the textbook: its cross-entropy, its queue, its teacher, its shuffled batch norm."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from avssl.losses import moco
from avssl.losses.moco import MoCo, MoCoConfig, info_nce
from avssl.types import Progress
from tests.textbook import moco as textbook
from tests.textbook.gradients import gradient
from tests.thread_ranks import run_as_ranks

DIM, BATCH_SIZE = 4, 6
QUERIES, KEYS = np.random.default_rng(0).normal(size=(2, BATCH_SIZE, DIM))
QUEUE = np.random.default_rng(1).normal(size=(10, DIM))
INDEX = torch.arange(BATCH_SIZE)


class Encoder(nn.Module):
    """A linear layer, with `norm` followed by batch norm. Records its inputs."""

    def __init__(self, norm=False):
        super().__init__()
        self.dim = DIM
        self.layer = nn.Linear(DIM, DIM)
        self.norm = nn.BatchNorm1d(DIM) if norm else nn.Identity()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.norm(self.layer(x))


def make(pair=("image", "image"), norm=False, num_samples=50, **options):
    torch.manual_seed(0)
    small = {"queue_size": 10, "embedding_dim": DIM, "shuffle_groups": 0, "temperature": 0.2}
    config = MoCoConfig(modalities=pair, **(small | options))
    return MoCo(config, {modality: Encoder(norm) for modality in set(pair)}, num_samples)


def views(seed=1, batch_size=BATCH_SIZE):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch_size, DIM, generator=generator) for name in ("first", "second")}


def numpy(tensor):
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_info_nce_equals_the_textbook_in_value_and_gradient_and_keys_and_queue_get_none(temperature):
    q, k, queue = (torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (QUERIES, KEYS, QUEUE))
    value = info_nce(q, k, queue, temperature)
    value.backward()
    assert value.item() == pytest.approx(textbook.info_nce(QUERIES, KEYS, QUEUE, temperature), rel=1e-5)
    (expected,) = gradient(lambda x: textbook.info_nce(x, KEYS, QUEUE, temperature), QUERIES)
    np.testing.assert_allclose(q.grad, expected, atol=1e-5 * np.abs(expected).max())
    assert k.grad is None
    assert queue.grad is None


def test_at_a_high_temperature_the_loss_is_the_logarithm_of_the_number_of_candidates():
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (torch.randn(rows, 8, generator=generator) for rows in (4, 4, 65_536))
    assert info_nce(q, k, queue, 1e6).item() == pytest.approx(math.log(65_537), rel=1e-4)
    assert math.log(65_537) == pytest.approx(11.09, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_identical_half_precision_embeddings_give_finite_float32_losses_and_gradients(dtype):
    z = torch.full((8, 16), 100.0, dtype=dtype, requires_grad=True)
    value = info_nce(z, z, z, 0.05)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(math.log(9), rel=1e-5)
    assert z.grad.isfinite().all()


def test_one_modality_queries_with_the_first_view_and_keys_with_the_second():
    loss, given = make(), views()
    outputs = loss(given)
    assert set(outputs) == {"first", "second_key"}
    queue = numpy(loss.queue("image").rows)
    expected = textbook.info_nce(numpy(outputs["first"]), numpy(outputs["second_key"]), queue, 0.2)
    result = loss.loss(outputs, INDEX, Progress())
    assert result.total.item() == pytest.approx(expected, rel=1e-5)
    student = loss.projectors["image"](loss.encoders["image"](given["first"]))
    torch.testing.assert_close(outputs["first"], student)
    teacher = loss.projectors["image"](loss.encoders["image"](given["second"]))  # equal to its student at the start
    torch.testing.assert_close(outputs["second_key"], teacher)
    assert not outputs["second_key"].requires_grad


def test_two_modalities_query_each_others_queue_in_both_directions():
    loss = make(("video", "audio"))
    outputs = loss(views())
    directions = [("first", "second", "audio"), ("second", "first", "video")]
    expected = [
        textbook.info_nce(numpy(outputs[q]), numpy(outputs[f"{k}_key"]), numpy(loss.queue(m).rows), 0.2)
        for q, k, m in directions
    ]
    result = loss.loss(outputs, INDEX, Progress())
    assert result.total.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert [term.item() for term in result.terms.values()] == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(loss.queue("audio").rows, loss.queue("video").rows)
    loss.update(outputs, INDEX)
    for name, modality in (("first", "video"), ("second", "audio")):
        np.testing.assert_allclose(
            loss.queue(modality).rows[:BATCH_SIZE], textbook.unit(numpy(outputs[f"{name}_key"])), atol=1e-6
        )


def test_a_batch_is_compared_with_keys_of_earlier_batches_and_replaces_the_oldest():
    """Five batches of 6 in a queue of 10: it wraps inside a batch."""
    loss = make()
    queue, place = numpy(loss.queue("image").rows), 0
    for seed in range(5):
        outputs = loss(views(seed))
        before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
        value = loss.loss(outputs, INDEX, Progress(batch=seed)).total.item()
        assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())
        expected = textbook.info_nce(numpy(outputs["first"]), numpy(outputs["second_key"]), queue, 0.2)
        assert value == pytest.approx(expected, rel=1e-5)
        loss.update(outputs, INDEX)
        queue, place = textbook.pushed(queue, place, numpy(outputs["second_key"]))
        np.testing.assert_allclose(loss.queue("image").rows, queue, atol=1e-6)


def test_the_teacher_follows_the_parameters_after_each_step_and_takes_no_running_statistics():
    loss = make(norm=True, teacher_momentum=0.9)
    optimizer = torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.5)
    teacher, start = loss.teachers["image"], {}
    start = {name: numpy(p) for name, p in loss.student("image").named_parameters()}
    assert all(np.array_equal(numpy(p), start[name]) for name, p in teacher.named_parameters())
    students = []
    for seed in range(3):
        loss.loss(loss(views(seed)), INDEX, Progress()).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        statistics = teacher[0].norm.running_mean.clone()
        loss.after_step(Progress(step=seed + 1))
        assert torch.equal(teacher[0].norm.running_mean, statistics)
        students.append({name: numpy(p) for name, p in loss.student("image").named_parameters()})
    assert not torch.equal(statistics, loss.encoders["image"].norm.running_mean)
    for name, parameter in teacher.named_parameters():
        expected = textbook.teacher(start[name], [student[name] for student in students], 0.9)
        np.testing.assert_allclose(numpy(parameter), expected, atol=1e-6, err_msg=name)
        assert not parameter.requires_grad


def test_with_a_constant_student_the_initial_teacher_keeps_the_power_of_the_momentum():
    loss = make(teacher_momentum=0.99)
    with torch.no_grad():
        for name, parameter in loss.named_parameters():
            parameter.fill_(1.0 if name.startswith("teachers.") else 0.0)
    for _ in range(10):
        loss.after_step(Progress())
    for parameter in loss.teachers.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.99**10))


def normalized_in(parts, x, encoder):
    """Textbook batch norm of the encoder's linear layer for the rows of x, each within its group."""
    weight, bias = numpy(encoder.layer.weight), numpy(encoder.layer.bias)
    result = np.empty((len(x), DIM))
    for part in parts:
        rows = [int((x == row).all(dim=1).nonzero()) for row in part]
        result[rows] = textbook.batch_norm(numpy(x[rows]) @ weight.T + bias)
    return result


def test_shuffled_keys_come_in_random_groups_with_statistics_of_their_own_and_return_to_their_places():
    loss, given = make(norm=True, shuffle_groups=3), views(batch_size=12)
    loss.projectors["image"] = nn.Identity()
    loss.teachers["image"][1] = nn.Identity()
    student, teacher = loss.encoders["image"], loss.teachers["image"][0]
    outputs = loss(given)
    assert [len(part) for part in teacher.seen] == [4, 4, 4]
    together = torch.cat(teacher.seen)
    assert not torch.equal(together, given["second"])
    assert sorted(together.tolist()) == sorted(given["second"].tolist())
    expected = normalized_in(teacher.seen, given["second"], teacher)
    np.testing.assert_allclose(outputs["second_key"], expected, atol=1e-5)
    assert torch.equal(torch.cat(student.seen), given["first"])
    expected = normalized_in(given["first"].split(4), given["first"], student)
    np.testing.assert_allclose(outputs["first"].detach(), expected, atol=1e-5)


def test_without_groups_and_in_eval_mode_rows_stay_together_in_order():
    for loss in (make(norm=True), make(norm=True, shuffle_groups=3).eval()):
        given = views(batch_size=12)
        loss(given)
        (seen,) = loss.teachers["image"][0].seen
        assert torch.equal(seen, given["second"])
    assert set(loss({"first": given["first"]})) == {"first"}


def test_the_order_is_a_function_of_the_seed_and_of_the_keys_ever_pushed():
    def order(loss, state=None):
        if state:
            loss.load_state_dict(state)
        loss.teachers["image"][0].seen.clear()
        loss(views(batch_size=12))
        return torch.cat(loss.teachers["image"][0].seen)

    loss, options = make(shuffle_groups=3), {"shuffle_groups": 3}
    first = order(loss)
    assert torch.equal(order(loss), first)
    loss.update(loss(views(batch_size=12)), torch.arange(12))
    second = order(loss)
    assert not torch.equal(second, first)
    assert torch.equal(order(make(**options), loss.state_dict()), second)
    assert not torch.equal(order(make(**options, seed=1)), first)


@pytest.mark.parametrize("pair", [("image", "image"), ("video", "audio")])
def test_two_ranks_shuffle_as_one_process_does(pair, monkeypatch):
    """Batch norm, three batches, the queue between them: four groups, two per rank."""
    alone = make(pair, norm=True, shuffle_groups=4, queue_size=16)
    expected = []
    for seed in range(3):
        outputs = alone(views(seed, 16))
        expected.append((outputs, alone.loss(outputs, torch.arange(16), Progress()).total.item()))
        alone.update(outputs, torch.arange(16))
    replicas = [make(pair, norm=True, shuffle_groups=4, queue_size=16) for _ in range(2)]

    def train(rank):
        mine, found = slice(8 * rank, 8 * rank + 8), []
        for seed in range(3):
            outputs = replicas[rank]({name: view[mine] for name, view in views(seed, 16).items()})
            found.append((outputs, replicas[rank].loss(outputs, torch.arange(8), Progress()).total.item()))
            replicas[rank].update(outputs, torch.arange(8))
        return found

    ranks = run_as_ranks(monkeypatch, moco, 2, train)
    for step, (outputs, value) in enumerate(expected):
        for name, rows in outputs.items():
            torch.testing.assert_close(torch.cat([found[step][0][name] for found in ranks]), rows)
        assert np.mean([found[step][1] for found in ranks]) == pytest.approx(value, rel=1e-5)
    for modality in set(pair):
        assert torch.equal(replicas[0].queue(modality).rows, replicas[1].queue(modality).rows)
        torch.testing.assert_close(replicas[0].queue(modality).rows, alone.queue(modality).rows)


def test_v1_is_a_linear_head_and_v2_one_hidden_layer_without_batch_norm():
    class Wide(Encoder):
        def __init__(self):
            super().__init__()
            self.dim = 2048

    def shapes(**options):
        config = MoCoConfig(queue_size=8, **options)
        return [tuple(p.shape) for p in MoCo(config, {"image": Wide()}, 8).projectors.parameters()]

    assert shapes() == [(128, 2048), (128,)]
    assert shapes(projector_hidden_dims=(2048,)) == [(2048, 2048), (2048,), (128, 2048), (128,)]


def test_what_cannot_work_is_refused_with_what_is_allowed(monkeypatch):
    with pytest.raises(ValueError, match=r"queue_size is 10 with 9 samples.*choose at most 9"):
        make(num_samples=9)
    with pytest.raises(ValueError, match="at least one row"):
        make(queue_size=0)
    with pytest.raises(ValueError, match=r"teacher_momentum is -0\.1"):
        make(teacher_momentum=-0.1)
    with pytest.raises(ValueError, match=r"queue_size is 10, less than data\.global_batch_size 12"):
        make().check_batch_size(12)
    for groups, batch_size in ((3, 8), (4, 4), (-2, 8)):
        with pytest.raises(ValueError, match=rf"shuffle_groups is {groups}; .*of at least 2, or 0"):
            make(shuffle_groups=groups).check_batch_size(batch_size)
    monkeypatch.setattr(moco, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="shuffle_groups is 2; it must be a multiple of the 4 processes"):
        make(shuffle_groups=2).check_batch_size(8)
    make(shuffle_groups=4).check_batch_size(8)
    make().check_batch_size(10)
