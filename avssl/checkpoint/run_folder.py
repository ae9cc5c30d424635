"""One run folder, one run at a time: a lock that goes with its process."""

from __future__ import annotations

import errno
import sys
from contextlib import ExitStack
from pathlib import Path

from avssl.distributed import broadcast_object, rank
from avssl.files.locks import LockedError, locked
from avssl.files.plain_text import say

LOCK_FILE = ".lock"
WAIT_SECONDS = 20.0  # a run whose launcher was killed makes its step, saves and ends
WITHOUT_LOCKS = {getattr(errno, name) for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP") if hasattr(errno, name)}
_held = ExitStack()  # until this process ends, or begins another run


def hold_run(run: Path) -> None:
    """Make the folder and hold it while this process is at it. LockedError on every rank while another run does.

    The first rank holds it for all. On a file system without locks there is a warning instead.
    """
    _held.close()
    problem: Exception | None = None
    if rank() == 0:
        busy = f"{run}: another run is at work in this folder; wait for it, end it, or name another run"
        try:
            run.mkdir(parents=True, exist_ok=True)
            _held.enter_context(locked(run / LOCK_FILE, wait_seconds=WAIT_SECONDS, busy=busy))
        except (LockedError, OSError) as error:
            if getattr(error, "errno", None) in WITHOUT_LOCKS:
                say(f"warning: {run}: no locks on this file system; two runs at once here would mix", sys.stderr)
            else:
                problem = error
    problem = broadcast_object(problem)
    if problem is not None:
        raise problem
