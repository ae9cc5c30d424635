"""Tasks spread over processes of this machine that may be killed; with a progress bar, or each within limits."""

from __future__ import annotations

import pickle
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

from avssl.files.disk_errors import is_of_this_machine
from avssl.files.progress import Bar
from avssl.processes.killable import ExitedError, KillableProcess, begin_worker, send_ready
from avssl.processes.limits import Limits, died, failure, too_slow
from avssl.processes.parcels import Arrays, receive_parcel, send_parcel
from avssl.types import MediaError

Task = TypeVar("Task")
Result = TypeVar("Result")

REFRESH_SECONDS = 0.5
TASKS_AHEAD = 16  # per process: none waits long for a slow task of another, and the results fit in memory
STOPPED_SECONDS = 300.0  # after so long without an answer of a task without limits: is its process stopped?
PRELOAD = ("torch", "avssl.media.decode", "avssl.processes.pool")


class Sandbox:
    """Processes that run one task at a time each. A task that hangs, crashes or takes too much memory fails alone.

    A context manager. Leaving it ends the processes, whatever they do. limits: of each task. None for tasks that may
    take what they need: their own errors are raised, ChildProcessError if the process dies, and TimeoutError if the
    process is found stopped from outside. An OSError that a disk of this machine is full is raised with limits, too:
    it would cost every task that follows.
    """

    def __init__(self, num_workers: int, limits: Limits | None) -> None:
        self.num_workers, self.limits = num_workers, limits
        self._threads = ThreadPoolExecutor(num_workers)  # each waits for one process
        self._processes: set[KillableProcess] = set()
        self._idle: SimpleQueue[KillableProcess] = SimpleQueue()
        self._is_closed = False

    def run(
        self, work: Callable[[Task], Result], tasks: Iterable[Task], name: Callable[[Task], str]
    ) -> Iterator[tuple[Task, Result | MediaError]]:
        """(task, its result or a MediaError), in the order of the tasks.

        tasks: read ahead by up to TASKS_AHEAD per process. work: importable by name. name: of a task, for messages.
        """
        waiting: deque[tuple[Task, Future[Result]]] = deque()
        remaining = iter(tasks)
        try:
            while True:
                for task in islice(remaining, self.num_workers * TASKS_AHEAD - len(waiting)):
                    waiting.append((task, self.submit(work, task, name(task))))
                if not waiting:
                    return
                task, future = waiting.popleft()
                try:
                    outcome: Result | MediaError = future.result()
                except MediaError as error:
                    outcome = error
                yield task, outcome
        finally:
            for _, future in waiting:
                future.cancel()

    def submit(self, work: Callable[[Task], Result], task: Task, name: str) -> Future[Result]:
        """The future result of one task. With limits, all its failures but a full disk are MediaErrors."""
        return self._threads.submit(self._result, work, task, name)

    def _result(self, work: Callable[[Task], Result], task: Task, name: str) -> Result:
        """In a thread: the result of the task from a free process. A process that gives no answer is ended."""
        try:
            process = self._idle.get_nowait()
        except Empty:
            process = self._started()
        if process.state() == "dead":  # killed between two tasks
            self._processes.discard(process)
            process.end()
            process = self._started()
        try:
            process.expect_ready()
            with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, which the answer says
                _send(process.socket, pickle.dumps((work, task, name)))
            process.ready_seconds()
            is_result, value = pickle.loads(self._answer(process, name))
        except BaseException:
            self._processes.discard(process)
            process.end()
            raise
        self._idle.put(process)
        if not is_result:
            raise value
        return value  # type: ignore[no-any-return]

    def _started(self) -> KillableProcess:
        process = KillableProcess(PRELOAD, _serve, self.limits)
        self._processes.add(process)
        if self._is_closed:
            process.kill()
        return process

    def _answer(self, process: KillableProcess, name: str) -> bytes:
        """The pickled outcome from the process. Raises as the class says if it is late, dies or is stopped."""
        seconds = STOPPED_SECONDS if self.limits is None else self.limits.seconds
        try:
            while (parcel := process.receive(time.monotonic() + seconds)) is None:
                if self.limits is not None:
                    raise too_slow(name, self.limits)
                if process.state().startswith("stopped"):
                    raise TimeoutError(f"{name}: no answer for {seconds:g} s ({process}); run the same command again")
        except ExitedError as error:
            exited = died(name, error.exit_code)
            raise exited if self.limits else ChildProcessError(exited.message) from error
        return _content(parcel)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.kill()
        self._threads.shutdown()
        for process in self._processes:
            process.end()


def _serve(to: socket.socket, environment: dict[str, str], limits: Limits | None) -> None:
    """In a process: do one task after another until the other end is closed."""
    begin_worker(environment, limits.memory_bytes if limits else None)
    with suppress(BrokenPipeError, ConnectionResetError):
        while (parcel := receive_parcel(to)) is not None:
            work, task, name = pickle.loads(_content(parcel))  # imports the module of the work
            send_ready(to)
            _send(to, _outcome(work, task, name, limits))


def _outcome(work: Callable[[Any], Any], task: Any, name: str, limits: Limits | None) -> bytes:
    """(True, result) or (False, error) of a task, pickled."""
    try:
        return pickle.dumps((True, work(task)))
    except Exception as error:
        if limits is None:
            error.add_note("".join(traceback.format_exception(error)))  # a traceback cannot be pickled
        is_raised = limits is None or is_of_this_machine(error)
        return pickle.dumps((False, error if is_raised else failure(name, error, limits)))


def _send(to: socket.socket, pickled: bytes) -> None:
    """Send bytes as a parcel, which arrives whole or not at all: nobody waits for its end, as in a pipe."""
    send_parcel(to, {}, {"pickled": np.frombuffer(pickled, np.uint8)})


def _content(parcel: tuple[dict[str, Any], Arrays]) -> bytes:
    return parcel[1]["pickled"].tobytes()


def in_processes(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int,
    description: str,
    sizes: Sequence[int],
    unit: str = "file",
) -> Iterator[tuple[Task, Result]]:
    """(task, its result) as they become ready. sizes: how many `unit`s each task adds to the progress bar.

    Raises ChildProcessError if a process dies, TimeoutError if one is found stopped, and whatever `work` raises.
    """
    if not tasks:
        return
    with (
        Sandbox(min(num_workers, len(tasks)), None) as sandbox,
        Bar(description, sum(sizes), unit) as bar,
    ):
        futures = {
            sandbox.submit(work, task, description): (task, size) for task, size in zip(tasks, sizes, strict=True)
        }
        waiting = set(futures)
        while waiting:
            ready, waiting = wait(waiting, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
            while ready:  # a result is not kept after it is yielded: those of a large corpus do not fit in memory
                task, size = futures.pop(future := ready.pop())
                yield task, future.result()
                del future
                bar.update(size)
