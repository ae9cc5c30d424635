"""The processes of a run look after each other: who is missing is named, while the others wait and when they give up.

Collectives wait half an hour for a host that is gone, and then name an address at best. So every process counts up a
number of its own in the store of the run, every BEAT_SECONDS. The first process reads the numbers of all, the others
that of the first, so that the load of the store grows with the number of processes alone. A number that stands still
belongs to a process that has ended, is stopped, or cannot be reached. Beats are counted, and not time: after all of a
job was suspended for an hour, nobody has been silent.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from avssl import distributed
from avssl.files.plain_text import say
from avssl.processes.timeouts import with_timeout

BEAT_SECONDS = 2.0
WARN_SECONDS = 10.0  # of silence, after which a line says so
ANSWER_SECONDS = 4 * BEAT_SECONDS  # for the store to answer a process that has lost another one
DEFAULT_LIMIT_SECONDS = 120.0
VERDICT, LEFT = "verdict", "left"
T = TypeVar("T")
_watches: list[Watch] = []  # none or one


def watch_processes(limit_seconds: float, give_up: Callable[[str], None]) -> None:
    """Watch the other processes from now on; all processes of the run must call it. Nothing with one process.

    limit_seconds: after so long without a sign from a process that this one watches, `give_up` is called in a thread,
        with a message of one line that names it; 0: never.
    """
    unwatch_processes()
    if distributed.is_active():
        name = distributed.broadcast_object(secrets.token_hex(8))  # a store may serve several runs, one after another
        hosts = distributed.gather_objects(socket.gethostname())
        watch = Watch(distributed.RunStore(name), hosts, distributed.rank(), limit_seconds, give_up)
        watch.start()
        _watches.append(watch)


def unwatch_processes() -> None:
    """End the watch of this process, and tell the others that it leaves with nothing more to do for them."""
    while _watches:
        _watches.pop().leave()


def missing_processes() -> str:
    """Which processes are gone, for a process whose connection to another has broken: "process 1 on host-b".

    Waits for some beats. "" without a watch, or if all give signs of life.
    """
    return _watches[0].missing() if _watches else ""


def tell_others(problem: str) -> None:
    """Leave word of this process's error for those that find it gone."""
    for watch in _watches:
        _answer(partial(watch.leave_verdict, f"{watch.described(watch.rank)} (which ended with an error: {problem})"))


class Watch:
    """One process's part: `store` has the numbers of all, `hosts` the host of each; see `watch_processes`."""

    def __init__(
        self,
        store: distributed.RunStore,
        hosts: Sequence[str],
        rank: int,
        limit_seconds: float,
        give_up: Callable[[str], None],
    ) -> None:
        self.store, self.hosts, self.rank, self.limit_seconds, self.give_up = store, hosts, rank, limit_seconds, give_up
        self.watched = [other for other in (range(len(hosts)) if rank == 0 else [0]) if other != rank]
        self.says_warnings = rank == 0 or hosts.index(hosts[rank]) == rank  # one process of each host
        self.ended = threading.Event()
        self.counts: dict[int, str] = {}
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._judge)]

    def start(self) -> None:
        """Give the first sign, so that every number is there, and go on in the background."""
        self.store.set(str(self.rank), "0")
        distributed.barrier()
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """End the threads, and write that this process has left."""
        self.ended.set()
        self._threads[0].join(ANSWER_SECONDS)  # it writes no beat afterwards
        _answer(partial(self.store.set, str(self.rank), LEFT))

    def _exchange(self) -> None:
        """Count up and read; blocked as long as the store does not answer, and over once it is gone."""
        beats = 0
        with suppress(RuntimeError):
            while not self.ended.wait(BEAT_SECONDS):
                beats += 1
                self.store.set(str(self.rank), str(beats))
                self.counts = self._counts(self.watched)

    def _judge(self) -> None:
        silent_seconds = dict.fromkeys(self.watched, 0.0)
        seen = self.counts
        while not self.ended.wait(BEAT_SECONDS):
            counts = self.counts
            for other, seconds in silent_seconds.items():
                if counts.get(other) != seen.get(other) or counts.get(other) == LEFT:
                    silent_seconds[other] = 0.0
                    if seconds >= WARN_SECONDS:
                        self._warn(f"{self.described(other)} is back after {seconds:g} s")
                    continue
                silent_seconds[other] = seconds + BEAT_SECONDS
                if seconds < WARN_SECONDS <= silent_seconds[other]:
                    self._warn(self._waiting(other))
            seen = counts
            late = [other for other, seconds in silent_seconds.items() if 0 < self.limit_seconds <= seconds]
            if late and not self.ended.is_set():
                self.give_up(self._gave_up(late))
                return

    def _waiting(self, other: int) -> str:
        limit = f"after {self.limit_seconds:g} s the run ends" if self.limit_seconds else "the run waits without end"
        return (
            f"warning: no sign of life from {self.described(other)} for {WARN_SECONDS:g} s: it has ended, is stopped, "
            f"or its host cannot be reached; {limit} (process_timeout_seconds)"
        )

    def _gave_up(self, late: list[int]) -> str:
        who = self._all_described(late)
        _answer(partial(self.leave_verdict, who))
        return f"no sign of life from {who} for {self.limit_seconds:g} s (process_timeout_seconds)"

    def _warn(self, line: str) -> None:
        if self.says_warnings:
            say(line, sys.stderr)

    def described(self, other: int) -> str:
        """How messages name a process."""
        return f"process {other} on {self.hosts[other]}"

    def _all_described(self, others: Sequence[int]) -> str:
        shown = ", ".join(map(self.described, others[:8]))
        return f"{shown} and {len(others) - 8} more" if len(others) > 8 else shown

    def leave_verdict(self, who: str) -> str:
        """Say who was lost first, unless another process has said so; the text that stands."""
        with suppress(RuntimeError):
            return self.store.first(VERDICT, who)
        return who

    def _counts(self, ranks: Sequence[int]) -> dict[int, str]:
        return dict(zip(ranks, self.store.get([str(rank) for rank in ranks]), strict=True))

    def missing(self) -> str:
        """As `missing_processes`."""
        everyone = range(len(self.hosts))

        def find() -> str:
            before = self._counts(everyone)
            time.sleep(2.5 * BEAT_SECONDS)
            after = self._counts(everyone)
            gone = [rank for rank in everyone if before[rank] == after[rank] != LEFT]
            return self.leave_verdict(self._all_described(gone))

        found = _answer(find)
        return f"{self.described(0)} (which holds the store of the run)" if found is None else found


def _answer(work: Callable[[], T]) -> T | None:
    """The result of `work`; None if the store of the run is gone or does not answer in time."""
    try:
        return with_timeout(ANSWER_SECONDS, work, lambda: "")
    except (TimeoutError, RuntimeError):
        return None
