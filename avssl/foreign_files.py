"""Files that a library reads, damaged: whatever it raises over them becomes one ValueError that names the file."""

from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

import numpy as np

from avssl.plain_text import plain

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
            yield
    except FileNotFoundError:
        raise
    except (*OVER_DAMAGE, np.exceptions.ComplexWarning) as error:
        if type(error) is ValueError and where in str(error):
            raise
        found = plain(error)[:500] or type(error).__name__
        raise ValueError(f"{where}: is no readable {what} ({found})") from error
