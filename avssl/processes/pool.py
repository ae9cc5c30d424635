"""Work spread over processes of this machine: with a progress bar, or file by file in processes that may be killed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from avssl.processes.limits import (
    Limits,
    begin_sandbox,
    begin_worker,
    crashed,
    died,
    killable_context,
    too_large,
    too_slow,
)
from avssl.types import MediaError

__all__ = ["Limits", "Sandbox", "default_num_workers", "in_processes"]

Task = TypeVar("Task")
Result = TypeVar("Result")

REFRESH_SECONDS = 0.5
TASKS_AHEAD = 16  # a worker: none waits long for a slow task of another, and the results fit in memory
PRELOAD = ("avssl.media.decode",)


def default_num_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Sandbox:
    """Processes that run tasks one at a time each; a task that hangs, crashes or takes too much memory costs itself.

    A context manager. Leaving it ends the processes, whatever they do.
    """

    def __init__(self, num_workers: int, limits: Limits) -> None:
        from pebble import ProcessPool

        self.num_workers, self.limits = num_workers, limits
        self._pool = ProcessPool(
            num_workers,
            initializer=begin_sandbox,
            initargs=[dict(os.environ), limits.memory_bytes],
            context=killable_context(PRELOAD),
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
            return too_slow(name, self.limits)
        if isinstance(error, MemoryError):
            return too_large(name, self.limits)
        if isinstance(error, ProcessExpired):
            return died(name, error.exitcode)
        where = str(error.__cause__ or "").strip().splitlines()[-3:-1]  # where it happened, as the worker tells it
        return crashed(name, error, " ".join(where).strip())

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
            mp_context=killable_context(PRELOAD),
            initializer=begin_worker,
            initargs=(dict(os.environ),),
        ) as pool,
        tqdm(total=sum(sizes), desc=description, unit=unit, mininterval=REFRESH_SECONDS) as bar,
    ):
        futures = {pool.submit(work, task): (task, size) for task, size in zip(tasks, sizes, strict=True)}
        try:
            waiting = set(futures)
            while waiting:
                ready, waiting = wait(waiting, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
                while ready:  # what has been taken is kept nowhere: results of a large corpus do not fit
                    task, size = futures.pop(future := ready.pop())
                    yield task, future.result()
                    del future
                    bar.update(size)
        finally:
            for future in futures:
                future.cancel()
