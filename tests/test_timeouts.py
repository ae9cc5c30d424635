"""Nobody waits for ever for a process that is stopped: every wait has its limit, and its error names the process."""

import itertools
import os
import signal
import subprocess
import sys
import threading

import pytest

from avssl.processes import killable
from avssl.processes.limits import Limits
from avssl.processes.streams import SandboxedStreams
from avssl.processes.timeouts import process_state, with_timeout
from tests.conftest import ROOT
from tests.test_loader import make_loader
from tests.test_sandbox_streams import Stories

SERVER_IS_STOPPED = """
import os, signal
from multiprocessing import forkserver
from torch.utils.data import DataLoader
from avssl.processes.timeouts import start_loader
from avssl.processes.worker_server import worker_context
from avssl.data.workers import start_worker
def loader():
    return DataLoader(range(8), num_workers=1, multiprocessing_context=worker_context(), worker_init_fn=start_worker)
first = start_loader(loader(), 200)
next(first)
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGSTOP)
try:
    start_loader(loader(), 1)
except TimeoutError as error:
    print(error)
os.kill(first._workers[0].pid, signal.SIGSTOP)
"""


@pytest.fixture
def loader_with_workers(shards):
    """A loader that has read its first batch: what follows does not wait for a process to begin."""
    loader = make_loader(shards["train"], num_workers=2, prefetch_batches=2)
    batches = loader.epoch(0)
    next(batches)
    loader.config.worker_timeout_seconds = 1.0
    yield loader, batches
    loader.close()


@pytest.mark.quick(1)
@pytest.mark.parametrize("stopped", [[0], [1], [0, 1]], ids=str)
def test_a_worker_that_is_stopped_is_named_within_the_seconds(loader_with_workers, stopped):
    """What it has put into its queue before is no batch yet: the memory of it is still to be handed over."""
    loader, batches = loader_with_workers
    workers = loader._stream._workers
    for number in stopped:
        os.kill(workers[number].pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError) as raised:
        list(itertools.chain(batches, loader.epoch(1), loader.epoch(2)))
    for number in stopped:
        assert f"worker {number} (process {workers[number].pid}, stopped by a signal)" in str(raised.value)
    assert "no batch for 1 s (data.worker_timeout_seconds)" in str(raised.value)
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_a_stopped_worker_keeps_no_finished_loader_waiting(loader_with_workers):
    loader, _ = loader_with_workers
    (worker, _) = loader._stream._workers
    os.kill(worker.pid, signal.SIGSTOP)
    loader.close()
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_a_program_ends_beside_stopped_workers_and_a_stopped_server_of_them():
    process = subprocess.run(
        [sys.executable, "-c", SERVER_IS_STOPPED], cwd=ROOT, text=True, capture_output=True, timeout=100, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "stopped by a signal) has started none for 1 s" in process.stdout


class Stopped(Stories):
    """A process that stops before it can read a task."""

    def __setstate__(self, state):
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_a_process_that_is_to_read_media_and_never_begins_is_an_error(monkeypatch):
    monkeypatch.setattr(killable, "START_SECONDS", 2.0)
    with pytest.raises(TimeoutError, match=r"has not begun in time"):
        list(SandboxedStreams(Stopped("1 pieces"), 1, Limits(seconds=1)).run(lambda: range(1)))


def test_work_within_its_seconds_gives_its_result_or_its_error():
    assert with_timeout(10, lambda: 7, str) == 7
    assert with_timeout(0, threading.get_ident, str) == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        with_timeout(10, lambda: 1 / 0, str)
    with pytest.raises(TimeoutError, match="who it was"):
        with_timeout(0.05, threading.Event().wait, lambda: "who it was")


def test_the_state_of_a_process_is_told():
    program = "import time; print('started', flush=True); time.sleep(100)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "started\n"  # while it starts, it may wait for the disk
    assert process_state(child.pid) == "running"
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert process_state(child.pid) == "stopped by a signal"
    child.kill()
    child.communicate()
    assert process_state(child.pid) == "dead"
    assert process_state(None) == "dead"
