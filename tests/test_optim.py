"""Optimizers and learning rates against closed forms."""

import math

import numpy as np
import pytest
import torch

from avssl.optim.build import build_optimizer, forget, learning_rate, set_schedules, weight_decay
from avssl.optim.config import OptimConfig
from avssl.optim.lars import LARS


def textbook_lars(weight, gradients, lr, weight_decay, momentum, trust):
    """d = g + wd w; q = trust |w| / |d|; v = momentum v + q d; w = w - lr v; vectors get neither wd nor q."""
    weight, velocity = weight.astype(np.float64).copy(), np.zeros(weight.shape)
    for gradient in gradients:
        direction = gradient.astype(np.float64)
        if weight.ndim > 1:
            direction = direction + weight_decay * weight
            norms = np.linalg.norm(weight), np.linalg.norm(direction)
            direction = direction * (trust * norms[0] / norms[1] if min(norms) > 0 else 1.0)
        velocity = momentum * velocity + direction
        weight = weight - lr * velocity
    return weight


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 1, 2), (5,)])
def test_lars_equals_the_textbook(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(4)]
    weight = torch.nn.Parameter(start.clone())
    optimizer = LARS([weight], lr=0.3, weight_decay=0.1, momentum=0.9, trust=0.02)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    expected = textbook_lars(start.numpy(), [g.numpy() for g in gradients], 0.3, 0.1, 0.9, 0.02)
    np.testing.assert_allclose(weight.detach(), expected, rtol=1e-5)


def test_lars_keeps_a_zero_weight_and_a_zero_gradient_finite():
    weight, still = torch.nn.Parameter(torch.zeros(3, 3)), torch.nn.Parameter(torch.ones(3, 3))
    optimizer = LARS([weight, still], lr=1.0)
    weight.grad, still.grad = torch.ones(3, 3), torch.zeros(3, 3)
    optimizer.step()
    assert torch.equal(weight.detach(), -torch.ones(3, 3))
    assert torch.equal(still.detach(), torch.ones(3, 3))


@pytest.mark.parametrize(
    ("options", "step", "expected"),
    [
        ({}, 0, 1.0),
        ({}, 99, 1.0),
        ({"warmup_steps": 10}, 0, 0.1),
        ({"warmup_steps": 10}, 9, 1.0),
        ({"warmup_steps": 10}, 10, 1.0),
        ({"schedule": "cosine"}, 0, 1.0),
        ({"schedule": "cosine"}, 50, 0.5),
        ({"schedule": "cosine", "final_lr": 0.2}, 100, 0.2),
        ({"schedule": "cosine", "warmup_steps": 20}, 60, 0.5),
        ({"schedule": "cosine"}, 25, 0.5 * (1 + math.cos(math.pi / 4))),
        ({"schedule": "multistep", "milestone_steps": [30, 60]}, 29, 1.0),
        ({"schedule": "multistep", "milestone_steps": [30, 60]}, 30, 0.1),
        ({"schedule": "multistep", "milestone_steps": [60, 30], "gamma": 0.5}, 75, 0.25),
    ],
)
def test_the_learning_rate_is_the_one_that_the_schedule_says(options, step, expected):
    assert learning_rate(OptimConfig(lr=1.0, **options), step, 100) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_every_optimizer_steps_and_keeps_a_groups_own_scale(name):
    first, second = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    config = OptimConfig(name=name, lr=0.4)
    optimizer = build_optimizer(config, [{"params": [first]}, {"params": [second], "lr_scale": 0.5}])
    set_schedules(optimizer, config, 0, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.2]
    first.grad = second.grad = torch.ones(2, 2)
    optimizer.step()
    assert not torch.equal(first.detach(), torch.ones(2, 2))
    assert (1 - first.detach()).sum() == pytest.approx(2 * (1 - second.detach()).sum().item(), rel=1e-3)


