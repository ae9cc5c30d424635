"""Work spread over processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import TypeVar

from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")

REFRESH_SECONDS = 0.5
ORPHAN_POLL_SECONDS = 0.2


def default_num_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    """End this worker soon after the run that it belongs to was killed: the rerun must not meet it.

    The fork server goes when the run does, and then this process gets another parent.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_processes(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int,
    description: str,
    sizes: Sequence[int],
    num_underway: Callable[[], int] = lambda: 0,
) -> Iterator[tuple[Task, Result]]:
    """(task, its result) as they become ready. sizes: how much each task adds to the bar.
    num_underway: how much the unfinished tasks have done, for the bar.

    Processes are not forked from this one (FFmpeg and PyTorch hold locks). Raises BrokenProcessPool when one dies, and
    whatever `work` raises.
    """
    if not tasks:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["avssl.data.decode"])
    with (
        ProcessPoolExecutor(min(num_workers, len(tasks)), mp_context=context, initializer=_end_with_parent) as pool,
        tqdm(total=sum(sizes), desc=description, unit="file", mininterval=0.5) as bar,
    ):
        futures = {pool.submit(work, task): (task, size) for task, size in zip(tasks, sizes, strict=True)}
        try:
            waiting, num_done = set(futures), 0
            while waiting:
                ready, waiting = wait(waiting, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
                for future in ready:
                    task, size = futures[future]
                    result = future.result()
                    num_done += size
                    yield task, result
                bar.update(max(0, num_done + (num_underway() if waiting else 0) - bar.n))
        finally:
            for future in futures:
                future.cancel()
