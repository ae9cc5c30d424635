"""Files that a library reads, damaged: whatever it raises over them becomes one ValueError that names the file."""

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

# What NumPy, zipfile and pyarrow (whose errors are all of these) raise over bytes that do not fit. FileNotFoundError is
# for the caller, MemoryError is not about the file.
OVER_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, EOFError, OSError, RuntimeError,
    zipfile.BadZipFile, zlib.error, struct.error, SyntaxError,
)  # fmt: skip


@contextmanager
def naming_the_file(path: str | PathLike[str], what: str) -> Iterator[None]:
    """Around reading and checking one file. what: it should be, "Parquet file". ValueError where it is not."""
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
    """The open npz file as NumPy gives it, without pickle. Around reading and checking it, as `naming_the_file`."""
    # Opened here, for np.load leaves a file open that it cannot read.
    with naming_the_file(path, what), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not several")
        with archive:
            yield archive
