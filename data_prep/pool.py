"""Work spread over processes of this machine: with a progress bar, or file by file in processes that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from avssl.types import MediaError

Task = TypeVar("Task")
Result = TypeVar("Result")

REFRESH_SECONDS = 0.5
ORPHAN_POLL_SECONDS = 0.2
TASKS_AHEAD = 16  # a worker: none waits long for a slow task of another, and the results fit in memory


@dataclass(frozen=True)
class Limits:
    """What one task may take. seconds: on the wall clock. memory_bytes: beyond what a fresh worker has (Linux)."""

    seconds: float = 600.0
    memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.memory_bytes < 64 << 20:
            raise ValueError(
                f"a file may take {self.seconds} s and {self.memory_bytes / 2**20:.0f} MiB; allowed are more than 0 s "
                "and at least 64 MiB"
            )


def default_num_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context() -> Any:
    """Processes are not forked from this one: FFmpeg and PyTorch hold locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["avssl.data.decode"])
    return context


def _begin_worker(environment: dict[str, str]) -> None:
    """In a fresh worker: take over the run's environment (the fork server's is as old as that), and end with the run.

    A worker that outlives a killed run would meet the rerun. The fork server goes when the run does, and then this
    process gets another parent.
    """
    os.environ.clear()
    os.environ.update(environment)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin_sandbox(environment: dict[str, str], memory_bytes: int) -> None:
    """As `_begin_worker`; and let the system refuse memory beyond the limit."""
    _begin_worker(environment)
    status = Path("/proc/self/status")
    if not status.is_file():
        return
    import resource

    used = next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory_bytes, hard))


class Sandbox:
    """Processes that run tasks one at a time each; a task that hangs, crashes or takes too much memory costs itself.

    A context manager. Leaving it ends the processes, whatever they do.
    """

    def __init__(self, num_workers: int, limits: Limits) -> None:
        from pebble import ProcessPool

        self.num_workers, self.limits = num_workers, limits
        self._pool = ProcessPool(
            num_workers,
            initializer=_begin_sandbox,
            initargs=[dict(os.environ), limits.memory_bytes],
            context=_context(),
        )

    def run(
        self, work: Callable[[Task], Result], tasks: Iterable[Task], name: Callable[[Task], str]
    ) -> Iterator[tuple[Task, Result | MediaError]]:
        """(task, its result, or why there is none), in the order of the tasks.

        tasks: read a few ahead of what is done. work: importable by name. name: of a task, for messages.
        """
        waiting: deque[tuple[Task, Any]] = deque()
        coming = iter(tasks)
        try:
            while True:
                for task in islice(coming, self.num_workers * TASKS_AHEAD - len(waiting)):
                    waiting.append((task, self._pool.schedule(work, args=[task], timeout=self.limits.seconds)))
                if not waiting:
                    return
                task, future = waiting.popleft()
                yield task, self._outcome(future, name(task))
        finally:
            for _, future in waiting:
                future.cancel()

    def _outcome(self, future: Any, name: str) -> Any:
        """The result of a task, or the reason why there is none."""
        try:
            return future.result()
        except MediaError as error:
            return error
        except Exception as error:  # a fault of the program, too: this file pays for it, and is named
            return self._failure(error, name)

    def _failure(self, error: Exception, name: str) -> MediaError:
        from pebble import ProcessExpired

        if isinstance(error, TimeoutError):
            return MediaError(
                "timeout", f"{name}: given up after {self.limits.seconds:g} s; --file-seconds allows more"
            )
        if isinstance(error, MemoryError):
            limit = f"{self.limits.memory_bytes / 2**20:.0f} MiB"
            return MediaError("out_of_memory", f"{name}: needs more than {limit}; see --file-memory-mib")
        if isinstance(error, ProcessExpired) and error.exitcode == -signal.SIGKILL:
            message = "the system killed the process that read it, as it does when memory runs out"
            return MediaError("out_of_memory", f"{name}: {message}")
        if isinstance(error, ProcessExpired):
            return MediaError("crashed", f"{name}: the process that read it died with status {error.exitcode}")
        where = str(error.__cause__ or "").strip().splitlines()[-3:-1]  # where it happened, as the worker tells it
        return MediaError("crashed", f"{name}: {type(error).__name__}: {error} ({' '.join(where).strip()})")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()


def in_processes(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int,
    description: str,
    sizes: Sequence[int],
    unit: str = "file",
) -> Iterator[tuple[Task, Result]]:
    """(task, its result) as they become ready. sizes: how much each task adds to the bar, in `unit`s.

    Raises BrokenProcessPool when a process dies, and whatever `work` raises.
    """
    if not tasks:
        return
    with (
        ProcessPoolExecutor(
            min(num_workers, len(tasks)),
            mp_context=_context(),
            initializer=_begin_worker,
            initargs=(dict(os.environ),),
        ) as pool,
        tqdm(total=sum(sizes), desc=description, unit=unit, mininterval=REFRESH_SECONDS) as bar,
    ):
        futures = {pool.submit(work, task): (task, size) for task, size in zip(tasks, sizes, strict=True)}
        try:
            waiting = set(futures)
            while waiting:
                ready, waiting = wait(waiting, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
                for future in ready:
                    task, size = futures[future]
                    yield task, future.result()
                    bar.update(size)
        finally:
            for future in futures:
                future.cancel()
