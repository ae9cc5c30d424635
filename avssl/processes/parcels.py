"""Parcels: arrays sent from one process to another in shared memory, without a copy through a pipe.

A parcel has a header of plain values, sent as JSON, and arrays by name. Receiving it runs no code. A parcel that has
been sent arrives whole even if the sender dies at once, because its memory lives as long as a descriptor of it.
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
    """Send a parcel; the arrays are copied once. OSError if the receiver is gone, or memory is refused."""
    if len(arrays) > MAX_ARRAYS:
        raise ValueError(f"a parcel of {len(arrays)} arrays; at most {MAX_ARRAYS} are allowed")
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    text = json.dumps([header, shapes]).encode("ascii")
    filled: list[int] = []
    try:
        for content in [np.frombuffer(text, np.uint8), *arrays.values()]:
            filled.append(shared_memory())
            _write_all(filled[-1], content)
        socket.send_fds(to, [bytes([len(filled)])], filled)  # one small message, which arrives whole or not at all
    finally:
        for descriptor in filled:
            os.close(descriptor)


def receive_parcel(sender: socket.socket) -> tuple[dict[str, Any], Arrays] | None:
    """Wait for the next parcel: (header, arrays in the sender's memory); None if the sender is gone."""
    try:
        count, descriptors, _, _ = socket.recv_fds(sender, 1, MAX_ARRAYS + 1)
    except ConnectionResetError:  # it died with unread messages
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
    """A new descriptor of shared memory; of an unnamed file on systems without memfd_create."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("parcel", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_all(descriptor: int, content: NDArray[Any]) -> None:
    """Write the whole content; cheaper than mapping fresh memory, every page of which would be zeroed first."""
    rest = np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _mapped(descriptor: int) -> mmap.mmap | bytes:
    """The content of a descriptor, valid as long as the result is held."""
    num_bytes = os.fstat(descriptor).st_size
    return mmap.mmap(descriptor, num_bytes) if num_bytes else b""
