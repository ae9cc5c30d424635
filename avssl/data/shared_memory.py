"""Batches from a worker to the training process in shared memory that is written again and again.

The system empties every page of new shared memory, which costs a worker up to a tenth of its time. So a worker keeps
the pieces of memory that it made and writes each batch into one that the receiver has let go of. The receiver lets go
when its last tensor over a piece is freed, whoever held it; while it holds them all, the worker makes new ones.
"""

from __future__ import annotations

import mmap
import os
import weakref
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import torch

from avssl.processes.parcels import shared_memory

ALIGNED_BYTES = 64  # of every tensor, and of the head of a piece, whose first byte is 1 as long as somebody reads
SPARE_PIECES = 2  # free ones that a worker keeps: a receiver that held many once does not cost their memory for good


class BufferRange(NamedTuple):
    """Where a tensor lies in a piece: its first element's number in units of its dtype, shape and strides."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def padded(num_bytes: int) -> int:
    """What a tensor of so many bytes takes of a piece."""
    return -(-num_bytes // ALIGNED_BYTES) * ALIGNED_BYTES


class SharedBuffer:
    """Some shared memory in the process that writes it."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = ALIGNED_BYTES + num_bytes
        self.descriptor = shared_memory()
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, self.num_bytes)
        self._mapped = mmap.mmap(self.descriptor, self.num_bytes)
        self._content = torch.frombuffer(self._mapped, dtype=torch.uint8)
        self._filled = ALIGNED_BYTES

    @property
    def is_free(self) -> bool:
        """Nobody reads what was written last."""
        return self._mapped[0] == 0

    def begin(self) -> None:
        """Write from the start, for a reader that will say when it is done."""
        self._mapped[0] = 1
        self._filled = ALIGNED_BYTES

    def let_go(self) -> None:
        """Nobody will read what was written."""
        self._mapped[0] = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next tensor in it; RuntimeError if there is no room."""
        num_bytes = dtype.itemsize * int(np.prod(shape))
        begin, self._filled = self._filled, self._filled + padded(num_bytes)
        return self._content[begin : begin + num_bytes].view(dtype).view(shape)

    def sent(self) -> tuple[Any, int]:
        """What `open_piece` needs, for the pickler of multiprocessing."""
        return DupFd(self.descriptor), self.num_bytes


class SharedBuffers:
    """The pieces of a worker."""

    def __init__(self) -> None:
        self._pieces: list[SharedBuffer] = []

    def take(self, num_bytes: int) -> SharedBuffer:
        """One with room for tensors of so many bytes, each padded. Free ones that are too small or too many go."""
        free = {one for one in self._pieces if one.is_free}  # asked once: readers let go at any time
        fitting = [one for one in self._pieces if one in free and one.num_bytes >= ALIGNED_BYTES + num_bytes]
        piece = fitting[0] if fitting else SharedBuffer(num_bytes)
        self._pieces = [piece, *fitting[1 : 1 + SPARE_PIECES], *(one for one in self._pieces if one not in free)]
        piece.begin()
        return piece

    def __len__(self) -> int:
        return len(self._pieces)


def range_of(tensor: torch.Tensor) -> BufferRange:
    """Of a tensor of a piece."""
    return BufferRange(tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


def open_buffer(descriptor: Any, num_bytes: int, places: list[BufferRange]) -> list[torch.Tensor]:
    """The tensors of a piece that another process has sent. Their memory is its again once all of them are freed.

    Raises RuntimeError when that process has died in the meantime.
    """
    try:
        received = descriptor.detach()
    except (ConnectionError, FileNotFoundError, EOFError) as error:
        raise RuntimeError(
            "a worker of the loader died before its batch was taken; if memory ran out, `dmesg` says that the system "
            "killed it: fewer data.num_workers or a smaller data.prefetch_batches take less"
        ) from error
    try:
        mapped = mmap.mmap(received, num_bytes)
    finally:
        os.close(received)
    content = np.frombuffer(mapped, np.uint8)
    weakref.finalize(content, _let_go, mapped).atexit = False
    memory = torch.from_numpy(content).untyped_storage()  # holds `content` until the last tensor over it is freed
    return [torch.empty(0, dtype=one.dtype).set_(memory, one.offset, one.shape, one.stride) for one in places]


def _let_go(mapped: mmap.mmap) -> None:
    mapped[0] = 0
