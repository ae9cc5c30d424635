"""Readers of the lists that are published with Kinetics, AudioSet, VGGSound, UCF-101 and HMDB-51.

They name videos, not files. Kinetics, AudioSet and VGGSound list some seconds of a YouTube video, of which a folder may
hold all or just these seconds; `clip_names` has the usual names of such files. docs/format.md describes all formats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from avssl.shards.keys import Segment
from data_prep.index.lists.row import (
    ListedFile,
    ListedFiles,
    ListSettings,
    csv_rows,
    parsed,
    seconds,
    segment_of,
    text_lines,
    video_id,
)

VGGSOUND_SECONDS = 10.0
AUDIOSET_CLASSES = "class_labels_indices.csv"
UCF_LIST = re.compile(r"(train|test)list0*(\d+)\.txt")
HMDB_LIST = re.compile(r"(.+)_test_split(\d+)\.txt")
HMDB_SPLITS = {"0": "unused", "1": "train", "2": "test"}


def clip_names(video: str, segment: Segment) -> tuple[str, ...]:
    """The usual names, without extension, of files that hold just these seconds of a video.

    ID_000010_000020 (Kinetics), ID_10000_20000 (milliseconds), ID_000010 (VGGSound), ID_10_20, YID (AudioSet).
    """
    begin, end = segment
    milliseconds = f"{video}_{round(begin * 1000)}_{round(end * 1000)}"
    plain = f"{video}_{begin:g}_{end:g}"
    if begin != int(begin) or end != int(end):
        return milliseconds, plain, f"Y{video}"
    padded = f"{video}_{int(begin):06d}_{int(end):06d}"
    return padded, milliseconds, f"{video}_{int(begin):06d}", plain, f"Y{video}"


def _video_row(
    video: str, segment: Segment, labels: Sequence[str], split: str | None, settings: ListSettings
) -> ListedFile:
    names = clip_names(video_id(video), segment)
    return ListedFile(
        names=(*names, video) if settings.trimmed else names,
        whole_names=() if settings.trimmed else (video,),
        labels={"label": list(labels)} if labels else {},
        segment=segment,
        split=split,
        name=f"{video}_{round(segment[0] * 1000)}_{round(segment[1] * 1000)}",
    )


def kinetics(source: Path, settings: ListSettings) -> ListedFiles:
    """Read a csv with the columns label, youtube_id, time_start, time_end, split; hidden test sets have no label."""
    rows = csv_rows(source)
    _, header = next(rows, (1, [""]))
    columns = {name.lower(): column for column, name in enumerate(header)}
    missing = [name for name in ("youtube_id", "time_start", "time_end") if name not in columns]
    if missing:
        raise ValueError(
            f"{source}: has the columns {', '.join(header)}; a Kinetics list needs a header with label, youtube_id, "
            f"time_start, time_end, split ({', '.join(missing)} missing)"
        )

    def parse(cells: list[str]) -> ListedFile:
        if len(cells) != len(header):
            raise ValueError(f"has {len(cells)} cells; the header has {len(header)}")
        label, split = (cells[columns[name]] if name in columns else "" for name in ("label", "split"))
        segment = segment_of(cells[columns["time_start"]], cells[columns["time_end"]])
        return _video_row(cells[columns["youtube_id"]], segment, [label] if label else [], split or None, settings)

    return parsed(rows, parse)


def audioset(source: Path, settings: ListSettings) -> ListedFiles:
    """Read a csv of id, begin, end and labels (class ids in one quoted cell, separated by commas) with # comments."""
    classes = _audioset_classes(source, settings)

    def parse(cells: list[str]) -> ListedFile | None:
        if cells[0].startswith("#"):
            return None
        if len(cells) != 4:
            raise ValueError(f"has {len(cells)} cells; it must be id, begin, end, and the labels in quotes")
        ids = [class_id.strip() for class_id in cells[3].split(",") if class_id.strip()]
        if not ids:
            raise ValueError("has no label")
        if classes and (unknown := [class_id for class_id in ids if class_id not in classes]):
            raise ValueError(f"has the label {unknown[0]!a}, which {AUDIOSET_CLASSES} does not know")
        names = list(dict.fromkeys(classes.get(class_id, class_id) for class_id in ids))
        return _video_row(cells[0], segment_of(cells[1], cells[2]), names, None, settings)

    return parsed(csv_rows(source), parse)


