"""Buffers of shared memory in which batches go from a worker to the training process, used again and again.

The system fills every page of new shared memory with zeros, which costs a worker up to a tenth of its time. So a worker
keeps its buffers and writes each batch into one that the receiver has let go of. The receiver lets go of a buffer when
its last tensor in it is freed, whoever held it; while the receiver holds all buffers, the worker makes new ones.
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

ALIGNED_BYTES = 64  # of every tensor, and of the head of a buffer, whose first byte is 1 as long as it is read
SPARE_BUFFERS = (
    2  # free buffers that a worker keeps: the others go, so that many held at once do not cost memory for good
)


class BufferRange(NamedTuple):
    """The range of a tensor in a buffer: dtype, number of its first element (in units of the dtype), shape, strides."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def padded(num_bytes: int) -> int:
    """The bytes that a tensor of `num_bytes` takes in a buffer: rounded up to ALIGNED_BYTES."""
    return -(-num_bytes // ALIGNED_BYTES) * ALIGNED_BYTES


class SharedBuffer:
    """One buffer in the process that writes it."""

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
        """Whether nobody reads the last batch any more."""
        return self._mapped[0] == 0

    def begin(self) -> None:
        """Start a new batch, which counts as read until `let_go`, here or in the receiver."""
        self._mapped[0] = 1
        self._filled = ALIGNED_BYTES

    def let_go(self) -> None:
        """Mark the buffer as free: nobody will read the batch."""
        self._mapped[0] = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor behind the last one in the buffer; RuntimeError if there is no room."""
        num_bytes = dtype.itemsize * int(np.prod(shape))
        begin, self._filled = self._filled, self._filled + padded(num_bytes)
        return self._content[begin : begin + num_bytes].view(dtype).view(shape)

    def sent(self) -> tuple[Any, int]:
        """The first two arguments of `open_buffer`, as multiprocessing pickles them."""
        return DupFd(self.descriptor), self.num_bytes


class SharedBuffers:
    """The buffers of a worker."""

    def __init__(self) -> None:
        self._buffers: list[SharedBuffer] = []

    def take(self, num_bytes: int) -> SharedBuffer:
        """A free buffer for tensors of `num_bytes`, each padded. Free buffers that are too small or too many go."""
        free = {buffer for buffer in self._buffers if buffer.is_free}  # looked up once: readers let go at any time
        fitting = [b for b in self._buffers if b in free and b.num_bytes >= ALIGNED_BYTES + num_bytes]
        buffer = fitting[0] if fitting else SharedBuffer(num_bytes)
        self._buffers = [buffer, *fitting[1 : 1 + SPARE_BUFFERS], *(b for b in self._buffers if b not in free)]
        buffer.begin()
        return buffer

    def __len__(self) -> int:
        return len(self._buffers)


def range_of(tensor: torch.Tensor) -> BufferRange:
    """The range of a tensor that `SharedBuffer.empty` gave."""
    return BufferRange(tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


def open_buffer(descriptor: Any, num_bytes: int, ranges: list[BufferRange]) -> list[torch.Tensor]:
    """The tensors in a buffer of another process, which may use it again once all of them are freed.

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
    return [torch.empty(0, dtype=r.dtype).set_(memory, r.offset, r.shape, r.stride) for r in ranges]


def _let_go(mapped: mmap.mmap) -> None:
    mapped[0] = 0
