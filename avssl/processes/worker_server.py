"""The server process from which the workers of the loader are forked. This module loads no library, to be quick.

The server is a fresh process that only imports the modules of workers: the first batch comes sooner, and workers share
the memory of the libraries. A fork of the training process would inherit the locks of native libraries in any state.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from avssl.plugins.files import Carried
from avssl.plugins.registry import has_parts_of_script
from avssl.processes.stopping import signals_blocked

_MAIN_LOCK = threading.RLock()
PRELOAD = ("avssl.data.loader", "avssl.data.every_sample")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class _Process(ForkServerProcess):
    """A process in which the user's plugin files have run before its work arrives, which may need what they define."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._plugins = Carried()  # first: a process is unpickled attribute by attribute
        super().__init__(*args, **options)


class WorkerContext(ForkServerContext):
    """multiprocessing's context of the server's processes."""

    Process = _Process


def start_worker_server() -> None:
    """Start the server if it does not run yet, without waiting for its imports, which take some seconds.

    A program that calls this before its own imports does not wait for those of the workers. The first start in a
    process decides which modules the server imports.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOAD))
    run_server()


def run_server() -> None:
    """Start multiprocessing's server if it does not run yet.

    The server and its forks ignore Ctrl-C, SIGTERM and the like, which reach the whole process group: this process
    handles them. They compute with one thread each, unless the environment says otherwise: there is a process per core,
    and idle threads of NumPy's BLAS and of OpenMP wait actively.
    """
    with signals_blocked(), _quiet_tracker():
        resource_tracker.ensure_running()  # else the server would start it and then no longer block signals
    unset = ONE_THREAD.keys() - os.environ.keys()
    os.environ |= {name: ONE_THREAD[name] for name in unset}  # the libraries read it when the server imports them
    try:
        with signals_blocked():
            forkserver.ensure_running()
    finally:
        for name in unset:
            del os.environ[name]


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """A context in which multiprocessing starts its resource tracker without words.

    The tracker removes the semaphores of a run that was killed or has ended at once, and would warn of "leaked" ones.
    """
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")  # what it starts gets the options of this process
    try:
        yield
    finally:
        sys.warnoptions.pop()


@contextmanager
def main_file_hidden() -> Iterator[None]:
    """A context in which the processes that are started do not import the file of the main program.

    multiprocessing imports it into each of them, to find functions that are defined there; ours are defined in modules.
    A script without `if __name__ == "__main__"` would begin its run once more in every worker. The file is shown to
    them if it registers parts, such as augments, which they need.
    """
    if has_parts_of_script():
        yield
        return
    main: Any = sys.modules["__main__"]
    with _MAIN_LOCK:
        shown = {name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__}
        main.__file__ = main.__spec__ = None
        try:
            yield
        finally:
            del main.__file__, main.__spec__  # a notebook has none
            main.__dict__.update(shown)


def worker_context() -> WorkerContext:
    """The context for workers; starts the server if need be."""
    start_worker_server()
    return WorkerContext()


def kill_children() -> None:
    """Kill the daemon processes that this one has started by multiprocessing, even stopped ones."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


atexit.register(kill_children)  # runs before multiprocessing asks them to end, which would wait for a stopped one
