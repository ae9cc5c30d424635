"""Reusable buffers of shared memory in which workers send batches to the training process.

The system fills every page of new shared memory with zeros, which costs a worker up to a tenth of its time. So a worker
keeps its buffers and writes each batch into one that the receiver has released. The receiver releases a buffer when the
last of its tensors is freed; while the receiver holds all buffers, the worker makes new ones.
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

ALIGNED_BYTES = 64  # alignment of every tensor, and size of a buffer's header, whose first byte is 1 while it is in use
SPARE_BUFFERS = 2  # free buffers that a worker keeps; others are freed, so that a peak does not cost memory for good


class BufferRange(NamedTuple):
    """The place of a tensor in a buffer: dtype, number of its first element (in units of the dtype), shape, strides."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def padded(num_bytes: int) -> int:
    """The bytes that a tensor of `num_bytes` takes in a buffer: rounded up to ALIGNED_BYTES."""
    return -(-num_bytes // ALIGNED_BYTES) * ALIGNED_BYTES


class SharedBuffer:
    """A buffer in the process that writes it; `num_bytes` for tensors, each padded."""

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
        """Whether the receiver has released the last batch."""
        return self._mapped[0] == 0

    def begin(self) -> None:
        """Start a new batch; the buffer is in use until it is released, here or by the receiver."""
        self._mapped[0] = 1
        self._filled = ALIGNED_BYTES

    def release(self) -> None:
        """Mark the buffer as free."""
        self._mapped[0] = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor after the last one in the buffer. Raises RuntimeError if it does not fit."""
        num_bytes = dtype.itemsize * int(np.prod(shape))
        begin, self._filled = self._filled, self._filled + padded(num_bytes)
        return self._content[begin : begin + num_bytes].view(dtype).view(shape)

    def sent(self) -> tuple[Any, int]:
        """The first two arguments of `open_buffer`, as multiprocessing pickles them."""
        return DupFd(self.descriptor), self.num_bytes


class SharedBuffers:
    """The buffers that a worker reuses."""

    def __init__(self) -> None:
        self._buffers: list[SharedBuffer] = []

    def take(self, num_bytes: int) -> SharedBuffer:
        """A free buffer for padded tensors of `num_bytes` in all. Frees those that are too small or too many."""
        free = {buffer for buffer in self._buffers if buffer.is_free}  # read once: they can be released at any time
        fitting = [b for b in self._buffers if b in free and b.num_bytes >= ALIGNED_BYTES + num_bytes]
        buffer = fitting[0] if fitting else SharedBuffer(num_bytes)
        self._buffers = [buffer, *fitting[1 : 1 + SPARE_BUFFERS], *(b for b in self._buffers if b not in free)]
        buffer.begin()
        return buffer

    def __len__(self) -> int:
        return len(self._buffers)


def range_of(tensor: torch.Tensor) -> BufferRange:
    """The range in its buffer of a tensor from `SharedBuffer.empty`."""
    return BufferRange(tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


def open_buffer(descriptor: Any, num_bytes: int, ranges: list[BufferRange]) -> list[torch.Tensor]:
    """The tensors in a buffer of another process, which can reuse the buffer once all of them are freed.

    Raises RuntimeError if that process has died.
    """
    try:
        received = descriptor.detach()
    except (ConnectionError, FileNotFoundError, EOFError) as error:
        raise RuntimeError(
            "a worker of the loader died before its batch was read; if memory ran out, `dmesg` shows that the system "
            "killed it: fewer data.num_workers or a smaller data.prefetch_batches need less"
        ) from error
    try:
        mapped = mmap.mmap(received, num_bytes)
    finally:
        os.close(received)
    content = np.frombuffer(mapped, np.uint8)
    weakref.finalize(content, _release, mapped).atexit = False
    memory = torch.from_numpy(content).untyped_storage()  # holds `content` until the last tensor over it is freed
    return [torch.empty(0, dtype=r.dtype).set_(memory, r.offset, r.shape, r.stride) for r in ranges]


def _release(mapped: mmap.mmap) -> None:
    mapped[0] = 0
