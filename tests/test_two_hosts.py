"""Two hosts of network namespaces train with the command of docs/clusters.md: one is lost, the other names it and ends,
and the same command goes on with the same bits.
"""

import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY, run_python
from tests.docs_pages import known_as
from tests.two_hosts import missing, two_hosts, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
KEYS = [*TINY, "data.num_workers=1", "log_every_steps=10", "checkpoint_every_steps=10", "steps=120"]
GO_ON = "Start the same command again, on every host: a training goes on from its newest checkpoint"


@pytest.fixture(scope="module")
def shared(shards, tmp_path_factory):
    """The folder that both hosts see, with shards and a run of two processes of one host that nothing has stopped."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(shards["train"], folder / "shards" / "train")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "recipes/pretrain.py", "avid"]
    run_python(*launcher, *KEYS, f"data.shards={folder}/shards/train", f"run={folder}/runs/straight")
    return folder


class Training:
    """The command of the page on both hosts, as tests/conftest.py makes it small."""

    def __init__(self, shared, hosts, run, seconds):
        self.hosts, self.run, self.processes = hosts, shared / "runs" / run, []
        self.logs = [shared / f"{run}-{host.name}" for host in hosts]
        command = known_as("docs/clusters.md", "torchrun").replace("--nproc-per-node 8", "--nproc-per-node 1")
        command = command.replace("=/shared/", f"={shared}/").replace("/runs/avid", f"/runs/{run}")
        self.command = f"{command} {shlex.join(KEYS)} process_timeout_seconds={seconds}"

    def start(self):
        """The processes of both hosts."""
        self.processes = [host.start(self.command, log) for host, log in zip(self.hosts, self.logs, strict=True)]
        return self.processes

    def said(self):
        return "\n".join(f"{log.name}\n{log.read_text()}" for log in self.logs)

    def wait_for_checkpoint(self):
        """A checkpoint is there, and more steps are to come."""
        wait_until(lambda: self._has_checkpoint() or any(one.poll() for one in self.processes), 600, self.said)
        assert self._has_checkpoint(), self.said()

    def _has_checkpoint(self):
        return any(self.run.glob("step_*"))

    def finish(self):
        assert [process.wait(600) for process in self.processes] == [0, 0], self.said()
        straight, lost = (
            load_file(folder / "encoders.safetensors") for folder in (self.run.parent / "straight", self.run)
        )
        assert straight.keys() == lost.keys()
        assert [key for key, value in straight.items() if not torch.equal(lost[key], value)] == []


def test_a_host_whose_cable_is_pulled_is_named_and_the_same_command_goes_on(shared):
    with two_hosts(shared) as hosts:
        training = Training(shared, hosts, "cable", seconds=12)
        on_a, on_b = training.start()
        training.wait_for_checkpoint()
        hosts[1].pull_cable()
        assert on_a.wait(200) == 1, training.said()
        silence = f"no sign of life from process {{}} on {{}} for 12 s (process_timeout_seconds). {GO_ON}\n"
        wait_until(lambda: f"error of process 1: {silence.format(0, 'host-a')}" in training.said(), 200, training.said)
        assert f"error: {silence.format(1, 'host-b')}" in training.logs[0].read_text()
        assert "resource_tracker" not in training.said()
        hosts[1].kill_all()  # its torchrun waits for the first host
        on_b.wait(60)
        hosts[1].plug_cable()
        training.start()
        training.finish()
        assert "going on from" in training.logs[0].read_text()


def test_a_host_whose_processes_are_killed_is_named_and_the_same_command_goes_on(shared):
    with two_hosts(shared) as hosts:
        training = Training(shared, hosts, "killed", seconds=12)
        on_a, on_b = training.start()
        training.wait_for_checkpoint()
        hosts[1].kill_all()
        assert on_a.wait(200) == 1, training.said()
        assert "error: the connection to process 1 on host-b was lost" in training.logs[0].read_text()
        on_b.wait(60)
        training.start()
        training.finish()
        assert "going on from" in training.logs[0].read_text()


def test_a_host_that_comes_back_in_time_stops_nothing(shared):
    with two_hosts(shared) as hosts:
        training = Training(shared, hosts, "back", seconds=120)
        training.start()
        training.wait_for_checkpoint()
        hosts[1].pull_cable()
        silence = "warning: no sign of life from process {} on {} for 10 s"
        for number, (log, other) in enumerate(zip(training.logs, ("host-b", "host-a"), strict=True)):
            wait_until(lambda: silence.format(1 - number, other) in log.read_text(), 200, training.said)  # noqa: B023
        hosts[1].plug_cable()
        training.finish()
        assert "process 1 on host-b is back after" in training.logs[0].read_text()
        assert "going on from" not in training.said()
