"""Signals as schedulers send them, to whole process groups: a run saves, ends and goes on bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avssl.processes import stopping
from tests.conftest import ROOT, TINY, run_python

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
RUN = [
    "recipes/pretrain.py", "recipes/configs/avid.yaml", *TINY, "log_every_steps=10", "data.num_workers=1",
    "optim.schedule=constant", "optim.warmup_steps=0",
]  # fmt: skip
LOADER = """
import os, signal, subprocess
from multiprocessing.connection import wait
from torch.utils.data import DataLoader
from avssl.processes.worker_server import start_worker_server, worker_context
from avssl.data.workers import start_worker
from avssl.processes.stopping import STOP_SIGNALS
asked = []
for number in STOP_SIGNALS:
    signal.signal(number, lambda number, frame: asked.append(number))
start_worker_server()
loader = DataLoader(range(40), num_workers=2, multiprocessing_context=worker_context(), worker_init_fn=start_worker)
for number, item in enumerate(loader):
    if number == 5:
        group = os.getpgid(0)
        kill = "; ".join(f"kill -{one} -{group}" for one in map(int, STOP_SIGNALS))
        subprocess.run(["sh", "-c", kill], start_new_session=True, check=True)
        workers = [process.sentinel for process in __import__("multiprocessing").active_children()]
        assert len(workers) == 2
        assert wait(workers, 0.5) == []
assert number == 39 and sorted(asked) == sorted(STOP_SIGNALS)
iterator = iter(loader)
next(iterator)
for process in __import__("multiprocessing").active_children():
    process.terminate()  # its owner may
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
print("END")
os._exit(0)
"""


def environment():
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def family(pid):
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def send_to_all(pid, number):
    """As a scheduler signals all that runs in a job."""
    for one in family(pid):
        os.kill(one, number)


def stopped(command, run, number, send):
    """Start it, wait until ten steps are logged, send the signal; (status, output, steps of its checkpoints)."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.05)
        every = family(process.pid)
        send(process.pid, number)
        output, _ = process.communicate(timeout=240)
    while any(is_running(one) for one in every):  # a launcher can end before those that it has started
        time.sleep(0.05)
    return process.returncode, output, sorted(int(path.name[5:]) for path in run.glob("step_*"))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
def test_workers_of_a_loader_heed_their_owner_and_no_signal_of_their_group():
    process = subprocess.run(
        [sys.executable, "-c", LOADER], cwd=ROOT, env=environment(), text=True, capture_output=True,
        start_new_session=True, check=False,
    )  # fmt: skip
    assert process.stdout == "END\n", process.stderr


def test_processes_agree_at_every_step_and_stop_when_one_was_asked(monkeypatch):
    """Two processes whose sums are made here; the other one is asked before the third step."""
    others = iter([0.0, 0.0, 1.0])
    monkeypatch.setattr("avssl.distributed.is_active", lambda: True)
    monkeypatch.setattr("avssl.distributed.all_sum", lambda own: own + next(others))
    handlers = {number: signal.getsignal(number) for number in stopping.STOP_SIGNALS}
    try:
        stop = stopping.StopSignal(torch.device("cpu"))
        assert [stop.poll(), stop.poll(), stop.poll()] == [False, False, True]
        assert stop.is_agreed
        assert not stop.is_requested
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_pass_over_all_samples_is_given_up_when_a_stop_is_asked_for(number):
    handlers = {one: signal.getsignal(one) for one in stopping.STOP_SIGNALS}
    ended = []

    def embed_all(names):
        try:
            yield from names
        finally:
            ended.append(names)

    try:
        stop = stopping.StopSignal(torch.device("cpu"))
        assert list(stop.interruptible(embed_all, 3)("abcd")) == list("abcd")
        os.kill(os.getpid(), number)
        with pytest.raises(stopping.StoppedError):
            list(stop.interruptible(embed_all, 3)("efgh"))
        assert ended == ["abcd", "efgh"]
        assert list(stop.interruptible(embed_all, 0)("ijkl")) == list("ijkl")  # a batch that not all processes have
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


@pytest.mark.slow
def test_sigterm_to_all_processes_of_torchrun_saves_at_that_step_and_resumes_bit_for_bit(shards, tmp_path):
    run, straight = tmp_path / "stopped", tmp_path / "straight"
    command = [*TORCHRUN, *RUN, f"data.shards={shards['train']}"]
    status, output, steps = stopped([*command, f"run={run}"], run, signal.SIGTERM, send_to_all)
    assert status == 1, output  # torchrun's own
    assert len(steps) == 1, output
    assert f"stopped by signal at step {steps[0]}" in output
    rest = output.replace("shutting down workers", "").replace("2 processes with 1 worker", "")
    assert "worker" not in rest, output
    more = f"steps={steps[0] + 3}"
    for folder in (run, straight):
        run_python(*command, f"run={folder}", more)
    one, two = (load_file(folder / "encoders.safetensors") for folder in (run, straight))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number", "send", "expected"),
    [
        ([*TORCHRUN, "--signals-to-handle", "SIGTERM,SIGUSR1"], signal.SIGUSR1, send_to_all, 1),
        (TORCHRUN, signal.SIGTERM, os.kill, 1),
        (TORCHRUN, signal.SIGTERM, os.killpg, 1),
        (TORCHRUN, signal.SIGUSR1, os.kill, -signal.SIGUSR1),
        (TORCHRUN, signal.SIGKILL, os.kill, -signal.SIGKILL),
        (["-m", "accelerate.commands.launch"], signal.SIGTERM, os.kill, -signal.SIGTERM),
        ([], signal.SIGTERM, os.killpg, 75),
        ([], signal.SIGUSR1, send_to_all, 75),
    ],
    ids=["slurm usr1", "kubernetes", "group", "usr1 kills torchrun", "torchrun killed", "accelerate", "python", "usr1"],
)
def test_however_a_signal_comes_a_checkpoint_is_there(launcher, number, send, expected, shards, tmp_path):
    """The launcher's status is what a scheduler sees; without one it is the run's own."""
    run = tmp_path / "run"
    command = [*launcher, *RUN, f"data.shards={shards['train']}", f"run={run}", "stopped_status=75"]
    status, output, steps = stopped(command, run, number, send)
    assert len(steps) == 1, output
    assert status == expected, output
    assert json.loads((run / f"step_{steps[0]:06d}" / "progress.json").read_text())["progress"]["step"] == steps[0]
    assert f"stopped by signal at step {steps[0]}" in output
