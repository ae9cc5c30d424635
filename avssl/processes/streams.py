"""Tasks whose results come piece by piece, each from a process that may be killed: for media of any length.

Task k belongs to lane k modulo the number of lanes, a lane has one process at a time, and the pieces of the lanes come
in turn: their order depends on nothing but the tasks. Of a lane at most PIECES_AHEAD pieces wait in memory.

A task whose process dies, or gives nothing for the seconds that it may take, is a MediaError, and a new process goes on
with the lane's next task. If that process had read other tasks before, one of them may have left it damaged: then the
task first gets a second try in a process that has read nothing else; the pieces that have come are not given again.
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
    """See the module. work: what the processes do. preload: as killable_context."""

    def __init__(self, work: StreamWork, num_workers: int, limits: Limits, preload: Sequence[str] = PRELOAD) -> None:
        self.work, self.num_workers, self.limits, self.preload = work, num_workers, limits, preload

    def run(self, tasks: Callable[[], Iterable[int]]) -> Generator[tuple[int, Message | MediaError], None, None]:
        """(task, its next piece, or why there is none). tasks: gives their numbers from the beginning, each time."""
        shares = (itertools.islice(tasks(), lane, None, self.num_workers) for lane in range(self.num_workers))
        lanes = [_Lane(self, share) for share in shares]
        waiting = deque(lanes)
        try:
            while waiting:
                lane = waiting.popleft()
                found = lane.take()
                if found is not None:
                    yield found
                    waiting.append(lane)
        finally:
            for lane in lanes:
                lane.end()


class _Lane:
    """One process after another, and the tasks that are theirs."""

    def __init__(self, streams: SandboxedStreams, share: Iterator[int]) -> None:
        self.streams, self.share = streams, share
        self.assigned: deque[_Task] = deque()  # the process works on the first one that is not finished
        self.allowed_at: deque[float] = deque()  # when each piece that is still to come was allowed
        self.process: KillableProcess | None = None
        self.has_read_others = False  # of this process
        self.last_seconds = 0.0  # when it sent something
        self._fill_up()
        self._start()

    def take(self) -> tuple[int, Message | MediaError] | None:
        """The next piece or failure; None when all tasks are finished."""
        while self.assigned:
            task = self.assigned[0]
            try:
                found = self._receive(task)
            except _Ended as ended:
                had_read_others = self.has_read_others
                self.end()
                if had_read_others and not ended.is_final:
                    self._start()
                    continue
                found = ended.error
            self._allow_one_more()
            if isinstance(found, Message):
                task.num_received += 1
                if task.num_received <= task.num_given:
                    continue
                task.num_given += 1
            if not isinstance(found, Message) or found.is_last:
                self.assigned.popleft()
                self.has_read_others = True
                self._fill_up()
            if self.process is None:
                self._start()
            return task.number, found
        self.end()
        return None

    def end(self) -> None:
        """Kill the process, whatever it does."""
        if self.process is not None:
            self.process.end()
        self.process = None

    def _start(self) -> None:
        """A fresh process, with the tasks that are assigned."""
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
        """Assign so many tasks that the process has one for every piece it may send, however short they are."""
        for number in itertools.islice(self.share, PIECES_AHEAD + 1 - len(self.assigned)):
            self.assigned.append(_Task(number))
            self._order(number)

    def _allow_one_more(self) -> None:
        self.allowed_at.append(time.monotonic())
        self._order(MORE)

    def _order(self, message: int) -> None:
        if self.process is not None:
            with suppress(OSError):  # it is dead: what it sent before is still to be read, and then its end is seen
                self.process.socket.sendall(ORDER.pack(message))

    def _receive(self, task: _Task) -> Message | MediaError:
        """What comes next. Raises _Ended."""
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
    """A process is of no more use. error: of the task that it was reading. is_final: no second try."""

    def __init__(self, error: MediaError, *, is_final: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.is_final = error, is_final
