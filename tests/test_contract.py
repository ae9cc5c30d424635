"""What must hold for every loss of the registry, on every combination of modalities in its `pairs`."""

import copy
import json

import pytest
import torch

from avssl import losses
from avssl.transforms.config import ViewsConfig, check_views
from tests.conftest import run_ranks
from tests.soak.losses_on_ranks import LARGEST_DIFFERENCE
from tests.tiny import NUM_SAMPLES, Run, build_config, cases

CASES = cases()


def identify(case):
    name, pair = case
    return f"{name}-{'-'.join(pair)}"


LAST = set(dict(CASES).items())  # of each loss the last combination; the others are slow
a_case_of_each = pytest.mark.parametrize(
    "case", [pytest.param(case, id=identify(case), marks=[] if case in LAST else pytest.mark.slow) for case in CASES]
)


def test_every_loss_of_the_registry_is_tested_here_on_something():
    assert {name for name, _ in CASES} == set(losses.names())


@pytest.mark.parametrize("case", CASES, ids=map(identify, CASES))
def test_the_views_of_a_loss_can_be_made_without_a_word_of_the_recipe(case):
    name, pair = case
    views = losses.get(name).views(build_config(name, pair))
    check_views(views, ViewsConfig())  # their augmentation sets among others
    assert {view.modality for view in views} == set(pair)


@a_case_of_each
def test_trainable_parameters_get_finite_gradients_and_frozen_ones_none(case):
    run = Run(*case)
    run.step()
    trainable = dict(run.loss.named_parameters())
    grouped = {id(one) for group in run.loss.param_groups() for one in group["params"]}
    for name, parameter in trainable.items():
        if parameter.requires_grad:
            assert id(parameter) in grouped, f"{name} is in no group of the optimizer"
        else:
            assert parameter.grad is None, f"{name} is frozen and has a gradient"
            assert id(parameter) not in grouped
    run = Run(*case)
    run.loss.before_step = lambda progress: None  # a loss may drop gradients there
    run.optimizer.step = lambda: None
    run.step()
    for name, parameter in run.loss.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient"
            assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"


@a_case_of_each
def test_loss_called_twice_gives_the_same_value_and_writes_no_state(case):
    run = Run(*case)
    run.step()
    index = torch.arange(8)
    outputs = run.model(run.make_views(index, (), 7))
    before = copy.deepcopy(run.loss.state_dict())
    first, second = (run.loss.loss(outputs, index, run.progress) for _ in range(2))
    assert torch.equal(first.total, second.total)
    for name, tensor in run.loss.state_dict().items():
        assert torch.equal(tensor, before[name]), f"loss() wrote {name}"


@a_case_of_each
def test_values_are_finite_float32_scalars_without_gradient_in_the_terms(case):
    result, outputs = Run(*case).step()
    assert result.total.dtype == torch.float32
    assert result.total.shape == ()
    for name, term in result.terms.items():
        assert term.shape == (), name
        assert not term.requires_grad, name
        assert term.isfinite(), name
    for name, value in Run(*case).loss.diagnostics(outputs).items():
        assert value.isfinite(), name


@pytest.mark.quick(12)
@a_case_of_each
def test_resume_equals_the_straight_run_bit_for_bit(case):
    straight = Run(*case)
    values = [straight.step()[0].total.item() for _ in range(10)]
    first = Run(*case)
    for _ in range(6):  # in the middle of an epoch
        first.step()
    state = first.state()
    second = Run(*case)
    second.restore(state)
    assert [second.step()[0].total.item() for _ in range(4)] == values[6:]
    for name, tensor in second.loss.state_dict().items():
        assert torch.equal(tensor, straight.loss.state_dict()[name]), name


# These start each epoch, of four steps here, with new labels for the whole data set: they get one pass over the data,
# and must learn its labels.
NEW_LABELS = {"deepcluster", "deepcluster_v2", "xdc"}
STARTS_FROM = {"avid_cma": "avid"}  # as published


@pytest.mark.quick(1)
@a_case_of_each
def test_fifty_steps_on_32_samples_reduce_the_loss(case):
    name, pair = case
    run = Run(*case, optimizer="adam", lr=5e-3, total_steps=60)
    if name in STARTS_FROM:
        before = Run(STARTS_FROM[name], pair, optimizer="adam", lr=5e-3, total_steps=60)
        for _ in range(56):
            before.step()
        run.loss.load_state_dict(before.loss.state_dict(), strict=False)
    values = []
    for step in range(56):
        values.append(run.step()[0].total.item())
        if step == 0 and name in NEW_LABELS:
            run.loss.on_epoch_start = lambda context: None
    first, last = sum(values[:4]) / 4, sum(values[-4:]) / 4
    assert last < first - 0.05 * abs(first), f"from {first:.4f} to {last:.4f}"


@a_case_of_each
def test_weights_load_into_a_fresh_loss_strictly(case):
    run = Run(*case)
    run.step()
    fresh = Run(*case)
    fresh.loss.load_state_dict(run.loss.state_dict(), strict=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder with the values, gradients and state of every loss that one process computed."""
    folder = tmp_path_factory.mktemp("alone")
    run_ranks(1, "contract", str(folder), "few", "6", "0")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_compute_what_one_computes_and_hold_the_same_state(num_processes, alone):
    """Values, terms, gradients, weights, teachers, banks, labels, with and without accumulation, over ends of epochs.

    tests/soak/losses_on_ranks.py is the long one: every combination of modalities, banks split over the ranks, seeds.
    """
    run_ranks(num_processes, "contract", str(alone), "few", "6", "0")
    differences = json.loads((alone / f"differences_{num_processes}.json").read_text())
    assert {label.split("-")[0] for label in differences} == set(losses.names())
    assert {label.split("-")[-2] for label in differences} == {"1", "2"}
    wrong = [
        f"{label} {name}: {value:.1e}"
        for label, found in differences.items()
        for name, value in found.items()
        if not value < LARGEST_DIFFERENCE
    ]
    assert not wrong


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", losses.names())
def test_no_samples_or_missing_encoders_are_refused_with_a_reason(name):
    cls = losses.get(name)
    pair = cls.pairs[0]
    with pytest.raises(ValueError, match="needs encoders for"):
        cls(Run(name, pair).config, {}, NUM_SAMPLES)
