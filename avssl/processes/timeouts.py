"""Time limits for waiting where the system's calls have none, and errors that name the process that is late.

A process that is stopped from outside neither works nor ends: whoever waits for its batch or for the rest of its
message would wait for ever.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

from avssl.processes.worker_server import main_file_hidden

T = TypeVar("T")
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "Z": "dead", "D": "waiting for a disk"}


def with_timeout(seconds: float, work: Callable[[], T], blame: Callable[[], str]) -> T:
    """The result of `work`, run in a thread of its own. TimeoutError with the text `blame()` after so many seconds.

    0 seconds: no limit, and `work` runs in this thread.
    """
    if not seconds:
        return work()
    results: list[T] = []
    raised: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not results:
        raise TimeoutError(blame())
    return results[0]


def start_loader(loader: Any, seconds: float) -> Iterator[Any]:
    """The iterator of a DataLoader, whose workers are started now. TimeoutError if they do not start in time."""

    def blame() -> str:
        server = getattr(forkserver._forkserver, "_forkserver_pid", None)
        state = process_state(server)
        if server:
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
        return f"the process that starts workers ({server}, {state}) has started none for {seconds:g} s"

    with main_file_hidden():
        return with_timeout(seconds if loader.num_workers else 0.0, lambda: iter(loader), blame)


def next_batch(stream: Iterator[Any], seconds: float) -> Any:
    """The next batch of an iterator of `start_loader`. TimeoutError names the late worker; then all workers are killed.

    Raises StopIteration at the end.
    """
    workers = getattr(stream, "_workers", [])

    def blame() -> str:
        due = stream._task_info.get(stream._rcvd_idx, (0,))[0]  # type: ignore[attr-defined]
        named = [
            f"worker {number} (process {worker.pid}, {process_state(worker.pid)})"
            for number, worker in enumerate(workers)
            if number == due or process_state(worker.pid) != "running"
        ]
        end_workers(stream)
        return (
            f"no batch for {seconds:g} s (data.worker_timeout_seconds): {', '.join(named)}. A worker that is running "
            "needs more time, for slow storage or long films; one that is stopped was stopped from outside"
        )

    return with_timeout(seconds if workers else 0.0, lambda: next(stream), blame)


def all_batches(loader: Any, seconds: float) -> Iterator[Any]:
    """Every batch of a DataLoader; TimeoutError as by `start_loader` and `next_batch`."""
    stream = start_loader(loader, seconds)
    while True:
        try:
            batch = next_batch(stream, seconds)
        except StopIteration:
            return
        yield batch


def end_workers(stream: Iterator[Any] | None) -> None:
    """Kill the workers of an iterator of `start_loader`: DataLoader itself would wait for stopped ones."""
    for worker in getattr(stream, "_workers", []):
        worker.kill()


def process_state(pid: int | None) -> str:
    """The state of a process in words, as far as the system tells: "stopped by a signal", "dead", "running"."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "running" if pid and not Path("/proc/self").exists() else "dead"
    return STATES.get(letter, "running")
