"""A folder of embeddings that is being filled: which share is ours, what is refused and what removed."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from avssl.embedding.index import FAISS_NAME, INDEX_NAME, PROGRESS_NAME, SKIPPED_NAME, FileRecord
from avssl.embedding.parquet import SUFFIX

TABLE_SUFFIXES = (SUFFIX, ".npz")  # earlier versions wrote both


@dataclass(frozen=True)
class Part:
    """Which share of the work is ours: number `number` (from 0) of `count` processes."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str = "0/1") -> Self:
        """From "i/n", 0 <= i < n, of which this process does its own share under torchrun or accelerate launch."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise ValueError(f"--part is {text!r}; it must be i/n with 0 <= i < n, e.g. 0/8 to 7/8")
        rank, world_size = (
            int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))
        )
        return cls(int(number) * world_size + rank, int(count) * world_size)


def refuse_other_settings(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError that names every setting that differs."""
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if names:
        shown = "; ".join(f"{name}: {then.get(name)!r} there, {now.get(name)!r} now" for name in names)
        raise ValueError(
            f"{folder} holds embeddings of other settings ({shown}); put them back, choose another "
            "--out, or --overwrite"
        )


def refuse_foreign(folder: Path) -> None:
    """ValueError if there are tables that no index.json and no settings explain."""
    found = sorted(
        path.name for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES and not path.name.startswith(".")
    )
    if found:
        raise ValueError(
            f"{folder} holds {', '.join(found[:3])}, of another program or version; choose another --out, "
            "or --overwrite"
        )


def remove_embeddings(folder: Path) -> None:
    """Remove what an embedding command left in a folder, finished or not; index.json goes first."""
    for path in (folder / INDEX_NAME, folder / SKIPPED_NAME):
        path.unlink(missing_ok=True)
    for path in folder.glob("embeddings*"):
        if path.suffix in TABLE_SUFFIXES:
            path.unlink()
    for name in (PROGRESS_NAME, FAISS_NAME):
        shutil.rmtree(folder / name, ignore_errors=True)


def positive(name: str, value: int) -> int:
    """The value; ValueError below 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return value


def file_record(path: Path, num_rows: int) -> FileRecord:
    """What index.json says of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.name, num_rows, path.stat().st_size, sha256)
