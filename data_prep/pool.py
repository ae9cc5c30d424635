"""Work spread over processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import TypeVar

from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")

REFRESH_SECONDS = 0.5


def default_num_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        ProcessPoolExecutor(min(num_workers, len(tasks)), mp_context=context) as pool,
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
