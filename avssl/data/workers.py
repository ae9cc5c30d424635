"""The setup of the worker processes of a loader, before their first sample."""

from __future__ import annotations

import ctypes

import torch

from avssl.processes.killable import end_with_parent

# glibc's numbers of two options of malloc, and the values set here. By default glibc adapts the thresholds to the
# program: then some workers return the memory of every clip and allocate it anew, page by page, which takes up to a
# quarter of their time.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT_BYTES = 64 << 20  # freed bytes that a worker may keep
LEAST_MAPPED_BYTES = 32 << 20  # from this size on, memory is returned to the system as soon as it is freed


def start_worker(worker: int) -> None:  # noqa: ARG001  (DataLoader passes it)
    """Set up a worker: one thread, freed memory kept for the next clip, and an end together with the training process.

    Signals are left to the training process. DataLoader's own watchdog does not help: it watches the process that
    forked the worker, which is the worker server and lives as long as its workers.
    """
    end_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep up to 64 MiB of freed memory. Returns False if the C library is not glibc."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mapped, trimmed = set_option(M_MMAP_THRESHOLD, LEAST_MAPPED_BYTES), set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
    return bool(mapped and trimmed)
