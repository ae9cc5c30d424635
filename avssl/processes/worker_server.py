"""The process that the loader's workers are forked from. Loads no library here, so that it can be started first.

It begins anew, imports what workers need, and runs nothing: the first batch comes sooner, and workers share the memory
of the libraries. A fork of the training process would inherit locks of native libraries in whatever state they are.
"""

from __future__ import annotations

import atexit
import multiprocessing
from multiprocessing import forkserver, resource_tracker
from typing import Any

from avssl.processes.stopping import signals_blocked

IMPORTED = ("avssl.data.loader", "avssl.data.every_sample")


def start_worker_server() -> None:
    """Start it if it does not run yet, and go on: it imports for some seconds beside what this process does.

    A program that calls this before its own imports does not wait for those of the workers. What it imports is decided
    by the first start in a process.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    run_server()


def run_server() -> None:
    """Start multiprocessing's server if it does not run yet. Ctrl-C, SIGTERM and the like, which reach the whole group,
    are this process' to answer: the server and what it forks heed them at no time.
    """
    with signals_blocked():
        resource_tracker.ensure_running()  # the server's start would start it, and let signals through afterwards
    with signals_blocked():
        forkserver.ensure_running()


def worker_context() -> Any:
    """multiprocessing's context for workers; starts the server, if nobody has."""
    start_worker_server()
    return multiprocessing.get_context("forkserver")


def kill_children() -> None:
    """Kill the daemon processes of multiprocessing that this one has started, stopped ones too."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


atexit.register(kill_children)  # before multiprocessing asks them to end, and waits for one that is stopped