def _audioset_classes(source: Path, settings: ListSettings) -> dict[str, str]:
    """{class id: display name}; empty if `--classes` was not given and the table is not beside the list."""
    path = settings.classes or source.parent / AUDIOSET_CLASSES
    if not path.is_file():
        if settings.classes is not None:
            raise FileNotFoundError(f"--classes {path}: no such file; it is AudioSet's {AUDIOSET_CLASSES}")
        return {}
    rows = [cells for _, cells in csv_rows(path)]
    if [cell.lower() for cell in rows[0]] != ["index", "mid", "display_name"] or any(len(row) != 3 for row in rows):
        raise ValueError(f"{path}: must be a csv with the columns index, mid, display_name")
    return {row[1]: row[2] for row in rows[1:]}


def vggsound(source: Path, settings: ListSettings) -> ListedFiles:
    """Read a csv without a header: id, second at which the clip of 10 s begins, label, split."""

    def parse(cells: list[str]) -> ListedFile:
        if len(cells) != 4:
            raise ValueError(f"has {len(cells)} cells; it must be id, begin in seconds, label, train or test")
        begin = seconds(cells[1], "the begin")
        segment = segment_of(cells[1], str(begin + VGGSOUND_SECONDS))
        return _video_row(cells[0], segment, [cells[2]], cells[3] or None, settings)

    return parsed(csv_rows(source), parse)


def ucf101(source: Path, settings: ListSettings) -> ListedFiles:
    """Read trainlist01.txt (`Class/v_X.avi 1`) or testlist01.txt (no number), or the lists of a fold in a folder. Class
    numbers are checked against classInd.txt if it is beside them.
    """
    files = _files_of_fold(source, UCF_LIST, settings.fold)
    class_table = files[0].parent / "classInd.txt"
    numbers: dict[str, str] = {}
    if class_table.is_file():
        numbers = {name: number for number, name in (text.split() for _, text in text_lines(class_table))}

    def parse(text: str, split: str) -> ListedFile:
        match = re.fullmatch(r"([^/]+)/([^/]+?)\.\w+(?:\s+(\d+))?\s*", text)
        if match is None:
            raise ValueError(f"is {text!a}; it must be Class/v_Name.avi and in training lists a class number")
        label, stem, number = match.groups()
        if numbers and label not in numbers:
            raise ValueError(f"has the class {label!a}, which classInd.txt does not know")
        if numbers and number is not None and numbers[label] != number:
            raise ValueError(f"says that {label} is class {number}; classInd.txt says {numbers[label]}")
        return ListedFile(names=(stem,), labels={"label": [label]}, split=split, name=f"{label}/{stem}")

    def read(path: Path) -> ListedFiles:
        split = _matched(UCF_LIST, path)[1]
        return parsed(text_lines(path), lambda text: parse(text, split), f"{path.name} line")

    return chain.from_iterable(read(path) for path in files)


def hmdb51(source: Path, settings: ListSettings) -> ListedFiles:
    """Read brush_hair_test_split1.txt, one file per class: `name.avi 1` (1 train, 2 test, 0 unused); or the lists of a
    fold in a folder.
    """
    files = _files_of_fold(source, HMDB_LIST, settings.fold)

    def parse(text: str, label: str) -> ListedFile:
        match = re.fullmatch(r"([^/]+?)\.\w+\s+([012])\s*", text)
        if match is None:
            raise ValueError(f"is {text!a}; it must be a file name and 0, 1 or 2")
        stem, code = match.groups()
        return ListedFile(names=(stem,), labels={"label": [label]}, split=HMDB_SPLITS[code], name=f"{label}/{stem}")

    def read(path: Path) -> ListedFiles:
        label = _matched(HMDB_LIST, path)[1]
        return parsed(text_lines(path), lambda text: parse(text, label), f"{path.name} line")

    return chain.from_iterable(read(path) for path in files)


def _matched(pattern: re.Pattern[str], path: Path) -> re.Match[str]:
    match = pattern.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: its name must be like {_example(pattern)}, for it says the split")
    return match


def _example(pattern: re.Pattern[str]) -> str:
    return "trainlist01.txt or testlist01.txt" if pattern is UCF_LIST else "brush_hair_test_split1.txt"


def _files_of_fold(source: Path, pattern: re.Pattern[str], fold: int | None) -> list[Path]:
    """The list itself if `source` is a file, otherwise the lists of one fold in that folder, sorted."""
    if not source.is_dir():
        _matched(pattern, source)
        return [source]
    lists = [(path, int(match[2])) for path in sorted(source.iterdir()) if (match := pattern.fullmatch(path.name))]
    folds = sorted({number for _, number in lists})
    if not lists:
        raise ValueError(f"{source}: holds no lists like {_example(pattern)}")
    if fold is None and len(folds) > 1:
        raise ValueError(f"{source}: holds the lists of folds {folds}; say which: --fold {folds[0]}")
    fold = folds[0] if fold is None else fold
    if fold not in folds:
        raise ValueError(f"{source}: holds no lists of fold {fold}; there are {folds}")
    return [path for path, number in lists if number == fold]
