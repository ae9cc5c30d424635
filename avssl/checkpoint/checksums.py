"""Detection of damaged checkpoints: the last file, checksums.json, has the size and SHA-256 of all others.

Checkpoints of earlier versions have no such file; they are not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from avssl.files.checked_json import Fields, dump
from avssl.files.whole import sync

CHECKSUMS_FILE = "checksums.json"
VIEWS_FILE = "view_statistics.safetensors"


class DamagedCheckpointError(ValueError):
    """A checkpoint is damaged, and no other one can or may be used in its place."""


def seal(folder: Path) -> None:
    """Sync every file of a folder, then write checksums.json: a checkpoint without it is not finished."""
    files = sorted(folder.iterdir())
    for path in files:
        sync(path)
    (folder / CHECKSUMS_FILE).write_bytes(_content({path.name: _record(path) for path in files}))
    sync(folder / CHECKSUMS_FILE)
    sync(folder)


def damage(folder: Path) -> str:
    """The fault of the first damaged file of a checkpoint, with its name; "" if all files are as they were written."""
    path = folder / CHECKSUMS_FILE
    try:
        content = path.read_bytes()
        records = Fields.parse(content, CHECKSUMS_FILE).mapping("files")
    except FileNotFoundError:
        return "" if is_unsealed(folder) else f"{CHECKSUMS_FILE}, which is written last, is missing"
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE} cannot be read ({error})"
    # The same json value can be written in several ways, and with a name twice: only the bytes of `seal` are accepted.
    if not records or content != _content(records):
        return f"{CHECKSUMS_FILE} is not as it was written"
    return next((fault for name, record in records.items() if (fault := _fault(folder / name, record))), "")


def is_unsealed(folder: Path) -> bool:
    """Whether a checkpoint is of an earlier version: without checksums, the statistics of the views lie beside it."""
    return (folder.parent / VIEWS_FILE).is_file() and not (folder / VIEWS_FILE).exists()


def _fault(path: Path, record: object) -> str:
    try:
        actual = _record(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path.name} is missing"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"{path.name} cannot be read ({error})"
    if actual == record:
        return ""
    num_bytes = record.get("bytes") if isinstance(record, dict) else None
    if actual["bytes"] != num_bytes:
        return f"{path.name} has {actual['bytes']} bytes instead of {num_bytes}"
    return f"{path.name} has other bytes than were written"


def _record(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": sha256}


def _content(records: Mapping[str, object]) -> bytes:
    """The bytes of checksums.json, with a checksum of the list: damage to it is not taken for damage to a file."""
    list_sha256 = hashlib.sha256(dump(records).encode()).hexdigest()
    return (dump({"files": records, "sha256_of_files": list_sha256}, indent=1) + "\n").encode()
