"""A training step gives a GPU its work without ever waiting for a result: nothing is read back but where it is logged.

There need be no GPU for this: operations whose result the program needs to go on (a number, a mask's positions, the
distinct values) are the same ones on a CPU, and are counted here as they are called.
"""

import json
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from avssl import losses
from avssl.ops import bank_scores
from avssl.ops.memory import MemoryBank, last_occurrence
from benchmarks.whole_step import Size, WholeStep
from tests.tiny import STEPS_PER_EPOCH, Run

# On a GPU each of these stops the program until the GPU has done all it was given.
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "bincount",
           "masked_select", "equal")  # fmt: skip
TINY = Size(
    batch_size=4, num_samples=32, num_negatives=8, num_frames=2, size_px=16,
    video={"name": "avid_video", "depth": 10, "width": 2}, audio={"name": "avid_audio", "width": 2},
    changes=("views.audio.seconds=0.5", "views.audio.rate_hz=16000", "views.audio.num_frames=24"),
)  # fmt: skip


class WaitCounter(TorchDispatchMode):
    """Counts operations that wait, by name; an index by a mask counts as nonzero, which it calls."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.found[name] += 1
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
            self.found["nonzero"] += sum(one is not None and one.dtype == torch.bool for one in args[1])
        return func(*args, **(kwargs or {}))


class ReadCounter(TorchFunctionMode):
    """Counts what takes a tensor's values out of it whole, which calls no operation on a CPU."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "cpu", "__array__"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def waits(function):
    """{operation that waits: its number of calls} during one call of the function."""
    with WaitCounter() as counter, ReadCounter(counter.found):
        function()
    return dict(+counter.found)


def test_the_counter_sees_operations_that_wait():
    rows = torch.arange(4.0)
    assert waits(lambda: rows.sum().item()) == {"_local_scalar_dense": 1}
    assert waits(lambda: rows[rows > 1])["nonzero"] >= 1
    assert waits(rows.unique) == {"_unique2": 1}
    assert waits(rows.tolist)["tolist"] == waits(rows.cpu)["cpu"] == 1
    assert waits(lambda: rows[torch.tensor([1, 2])] + 1) == {}


@pytest.fixture(autouse=True)
def read_banks_as_a_gpu_does(monkeypatch):
    """On a CPU another kernel reads the banks, which asks for the range of the indices first."""
    monkeypatch.setattr(bank_scores, "reads_any_rows", lambda: False)


@pytest.mark.quick(6)
@pytest.mark.parametrize("name", losses.names())
def test_a_step_of_the_loss_waits_for_nothing(name):
    run = Run(name, losses.get(name).pairs[0])
    for _ in range(STEPS_PER_EPOCH + 1):  # past all that happens in a run's first epoch
        run.step()
    assert waits(run.step) == {}


@pytest.fixture
def whole_step():
    step = WholeStep(TINY)
    step.cfg.log_every_steps = 3
    step.whole()
    yield step
    step.close()


def test_only_a_step_that_logs_reads_anything_back(whole_step):
    """What is drawn for the views lies in host memory; looking at it there waits for nobody."""
    drawn = waits(whole_step.make_views)
    for weight in whole_step.loss.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer = waits(whole_step.optimize)  # the counts of steps of the plain Adam lie in host memory, too
    expected = Counter(drawn) + Counter(optimizer)
    whole_step.progress.step = 3
    assert waits(whole_step.whole) == expected
    logged = []
    while whole_step.progress.step < 9:
        logged.append(waits(whole_step.whole) != expected)
    assert logged == [False, True, False, False, True]
    steps = [json.loads(line)["step"] for line in whole_step.metrics.read_text().splitlines()]
    assert steps == [6, 9]


def test_of_equal_indices_the_last_one_is_written():
    assert last_occurrence(torch.tensor([5, 2, 5, 7, 2, 5])).tolist() == [5, 4, 5, 3, 4, 5]
    bank = MemoryBank(6, 2, seed=0)
    bank.update(torch.tensor([3, 1, 3]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), momentum=0.0)
    assert bank.rows[3].tolist() == [0.0, -1.0]
