"""Arrays from one process to another without a copy through a pipe: in memory that both can see.

A parcel is a header of plain values, sent as JSON, and arrays by name. Nothing that is received is run. A parcel that
has been sent arrives whole even if the sender dies at once: its memory lives as long as a descriptor of it.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ARRAYS = 16

Arrays = dict[str, NDArray[Any]]


def send_parcel(to: socket.socket, header: dict[str, Any], arrays: Arrays) -> None:
    """Send a parcel; the arrays are copied once. OSError if nobody listens any more, or memory is refused."""
    if len(arrays) > MAX_ARRAYS:
        raise ValueError(f"a parcel of {len(arrays)} arrays; at most {MAX_ARRAYS} are allowed")
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    text = json.dumps([header, shapes]).encode("ascii")
    filled: list[int] = []
    try:
        for content in [np.frombuffer(text, np.uint8), *arrays.values()]:
            filled.append(shared_memory())
            _fill(filled[-1], content)
        socket.send_fds(to, [bytes([len(filled)])], filled)  # one small message: all of it arrives, or nothing
    finally:
        for descriptor in filled:
            os.close(descriptor)


def receive_parcel(sender: socket.socket) -> tuple[dict[str, Any], Arrays] | None:
    """The next parcel, its arrays in the memory that the sender filled; None if the sender is gone. Waits for it."""
    try:
        count, descriptors, _, _ = socket.recv_fds(sender, 1, MAX_ARRAYS + 1)
    except ConnectionResetError:  # it died with messages of ours unread
        return None
    try:
        if not count or len(descriptors) != count[0]:
            return None
        header, shapes = json.loads(bytes(_mapped(descriptors[0])))
        arrays = {}
        for (name, (kind, shape)), descriptor in zip(shapes.items(), descriptors[1:], strict=True):
            arrays[name] = np.frombuffer(_mapped(descriptor), np.dtype(kind)).reshape(shape)
        return header, arrays
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def shared_memory() -> int:
    """A new descriptor of memory; of a file without a name where the system has no such thing."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("parcel", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _fill(descriptor: int, content: NDArray[Any]) -> None:
    """Write it all; cheaper than mapping fresh memory, every page of which would be emptied first."""
    rest = np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _mapped(descriptor: int) -> mmap.mmap | bytes:
    """What was written, as long as somebody holds it."""
    num_bytes = os.fstat(descriptor).st_size
    return mmap.mmap(descriptor, num_bytes) if num_bytes else b""
