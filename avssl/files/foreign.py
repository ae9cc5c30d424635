"""Damaged files that a library reads: whatever it raises becomes one ValueError that names the file."""

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

# The errors that NumPy, zipfile and pyarrow raise for damaged files. FileNotFoundError is left to the caller, and
# MemoryError is not about the file.
OVER_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, EOFError, OSError, RuntimeError,
    zipfile.BadZipFile, zlib.error, struct.error, SyntaxError,
)  # fmt: skip


@contextmanager
def naming_the_file(path: str | PathLike[str], what: str) -> Iterator[None]:
    """A block that reads and checks one file; ValueError if it cannot. what: the expected kind, like "Parquet file"."""
    where = fspath(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)  # half of each number would be lost
            warnings.simplefilter("error", RuntimeWarning)  # numbers that do not fit the type would be infinite
            yield
    except FileNotFoundError:
        raise
    except (*OVER_DAMAGE, np.exceptions.ComplexWarning, RuntimeWarning) as error:
        if type(error) is ValueError and where in str(error):
            raise
        found = plain(error)[:500] or type(error).__name__
        raise ValueError(f"{where}: is no readable {what} ({found})") from error


@contextmanager
def arrays_of(path: str | PathLike[str], what: str) -> Iterator[Any]:
    """The open npz file, read without pickle; a block that reads and checks it, as `naming_the_file`."""
    # Opened here, because np.load leaves a file that it cannot read open.
    with naming_the_file(path, what), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not several")
        members = archive.zip.namelist() if archive.zip else []
        if others := [name for name in members if not name.endswith(".npy")]:
            raise ValueError(f"it holds {others[0]!r}, which is no array")
        with archive:
            yield archive
