"""What one task may take of time and memory, how many may run at once, and the errors that say why it has no result."""

from __future__ import annotations

import argparse
import os
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from avssl.types import MediaError

TORCH_OUT_OF_MEMORY = "can't allocate memory"  # PyTorch's allocator raises RuntimeError with these words


@dataclass(frozen=True)
class Limits:
    """The limits of one task. seconds: on the wall clock. memory_bytes: beyond those of a fresh process (Linux)."""

    seconds: float = 600.0
    memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.memory_bytes < 64 << 20:
            raise ValueError(
                f"a file may take {self.seconds} s and {self.memory_bytes / 2**20:.0f} MiB; allowed are more than 0 s "
                "and at least 64 MiB"
            )


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add --file-seconds and --file-memory-mib to a command."""
    limits = Limits()
    parser.add_argument(
        "--file-seconds",
        type=float,
        default=limits.seconds,
        help=f"a file that takes longer is given up, with the reason timeout (default: {limits.seconds:g})",
    )
    parser.add_argument(
        "--file-memory-mib",
        type=int,
        default=limits.memory_bytes >> 20,
        help="a file that takes more memory is given up, with the reason out_of_memory (default: "
        f"{limits.memory_bytes >> 20})",
    )


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits of the options. ValueError for a value that is not allowed."""
    return Limits(arguments.file_seconds, arguments.file_memory_mib << 20)


def default_num_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def too_slow(name: str, limits: Limits) -> MediaError:
    """The error for a task that took longer than its limit."""
    return MediaError("timeout", f"{name}: given up after {limits.seconds:g} s; --file-seconds allows more")


def too_large(name: str, limits: Limits | None) -> MediaError:
    """The error for a task that was refused memory. limits: None if only the machine limits it."""
    if limits is None:
        return MediaError("out_of_memory", f"{name}: reading it takes more memory than there is")
    limit = f"{limits.memory_bytes / 2**20:.0f} MiB"
    return MediaError("out_of_memory", f"{name}: needs more than {limit}; see --file-memory-mib")


def died(name: str, exit_code: int | None) -> MediaError:
    """The error for a task whose process ended with this status (negative: by that signal)."""
    if exit_code == -signal.SIGKILL:
        message = "the system killed the process that read it, as it does when memory runs out"
        return MediaError("out_of_memory", f"{name}: {message}")
    return MediaError("crashed", f"{name}: the process that read it died with status {exit_code}")


def crashed(name: str, error: BaseException, where: str) -> MediaError:
    """The error for an exception without a reason of its own. where: the place in the program."""
    return MediaError("crashed", f"{name}: {type(error).__name__}: {error} ({where})")


def failure(name: str, error: Exception, limits: Limits | None = None) -> MediaError:
    """The MediaError for whatever reading a file raised. Faults of the program, too, cost only the file."""
    if isinstance(error, MediaError):
        return error
    if isinstance(error, MemoryError) or TORCH_OUT_OF_MEMORY in str(error):
        return too_large(name, limits)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return crashed(
        name, error, ", ".join(f"{Path(frame.filename).name} line {frame.lineno}: {frame.line}" for frame in last)
    )
