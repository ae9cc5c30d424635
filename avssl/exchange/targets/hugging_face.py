"""Shards as a Hugging Face data set: a folder of Parquet files that `datasets.load_dataset` opens with typed columns.

FOLDER/
  data/train-00000-of-00003.parquet ...   key, index, video, audio, image, times, labels, caption
  README.md                               the data set's card
  export.json                             of what it was written; last, so a folder without it is unfinished

Until all files are written they lie in FOLDER/.progress; the same command goes on with the next file.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from avssl.embedding.index import differences
from avssl.exchange.targets import hf_card, hf_parquet
from avssl.exchange.targets.hf_columns import Contents
from avssl.exchange.targets.hf_parquet import write_samples
from avssl.files.checked_json import Fields
from avssl.files.disk_errors import clear_errors
from avssl.files.hub import check_name, upload
from avssl.files.locks import locked
from avssl.files.plain_text import brief
from avssl.files.progress import Bar
from avssl.files.scratch import remove_leftovers
from avssl.files.whole import sync, write_whole
from avssl.shards.shard_set import ShardSet
from avssl.version import __version__

FILE_BYTES = 500_000_000  # of shards: whole ones go into a file until it has as much
RECORD_NAME, PROGRESS_NAME, DATA_NAME = "export.json", ".progress", "data"
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
SPLITS = {"train": "train", "validation": "validation", "test": "test"}  # {part of a manifest: name at the hub}
BUSY = "another process writes this folder; wait for it, or end it"


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the folder of `avssl export --to hf`, and push it if that is asked; the fields of the result."""
    if arguments.private and not arguments.push:
        raise ValueError("--private is for --push ORG/NAME")
    if arguments.push:
        check_name(arguments.push)  # before hours of writing
    splits = named_splits(arguments.sources)
    record = write_data_set(splits, arguments.out, license=arguments.license or "", overwrite=arguments.overwrite)
    counts = {name: facts["num_samples"] for name, facts in record["splits"].items()}
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    megabytes = sum(item["bytes"] for item in record["files"]) / 1e6
    summary = f"{sum(counts.values()):,} samples ({shown}) in {len(record['files'])} files, {megabytes:.1f} MB: "
    facts = {"splits": counts, "columns": list(record["features"]), "num_files": len(record["files"])}
    commit = None
    if arguments.push:
        commit = push(arguments.out, arguments.push, record, private=arguments.private)
    return {**facts, "commit": commit, "summary": f"{summary}{commit or arguments.out}"}


def push(folder: Path, name: str, record: dict[str, Any], *, private: bool) -> str:
    """Upload the card and the data of a finished folder to the data set repository `owner/name`; its address.

    Data files of an earlier push are removed: those of the same split would be read as further rows of it.
    """
    files = ["README.md", *(item["name"] for item in record["files"])]
    message = "Data and card written by avssl"
    earlier = [f"{DATA_NAME}/*-of-*.parquet"]
    return upload(folder, name, files, kind="dataset", private=private, message=message, replaced=earlier)


def named_splits(sources: Sequence[str]) -> dict[str, ShardSet]:
    """{split: its shards} of words SPLIT=SHARDS, or of one shard folder, whose split is the part that it is of.

    ValueError for a name that is none, that is there twice or that several folders lack.
    """
    splits: dict[str, ShardSet] = {}
    for source in sources:
        name, separator, location = source.partition("=")
        if not separator or not SPLIT_NAME.fullmatch(name) or Path(source).exists():
            name, location = "", source
        shards = ShardSet(location)
        parts = shards.index.split_parts
        name = name or (SPLITS.get(parts[0], parts[0]) if len(parts) == 1 else "train")
        if not SPLIT_NAME.fullmatch(name):
            raise ValueError(f"{brief(name)} is no name of a split; write SPLIT={location}, with letters, digits and _")
        if name in splits:
            raise ValueError(
                f"two folders would be the split {name}; write SPLIT=FOLDER for each, such as train={sources[0]}"
            )
        splits[name] = shards
    return splits


def write_data_set(
    splits: dict[str, ShardSet],
    out: Path,
    *,
    license: str = "",
    overwrite: bool = False,
    file_bytes: int = FILE_BYTES,
    row_group_bytes: int = hf_parquet.ROW_GROUP_BYTES,
) -> dict[str, Any]:
    """Write the folder, or go on with what an earlier call has begun; the content of its export.json.

    The same shards give the same bytes. Raises ValueError if the folder is of other shards or settings, FileExistsError
    if it holds something else, MediaError for a damaged sample.
    """
    settings = {
        "avssl_version": __version__,
        "splits": {name: shards.fingerprint for name, shards in splits.items()},
        "license": license,
        "file_bytes": file_bytes,
        "row_group_bytes": row_group_bytes,
    }
    with clear_errors(out, "made"):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait_seconds=0, busy=f"{out}: {BUSY}"):
        finished = _begin(out, settings, overwrite=overwrite)
        if finished is not None:
            return finished
        progress = out / PROGRESS_NAME
        total = sum(map(len, splits.values()))
        with Bar("export", 2 * total, "sample") as bar:  # the json of each is read first
            contents = _contents(splits, bar)
            if not total:
                raise ValueError("the shards hold no samples, so there is nothing to export")
            files = [
                {"split": name, **_write_file(progress, name, number, count, shards, ends, contents, settings, bar)}
                for name, shards in splits.items()
                for number, count, ends in _files(shards, file_bytes)
            ]
        return _finish(out, settings, contents, splits, files)


