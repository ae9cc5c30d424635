"""Tasks whose results come as several messages from processes that may be killed, for media of any length.

Task k belongs to lane k modulo the number of lanes. A lane has one process at a time, and the lanes take turns to yield
a message, so the order of the messages depends on the tasks alone. At most MESSAGES_AHEAD messages of a lane wait in
memory.

A task whose process dies, or sends nothing within the time limit, gives a MediaError, and a new process goes on with
the lane's next task. If the process had read other tasks before, one of them may have damaged it. Then the task is
first tried again in a fresh process; messages that were yielded are not yielded again.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from avssl.processes.killable import ExitedError, KillableProcess
from avssl.processes.limits import Limits, died, too_slow
from avssl.processes.worker import KNOWN_ERRORS, MORE, REQUEST, Message, StreamWork, serve
from avssl.types import MediaError

MESSAGES_AHEAD = 2  # one is taken while the next is made
PRELOAD = ("avssl.embedding.windows",)


@dataclass
class _Task:
    number: int
    num_yielded: int = 0  # messages
    num_received: int = 0  # messages in this try


class SandboxedStreams:
    """Runs `work` in num_workers lanes, as the docstring of this module says. preload: as of KillableProcess."""

    def __init__(self, work: StreamWork, num_workers: int, limits: Limits, preload: Sequence[str] = PRELOAD) -> None:
        self.work, self.num_workers, self.limits, self.preload = work, num_workers, limits, preload

    def run(self, tasks: Callable[[], Iterable[int]]) -> Generator[tuple[int, Message | MediaError], None, None]:
        """(task, its next message or a MediaError). tasks: gives the task numbers from the beginning at each call."""
        numbers = (itertools.islice(tasks(), lane, None, self.num_workers) for lane in range(self.num_workers))
        lanes = [_Lane(self, task_numbers) for task_numbers in numbers]
        waiting = deque(lanes)
        try:
            while waiting:
                lane = waiting.popleft()
                item = lane.take()
                if item is not None:
                    yield item
                    waiting.append(lane)
        finally:
            for lane in lanes:
                lane.end()


class _Lane:
    """A lane: its tasks, and the processes that do them, one at a time."""

    def __init__(self, streams: SandboxedStreams, task_numbers: Iterator[int]) -> None:
        self.streams, self.task_numbers = streams, task_numbers
        self.assigned: deque[_Task] = deque()  # the process works on the first one that is not finished
        self.requested_at: deque[float] = deque()  # when each message that has not come yet was requested
        self.process: KillableProcess | None = None
        self.has_finished_others = False  # whether the process has finished other tasks
        self.last_seconds = 0.0  # when the process sent its last message
        self._fill_up()
        self._start()

    def take(self) -> tuple[int, Message | MediaError] | None:
        """(task, its next message or failure); None when all tasks are finished."""
        while self.assigned:
            task = self.assigned[0]
            try:
                item = self._receive(task)
            except _UnusableError as ended:
                had_finished_others = self.has_finished_others
                self.end()
                if had_finished_others and not ended.is_final:
                    self._start()
                    continue
                item = ended.error
            self._request_message()
            if isinstance(item, Message):
                task.num_received += 1
                if task.num_received <= task.num_yielded:
                    continue
                task.num_yielded += 1
            if not isinstance(item, Message) or item.is_last:
                self.assigned.popleft()
                self.has_finished_others = True
                self._fill_up()
            if self.process is None:
                self._start()
            return task.number, item
        self.end()
        return None

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self.process is not None:
            self.process.end()
        self.process = None

    def _start(self) -> None:
        """Start a fresh process with the assigned tasks."""
        if not self.assigned:
            return
        streams = self.streams
        self.process = KillableProcess(streams.preload, serve, streams.work, streams.limits)
        self.has_finished_others = False
        self.last_seconds = 0.0
        self.requested_at.clear()
        for task in self.assigned:
            task.num_received = 0
            self._send_request(task.number)
        for _ in range(MESSAGES_AHEAD):
            self._request_message()

    def _fill_up(self) -> None:
        """Assign so many tasks that the process has one for every message it may send, even if each has one message."""
        for number in itertools.islice(self.task_numbers, MESSAGES_AHEAD + 1 - len(self.assigned)):
            self.assigned.append(_Task(number))
            self._send_request(number)

    def _request_message(self) -> None:
        self.requested_at.append(time.monotonic())
        self._send_request(MORE)

    def _send_request(self, number: int) -> None:
        if self.process is not None:
            with suppress(OSError):  # it is dead: the messages sent before are read first, then its end is noticed
                self.process.socket.sendall(REQUEST.pack(number))

    def _receive(self, task: _Task) -> Message | MediaError:
        """The next message or failure from the process. Raises _UnusableError."""
        assert self.process is not None
        limits, name = self.streams.limits, self.streams.work.name_of(task.number)
        ready_seconds = self.process.ready_seconds()
        try:
            # The seconds count from when it was ready, sent its last message or got this request: the latest of them.
            parcel = self.process.receive(max(ready_seconds, self.last_seconds, self.requested_at[0]) + limits.seconds)
        except ExitedError as error:
            raise _UnusableError(died(name, error.exit_code)) from error
        if parcel is None:
            raise _UnusableError(too_slow(name, limits), is_final=True)
        header, arrays = parcel
        self.last_seconds = header["seconds"]
        self.requested_at.popleft()
        if header["kind"] == "fault":
            types = {error_type.__name__: error_type for error_type in KNOWN_ERRORS}
            raise types.get(header["error"], RuntimeError)(header["message"])
        if header["kind"] == "failed":
            failure = MediaError(header["reason"], header["message"])
            if failure.reason == "out_of_memory":  # what was read before may have left too little
                raise _UnusableError(failure)
            return failure
        return Message(header["values"], arrays, header["is_last"])


class _UnusableError(Exception):
    """The process cannot be used any more. error: of the task that it was reading. is_final: without a second try."""

    def __init__(self, error: MediaError, *, is_final: bool = False) -> None:
        super().__init__(error)
        self.error, self.is_final = error, is_final
