"""Embeddings as a data set of FiftyOne: a sample per file, its windows as temporal detections, its vectors as fields.

Only this file imports fiftyone, of the extra `fiftyone`. The data set lies in FiftyOne's database and gets its name
when it is whole; what a killed process left there is removed by the next one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from avssl.exchange.targets.clips import Clip, MediaFiles, clips_of
from avssl.exchange.targets.rows import RowSource
from avssl.files.disk_errors import clear_errors
from avssl.files.locks import locked
from avssl.files.plain_text import brief, note
from avssl.files.progress import Bar
from avssl.shards.cache import default_cache_dir
from avssl.shards.keys import label_columns

SAMPLES_AT_A_TIME = 128
UNFINISHED = ".unfinished"
WINDOWS_FIELD = "windows"
_OWN_FIELDS = ("key", "index", "first_row", "num_windows", "begin_seconds", "end_seconds", "caption", WINDOWS_FIELD)
_THEIR_FIELDS = ("id", "filepath", "tags", "metadata", "frames", "support", "created_at")


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the data set of `avssl export --to fiftyone`; the fields of its result."""
    fiftyone = library()
    name = str(arguments.out)
    rows = RowSource(arguments.sources[0], arguments.vectors or ("embedding",), arguments.moved)
    media = MediaFiles(rows, arguments.media)
    with _alone(name):
        if fiftyone.dataset_exists(name) and not arguments.overwrite:
            raise FileExistsError(
                f"FiftyOne has a data set {brief(name)} already; choose another --out, or --overwrite"
            )
        unfinished = f"{name}{UNFINISHED}"
        if fiftyone.dataset_exists(unfinished):
            fiftyone.delete_dataset(unfinished)
        dataset = fiftyone.Dataset(unfinished)  # not persistent: the database itself forgets it if this is killed
        try:
            left_out = fill(dataset, rows, media)
            if fiftyone.dataset_exists(name):
                fiftyone.delete_dataset(name)
            dataset.name = name
            dataset.persistent = True
        except BaseException:
            fiftyone.delete_dataset(unfinished)
            raise
    shown = "".join(f"; {count:,} {kind} files are left out" for kind, count in left_out.items())
    return {
        "num_rows": len(rows),
        "num_samples": len(dataset),
        "media_type": dataset.media_type,
        "left_out": left_out,
        "fields": sorted(dataset.get_field_schema()),
        "summary": f"{len(dataset):,} samples, {len(rows):,} rows{shown}: fiftyone app launch {name}",
    }


