"""The process at the other end of streams.py: it reads task after task and sends the pieces that are ordered."""

from __future__ import annotations

import socket
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from avssl.processes.killable import begin_worker, send_ready
from avssl.processes.limits import Limits, failure
from avssl.processes.parcels import Arrays, send_parcel
from avssl.types import MediaError

ORDER = struct.Struct("<q")  # the number of a task, or MORE: one more piece may be sent
MORE = -1
KNOWN_ERRORS = (FileNotFoundError, ValueError, OSError)  # raised at the other end with their own type


class Message(NamedTuple):
    """A piece of a task's result: plain values that JSON can hold, and arrays."""

    values: dict[str, Any]
    arrays: Arrays
    is_last: bool


class StreamWork(Protocol):
    """The work of the processes, to which it is pickled. A MediaError ends a task, as any `Exception` of `pieces` does.

    Other exceptions of `begin` end everything, because they concern the source of all tasks.
    """

    def name_of(self, number: int) -> str:
        """The name of a task, for messages."""

    def begin(self, number: int) -> Any:
        """Open a task; returns the argument of `pieces`."""

    def pieces(self, begun: Any) -> Iterator[Message]:
        """The pieces of the task, the same at each call."""


def serve(to: socket.socket, environment: dict[str, str], work: StreamWork, limits: Limits) -> None:
    """Read tasks until the other end is closed."""
    import torch

    begin_worker(environment, limits.memory_bytes)
    torch.set_num_threads(1)  # there is a process for every core
    orders = _Orders(to)

    def send(kind: str, arrays: Arrays | None = None, **content: Any) -> None:
        send_parcel(to, {"kind": kind, "seconds": time.monotonic()} | content, arrays or {})

    with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # the other end is closed
        send_ready(to)
        while True:
            _read_task(orders.next_task(), work, limits, orders, send)


def _read_task(number: int, work: StreamWork, limits: Limits, orders: _Orders, send: Callable[..., None]) -> None:
    """Send the pieces of a task, each when it is ordered, or its failure."""
    orders.wait_for_order()
    try:
        begun = work.begin(number)
    except MediaError as error:
        send("failed", reason=error.reason, message=error.message)
        return
    except Exception as error:
        known = next((kind.__name__ for kind in KNOWN_ERRORS if isinstance(error, kind)), "")
        message = str(error) if known else "".join(traceback.format_exception(error))
        send("fault", error=known, message=message)
        return
    pieces = work.pieces(begun)
    while True:
        try:
            piece = next(pieces)
        except Exception as error:
            media_error = failure(work.name_of(number), error, limits)
            send("failed", reason=media_error.reason, message=media_error.message)
            return
        send("piece", piece.arrays, values=piece.values, is_last=piece.is_last)
        if piece.is_last:
            return
        orders.wait_for_order()


class _Orders:
    """The orders of the other end: tasks, and numbers of pieces."""

    def __init__(self, sender: socket.socket) -> None:
        self._sender = sender
        self._tasks: deque[int] = deque()
        self._num_ordered = 0

    def next_task(self) -> int:
        """Wait for the next task. EOFError when the other end is closed."""
        while not self._tasks:
            self._read()
        return self._tasks.popleft()

    def wait_for_order(self) -> None:
        """Wait until one more piece may be sent; called before a piece is made."""
        while not self._num_ordered:
            self._read()
        self._num_ordered -= 1

    def _read(self) -> None:
        message = self._sender.recv(ORDER.size, socket.MSG_WAITALL)
        if len(message) < ORDER.size:
            raise EOFError
        (order,) = ORDER.unpack(message)
        if order == MORE:
            self._num_ordered += 1
        else:
            self._tasks.append(order)
