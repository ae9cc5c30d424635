"""The process that the loader's workers are forked from. Loads no library here, so that it can be started first.

It begins anew, imports what workers need, and runs nothing: the first batch comes sooner, and workers share the memory
of the libraries. A fork of the training process would inherit locks of native libraries in whatever state they are.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

IMPORTED = ("avssl.data.loader", "avssl.data.clip_sets")


def start_worker_server() -> None:
    """Start it if it does not run yet, and go on: it imports for some seconds beside what this process does.

    A program that calls this before its own imports does not wait for those of the workers. What it imports is decided
    by the first start in a process. Ctrl-C, which reaches the whole group, is this process' to answer: the server, and
    workers until they set something else, heed it at no time.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    with _interrupts_ignored():
        forkserver.ensure_running()


def worker_context() -> Any:
    """multiprocessing's context for workers; starts the server, if nobody has."""
    start_worker_server()
    return multiprocessing.get_context("forkserver")


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """For the milliseconds in which a process is started, which inherits it. The main thread alone can say so."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:  # None: it could not be set again
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