def _alone(name: str) -> AbstractContextManager[None]:
    """The lock of a name: no other process of this user on this machine takes its unfinished data set for left over."""
    folder = default_cache_dir() / "fiftyone"
    with clear_errors(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.lock"
    busy = f"another process exports {brief(name)} to FiftyOne; wait for it, or end it"
    return locked(lock, wait_seconds=0, busy=busy)


def library() -> Any:
    """The module fiftyone. ImportError says what to install, OSError that its database does not start."""
    try:
        import fiftyone
    except ImportError as error:
        raise ImportError(f"--to fiftyone needs FiftyOne: pip install 'avssl[fiftyone]' ({error})") from error
    try:
        fiftyone.list_datasets()
    except Exception as error:  # its own classes, and those of its database
        raise OSError(
            f"FiftyOne's database does not start or cannot be reached: {' '.join(str(error).split())[:300]}"
        ) from error
    return fiftyone


def fill(dataset: Any, rows: RowSource, media: MediaFiles) -> dict[str, int]:
    """Add the clips of rows to an empty data set; {kind of media: files that are left out}.

    A data set of FiftyOne has one kind of media: videos if any row has video, else images, else sounds.
    """
    import fiftyone as fo

    kind = next((kind for kind in ("video", "image") if rows.index.rows_with.get(kind)), "audio")
    fields = field_names(rows.label_fields)
    types = {"key": fo.StringField, "index": fo.IntField, "first_row": fo.IntField, "num_windows": fo.IntField}
    types |= {"begin_seconds": fo.FloatField, "end_seconds": fo.FloatField, "caption": fo.StringField}
    for name, kind_of_field in types.items():
        dataset.add_sample_field(name, kind_of_field)
    for name in rows.vectors:
        dataset.add_sample_field(name, fo.VectorField)
    dataset.info = {
        "embeddings": str(rows.folder.resolve()),
        "settings": json.dumps(rows.index.settings, sort_keys=True),
    }
    dataset.save()
    left_out: Counter[str] = Counter()
    waiting: list[Any] = []
    with Bar("export", len(rows), "row") as bar:
        for clip in clips_of(rows):
            bar.update(len(clip.windows))
            if clip.kind != kind:
                left_out[clip.kind] += 1
                continue
            waiting.append(_sample(clip, media.file_of(clip), kind, fields, rows.several))
            if len(waiting) == SAMPLES_AT_A_TIME:
                dataset.add_samples(waiting, dynamic=True, progress=False)
                waiting = []
        if waiting:
            dataset.add_samples(waiting, dynamic=True, progress=False)
    for other, count in left_out.items():
        note(f"{count} files have no {kind}, only {other}: a data set of FiftyOne has one kind of media", "warning")
    return dict(left_out)


def field_names(labels: list[str]) -> dict[str, str]:
    """{label field: name of the field in FiftyOne}: letters, digits and _; label_NAME where that is taken."""

    def written(label: str) -> str:
        name = re.sub(r"\W", "_", label).strip("_") or "label"
        return f"label_{name}" if name.endswith(("_embedding", "_feature")) or name[0].isdigit() else name

    return label_columns(labels, {*_OWN_FIELDS, *_THEIR_FIELDS}, written)


def _sample(clip: Clip, path: Path, kind: str, fields: dict[str, str], several: set[str]) -> Any:
    import fiftyone as fo

    sample = fo.Sample(
        filepath=str(path),
        key=clip.key,
        index=clip.index,
        first_row=clip.first,
        num_windows=len(clip.windows),
        begin_seconds=float(clip.windows[:, 0].min()),
        end_seconds=float(clip.windows[:, 1].max()),
        caption=clip.caption,
    )
    for label, name in fields.items():
        classes = [fo.Classification(label=text) for text in clip.labels.get(label, [])]
        if label in several:
            sample[name] = fo.Classifications(classifications=classes)
        elif classes:
            sample[name] = classes[0]
    for column in clip.vectors:
        sample[column] = clip.mean(column)
    if kind == "video":
        try:
            sample.metadata = fo.VideoMetadata.build_for(str(path))
        except Exception as error:  # of ffprobe, which FiftyOne starts
            raise ValueError(
                f"{path}: FiftyOne cannot read it with ffprobe ({' '.join(str(error).split())[:200]})"
            ) from error
        sample[WINDOWS_FIELD] = fo.TemporalDetections(
            detections=[_window(clip, row, sample.metadata) for row in range(len(clip.windows))]
        )
    return sample


def _window(clip: Clip, row: int, metadata: Any) -> Any:
    """A row as a temporal detection, with its vectors. Its frames, from 1, are those that begin within its seconds."""
    import fiftyone as fo

    begin, end = (float(second) for second in clip.windows[row])
    names = next((names for names in clip.labels.values() if names), ["window"])
    count, rate = max(1, metadata.total_frame_count), metadata.frame_rate
    first = min(round(begin * rate) + 1, count)
    last = min(max(first, round(end * rate)), count)
    detection = fo.TemporalDetection(label=names[0], support=[first, last])
    detection["row"], detection["begin_seconds"], detection["end_seconds"] = clip.first + row, begin, end
    for column, vectors in clip.vectors.items():
        if not np.isnan(vectors[row]).any():
            detection[column] = vectors[row]
    return detection
