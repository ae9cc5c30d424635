"""Runs that are killed or interrupted: none of their processes is left, and none says what the user need not know."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.conftest import ROOT

LOADER = """
import time
from torch.utils.data import DataLoader
from avssl.processes.worker_server import start_worker_server, worker_context
from avssl.data.workers import start_worker
start_worker_server()
loader = DataLoader(
    range(8),
    num_workers=2,
    multiprocessing_context=worker_context(),
    worker_init_fn=start_worker,
    persistent_workers=True,
)
assert len(list(loader)) == 8
print("READY", flush=True)
time.sleep(60)
"""
SANDBOX = """
import os, time
from avssl.processes.pool import in_processes
for number, _ in in_processes(abs, [1, 2], 2, "count", [1, 1]):
    print("READY", flush=True)
    time.sleep(60)
"""
SERVER = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore Ctrl-C
from avssl.processes.worker_server import start_worker_server
start_worker_server()
time.sleep(0.5)  # the server has begun to import by now, which takes it some seconds
print("READY", flush=True)
time.sleep(60)
"""


RANK = """
import sys, time
from avssl.processes.stopping import end_with_launcher
end_with_launcher()
sys.stdout.write("READY\\n")
sys.stdout.flush()
time.sleep(60)
"""


def ended_by(arguments, send, stderr, num_ready=1):
    """The run's standard error after it was READY and `send(pid)`; AssertionError when a process of it lives on.

    All of them write to one pipe, which ends when the last one does.
    """
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            for _ in range(num_ready):
                assert process.stdout.readline() == "READY\n"
            send(process.pid)
            return process.communicate(timeout=50)[1]
        except (AssertionError, subprocess.TimeoutExpired):
            listing = ["ps", "--sid", str(process.pid), "-o", "pid,stat,etime,args"]
            left = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"processes of the run were left after 50 s, or it never began:\n{left}") from None


@pytest.mark.slow
@pytest.mark.parametrize("code", [LOADER, SANDBOX], ids=["loader", "sandbox"])
def test_nothing_is_left_or_said_of_a_run_that_was_killed(code):
    """Python's own process for semaphores takes them away, and would say so after the prompt of the shell."""
    assert ended_by(["-c", code], lambda pid: os.kill(pid, signal.SIGKILL), subprocess.PIPE) == ""


@pytest.mark.slow
def test_ctrl_c_while_the_server_of_workers_imports_is_the_runs_to_answer():
    said = ended_by(["-c", SERVER], lambda pid: os.killpg(pid, signal.SIGINT), subprocess.PIPE)
    assert said.count("Traceback") == said.count('File "<string>"') == 1, said  # the run's own


@pytest.mark.slow
def test_ranks_end_when_their_torchrun_is_killed(tmp_path):
    """Nobody else tells them: the launcher has no time to."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    ended_by(launch, lambda pid: os.kill(pid, signal.SIGKILL), subprocess.DEVNULL, num_ready=2)


def test_a_process_that_nobody_launched_stays_when_its_parent_goes(tmp_path):
    """A run in the background of a shell that is left."""
    done = tmp_path / "done"
    code = f"""
import os, time
from pathlib import Path
from avssl.processes.stopping import LAUNCHED_BY, end_with_launcher
for name in LAUNCHED_BY:
    os.environ.pop(name, None)
end_with_launcher()
parent = os.getppid()
print("READY", flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
Path({str(done)!r}).touch()
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    ended_by(["-c", parent], lambda pid: os.kill(pid, signal.SIGKILL), subprocess.DEVNULL)
    assert done.exists()  # the pipe of both has ended, so the child has
