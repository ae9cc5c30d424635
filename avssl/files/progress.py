"""How far a piece of work is: a bar on a terminal, a plain line every 30 s elsewhere, JSON lines with --json.

The clock runs on while nothing is done, so that a program that waits says so. Everything goes to the standard error,
but for JSON lines, which are the standard output.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from avssl.files.plain_text import emit, is_json, plain, say

T = TypeVar("T")
LINE_SECONDS = 30.0  # between lines
JSON_SECONDS = 5.0  # between JSON lines
TICK_SECONDS = 1.0
SILENT_SECONDS = 5.0  # that a stage may take before it is named
RATE_SECONDS = 120  # over which a rate is measured


class Bar:
    """Counts `unit`s of work that are done. A context manager.

    Args:
        name: of the work. total: how many there are; None if nobody knows. unit: what is counted, in the singular.
        done: how many were done before. shown: False for processes whose work another one shows.
        delay_seconds: work that is done sooner is not shown. clock: seconds of any origin.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        shown: bool = True,
        delay_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.unit, self.done = plain(name), total, unit, done
        self.text, self.is_quiet = "", False  # quiet: without lines, while something else says what is done
        self.facts: dict[str, Any] = {}
        self._clock, self._bar, self._ticker = clock, None, None
        self._seen = deque([(clock(), done)], maxlen=RATE_SECONDS)
        self._shown_from = clock() + delay_seconds
        self._next = clock() + max(delay_seconds, JSON_SECONDS if is_json() else LINE_SECONDS)
        if not shown:
            return
        if not is_json() and is_drawn():
            self._bar = _drawn(self.name, total, unit, done, delay_seconds)
        self._ticker = _Ticker(self.tick)

    def update(self, count: int = 1) -> None:
        """Count what was done since."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)

    def show(self, text: str, **facts: Any) -> None:
        """Show a text beside the count, or these facts with --json."""
        self.text, self.facts = plain(text), facts
        if self._bar is not None:
            self._bar.set_postfix_str(self.text, refresh=False)

    def tick(self) -> None:
        """Called every second: draw the clock, or say how far the work is if a line is due."""
        now = self._clock()
        self._seen.append((now, self.done))
        if self._bar is not None:
            if not self._bar.disable and now >= self._shown_from:  # TQDM_DISABLE may have disabled it
                self._bar.refresh()
        elif now >= self._next and not self.is_quiet:
            self._next = now + (JSON_SECONDS if is_json() else LINE_SECONDS)
            self.say()

    def say(self) -> None:
        """Say how far the work is."""
        rate, left = self.rate(), self.seconds_left()
        if is_json():
            emit("progress", task=self.name, unit=self.unit, done=self.done, total=self.total, per_second=rate,
                 seconds_left=left, **self.facts)  # fmt: skip
            return
        total = f" of {self.total}" if self.total is not None else ""
        parts = [f"{self.name}: {self.done}{total} {plural(self.unit)}"]
        if self.total:
            parts[0] += f" ({self.done / self.total:.0%})"
        parts.append(pace(rate, self.unit) if rate else f"none in {duration(self._clock() - self._seen[0][0])}")
        if left is not None:
            parts.append(f"about {duration(left)} to go, until {moment(time.time() + left)}")
        say(", ".join(filter(None, [*parts, self.text])), sys.stderr)

    def rate(self) -> float:
        """Units per second in the last two minutes."""
        (then, before), now = self._seen[0], self._clock()
        return (self.done - before) / (now - then) if now > then else 0.0

    def seconds_left(self) -> float | None:
        """Seconds until all is done at this rate; None if that cannot be said."""
        rate = self.rate()
        return (self.total - self.done) / rate if rate and self.total is not None else None

    def close(self) -> None:
        """Show the last state."""
        if self._ticker is None:
            return
        self._ticker.end()
        self._ticker = None
        if self._bar is not None:
            self._bar.close()
        elif is_json():
            self.say()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def track(
    items: Iterable[T], name: str, total: int | None, unit: str, *, shown: bool = True, delay_seconds: float = 0.0
) -> Iterator[T]:
    """The items, counted by a `Bar` as they are taken.

    >>> list(track([1, 2], "read", 2, "file", shown=False))
    [1, 2]
    """
    with Bar(name, total, unit, shown=shown, delay_seconds=delay_seconds) as bar:
        for item in items:
            yield item
            bar.update()


class Stages:
    """What a program does before it has something to count. A stage is named when it has taken SILENT_SECONDS.

    A context manager, at whose end the `bar` that has followed is closed, also after an error. shown: as of `Bar`.
    """

    def __init__(self, *, shown: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._text = clock, ""
        self.bar: Bar | None = None
        self._began = self._next = clock()
        self._ticker = _Ticker(self.tick) if shown else None

    def now(self, text: str) -> None:
        """What is done from now on, in words such as "reading the first batch"; "" for nothing worth a word."""
        self._began = self._clock()
        self._next, self._text = self._began + SILENT_SECONDS, text

    def tick(self) -> None:
        """Called every second: name the stage if that is due."""
        now, text = self._clock(), self._text
        if text and now >= self._next:
            self._next = now + LINE_SECONDS
            say(f"{text} ... {duration(now - self._began)} so far", sys.stderr)
            emit("stage", stage=text, seconds=now - self._began)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._text = ""
        if self._ticker is not None:
            self._ticker.end()
        if self.bar is not None:
            self.bar.close()


class _Ticker:
    """Calls a function every second, from a thread of its own."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick, self._is_over = tick, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="avssl progress")
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(TICK_SECONDS):
            self._tick()

    def end(self) -> None:
        self._is_over.set()
        if self._thread is not threading.current_thread():
            self._thread.join(TICK_SECONDS)


def is_drawn() -> bool:
    """Whether bars are drawn: on a terminal and in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _drawn(name: str, total: int | None, unit: str, done: int, delay_seconds: float) -> Any:
    from tqdm.auto import tqdm

    size: dict[str, Any] = {"dynamic_ncols": True}
    if not _has_size():  # as terminals of containers and test runners say; tqdm would draw nothing there
        size = dict(zip(("ncols", "nrows"), shutil.get_terminal_size(), strict=True))
    return tqdm(total=total, initial=done, unit=unit, desc=name, delay=delay_seconds, mininterval=0.2, **size)


def _has_size() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # no terminal: a notebook
        return True


def plural(unit: str) -> str:
    """A unit of several: files, batches."""
    return unit + ("es" if unit.endswith("ch") else "s")


def pace(rate: float, unit: str) -> str:
    """A rate in words.

    >>> pace(12.3, "file"), pace(0.25, "step")
    ('12.3 files/s', '4.0 s per step')
    """
    if rate >= 1:
        return f"{rate:.{0 if rate >= 100 else 1}f} {plural(unit)}/s"
    return f"{1 / rate:.{0 if rate <= 0.01 else 1}f} s per {unit}"


def duration(seconds: float) -> str:
    """A length of time in words.

    >>> duration(50), duration(700), duration(8000), duration(200_000)
    ('50 s', '12 min', '2 h 13 min', '2 days 7 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def moment(seconds: float) -> str:
    """A time of the clock here, in seconds since 1970: hours and minutes, with the date if it is another day."""
    then, today = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)
