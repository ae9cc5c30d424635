"""Errors of the operating system about files, as one line that names the file and says what to do."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
REFUSED = {errno.EACCES, errno.EPERM}
OF_THIS_MACHINE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS") if hasattr(errno, name)}
OS_ERROR_CODE = re.compile(r"\(os error (\d+)\)")  # in messages of safetensors
TORCH_SAVE = "inline_container"  # in the message of torch.save, whatever the error of the disk was
CONTINUES = "what is finished is kept, and the same command goes on from there"


def is_of_this_machine(error: BaseException) -> bool:
    """Whether a disk of this machine is full or read-only: that is no fault of the file that was to be read."""
    return isinstance(error, OSError) and error.errno in OF_THIS_MACHINE


def _explained(error: OSError, where: str = "", doing: str = "used") -> str | None:
    """One line for an error of the system; None for an error that says enough itself.

    where: the file that could not be `doing` ("written", "read"); "" is the file that the error names.
    """
    code, where = error.errno, where or str(error.filename or "the standard output")
    text = f"{where}: could not be {doing}"
    if code in DISK_FULL:
        return f"{text}, the disk or quota is full; free space, then run the same command again: {CONTINUES}"
    if code == errno.EROFS:
        return f"{text}, it lies on a read-only file system; choose another --out, or mount it writable"
    if code in REFUSED:
        return f"{text}, access is refused; choose another --out, or get the right to write there: {CONTINUES}"
    if code in (errno.ENOTDIR, errno.EEXIST):
        return f"{text}, for a file lies where a folder is needed; choose another --out, or move that file away"
    return None


def one_line(error: BaseException) -> str:
    """The line that a command prints for an error that ends it."""
    if isinstance(error, OSError) and not hasattr(error, "is_clear"):
        return _explained(error) or str(error)
    return str(error)


@contextmanager
def clear_errors(where: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn errors of the system about the folder of `where`, or about no file, into errors that say what to do.

    Their class and errno stay. Errors about other folders are raised unchanged, and so are sentences of the project,
    which are about a source as often as about what is written.
    """
    path = os.fspath(where)
    try:
        yield
    except sqlite3.OperationalError as error:  # SQLite names neither the file nor the error of the system
        code = errno.ENOSPC if "full" in str(error) else errno.EROFS if "readonly" in str(error) else errno.EIO
        raise _clear(OSError(code, str(error)), path, doing) from error
    except OSError as error:
        if hasattr(error, "is_clear") or _is_sentence(error) or not _concerns(error, path):
            raise
        raise _clear(error, path, doing) from error
    except Exception as error:
        cause = os_error_behind(error)
        if cause is None:
            raise
        raise _clear(cause, path, doing) from error


def os_error_behind(error: BaseException) -> OSError | None:
    """The error of the system behind an error of safetensors or PyTorch; None for other errors."""
    if match := OS_ERROR_CODE.search(str(error)):
        return OSError(int(match[1]), os.strerror(int(match[1])))
    if TORCH_SAVE in str(error):
        return OSError(errno.EIO, "is the disk or quota full?")
    return None


def _is_sentence(error: OSError) -> bool:
    """Whether the error is not of the system, which gives a number, but raised with a text that says enough."""
    return error.errno is None and error.filename is None


def _concerns(error: OSError, path: str) -> bool:
    """Whether the error names a file in the folder of `path` or below, or no file, as when writing fails."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    folder = Path(path).absolute().parent
    return Path(error.filename).absolute().is_relative_to(folder)


def _clear(error: OSError, path: str, doing: str) -> OSError:
    text = _explained(error, path, doing)
    if text is None and error.filename is None:
        text = f"{path}: could not be {doing} ({error.strerror or error})"
    if text is None:
        return error
    clear = type(error)(text)
    # Also in __dict__, which pickle takes along: of an error that is made of a text alone it forgets the number.
    clear.__dict__["errno"] = clear.errno = error.errno
    clear.is_clear = True  # type: ignore[attr-defined]
    return clear
