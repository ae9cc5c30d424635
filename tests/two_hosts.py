"""Two hosts on one machine: network namespaces joined by a cable, each with its own name, processes, /tmp and /dev/shm.

They see one folder under the same path, as hosts of a cluster do. Nothing is left of them when the test has ended, also
when it was killed.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

# The first process of a host: it ends when the standard input does, and Linux then ends all the others.
FIRST = """
set -e
hostname "$1"
shared=$2
ip link set lo up
mount --bind "$shared" /mnt
mount -t tmpfs tmpfs /tmp
mkdir -p "$shared"
mount --move /mnt "$shared"
mount -t tmpfs tmpfs /dev/shm
printf '127.0.0.1 localhost\\n10.77.0.1 host-a\\n10.77.0.2 host-b\\n' > /tmp/hosts
mount --bind /tmp/hosts /etc/hosts
echo ready
while read -r _; do :; done
"""
NAMESPACES = ["--net", "--uts", "--mount", "--pid"]
UNSHARE = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]


def missing():
    """Why there can be no such hosts here; "" where there can."""
    try:
        cable = "ip link add eth0 type veth peer name eth1"
        done = subprocess.run([*UNSHARE, "sh", "-c", cable], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return f"{error.filename} not found: apt-get install util-linux"
    return done.stderr.strip() and f"root, iproute2 and namespaces are needed: {done.stderr.strip()}"


@dataclass(eq=False)
class Host:
    """A running host. pid: of its first process, as the machine counts them."""

    name: str
    pid: int
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, command, log, folder=ROOT, **environment):
        """Start a line of bash as a user types it there; all that it says goes to the end of the file `log`."""
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin", "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
        }  # fmt: skip
        with log.open("a") as output:
            process = subprocess.Popen(
                ["nsenter", "--target", str(self.pid), *NAMESPACES, "bash", "-c", f"cd {folder} && {command}"],
                env=os.environ | own | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, command, log, folder=ROOT, **environment):
        """`start`, and wait for its end. AssertionError if the status is not 0."""
        status = self.start(command, log, folder, **environment).wait()
        assert status == 0, f"{self.name}: {command} left with {status}\n{log.read_text()}"

    def pull_cable(self):
        """From here on nothing reaches the host, and nothing comes from it; nobody is told."""
        self._ip("link", "set", "eth0", "down")

    def plug_cable(self):
        self._ip("link", "set", "eth0", "up")

    def kill_all(self):
        """Kill all that was started on the host, at once."""
        kill = ["nsenter", "--target", str(self.pid), "--pid", "--mount", "kill", "-KILL", "-1"]
        subprocess.run(kill, check=False, stderr=subprocess.DEVNULL)

    def _ip(self, *arguments):
        subprocess.run(["nsenter", "--target", str(self.pid), "--net", "ip", *arguments], check=True)


@contextmanager
def _host(name, shared):
    with subprocess.Popen(
        [*UNSHARE, "bash", "-c", FIRST, "bash", name, shared], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "ready\n", f"{name} did not start"
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        host = Host(name, int(children[0]))
        try:
            yield host
        finally:
            first.kill()  # and with it its child, the first process of the host, and so all the others
            for process in host.started:
                process.wait()


@contextmanager
def two_hosts(shared):
    """(host-a, host-b). shared: a folder that both see."""
    with ExitStack() as stack:
        a, b = hosts = [stack.enter_context(_host(name, shared)) for name in ("host-a", "host-b")]
        a._ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(b.pid))
        for number, host in enumerate(hosts, start=1):
            host._ip("address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            host.plug_cable()
        yield hosts


def wait_until(condition, seconds, what):
    """Wait until condition() is true. AssertionError with what() after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
