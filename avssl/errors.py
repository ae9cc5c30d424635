"""How a command ends after an error of the user or the system: with one line about it and status 1; of Ctrl+C 130."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from avssl.files.disk_errors import one_line, os_error_behind
from avssl.files.plain_text import emit, interrupted, plain, say
from avssl.plugins import files

OTHERS_SECONDS = 2.0  # that processes of a rank above 0 wait before they print an error
GONE = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError", "Timed out waiting",
)  # fmt: skip
GO_ON = "Start the same command again, on every host: a training goes on from its newest checkpoint"
NO_ACCELERATOR = ("Torch not compiled with CUDA", "No CUDA GPUs are available", "Found no NVIDIA driver")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A context in which errors of the user and the system end the program with one line; others are raised."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(interrupted())
    except (ValueError, FloatingPointError, ImportError) as error:
        where = files.place(error)  # in a plugin: its author wants to know the line
        _exit_with_error(_told_to_others(f"{error} ({where})" if where else str(error)))
    except OSError as error:
        _exit_with_error(_told_to_others(one_line(error)))
    except Exception as error:
        if not _environment_error(error) and (message := _lost_connection(error)):
            _exit_with_error(message, speaker="LOCAL_RANK")  # the first process may be the one that was lost
        message = _environment_error(error) or (one_line(cause) if (cause := os_error_behind(error)) else "")
        if not message:
            raise
        _exit_with_error(message)


def end_now(message: str) -> None:
    """End this process from one of its threads, while its main thread waits for a process that is gone."""
    _print_error(f"{message}. {GO_ON}")
    os._exit(1)


def _exit_with_error(message: str, speaker: str = "RANK") -> NoReturn:
    """Print the error and exit with status 1. If all processes have the same error, only rank 0 prints it.

    The others wait for OTHERS_SECONDS first: either the launcher ends them meanwhile, or the error is theirs alone.
    speaker: the variable that is 0 in the processes that do not wait.
    """
    if os.environ.get(speaker, "0") != "0":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
        time.sleep(OTHERS_SECONDS)
    _print_error(message)
    sys.exit(1)


def _told_to_others(message: str) -> str:
    """The message of an error of this process, after word of it was left for the other ones, if they are watched."""
    if "avssl.processes.peers" in sys.modules:
        from avssl.processes.peers import tell_others

        tell_others(plain(message))
    return message


def _print_error(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    text = f"error: {message}" if rank == "0" else f"error of process {rank}: {message}"
    if "tqdm" in sys.modules:  # an open progress bar would be drawn again below the line
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()
    say(text, sys.stderr)
    emit("error", message=message, status=1)
    _report_to_launcher(text)


def _report_to_launcher(text: str) -> None:
    """Write the error to the file that torchrun prints last in its own report, where a user sees it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        report = {
            "message": plain(text),
            "extraInfo": {"py_callstack": plain(text), "timestamp": str(int(time.time()))},
        }
        try:
            Path(path).write_text(json.dumps({"message": report}), encoding="utf-8")
        except OSError:  # for example a full disk; the line has been printed
            return


def _environment_error(error: BaseException) -> str:
    """One line for PyTorch's errors of a port in use and of a missing GPU; "" for other errors."""
    text = str(error)
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        port = os.environ.get("MASTER_PORT", "")
        return f"port {port} (MASTER_PORT) is in use; set another one, or say torchrun --standalone"
    if any(words in text for words in NO_ACCELERATOR):
        return f"a GPU was asked for, and PyTorch finds none here ({text.splitlines()[0][:200]}); see cpu=true"
    return ""


def _lost_connection(error: BaseException) -> str:
    """One line for an error of PyTorch that means that another process of the run is gone; "" for other errors."""
    text, kind = str(error), type(error).__name__
    kinds = ("DistNetworkError", "DistBackendError", "DistStoreError")
    if kind in kinds or (isinstance(error, RuntimeError) and any(words in text for words in GONE)):
        from avssl.processes.peers import missing_processes

        first = re.sub(r"^\[\S+\] ", "", text.splitlines()[0])  # without a place in gloo's sources
        reason = first.partition(". ")[0][:160]
        who = missing_processes() or "another process of this run"
        return f"the connection to {who} was lost ({reason}). {GO_ON}"
    return ""
