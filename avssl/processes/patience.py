"""Waiting for other processes with time limits, where the calls of the system have none, and errors that name them.

A process that is stopped from outside neither works nor ends. Whoever waits for it, for its batch, for the rest of its
message or for memory that it has promised, would wait for ever.
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

T = TypeVar("T")
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "Z": "dead", "D": "waiting for a disk"}


def within(seconds: float, work: Callable[[], T], blame: Callable[[], str]) -> T:
    """The result of `work`, which runs in a thread of its own; after `seconds`, TimeoutError with the text `blame()`.

    0 seconds: no limit, and in this thread.
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


def begun(loader: Any, seconds: float) -> Iterator[Any]:
    """The iterator of a DataLoader, which starts its workers now. TimeoutError if they do not start in time."""

    def blame() -> str:
        server = getattr(forkserver._forkserver, "_forkserver_pid", None)
        state = state_of(server)
        if server:
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
        return f"the process that starts workers ({server}, {state}) has started none for {seconds:g} s"

    return within(seconds if loader.num_workers else 0.0, lambda: iter(loader), blame)


def next_batch(stream: Iterator[Any], seconds: float) -> Any:
    """The next batch of an iterator of `begun`. TimeoutError names the worker that is late; then all workers end.

    Raises StopIteration at the end.
    """
    workers = getattr(stream, "_workers", [])

    def blame() -> str:
        due = stream._task_info.get(stream._rcvd_idx, (0,))[0]  # type: ignore[attr-defined]
        named = [
            f"worker {number} (process {worker.pid}, {state_of(worker.pid)})"
            for number, worker in enumerate(workers)
            if number == due or state_of(worker.pid) != "running"
        ]
        end_workers(stream)
        return (
            f"no batch for {seconds:g} s (data.worker_timeout_seconds): {', '.join(named)}. A worker that is running "
            "needs more time, for slow storage or long films; one that is stopped was stopped from outside"
        )

    return within(seconds if workers else 0.0, lambda: next(stream), blame)


def all_batches(loader: Any, seconds: float) -> Iterator[Any]:
    """Every batch of a DataLoader; TimeoutError as `begun` and `next_batch` raise it."""
    stream = begun(loader, seconds)
    while True:
        try:
            batch = next_batch(stream, seconds)
        except StopIteration:
            return
        yield batch


def end_workers(stream: Iterator[Any] | None) -> None:
    """Kill the workers of an iterator of `begun`: DataLoader itself would wait for stopped ones."""
    for worker in getattr(stream, "_workers", []):
        worker.kill()


def state_of(pid: int | None) -> str:
    """The state of a process in words, as far as the system tells: "stopped by a signal", "dead", "running"."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "running" if pid and not Path("/proc/self").exists() else "dead"
    return STATES.get(letter, "running")
