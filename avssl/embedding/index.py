"""index.json of a folder of embedding tables: `avssl embed` writes it last, and it lists the files of the folder."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from avssl.embedding.parquet import SUFFIX
from avssl.files.checked_json import Fields
from avssl.files.plain_text import brief, plain
from avssl.files.whole import sha256_file, whole_file

INDEX_NAME, SKIPPED_NAME, PROGRESS_NAME = "index.json", "skipped.jsonl", ".progress"
LISTING_NAME = "sources.jsonl"  # of the files that were embedded; a shard folder has a list of its own
KIND, VERSION = "avssl embeddings", 1
SOURCES_PER_BLOCK, ROWS_PER_FILE = 128, 200_000  # defaults of how a folder is divided
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,240}\.parquet")


@dataclass(frozen=True)
class Share:
    """The blocks that a process embeds: those whose number leaves the remainder `number` when divided by `count`."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str = "0/1") -> Self:
        """The share of "i/n", 0 <= i < n; torchrun and accelerate launch divide it again among their processes."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise ValueError(f"--part is {text!r}; it must be i/n with 0 <= i < n, e.g. 0/8 to 7/8")
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return cls(int(number) * world_size + rank, int(count) * world_size)


@dataclass(frozen=True)
class FileRecord:
    """One Parquet file of the folder; its rows follow those of the file before."""

    name: str
    num_rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, fields: Fields) -> Self:
        """Checked fields of index.json; ValueError names the file and the field. The name must not leave the folder."""
        expected = "the name of a Parquet file in the same folder, like embeddings.parquet"
        name = fields.matching("name", FILE_NAME, expected)
        return cls(name, fields.count("num_rows"), fields.count("bytes"), fields.text("sha256"))

    @classmethod
    def of_file(cls, path: Path, num_rows: int) -> Self:
        """The record of a file that is complete."""
        return cls(path.name, num_rows, path.stat().st_size, sha256_file(path))


@dataclass(frozen=True)
class FolderIndex:
    """Content of a finished folder; the fields are the keys of index.json.

    settings: all that the rows are a function of, and how they are divided into files.
    widths: dim of each vector column.
    num_listed = num_embedded + num_skipped, in sources.
    rows_with: {modality: number of rows that have it}.
    run_folder: where the run lay when the folder was written.
    """

    settings: dict[str, Any]
    widths: dict[str, int]
    num_listed: int
    num_embedded: int
    num_skipped: int
    skipped_by_reason: dict[str, int]
    num_rows: int
    rows_with: dict[str, int]
    run_folder: str
    files: list[FileRecord]

    def write(self, folder: Path, kind: str = KIND) -> None:
        """Write index.json, complete or not at all. kind: of the folder that it lies in."""
        content = {"kind": kind, "version": VERSION, **asdict(self)}
        with whole_file(folder / INDEX_NAME) as stream:
            stream.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")

    @classmethod
    def read(cls, folder: Path, kind: str = KIND) -> Self:
        """Read index.json. FileNotFoundError: it is missing or unfinished. ValueError: another kind or version."""
        path = folder / INDEX_NAME
        if not path.is_file():
            _refuse_unfinished(folder)
            raise FileNotFoundError(f"{path} is missing: {folder} is not a folder that `avssl embed` has finished")
        fields = Fields.read(path)
        kind_and_version = fields.record.get("kind"), fields.record.get("version")
        if kind_and_version != (kind, VERSION):
            raise ValueError(f"{path} is of kind and version {brief(kind_and_version)}; expected {(kind, VERSION)}")
        return cls(
            settings=fields.mapping("settings"),
            widths=fields.counts("widths"),
            num_listed=fields.count("num_listed"),
            num_embedded=fields.count("num_embedded"),
            num_skipped=fields.count("num_skipped"),
            skipped_by_reason=fields.counts("skipped_by_reason"),
            num_rows=fields.count("num_rows"),
            rows_with=fields.counts("rows_with"),
            run_folder=fields.text("run_folder"),
            files=[FileRecord.of(record) for record in fields.sections("files")],
        )

    def paths(self, folder: Path) -> list[Path]:
        """Paths of the files. FileNotFoundError: a file is missing. ValueError: a file has another size than listed."""
        for record in self.files:
            path = folder / record.name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, but {INDEX_NAME} lists it; embed again with --overwrite")
            if path.stat().st_size != record.bytes:
                raise ValueError(f"{path} has {path.stat().st_size} bytes; {INDEX_NAME} says {record.bytes}")
        return [folder / record.name for record in self.files]


def is_lance_table(folder: str | Path) -> bool:
    """Whether a folder is a Lance table, also one of another program."""
    return (Path(folder) / "_versions").is_dir()


def refuse_no_index(folder: str | Path) -> None:
    """FolderIndex.read's errors for what is no folder of embeddings and no Lance table: before PyTorch is imported."""
    if not is_lance_table(folder):
        FolderIndex.read(Path(folder))


def differences(stored: object, now: object, key: str = "") -> dict[str, str]:
    """{dotted key: both values} where two trees of settings differ.

    >>> differences({"inputs": {"video": {"fps": 8, "size_px": 32}}}, {"inputs": {"video": {"fps": 4, "size_px": 32}}})
    {'inputs.video.fps': '8 there, 4 now'}
    """
    if not isinstance(stored, dict) or not isinstance(now, dict):
        return {} if stored == now else {plain(key): f"{brief(stored)} there, {brief(now)} now"}
    found: dict[str, str] = {}
    for name in sorted({*stored, *now}):
        found |= differences(stored.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    return found


def table_files(folder: Path) -> list[Path]:
    """Files of a folder's tables, in order: those that index.json lists; without it, the .parquet files by name.

    FileNotFoundError if there is no file, if one is missing, or if the folder is unfinished.
    """
    if (folder / INDEX_NAME).is_file():
        paths = FolderIndex.read(folder).paths(folder)
        if not paths:
            raise FileNotFoundError(f"the folder {str(folder)!r} holds no rows: nothing could be embedded")
        return paths
    _refuse_unfinished(folder)
    paths = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    if not paths:
        raise FileNotFoundError(
            f"the folder {str(folder)!r} holds no {SUFFIX} file; write its tables with `avssl embed` (npz files, "
            "which earlier versions wrote, too, are not read)"
        )
    return paths


def _refuse_unfinished(folder: Path) -> None:
    if (folder / PROGRESS_NAME).is_dir():
        raise FileNotFoundError(
            f"the folder {str(folder)!r} is unfinished; run the same `avssl embed` command again to continue"
        )
