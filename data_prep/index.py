"""A folder, or a file of many pictures -> the manifest: what is there, what it is, and what it is labelled.

A folder is searched either for videos and sounds or for pictures, for the pictures beside videos are mostly thumbnails
and must not become samples unasked. Without a word it is pictures if the folder holds no video and no sound (a GIF is
taken for whatever the others are, alone for a video).
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.data.decode import MEDIA_SUFFIXES, probe
from avssl.data.pictures import IMAGE_SUFFIXES, probe_image
from avssl.types import MediaError
from data_prep.files import write_atomically
from data_prep.manifest import Entry, make_keys
from data_prep.mnist import is_picture_file, open_picture_file
from data_prep.pool import in_processes

PROBES_PER_TASK = 8
IMAGES_PER_TASK = 128
KINDS = ("media", "images")


@dataclass(frozen=True)
class IndexSummary:
    """num_listed entries, of which num_failed by reason; ignored: files that are no media, by extension."""

    num_listed: int
    failed_by_reason: dict[str, int]
    ignored_by_suffix: dict[str, int]
    num_with_video: int
    num_with_audio: int
    num_images: int = 0


def index_folder(
    folder: Path, manifest: Path, labels: str = "folder", num_workers: int = 1, kind: str | None = None
) -> IndexSummary:
    """Probe every media file, or every picture, below `folder` and write the manifest.

    labels: "folder" (name of the top-level folder), "none", or a csv file with a column `path` relative to `folder`;
    every other column is a label field, several names separated by |. kind: "media" (videos and sounds), "images", or
    None: images if there is nothing else.

    Raises ValueError or FileNotFoundError for arguments that make no sense.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: is no folder; give the folder that holds the media files")
    relative, ignored, kind = _find(folder, kind)
    label_table = read_labels(labels, relative)
    keys = make_keys(relative)
    paths = [str(stored_path(folder / one, manifest.parent)) for one in relative]
    numbers = list(range(len(relative)))
    work, size = (probe_images, IMAGES_PER_TASK) if kind == "images" else (probe_files, PROBES_PER_TASK)
    tasks = [
        tuple((number, str(folder / relative[number])) for number in numbers[begin : begin + size])
        for begin in range(0, len(relative), size)
    ]
    entries: dict[int, Entry] = {}
    try:
        for _, results in in_processes(work, tasks, num_workers, "index", [len(task) for task in tasks]):
            for number, (media, error, num_bytes) in results:
                entries[number] = Entry(paths[number], keys[number], label_table[number], media, error, num_bytes)
    except BrokenProcessPool as error:
        waiting = [relative[number] for number in numbers if number not in entries][: size * num_workers]
        raise RuntimeError(
            f"a process died while it probed one of: {', '.join(waiting)}. No manifest was written. Move the file that "
            "kills it away, or give the machine more memory, and run again"
        ) from error
    return _write_manifest(manifest, sorted(entries.values(), key=lambda entry: entry.path), ignored)


def index_file(
    path: Path, manifest: Path, labels: str = "folder", kind: str | None = None, csv_label: str | None = None
) -> IndexSummary:
    """List every picture of an idx or csv file (mnist.py): one line each, its class as the label.

    labels: "none" leaves out the classes (and needs no label file); "folder" means those of the file. csv_label: which
    column of a csv holds the class, "first" or "last".

    Raises ValueError or FileNotFoundError for a file that is none, or is damaged.
    """
    if not is_picture_file(path) or kind == "media":
        raise ValueError(
            f"{path}: is no folder, and no file of pictures (*images-idx3-ubyte or *.csv, .gz or not); for a video "
            "or a picture give the folder that holds it"
        )
    if labels not in ("folder", "none"):
        raise ValueError(f"--labels {labels}: {path} brings its own labels; allowed: none, or nothing")
    file, pictures, names = open_picture_file(path, csv_label, with_labels=labels != "none")
    stored = str(stored_path(path, manifest.parent))
    stem = make_keys([re.sub(r"([-.]idx3[-.]ubyte|\.csv)?(\.gz)?$", "", path.name, flags=re.IGNORECASE)])[0]
    num_digits = max(6, len(str(len(pictures) - 1)))
    num_pictures, height, width = pictures.shape
    media, num_bytes = {"image": file.facts((width, height))}, height * width
    entries = [
        Entry(stored, f"{stem}/{item:0{num_digits}d}", {"label": [names[item]]} if names else {}, media, None,
              num_bytes, item)
        for item in range(num_pictures)
    ]  # fmt: skip
    return _write_manifest(manifest, entries, {})


