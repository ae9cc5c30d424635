"""The process at the other end of streams.py: it reads one task after another and sends the requested messages."""

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

REQUEST = struct.Struct("<q")  # the number of a task, or MORE: one more message may be sent
MORE = -1
KNOWN_ERRORS = (FileNotFoundError, ValueError, OSError)  # raised at the other end with their own type


class Message(NamedTuple):
    """A part of the result of a task: plain values that JSON can hold, and arrays by name. is_last: the task ends."""

    values: dict[str, Any]
    arrays: Arrays
    is_last: bool


class StreamWork(Protocol):
    """The work of the processes, to which it is sent pickled.

    A MediaError of `begin` or any exception of `messages` ends one task. Other exceptions of `begin` end everything,
    because they concern the source of all tasks.
    """

    def name_of(self, number: int) -> str:
        """The name of a task, for messages."""

    def begin(self, number: int) -> Any:
        """Open a task; the result is the argument of `messages`."""

    def messages(self, task: Any) -> Iterator[Message]:
        """The messages of the task, the same ones at each call."""


def serve(to: socket.socket, environment: dict[str, str], work: StreamWork, limits: Limits) -> None:
    """Read tasks and send their messages until the other end is closed."""
    import torch

    begin_worker(environment, limits.memory_bytes)
    torch.set_num_threads(1)  # there is a process per core
    requests = _Requests(to)

    def send(kind: str, arrays: Arrays | None = None, **content: Any) -> None:
        send_parcel(to, {"kind": kind, "seconds": time.monotonic()} | content, arrays or {})

    with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # the other end is closed
        send_ready(to)
        while True:
            _read_task(requests.next_task(), work, limits, requests, send)


def _read_task(number: int, work: StreamWork, limits: Limits, requests: _Requests, send: Callable[..., None]) -> None:
    """Send the messages of a task, each when it is requested, or its failure."""
    requests.wait_for_request()
    try:
        task = work.begin(number)
    except MediaError as error:
        send("failed", reason=error.reason, message=error.message)
        return
    except Exception as error:
        known = next((kind.__name__ for kind in KNOWN_ERRORS if isinstance(error, kind)), "")
        text = str(error) if known else "".join(traceback.format_exception(error))
        send("fault", error=known, message=text)
        return
    messages = work.messages(task)
    while True:
        try:
            message = next(messages)
        except Exception as error:
            media_error = failure(work.name_of(number), error, limits)
            send("failed", reason=media_error.reason, message=media_error.message)
            return
        send("message", message.arrays, values=message.values, is_last=message.is_last)
        if message.is_last:
            return
        requests.wait_for_request()


class _Requests:
    """The requests of the other end: tasks, and how many messages it wants."""

    def __init__(self, sender: socket.socket) -> None:
        self._sender = sender
        self._tasks: deque[int] = deque()
        self._num_requested = 0

    def next_task(self) -> int:
        """Wait for the next task. EOFError when the other end is closed."""
        while not self._tasks:
            self._read()
        return self._tasks.popleft()

    def wait_for_request(self) -> None:
        """Wait until one more message may be sent; called before a message is made."""
        while not self._num_requested:
            self._read()
        self._num_requested -= 1

    def _read(self) -> None:
        content = self._sender.recv(REQUEST.size, socket.MSG_WAITALL)
        if len(content) < REQUEST.size:
            raise EOFError
        (number,) = REQUEST.unpack(content)
        if number == MORE:
            self._num_requested += 1
        else:
            self._tasks.append(number)
