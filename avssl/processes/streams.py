"""Tasks whose results come in pieces from processes that may be killed, for media of any length.

Task k belongs to lane k modulo the number of lanes, a lane has one process at a time, and the lanes take turns to yield
a piece, so the order of the pieces depends on the tasks alone. At most PIECES_AHEAD pieces of a lane wait in memory.

A task whose process dies, or sends nothing within the time limit, gives a MediaError, and a new process goes on with
the lane's next task. If the process had read other tasks before, one of them may have damaged it: then the task is
first tried again in a fresh process; pieces that were yielded are not yielded again.
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
from avssl.processes.worker import KNOWN_ERRORS, MORE, ORDER, Message, StreamWork, serve
from avssl.types import MediaError

PIECES_AHEAD = 2  # one is taken while the next is made
PRELOAD = ("avssl.embedding.windows",)


@dataclass
class _Task:
    number: int
    num_given: int = 0  # pieces
    num_received: int = 0  # in this try


class SandboxedStreams:
    """Runs `work` in several lanes, as the module's docstring says. preload: as of KillableProcess."""

    def __init__(self, work: StreamWork, num_workers: int, limits: Limits, preload: Sequence[str] = PRELOAD) -> None:
        self.work, self.num_workers, self.limits, self.preload = work, num_workers, limits, preload

    def run(self, tasks: Callable[[], Iterable[int]]) -> Generator[tuple[int, Message | MediaError], None, None]:
        """(task, its next piece or a MediaError). tasks: yields the task numbers from the beginning at each call."""
        shares = (itertools.islice(tasks(), lane, None, self.num_workers) for lane in range(self.num_workers))
        lanes = [_Lane(self, share) for share in shares]
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
    """A lane: its tasks, and one process after another that does them."""

    def __init__(self, streams: SandboxedStreams, share: Iterator[int]) -> None:
        self.streams, self.share = streams, share
        self.assigned: deque[_Task] = deque()  # the process works on the first one that is not finished
        self.allowed_at: deque[float] = deque()  # when each piece that has not come yet was allowed
        self.process: KillableProcess | None = None
        self.has_read_others = False  # whether the process has finished other tasks
        self.last_seconds = 0.0  # when the process sent its last piece
        self._fill_up()
        self._start()

    def take(self) -> tuple[int, Message | MediaError] | None:
        """(task, its next piece or failure); None when all tasks are finished."""
        while self.assigned:
            task = self.assigned[0]
            try:
                item = self._receive(task)
            except _Ended as ended:
                had_read_others = self.has_read_others
                self.end()
                if had_read_others and not ended.is_final:
                    self._start()
                    continue
                item = ended.error
            self._allow_one_more()
            if isinstance(item, Message):
                task.num_received += 1
                if task.num_received <= task.num_given:
                    continue
                task.num_given += 1
            if not isinstance(item, Message) or item.is_last:
                self.assigned.popleft()
                self.has_read_others = True
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
        self.has_read_others = False
        self.last_seconds = 0.0
        self.allowed_at.clear()
        for task in self.assigned:
            task.num_received = 0
            self._order(task.number)
        for _ in range(PIECES_AHEAD):
            self._allow_one_more()

    def _fill_up(self) -> None:
        """Assign enough tasks that the process has one for every piece it may send, even if each has one piece."""
        for number in itertools.islice(self.share, PIECES_AHEAD + 1 - len(self.assigned)):
            self.assigned.append(_Task(number))
            self._order(number)

    def _allow_one_more(self) -> None:
        self.allowed_at.append(time.monotonic())
        self._order(MORE)

    def _order(self, message: int) -> None:
        if self.process is not None:
            with suppress(OSError):  # it is dead: the pieces sent before are read first, then its end is noticed
                self.process.socket.sendall(ORDER.pack(message))

    def _receive(self, task: _Task) -> Message | MediaError:
        """The next piece or failure from the process. Raises _Ended if the process is of no more use."""
        assert self.process is not None
        limits, name = self.streams.limits, self.streams.work.name_of(task.number)
        ready_seconds = self.process.ready_seconds()
        try:
            # The seconds run while it may send: since it was ready, or sent the last piece, or was allowed this one.
            parcel = self.process.receive(max(ready_seconds, self.last_seconds, self.allowed_at[0]) + limits.seconds)
        except ExitedError as error:
            raise _Ended(died(name, error.exit_code)) from error
        if parcel is None:
            raise _Ended(too_slow(name, limits), is_final=True)
        header, arrays = parcel
        self.last_seconds = header["seconds"]
        self.allowed_at.popleft()
        if header["kind"] == "fault":
            kinds = {kind.__name__: kind for kind in KNOWN_ERRORS}
            raise kinds.get(header["error"], RuntimeError)(header["message"])
        if header["kind"] == "failed":
            failure = MediaError(header["reason"], header["message"])
            if failure.reason == "out_of_memory":  # what was read before may have left too little
                raise _Ended(failure)
            return failure
        return Message(header["values"], arrays, header["is_last"])


class _Ended(Exception):
    """The process is of no more use. error: of the task that it was reading. is_final: no second try."""

    def __init__(self, error: MediaError, *, is_final: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.is_final = error, is_final
