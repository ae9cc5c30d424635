"""The settings of the worker processes of a loader, made before their first sample."""

from __future__ import annotations

import ctypes

import torch

from avssl.processes.killable import end_with_parent

# glibc's numbers of two settings of malloc, and their values. By default glibc adapts the thresholds to the program:
# some workers then return the memory of every clip and get it anew, page by page, for up to a quarter of their time.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT_BYTES = 64 << 20  # freed bytes that a worker may keep
LEAST_MAPPED_BYTES = 32 << 20  # allocations of this size and more return to the system as soon as they are freed


def start_worker(worker: int) -> None:  # noqa: ARG001  (DataLoader passes it)
    """Set up a worker: one thread, freed memory is kept for the next clip, and it ends with the training process.

    Signals are left to the training process. DataLoader's own watch is of no use: it looks at the process that forked
    the worker, which is the server and lives as long as its workers.
    """
    end_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep up to 64 MiB that it has freed; False where the C library is not glibc."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mapped, trimmed = set_option(M_MMAP_THRESHOLD, LEAST_MAPPED_BYTES), set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
    return bool(mapped and trimmed)
