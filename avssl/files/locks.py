"""Locks on files, held by one process or shared by several. The system frees them when a process ends in any way."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avssl.files.disk_errors import clear_errors

POLL_SECONDS = 0.1


class LockedError(ValueError):
    """Another process holds the lock of the file."""


@contextmanager
def locked(path: Path, *, shared: bool = False, wait_seconds: float | None = None, busy: str = "") -> Iterator[None]:
    """Hold the lock of a file (made if it is absent) for the block.

    shared: together with other holders that set it, too. wait_seconds: how long to wait for other holders before
    LockedError is raised; None waits for ever. busy: its message; default: another process is at work on the file.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with clear_errors(path, "written"):
        file = path.open("a", encoding="utf-8")
    with file:
        if wait_seconds is None:
            fcntl.flock(file, kind)
        else:
            until = time.monotonic() + wait_seconds
            while not _try_lock(file.fileno(), kind):
                if time.monotonic() >= until:
                    message = f"{path}: another process is at work on this part of the folder; wait for it, or end it"
                    raise LockedError(busy or message)
                time.sleep(POLL_SECONDS)
        yield


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
