"""The process that the loader's workers are forked from. Loads no library here, so that it can be started first.

It begins anew, imports what workers need, and runs nothing: the first batch comes sooner, and workers share the memory
of the libraries. A fork of the training process would inherit locks of native libraries in whatever state they are.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import Any

IMPORTED = ("avssl.data.loader", "avssl.data.clip_sets")


def start_worker_server() -> None:
    """Start it if it does not run yet, and go on: it imports for some seconds beside what this process does.

    A program that calls this before its own imports does not wait for those of the workers. What it imports is decided
    by the first start in a process.
    """
    worker_context()
    forkserver.ensure_running()


def worker_context() -> Any:
    """multiprocessing's context for workers; the first of them starts the server, if nobody has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))  # heeded by the first one of a process
    return context
