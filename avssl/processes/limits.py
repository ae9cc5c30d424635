"""Processes in which media are read and which may be killed: what they may take, how they begin, why one ended.

avssl/processes/pool.py runs whole files in them, sandbox_streams.py streams what is read of long ones.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.processes.stopping import heed_owner_alone
from avssl.processes.worker_server import run_server
from avssl.types import MediaError

TORCH_OUT_OF_MEMORY = "can't allocate memory"  # PyTorch's allocator raises RuntimeError with these words


@dataclass(frozen=True)
class Limits:
    """What one task may take. seconds: on the wall clock. memory_bytes: beyond what a fresh process has (Linux)."""

    seconds: float = 600.0
    memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.memory_bytes < 64 << 20:
            raise ValueError(
                f"a file may take {self.seconds} s and {self.memory_bytes / 2**20:.0f} MiB; allowed are more than 0 s "
                "and at least 64 MiB"
            )


def killable_context(preload: Sequence[str]) -> Any:
    """multiprocessing's context for such processes: not forked from this one, as FFmpeg and PyTorch hold locks.

    preload: modules that they find imported, if they are the first of this process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    run_server()
    return context


def end_with_parent() -> None:
    """In a process of multiprocessing: end it, whatever it does, once the process that started it has ended.

    That one may be killed without a word. Its fork server does not tell: each process that it forks holds the end of a
    pipe that keeps the server alive, so that one which waited for the server's end would wait for itself. A rerun would
    meet them all. Until then it heeds nobody else's signals. In a process that nobody started so, nothing is done.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()  # a pipe of the two processes ends; nothing is asked for again and again
        os._exit(1)

    heed_owner_alone(parent.pid)
    threading.Thread(target=watch, daemon=True).start()


def begin_worker(environment: dict[str, str]) -> None:
    """In a fresh worker: take over the run's environment, as the fork server's is older, and end with the run."""
    os.environ.clear()
    os.environ.update(environment)
    end_with_parent()


def begin_sandbox(environment: dict[str, str], memory_bytes: int) -> None:
    """As `begin_worker`; and let the system refuse memory beyond the limit."""
    begin_worker(environment)
    status = Path("/proc/self/status")
    if not status.is_file():
        return
    import resource

    used = next(
        int(line.split()[1]) << 10 for line in status.read_text("utf-8").splitlines() if line.startswith("VmData")
    )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory_bytes, hard))


# --- why there is no result ------------------------------------------------------------------------------------------


def too_slow(name: str, limits: Limits) -> MediaError:
    """It took longer than it may."""
    return MediaError("timeout", f"{name}: given up after {limits.seconds:g} s; --file-seconds allows more")


def too_large(name: str, limits: Limits | None) -> MediaError:
    """Memory was refused; limits None where nothing but the machine limits it."""
    if limits is None:
        return MediaError("out_of_memory", f"{name}: reading it takes more memory than there is")
    limit = f"{limits.memory_bytes / 2**20:.0f} MiB"
    return MediaError("out_of_memory", f"{name}: needs more than {limit}; see --file-memory-mib")


def died(name: str, exit_code: int | None) -> MediaError:
    """The process that read it ended with this status (negative: by that signal)."""
    if exit_code == -signal.SIGKILL:
        message = "the system killed the process that read it, as it does when memory runs out"
        return MediaError("out_of_memory", f"{name}: {message}")
    return MediaError("crashed", f"{name}: the process that read it died with status {exit_code}")


def crashed(name: str, error: BaseException, where: str) -> MediaError:
    """An exception that no reason was written for. where: the place in the program."""
    return MediaError("crashed", f"{name}: {type(error).__name__}: {error} ({where})")


def failure(name: str, error: Exception, limits: Limits | None = None) -> MediaError:
    """Whatever reading a file raised, as a MediaError: a fault of the program, too, for this file pays and is named."""
    if isinstance(error, MediaError):
        return error
    if isinstance(error, MemoryError) or TORCH_OUT_OF_MEMORY in str(error):
        return too_large(name, limits)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return crashed(name, error, ", ".join(f"{Path(at.filename).name} line {at.lineno}: {at.line}" for at in last))