def _begin(out: Path, settings: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Make the folder ready; the content of export.json if it is finished with these settings."""
    progress, record = out / PROGRESS_NAME, out / RECORD_NAME
    begun = record if record.is_file() else progress / "settings.json"
    is_own = "settings" in Fields.read(begun).record if begun.is_file() else progress.is_dir()
    if overwrite and is_own:  # nothing else is removed
        progress.mkdir(exist_ok=True)  # first and last: whatever a killed process leaves is known as its own
        for path in (record, out / hf_card.CARD_NAME):
            path.unlink(missing_ok=True)
        if (out / DATA_NAME).exists():
            shutil.rmtree(out / DATA_NAME)
        shutil.rmtree(progress)
        begun = progress / "settings.json"
    if begun.is_file():
        stored = Fields.read(begun)
        if changed := differences(stored.mapping("settings"), settings):
            shown = "; ".join(f"{key}: {values}" for key, values in changed.items())
            raise ValueError(
                f"{out} holds an export of other shards or settings ({shown}); choose another --out, or --overwrite"
            )
        if begun == record:
            shutil.rmtree(progress, ignore_errors=True)  # of a process that was killed after its last step
            return stored.record
        if (progress / DATA_NAME).is_dir():
            remove_leftovers(progress / DATA_NAME, r".*\.parquet")
        return None
    if others := sorted(path.name for path in out.iterdir() if path.name not in (".lock", PROGRESS_NAME)):
        raise FileExistsError(f"{out} holds {brief(others[0])}, which is of no export; choose another --out")
    shutil.rmtree(progress, ignore_errors=True)  # without settings: another process was killed while it removed it
    (progress / DATA_NAME).mkdir(parents=True)
    write_whole(progress / "settings.json", json.dumps({"settings": settings}, indent=1))
    return None


def _contents(splits: dict[str, ShardSet], bar: Bar) -> Contents:
    contents = Contents()
    for name, shards in splits.items():
        contents.counts[name], contents.seconds[name] = Counter(), 0.0
        for position in range(len(shards)):
            contents.add(name, shards.read_info(position))
            bar.update(1)
    return contents


def _files(shards: ShardSet, file_bytes: int) -> list[tuple[int, int, range]]:
    """(number, number of files, indices of its samples) of each file: whole shards, of which each is in one file."""
    ranges: list[range] = []
    first, size = 0, 0
    for record in shards.index.shards:
        if size and size + record.bytes > file_bytes:
            ranges.append(range(first, record.first_index))
            first, size = record.first_index, 0
        size += record.bytes
    ranges.append(range(first, len(shards)))
    return [(number, len(ranges), indices) for number, indices in enumerate(ranges)]


def _write_file(
    progress: Path,
    split: str,
    number: int,
    count: int,
    shards: ShardSet,
    indices: range,
    contents: Contents,
    settings: dict[str, Any],
    bar: Bar,
) -> dict[str, Any]:
    """Write a file of samples unless it is there already; its record."""
    name = f"{DATA_NAME}/{split}-{number:05d}-of-{count:05d}.parquet"
    done = progress / f"{split}-{number:05d}.json"
    if done.is_file():
        bar.update(len(indices))
        return Fields.read(done).record
    path = progress / name

    def samples() -> Iterator[dict[str, Any]]:
        for index in indices:
            yield contents.row(shards.read(index))
            bar.update(1)

    num_samples, media_bytes = write_samples(path, contents.features, samples(), settings["row_group_bytes"])
    record = {
        "name": name,
        "num_samples": num_samples,
        "media_bytes": media_bytes,
        "bytes": path.stat().st_size,
    }
    write_whole(done, json.dumps(record))
    return record


def _finish(
    out: Path,
    settings: dict[str, Any],
    contents: Contents,
    splits: dict[str, ShardSet],
    files: list[dict[str, Any]],
) -> dict[str, Any]:
    """Put the files in their place, and write the card and, last, export.json; its content."""
    progress = out / PROGRESS_NAME
    record: dict[str, Any] = {
        "settings": settings,
        "splits": {
            name: {"num_samples": len(shards), "seconds": contents.seconds[name], "with": dict(contents.counts[name])}
            for name, shards in splits.items()
        },
        "features": contents.features,
        "files": files,
    }
    if (progress / DATA_NAME).is_dir():  # otherwise this was killed after it had moved it
        sync(progress / DATA_NAME)
        (progress / DATA_NAME).rename(out / DATA_NAME)
    card = hf_card.card(out.resolve().name, record, contents.names, {name: s.index for name, s in splits.items()})
    write_whole(out / hf_card.CARD_NAME, card)
    write_whole(out / RECORD_NAME, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(progress, ignore_errors=True)
    return record
