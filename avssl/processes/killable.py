"""Processes that may be killed: how one is started, how it ends with its parent, and how its results are received.

pool.py runs whole tasks in such processes, streams.py takes the result of a long task in several messages.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from avssl.processes.parcels import Arrays, receive_parcel, send_parcel
from avssl.processes.stopping import ignore_signals_of_others
from avssl.processes.timeouts import process_state, with_timeout
from avssl.processes.worker_server import WorkerContext, main_file_hidden, run_server

START_SECONDS = 600.0  # allowed for a process to start and to import its modules
EXIT_SECONDS = 5.0  # allowed between the end of a process's socket and its exit status
NOT_STARTED = "a process that was to read media has not begun in time"
_JOIN_LOCK = threading.Lock()  # multiprocessing loses an exit status that two threads ask for at once


class ExitedError(Exception):
    """A process has ended without being asked to. exit_code: as in multiprocessing; None if it could not be read."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class KillableProcess:
    """A process and the socket to it.

    Args:
        preload: modules that the process finds imported, if it is the first one that this process starts.
        serve: called in the process with its end of the socket, the environment of this process and `arguments`. It
            calls `begin_worker`, then `send_ready` when it has all that it needs, then it sends results.
    """

    def __init__(self, preload: Sequence[str], serve: Callable[..., None], *arguments: Any) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs, _JOIN_LOCK:
            # Not forked from this process, in which FFmpeg and PyTorch hold locks.
            context = WorkerContext()
            context.set_forkserver_preload(list(preload))
            run_server()
            arguments = (theirs, dict(os.environ), *arguments)
            self._process = context.Process(target=serve, args=arguments, daemon=True)
            with main_file_hidden():
                with_timeout(START_SECONDS, self._process.start, lambda: NOT_STARTED)
        self.expect_ready()

    def expect_ready(self) -> None:
        """Let `ready_seconds` wait for the next parcel of `send_ready`."""
        self._expected_since = time.monotonic()
        self._ready_seconds: float | None = None

    def ready_seconds(self) -> float:
        """Wait until the process is ready; the result is since when it is, in seconds of the monotonic clock.

        Raises TimeoutError if it is not ready in time, RuntimeError if it ends before.
        """
        if self._ready_seconds is not None:
            return self._ready_seconds
        try:
            parcel = self.receive(self._expected_since + START_SECONDS)
        except ExitedError as error:
            raise RuntimeError(
                f"a process that was to read media ended with status {error.exit_code} before it began; what it wrote "
                "above may say why"
            ) from error
        if parcel is None:
            raise TimeoutError(f"{NOT_STARTED} ({self})")
        self._ready_seconds = float(parcel[0]["seconds"])
        return self._ready_seconds

    def receive(self, until_seconds: float) -> tuple[dict[str, Any], Arrays] | None:
        """The next parcel; None if none comes until this time of the monotonic clock. Raises ExitedError."""
        if not wait([self.socket], max(0.0, until_seconds - time.monotonic())):
            return None
        parcel = receive_parcel(self.socket)
        if parcel is None:
            with _JOIN_LOCK:
                self._process.join(EXIT_SECONDS)
                raise ExitedError(self._process.exitcode)
        return parcel

    def kill(self) -> None:
        """Kill the process. A call of `receive` that waits raises ExitedError."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, whatever it does, and free what belongs to it."""
        with _JOIN_LOCK:
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
            self._process.close()
        self.socket.close()

    def state(self) -> str:
        """The state of the process in words, by `process_state`."""
        return process_state(self._process.pid)

    def __str__(self) -> str:
        return f"process {self._process.pid}, {self.state()}"


def send_ready(to: socket.socket) -> None:
    """In the process: say that it is ready and the time of its task begins now."""
    send_parcel(to, {"seconds": time.monotonic()}, {})


def begin_worker(environment: dict[str, str], memory_bytes: int | None = None) -> None:
    """Prepare a fresh process for work: it gets the environment of the run, and ends with the run.

    environment: of the run; that of the fork server is older. memory_bytes: how much more memory than now the system
    allows the process (Linux); None for no limit.
    """
    os.environ.clear()
    os.environ.update(environment)
    end_with_parent()
    status = Path("/proc/self/status")
    if memory_bytes is None or not status.is_file():
        return
    import resource

    used = next(
        int(line.split()[1]) << 10 for line in status.read_text("utf-8").splitlines() if line.startswith("VmData")
    )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory_bytes, hard))


def end_with_parent() -> None:
    """In a process of multiprocessing: end it, whatever it does, once the process that started it has ended.

    The parent may be killed without notice. The end of the fork server is no sign of it: each process that the server
    forks holds the end of a pipe that keeps the server alive, so that a process which waited for the server's end would
    wait for itself. Until its parent ends, the process ignores the signals of all others. In a process that
    multiprocessing has not started, nothing is done.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()  # waits for the end of a pipe between the two processes, without polling
        os._exit(1)

    ignore_signals_of_others(parent.pid)
    threading.Thread(target=watch, daemon=True).start()