def _write_manifest(manifest: Path, entries: list[Entry], ignored: dict[str, int]) -> IndexSummary:
    write_atomically(manifest, b"".join(entry.to_json() for entry in entries))
    return IndexSummary(
        num_listed=len(entries),
        failed_by_reason=dict(Counter(entry.error["reason"] for entry in entries if entry.error)),
        ignored_by_suffix=ignored,
        num_with_video=sum(entry.media.get("video") is not None for entry in entries),
        num_with_audio=sum(entry.media.get("audio") is not None for entry in entries),
        num_images=sum(entry.is_image for entry in entries),
    )


def _find(folder: Path, kind: str | None) -> tuple[list[str], dict[str, int], str]:
    """(relative paths, what is ignored, the kind). ValueError if there is nothing."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"--kind is {kind!r}; allowed: {', '.join(KINDS)}")
    relative, ignored = find_media(folder)
    if kind is None:
        may_be_pictures = all(Path(one).suffix.lower() in IMAGE_SUFFIXES for one in relative)
        kind = "images" if may_be_pictures and IMAGE_SUFFIXES & ignored.keys() else "media"
    suffixes = IMAGE_SUFFIXES if kind == "images" else MEDIA_SUFFIXES
    if kind == "images":
        relative, ignored = find_media(folder, IMAGE_SUFFIXES)
    if not relative:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if is_picture_file(path))
        if files:
            raise ValueError(
                f"{folder}: holds no {kind} files. If one of these holds the pictures of a split, give that file: "
                f"{', '.join(files[:20])}"
            )
        raise ValueError(f"{folder}: holds no {kind} files (looked for {' '.join(sorted(suffixes))})")
    return relative, ignored, kind


def find_media(folder: Path, suffixes: Collection[str] = MEDIA_SUFFIXES) -> tuple[list[str], dict[str, int]]:
    """(paths of files with these suffixes relative to folder, sorted; how many others there are, by extension).

    Hidden files and folders are among the others. Links to folders are not followed.
    """
    found: list[str] = []
    ignored: Counter[str] = Counter()
    for parent, folders, files in os.walk(folder):
        ignored["hidden"] += sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = "hidden" if name.startswith(".") else Path(name).suffix.lower()
            if suffix in suffixes:
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
    known = set(relative_paths)
    unknown = [name for name in table if name not in known]
    if len(unknown) == len(table):
        raise ValueError(f"{path}: none of its paths is in the folder, e.g. {unknown[0]!r}; they are relative to it")
    return [table.get(one, {}) for one in relative_paths]


ProbeTask = tuple[tuple[int, str], ...]
ProbeResult = tuple[int, tuple[dict[str, Any], dict[str, str] | None, int]]


def probe_files(task: ProbeTask) -> list[ProbeResult]:
    """Runs in a worker: (number, (facts, error or None, bytes)) of each media file."""
    return _probe_each(task, lambda path: probe(path).to_json(), {})


def probe_images(task: ProbeTask) -> list[ProbeResult]:
    """As `probe_files`, of pictures: their headers."""
    return _probe_each(task, lambda path: {"image": probe_image(path).to_json()}, {"image": None})


def _probe_each(task: ProbeTask, look: Callable[[str], dict[str, Any]], nothing: dict[str, Any]) -> list[ProbeResult]:
    results: list[ProbeResult] = []
    for number, path in task:
        try:
            results.append((number, (look(path), None, Path(path).stat().st_size)))
        except MediaError as error:
            size = Path(path).stat().st_size if Path(path).is_file() else 0
            results.append((number, (nothing, {"reason": error.reason, "message": error.message}, size)))
        except ValueError as error:  # FFmpeg refuses it in a way that has no reason of its own
            message = f"{path}: cannot be probed ({type(error).__name__}: {error})"
            results.append(
                (number, (nothing, {"reason": "decode_error", "message": message}, Path(path).stat().st_size))
            )
    return results
