"""Files that one process can hold, or several together. The system lets go when a process ends, however it ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avssl.files.disk_errors import clear_errors

LOOK_SECONDS = 0.1


class LockedError(ValueError):
    """Another process holds the file."""


@contextmanager
def locked(path: Path, *, shared: bool = False, wait_seconds: float | None = None, busy: str = "") -> Iterator[None]:
    """Hold the file (made if it is not there) for the block.

    shared: together with others that say so. wait_seconds: None waits as long as it takes; otherwise, when others still
    hold the file after so long, LockedError `busy` (default: what the file is and that another process is at work).
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with clear_errors(path, "written"):
        file = path.open("a", encoding="utf-8")
    with file:
        if wait_seconds is None:
            fcntl.flock(file, kind)
        else:
            until = time.monotonic() + wait_seconds
            while not _taken(file.fileno(), kind):
                if time.monotonic() >= until:
                    said = f"{path}: another process is at work on this part of the folder; wait for it, or end it"
                    raise LockedError(busy or said)
                time.sleep(LOOK_SECONDS)
        yield


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
