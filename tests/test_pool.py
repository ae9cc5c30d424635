"""The sandbox: whatever one task does to its process, the others come out, in order, and it has a typed reason."""

import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest

from avssl.processes import pool
from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox, in_processes
from avssl.types import MediaError
from tests.conftest import ROOT


def misbehave(task):
    """Each word does something else to the process."""
    match task:
        case "hang":
            time.sleep(60)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "memory":
            return len(bytearray(1 << 30))
        case "bug":
            raise IndexError("list index out of range")
        case "media":
            raise MediaError("no_audio", "it has none")
    return f"did {task}"


REASONS = {
    "hang": "timeout", "segfault": "crashed", "killed": "out_of_memory", "exit": "crashed", "memory": "out_of_memory",
    "bug": "crashed", "media": "no_audio",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_task_that_misbehaves_costs_itself_alone_and_says_why(num_workers):
    tasks = [f"good {number}" for number in range(8)]
    for number, word in enumerate(REASONS):
        tasks.insert(2 * number, word)
    with Sandbox(num_workers, Limits(seconds=2.0, memory_bytes=256 << 20)) as sandbox:
        found = list(sandbox.run(misbehave, tasks, str))
    assert [task for task, _ in found] == tasks
    for task, outcome in found:
        if task in REASONS:
            assert isinstance(outcome, MediaError), task
            assert outcome.reason == REASONS[task]
            assert task in outcome.message or task == "media"
        else:
            assert outcome == f"did {task}"


def test_tasks_are_taken_only_a_few_ahead_of_what_is_done():
    taken = []

    def tasks():
        for number in range(400):
            taken.append(number)
            yield f"good {number}"

    with Sandbox(2, Limits()) as sandbox:
        results = sandbox.run(misbehave, tasks(), str)
        next(results)
        assert len(taken) <= 33
        results.close()


def test_leaving_does_not_wait_for_a_task_that_hangs():
    began = time.monotonic()
    with Sandbox(1, Limits(seconds=50.0)) as sandbox:
        assert next(iter(sandbox.run(misbehave, ["good 1", "hang"], str)))[1] == "did good 1"
    assert time.monotonic() - began < 20


def read_variable(name):
    return os.environ.get(name)


def test_workers_see_the_environment_of_the_run_and_not_that_of_an_earlier_one(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("AVSSL_TEST", value)
        with Sandbox(1, Limits()) as sandbox:
            assert [found for _, found in sandbox.run(read_variable, ["AVSSL_TEST"], str)] == [value]
        assert [found for _, found in in_processes(read_variable, ["AVSSL_TEST"], 1, "read", [1])] == [value]


# A module of its own: conftest sets the variables that this is about.
THREADS_OF_A_WORKER = """
import threadpoolctl

from avssl.processes.pool import in_processes


def native_threads(_):
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


if __name__ == "__main__":
    import threads_of_a_worker

    print([found for _, found in in_processes(threads_of_a_worker.native_threads, [None], 1, "threads", [1])])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "given"), [({}, 1), ({"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}, 2)])
def test_the_libraries_of_a_worker_use_one_thread_unless_the_environment_says_otherwise(asked, given, tmp_path):
    script = tmp_path / "threads_of_a_worker.py"
    script.write_text(THREADS_OF_A_WORKER)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, str(script)]
    environment |= asked | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)
    assert done.stdout.strip() == f"[{{{given}}}]"


@pytest.mark.parametrize("given", [{"seconds": 0.0}, {"memory_bytes": 1000}])
def test_limits_that_nothing_can_keep_are_refused(given):
    with pytest.raises(ValueError, match="allowed are"):
        Limits(**given)


def test_results_that_were_taken_are_kept_nowhere():
    taken = []
    for _, result in in_processes(np.arange, range(1, 9), 1, "count", [1] * 8):
        taken.append(weakref.ref(result))
        del result
        assert sum(one() is not None for one in taken) <= 1  # the newest, which the generator has just handed over


def stop(number):
    os.kill(os.getpid(), signal.SIGSTOP)


def end(number):
    os._exit(7)


@pytest.mark.parametrize(("work", "error", "said"), [
    (stop, TimeoutError, "stop: no answer for 1 s .*stopped by a signal"),
    (end, ChildProcessError, "end: .*status 7"),
])  # fmt: skip
def test_a_process_without_limits_that_is_stopped_or_dies_is_an_error(work, error, said, monkeypatch):
    monkeypatch.setattr(pool, "STOPPED_SECONDS", 1.0)
    with pytest.raises(error, match=said):
        list(in_processes(work, [1, 2], 2, work.__name__, [1, 1]))


def test_what_a_task_without_limits_raises_comes_as_it_was_with_its_traceback():
    with pytest.raises(IndexError, match="out of range") as raised:
        list(in_processes(misbehave, ["bug"], 1, "work", [1]))
    assert "in misbehave" in raised.value.__notes__[0]
