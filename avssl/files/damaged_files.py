"""Damaged files that a library reads: whatever the library raises becomes one ValueError that names the file."""

from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from avssl.files.plain_text import plain

# The errors that NumPy, zipfile and pyarrow raise for damaged files. FileNotFoundError and ConnectionError (of a remote
# file) are left to the caller, and MemoryError is not about the file.
DAMAGE_ERRORS = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, EOFError, OSError, RuntimeError,
    zipfile.BadZipFile, zlib.error, struct.error, SyntaxError,
)  # fmt: skip


@contextmanager
def value_errors_naming(path: str | PathLike[str], what: str) -> Iterator[None]:
    """A context for reading one file: its errors become ValueErrors. what: the expected kind, like "Parquet file"."""
    where = fspath(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)  # half of each number would be lost
            warnings.simplefilter("error", RuntimeWarning)  # numbers that do not fit the type would be infinite
            yield
    except (FileNotFoundError, ConnectionError):
        raise
    except (*DAMAGE_ERRORS, np.exceptions.ComplexWarning, RuntimeWarning) as error:
        if type(error) is ValueError and where in str(error):
            raise
        reason = plain(error)[:500] or type(error).__name__
        raise ValueError(f"{where}: is no readable {what} ({reason})") from error


@contextmanager
def open_npz(path: str | PathLike[str], what: str) -> Iterator[Any]:
    """A context with the open npz file, which is read without pickle; errors as in `value_errors_naming`."""
    # Opened here, because np.load leaves a file that it cannot read open.
    with value_errors_naming(path, what), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not several")
        members = archive.zip.namelist() if archive.zip else []
        if others := [name for name in members if not name.endswith(".npy")]:
            raise ValueError(f"it holds {others[0]!r}, which is no array")
        with archive:
            yield archive