def test_a_group_with_a_constant_learning_rate_stays_out_of_the_schedule():
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    config = OptimConfig(name="sgd", lr=1.0, schedule="cosine")
    optimizer = build_optimizer(config, [{"params": [first]}, {"params": [second], "constant_lr": True}])
    set_schedules(optimizer, config, 50, 100)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.5), 1.0]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_weight_decay_follows_a_cosine_of_its_own_and_biases_stay_without(name):
    layer, own = torch.nn.Linear(3, 2), torch.nn.Parameter(torch.ones(2, 2))
    config = OptimConfig(name=name, weight_decay=0.1, final_weight_decay=0.5, exclude_biases=True, warmup_steps=40)
    optimizer = build_optimizer(config, [{"params": list(layer.parameters())}, {"params": [own], "weight_decay": 0.3}])
    decays = {}
    for step in (0, 25, 50, 100, 120):
        set_schedules(optimizer, config, step, 100)
        decays[step] = {tuple(weight.shape): group["weight_decay"]
                        for group in optimizer.param_groups for weight in group["params"]}  # fmt: skip
    expected = {0: 0.1, 25: 0.3 - 0.2 * math.cos(math.pi / 4), 50: 0.3, 100: 0.5, 120: 0.5}
    assert {step: decay[2, 3] for step, decay in decays.items()} == pytest.approx(expected)
    assert {decay[2, 2] for decay in decays.values()} == {0.3}
    if name != "lars":  # which leaves biases out by itself
        assert {decay[(2,)] for decay in decays.values()} == {0.0}
    constant = OptimConfig(name=name, weight_decay=0.1)
    set_schedules(build_optimizer(constant, [{"params": [own]}]), constant, 50, 100)
    assert weight_decay(constant, 50, 100) == 0.1


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_biases_can_be_excluded_from_weight_decay_and_given_a_learning_rate_of_their_own(name):
    layer = torch.nn.Linear(3, 2)
    config = OptimConfig(name=name, lr=1.0, weight_decay=0.1, exclude_biases=True, bias_lr_scale=0.25)
    optimizer = build_optimizer(config, [{"params": list(layer.parameters())}])
    set_schedules(optimizer, config, 0, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.25]
    before = layer.bias.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step()
    assert torch.equal(layer.bias.detach(), before)  # no gradient, no decay, no change


def test_lars_without_exclusion_treats_a_bias_as_a_weight():
    bias = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = build_optimizer(
        OptimConfig(name="lars", lr=1.0, weight_decay=0.5, exclude_biases=False), [{"params": [bias]}]
    )
    bias.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    direction = torch.tensor([1.5, 3.0])  # g + wd w
    expected = torch.tensor([3.0, 4.0]) - 0.001 * 5.0 / direction.norm() * direction
    torch.testing.assert_close(bias.detach(), expected)


def test_forgetting_a_parameter_drops_its_moments_and_no_others():
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimConfig(name="adam"), [{"params": [first, second]}])
    first.grad = second.grad = torch.ones(2)
    optimizer.step()
    forget(optimizer)([first])
    assert first not in optimizer.state
    assert second in optimizer.state


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_steps_equal_plain_ones_for_parameters_that_start_late_or_lose_their_moments(name):
    """Prototypes that are frozen at first, and classifiers that are reset."""
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        early, late = (torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64)) for _ in range(2))
        config = OptimConfig(name=name, lr=0.1, momentum=0.9, weight_decay=0.01, fused=fused)
        optimizer = build_optimizer(config, [{"params": [early, late]}])
        for step in range(6):
            optimizer.zero_grad(set_to_none=True)
            loss = early.square().sum() + (late.sin().sum() if step >= 2 else 0.0)
            loss.backward()
            optimizer.step()
            if step == 3:
                forget(optimizer)([early])
        ends.append(torch.cat([early.detach(), late.detach()]))
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_state_resumes_exactly_for_any_memory_order_of_its_weights(name, before, after):
    def steps(fused, orders):
        torch.manual_seed(0)
        start, directions = (torch.randn(*shape, 4, 3, 5, 2, dtype=torch.float64) for shape in ((), (6,)))
        config = OptimConfig(name=name, lr=0.1, momentum=0.9, fused=fused)
        state, value = None, start
        for order, part in zip(orders, directions.chunk(2), strict=True):
            memory = torch.channels_last if order else torch.contiguous_format
            weight = torch.nn.Parameter(torch.empty_like(start, memory_format=memory).copy_(value))
            optimizer = build_optimizer(config, [{"params": [weight]}])
            if state is not None:
                optimizer.load_state_dict(state)
            for direction in part:
                weight.grad = torch.empty_like(weight).copy_(direction)
                optimizer.step()
            state, value = optimizer.state_dict(), weight.detach()
        return value

    torch.testing.assert_close(steps(True, (before, after)), steps(False, (before, before)))


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_runs_own_key_says_whether_a_loaded_optimizer_is_fused(name, fused):
    weight = torch.nn.Parameter(torch.ones(3))
    made = [build_optimizer(OptimConfig(name=name, fused=one), [{"params": [weight]}]) for one in (fused, not fused)]
    weight.grad = torch.ones(3)
    made[1].step()
    made[0].load_state_dict(made[1].state_dict())
    assert made[0].param_groups[0]["fused"] is fused
    made[0].step()


def test_a_group_with_a_learning_rate_of_its_own_is_refused_because_the_schedule_would_replace_it():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1e-3}]
    with pytest.raises(ValueError, match=r"has lr=0.001, which the schedule would replace; give it lr_scale"):
        build_optimizer(OptimConfig(lr=0.1), groups)
