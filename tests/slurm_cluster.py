"""Slurm's own daemons on this machine: one node of two slots, in a folder and on ports of its own, no leftovers."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

from tests.conftest import ROOT

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
DAEMONS = ("munged", "slurmctld", "slurmd")
# `low` gives way to `high`: its jobs have GraceTime to end, and are requeued. A requeued job waits two minutes in Slurm
# itself (BeginTime); `Cluster.let_begin` shortens that.
CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=180 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing():
    """The programs of Slurm and munge that are not installed."""
    return [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=PATH)]


@dataclass
class Cluster:
    """A running Slurm. environment: for its commands and all that they start."""

    folder: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen] = field(default_factory=list)

    def run(self, *command, check=True):
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{command} left with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout.strip()

    def state(self, job):
        """{name: value} of what `scontrol show job` prints."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job, *states, seconds=900):
        """Wait until the job is in one of these states, and return what is known of it."""
        deadline = time.monotonic() + seconds
        while (found := self.state(job))["JobState"] not in states:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"job {job} is {found['JobState']} and not {states} after {seconds} s\n{self.logs()}"
                )
            time.sleep(0.2)
        return found

    def let_begin(self, job):
        """Let a requeued job begin now, and not two minutes after it has ended.

        Its credential must be of a later second than the end of its first run, or slurmd takes it for that one's.
        """
        self.wait_for(job, "PENDING")
        time.sleep(2)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def logs(self):
        """The ends of the daemons' logs."""
        return "\n".join(
            f"{path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-20:])
            for path in sorted(self.folder.glob("*.log"))
        )

    def start(self, *command):
        """A daemon that ends with this process."""
        with (self.folder / f"{command[0]}.output").open("w") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *map(str, command)],
                env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.processes.append(process)

    def end(self):
        """End all jobs, then the daemons, then whatever else belongs to this cluster."""
        self.run("scancel", "--user", getuser(), check=False)
        deadline = time.monotonic() + 60
        while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.own_processes():
            os.kill(pid, signal.SIGKILL)

    def own_processes(self):
        """All processes, steps and tasks included, that were started with this cluster's configuration."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def free_ports(count):
    """Ports that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def running_cluster(folder):
    """A cluster whose node is ready. folder: an empty one; its path is short, for a socket lies in it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(256))
    facts = {"host": socket.gethostname(), "ports": free_ports(2), "folder": folder, "user": getuser()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**facts))
    outer = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    own = {
        "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    cluster = Cluster(folder, outer | own)
    try:
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        cluster.start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        deadline = time.monotonic() + 60
        while not (folder / "munge.socket").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        cluster.start("slurmctld", "-D", "-c")
        cluster.start("slurmd", "-D")
        while "idle" not in cluster.run("sinfo", "--noheader", "--format=%T", check=False):
            if time.monotonic() > deadline:
                raise AssertionError(f"Slurm did not start\n{cluster.logs()}")
            time.sleep(0.1)
        yield cluster
    finally:
        cluster.end()
