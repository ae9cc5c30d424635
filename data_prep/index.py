"""A folder of media files -> the manifest: what is there, what it is, and what it is labelled."""

from __future__ import annotations

import csv
import os
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from avssl.data.decode import MEDIA_SUFFIXES, probe
from avssl.types import MediaError
from data_prep.files import write_atomically
from data_prep.manifest import Entry, make_keys
from data_prep.pool import in_processes

PROBES_PER_TASK = 8


@dataclass(frozen=True)
class IndexSummary:
    """num_listed entries, of which num_failed by reason; ignored: files that are no media, by extension."""

    num_listed: int
    failed_by_reason: dict[str, int]
    ignored_by_suffix: dict[str, int]
    num_with_video: int
    num_with_audio: int


def index_folder(folder: Path, manifest: Path, labels: str = "folder", num_workers: int = 1) -> IndexSummary:
    """Probe every media file below `folder` and write the manifest.

    labels: "folder" (name of the top-level folder), "none", or a csv file with a column `path` relative to `folder`;
    every other column is a label field, several names separated by |.

    Raises ValueError or FileNotFoundError for arguments that make no sense.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: is no folder; give the folder that holds the media files")
    relative, ignored = find_media(folder)
    if not relative:
        raise ValueError(f"{folder}: holds no media files (looked for {' '.join(sorted(MEDIA_SUFFIXES))})")
    label_table = read_labels(labels, relative)
    keys = make_keys(relative)
    paths = [str(stored_path(folder / one, manifest.parent)) for one in relative]
    numbers = list(range(len(relative)))
    tasks = [
        tuple((number, str(folder / relative[number])) for number in numbers[begin : begin + PROBES_PER_TASK])
        for begin in range(0, len(relative), PROBES_PER_TASK)
    ]
    entries: dict[int, Entry] = {}
    try:
        for _, results in in_processes(probe_files, tasks, num_workers, "index", [len(task) for task in tasks]):
            for number, (media, error, size) in results:
                entries[number] = Entry(paths[number], keys[number], label_table[number], media, error, size)
    except BrokenProcessPool as error:
        waiting = [relative[number] for number in numbers if number not in entries][: PROBES_PER_TASK * num_workers]
        raise RuntimeError(
            f"a process died while it probed one of: {', '.join(waiting)}. No manifest was written. Move the file that "
            "kills it away, or give the machine more memory, and run again"
        ) from error
    ordered = sorted(entries.values(), key=lambda entry: entry.path)
    write_atomically(manifest, b"".join(entry.to_json() for entry in ordered))
    return IndexSummary(
        num_listed=len(ordered),
        failed_by_reason=dict(Counter(entry.error["reason"] for entry in ordered if entry.error)),
        ignored_by_suffix=ignored,
        num_with_video=sum(entry.media.get("video") is not None for entry in ordered),
        num_with_audio=sum(entry.media.get("audio") is not None for entry in ordered),
    )


def find_media(folder: Path) -> tuple[list[str], dict[str, int]]:
    """(paths of media files relative to folder, sorted; how many other files there are, by extension).

    Hidden files and folders are among the others. Links to folders are not followed.
    """
    found: list[str] = []
    ignored: Counter[str] = Counter()
    for parent, folders, files in os.walk(folder):
        ignored["hidden"] += sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = "hidden" if name.startswith(".") else Path(name).suffix.lower()
            if suffix in MEDIA_SUFFIXES:
                found.append((Path(parent) / name).relative_to(folder).as_posix())
            else:
                ignored[suffix or "none"] += 1
    return sorted(found), {suffix: count for suffix, count in sorted(ignored.items()) if count}


def stored_path(path: Path, manifest_folder: Path) -> Path:
    """Relative to the manifest where the file lies below its folder, so that both can move together; else absolute."""
    path, base = path.absolute(), manifest_folder.absolute()
    return path.relative_to(base) if path.is_relative_to(base) else path


def read_labels(labels: str, relative_paths: list[str]) -> list[dict[str, list[str]]]:
    """The labels of each file. ValueError if the csv does not fit the files."""
    if labels == "none":
        return [{} for _ in relative_paths]
    if labels == "folder":
        return [{"label": [path.split("/")[0]]} if "/" in path else {} for path in relative_paths]
    path = Path(labels)
    if not path.is_file():
        raise FileNotFoundError(f"--labels {labels}: no such file; allowed: folder, none, or a csv file")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "path" not in rows[0]:
        raise ValueError(f"{path}: needs a header with a column 'path' and at least one row")
    table = {
        row["path"]: {
            field: [name for name in value.split("|") if name]
            for field, value in row.items()
            if field not in (None, "path") and value
        }
        for row in rows
    }
    unknown = [name for name in table if name not in set(relative_paths)]
    if len(unknown) == len(table):
        raise ValueError(f"{path}: none of its paths is in the folder, e.g. {unknown[0]!r}; they are relative to it")
    return [table.get(one, {}) for one in relative_paths]


ProbeResult = tuple[int, tuple[dict[str, object], dict[str, str] | None, int]]


def probe_files(task: tuple[tuple[int, str], ...]) -> list[ProbeResult]:
    """Runs in a worker: (number, (facts, error or None, bytes)) of each file."""
    results: list[ProbeResult] = []
    for number, path in task:
        try:
            results.append((number, (probe(path).to_json(), None, Path(path).stat().st_size)))
        except MediaError as error:
            size = Path(path).stat().st_size if Path(path).is_file() else 0
            results.append((number, ({}, {"reason": error.reason, "message": error.message}, size)))
        except ValueError as error:  # FFmpeg refuses it in a way that has no reason of its own
            message = f"{path}: cannot be probed ({type(error).__name__}: {error})"
            results.append((number, ({}, {"reason": "decode_error", "message": message}, Path(path).stat().st_size)))
    return results
