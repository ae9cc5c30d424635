"""Is a checkpoint as it was written? Its last file, checksums.json, has the size and SHA-256 of every other one.

Checkpoints of earlier versions have no such file; they are taken as they are.
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
    """Checkpoints that are not as they were written, where none may or can be used in their place."""


def seal(folder: Path) -> None:
    """Force every file of a folder to the disk, then write checksums.json: a checkpoint without it is not finished."""
    files = sorted(folder.iterdir())
    for path in files:
        sync(path)
    (folder / CHECKSUMS_FILE).write_bytes(_content({path.name: _record(path) for path in files}))
    sync(folder / CHECKSUMS_FILE)
    sync(folder)


def damage(folder: Path) -> str:
    """What is wrong with the files of a checkpoint, the first one by name; "" when all are as they were written."""
    path = folder / CHECKSUMS_FILE
    try:
        content = path.read_bytes()
        records = Fields.parse(content, CHECKSUMS_FILE).mapping("files")
    except FileNotFoundError:
        return "" if is_unsealed(folder) else f"{CHECKSUMS_FILE}, which is written last, is missing"
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE} cannot be read ({error})"
    # json has several ways to write one value, and a name may come twice: only the bytes that `seal` writes count.
    if not records or content != _content(records):
        return f"{CHECKSUMS_FILE} is not as it was written"
    return next((fault for name, record in records.items() if (fault := _fault(folder / name, record))), "")


def is_unsealed(folder: Path) -> bool:
    """Is it a checkpoint of an earlier version, without checksums, with the statistics of the views beside it?"""
    return (folder.parent / VIEWS_FILE).is_file() and not (folder / VIEWS_FILE).exists()


def _fault(path: Path, record: object) -> str:
    try:
        found = _record(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path.name} is missing"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"{path.name} cannot be read ({error})"
    if found == record:
        return ""
    num_bytes = record.get("bytes") if isinstance(record, dict) else None
    if found["bytes"] != num_bytes:
        return f"{path.name} has {found['bytes']} bytes instead of {num_bytes}"
    return f"{path.name} has other bytes than were written"


def _record(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": sha256}


def _content(records: Mapping[str, object]) -> bytes:
    """With a checksum of the list itself: damage of it is not to be taken for damage of a file."""
    own = hashlib.sha256(dump(records).encode()).hexdigest()
    return (dump({"files": records, "sha256_of_files": own}, indent=1) + "\n").encode()
