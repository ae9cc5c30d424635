"""How a command ends when the user or the system did something wrong: one line that says what, and a status."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from avssl.files.disk_errors import of_library, one_line
from avssl.files.plain_text import plain, say

OTHERS_SECONDS = 2.0
NO_ACCELERATOR = ("Torch not compiled with CUDA", "No CUDA GPUs are available", "Found no NVIDIA driver")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Leave with status 1 and one line for errors of the user and the system; others are raised."""
    try:
        yield
    except (ValueError, FloatingPointError, ImportError) as error:
        leave(str(error))
    except OSError as error:
        leave(one_line(error))
    except Exception as error:
        said = fault_of_system(error) or (one_line(found) if (found := of_library(error)) else "")
        if not said:
            raise
        leave(said)


def leave(message: str) -> NoReturn:
    """Say it and end with status 1. Of several processes with one fault the first says it.

    The others wait for a moment: then the launcher has ended them, or the fault was theirs alone.
    """
    rank = os.environ.get("RANK", "0")
    text = f"error: {message}" if rank == "0" else f"error of process {rank}: {message}"
    if rank != "0":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
        time.sleep(OTHERS_SECONDS)
    if "tqdm" in sys.modules:  # a bar would be drawn anew below it
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()
    say(text, sys.stderr)
    tell_launcher(text)
    sys.exit(1)


def tell_launcher(text: str) -> None:
    """torchrun ends its own report, the last thing a user sees, with what stands in this file."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        report = {
            "message": plain(text),
            "extraInfo": {"py_callstack": plain(text), "timestamp": str(int(time.time()))},
        }
        try:
            Path(path).write_text(json.dumps({"message": report}), encoding="utf-8")
        except OSError:  # as full as the other disk, say; the line has been printed
            return


def fault_of_system(error: BaseException) -> str:
    """One line for what PyTorch says of processes that cannot meet or have gone, and of no GPU; "" for other errors."""
    text, kind = str(error), type(error).__name__
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        port = os.environ.get("MASTER_PORT", "")
        return f"port {port} (MASTER_PORT) is in use; choose another one: torchrun --master_port, or --standalone"
    if any(one in text for one in NO_ACCELERATOR):
        return f"a GPU was asked for, and PyTorch finds none here ({text.splitlines()[0][:200]}); see cpu=true"
    kinds = ("DistNetworkError", "DistBackendError", "DistStoreError")
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
    if kind in kinds or (isinstance(error, RuntimeError) and any(one in text for one in gone)):
        return f"another process of this run has ended, or could not be reached ({text.splitlines()[0][:200]})"
    return ""
