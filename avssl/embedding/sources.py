"""Sources: files and folders of files, a manifest of `avssl prep index`, and shard folders.

Keys and labels are those that `avssl prep index` gives to the same files (shards/keys.py). There may be any number of
files: a listing is read as a stream, in a fixed order, and written to a file on disk from which its entries are read by
number.
"""

from __future__ import annotations

import heapq
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from avssl.embedding.index import LISTING_NAME
from avssl.files.checked_json import Fields, parse
from avssl.files.disk_errors import clear_errors
from avssl.files.folders import UnreadableFolderError, entries_in, is_folder
from avssl.files.location import is_remote
from avssl.files.plain_text import brief
from avssl.files.scratch import temporary_folder
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import MEDIA_SUFFIXES
from avssl.shards.keys import KeyHashes, folder_labels, plain_key
from avssl.shards.manifest import Entry, FileSource, has_captions, read_segment, sound_of, stream_manifest
from avssl.shards.places import within_of
from avssl.shards.shard_set import ShardSet
from avssl.types import FAILURE_REASONS

Sources = ShardSet | Sequence[FileSource]
NAMES_IN_MEMORY = 200_000  # of one folder; more are sorted in several runs on disk
LINES_PER_STEP = 128  # lines of a listing per stored offset
MANIFEST_SUFFIX = ".jsonl"


def suffixes_of(modalities: Sequence[str]) -> frozenset[str]:
    """Suffixes of files that can hold one of the modalities."""
    image_suffixes = IMAGE_SUFFIXES if "image" in modalities else frozenset()
    return image_suffixes | MEDIA_SUFFIXES if set(modalities) - {"image"} else image_suffixes


def is_shard_folder(path: str | Path) -> bool:
    """Whether a path is a shard folder, or the URL of one."""
    return is_remote(path) or (Path(path) / "index.json").is_file()


def is_manifest(path: str | Path) -> bool:
    """Whether a source is a manifest of `avssl prep index`: a file whose name ends with .jsonl."""
    return not is_remote(path) and Path(path).suffix.lower() == MANIFEST_SUFFIX and Path(path).is_file()


def resolve_sources(sources: ShardSet | str | Path | Sequence[str | Path], modalities: Sequence[str]) -> Sources:
    """A shard set as it is; one shard folder or its URL as a shard set; of all others the files, as `list_sources`."""
    if isinstance(sources, ShardSet):
        return sources
    paths = [sources] if isinstance(sources, str | Path) else sources
    if len(paths) == 1 and is_shard_folder(paths[0]):
        return ShardSet(paths[0])
    with temporary_folder() as scratch:
        return list(list_sources(paths, modalities, scratch))


def list_sources(paths: Sequence[str | Path], modalities: Sequence[str], scratch: Path) -> Iterator[FileSource]:
    """The files of one manifest; or of files and folders, of which those are taken that can hold one of the modalities.

    The key is the path below the folder, or the name of a file that is a source itself, as a key of a manifest; the
    label is the top-level folder. A manifest gives its own keys, labels and segments, and files that it says cannot be
    read have its reason.

    scratch: an empty folder for temporary files.

    Raises:
        FileNotFoundError: a source that does not exist, or a folder without such files.
        ValueError: two files that would have the same key, a damaged manifest, a manifest among other sources.
    """
    if any(map(is_manifest, paths)):
        if len(paths) > 1:
            raise ValueError(f"{next(filter(is_manifest, paths))}: a manifest is the only source; embed others apart")
        manifest = Path(located(paths[0]))
        captions = has_captions(manifest)
        files = (
            file_of_entry(entry, manifest.parent, modalities, captions=captions) for entry in stream_manifest(manifest)
        )
        return _with_unique_keys(((file, "") for file in files), scratch, given_in=str(manifest))
    roots = [Path(located(path)) for path in paths]
    listed = list_files(roots, suffixes_of(modalities))
    return _with_unique_keys((_of_file(roots[number], below) for number, below in listed), scratch)


def located(path: str | Path) -> str:
    """A source as an absolute path; a URL as it is. A link to a file keeps its own name, by which its key is made."""
    if is_remote(path):
        return str(path)
    here = Path(path)
    return str(here.resolve() if here.is_dir() else here.parent.resolve() / here.name)


def sources_of_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[FileSource]:
    """The files of which a finished folder of embeddings was made, by its settings; none if these were shards.

    Earlier versions kept no list: then it is what lies below the sources now, with the keys of these versions.
    """
    if settings.get("shards") is not None:
        return
    if (folder / LISTING_NAME).is_file():
        yield from read_listing(folder / LISTING_NAME)
        return
    roots = [root for root in map(Path, settings["sources"]) if root.exists()]
    for number, below in list_files(roots, suffixes_of(settings["modalities"])):
        name = below or roots[number].name
        yield FileSource(str(roots[number] / below), os.fsencode(name).decode("utf-8", "backslashreplace"))


def _of_file(root: Path, below: str) -> tuple[FileSource, str]:
    """(the source of a file below a root, or of the root itself, the text that tells it from others of its key)."""
    name = below or root.name
    return FileSource(str((root / below).absolute()), plain_key(name), folder_labels(below)), name


def file_of_entry(entry: Entry, folder: Path, modalities: Sequence[str], *, captions: bool) -> FileSource:
    """The source of a line of a manifest in `folder`. captions: whether any line has one."""
    if entry.item is not None:
        raise ValueError(
            f"{entry.path}: its manifest lists single images of one file; write them with `avssl prep write` and embed "
            "the shards"
        )
    place = entry.place.at(folder.absolute())
    sound = None if entry.sound is None else entry.sound.at(folder.absolute())
    error: tuple[Any, str] | None = (entry.error["reason"], entry.error["message"]) if entry.error else None
    error = error or _unfit(entry, modalities)
    apart = place.within, sound, entry.caption if captions else None
    return FileSource(place.path, entry.key, entry.labels, entry.segment, error, *apart)


def _unfit(entry: Entry, modalities: Sequence[str]) -> tuple[Any, str] | None:
    """Why a file that can be read has none of the modalities; None if it may have one."""
    if entry.is_image and "image" not in modalities:
        return f"no_{modalities[0]}", f"{entry.path}: is an image, and {' and '.join(modalities)} are to be embedded"
    if not entry.is_image and set(modalities) == {"image"}:
        return "no_image", f"{entry.path}: is no image, and only images are to be embedded"
    return None


def num_sources(sources: Sources) -> int:
    """The number of files, or of the samples of a shard set."""
    return sources.num_samples if isinstance(sources, ShardSet) else len(sources)


def files_below(folder: str | Path, suffixes: Iterable[str], names_in_memory: int = NAMES_IN_MEMORY) -> Iterator[str]:
    """Paths below a folder, relative and with slashes, of the files with one of the suffixes (".mp4", any case).

    They are sorted by name, folder by folder, the same on every machine. Hidden files and folders are left out. Links
    to files are followed, links to folders are not. Everything with such a suffix that is no folder is listed, also
    links that lead nowhere. A subfolder that cannot be read is listed by its own name, so that opening it gives the
    reason and it is counted.
    OSError if `folder` itself cannot be read.
    """
    allowed = frozenset(suffixes)
    for name, is_subfolder in _sorted_names(folder, allowed, names_in_memory):
        if is_subfolder:
            below = files_below(Path(folder) / name, allowed, names_in_memory)
            try:
                first = next(below, None)
            except UnreadableFolderError:
                yield name
                continue
            if first is not None:
                yield from (f"{name}/{path}" for path in chain([first], below))
        else:
            yield name


def _sorted_names(folder: str | Path, suffixes: frozenset[str], names_in_memory: int) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of the entries of a folder, sorted by name, at constant memory."""
    with ExitStack() as stack:
        entries = _entries(folder, suffixes)
        batch = sorted(islice(entries, names_in_memory))
        runs: list[Iterator[tuple[str, bool]]] = []
        while len(batch) == names_in_memory:
            file = stack.enter_context(TemporaryFile("w+", encoding="ascii"))
            file.writelines(json.dumps(entry) + "\n" for entry in batch)
            file.seek(0)
            runs.append(_entries_of_run(file))
            batch = sorted(islice(entries, names_in_memory))
        yield from heapq.merge(*runs, batch)


def _entries_of_run(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for line in lines:
        name, is_subfolder = json.loads(line)
        yield name, is_subfolder


def _entries(folder: str | Path, suffixes: frozenset[str]) -> Iterator[tuple[str, bool]]:
    for entry in entries_in(folder):
        if entry.name.startswith("."):  # hidden, as `avssl prep index` has it
            continue
        if is_folder(entry, follow_links=False):
            yield entry.name, True
        elif os.path.splitext(entry.name)[1].lower() in suffixes and not is_folder(entry, follow_links=True):  # noqa: PTH122
            yield entry.name, False


def _with_unique_keys(
    files: Iterable[tuple[FileSource, str]], scratch: Path, given_in: str = ""
) -> Iterator[FileSource]:
    """The files in order, each with a key that no other one has, by the rule of manifests.

    files: with the text that tells a file from others of its key. given_in: the manifest that states the keys; there
    it is an error if one occurs twice.
    """
    spool, hashes = scratch / "files", KeyHashes(scratch / "keys")
    with closing(hashes), spool.open("wb") as lines:
        for file, identity in files:
            hashes.add(file.key)
            lines.write(json.dumps([_record(file), identity]).encode("ascii") + b"\n")
    hashes.finish()
    with spool.open("rb") as lines:
        for line in lines:
            record, identity = json.loads(line)
            if given_in and hashes.is_repeated(record["key"]):
                raise ValueError(
                    f"{given_in}: the key {brief(record['key'])} is in several lines; index the files again"
                )
            yield _file_of({**record, "key": hashes.unique_key(record["key"], identity)})


def _record(file: FileSource) -> dict[str, Any]:
    """A file as a line of a listing; what it lacks is left out."""
    record = {name: value for name, value in vars(file).items() if value or name == "key"}
    for name in ("within", "sound"):
        if name in record:
            record[name] = record[name].to_json()
    return record if file.caption is None else record | {"caption": file.caption}


def _file_of(record: Mapping[str, Any], where: str = "listing") -> FileSource:
    """The file of a parsed line. ValueError names `where` and the field that does not fit."""
    fields = Fields.of(record, where)
    error = record.get("error")
    if error is not None and not (
        isinstance(error, list | tuple)
        and len(error) == 2
        and error[0] in FAILURE_REASONS
        and isinstance(error[1], str)
    ):
        raise fields.wrong("error", "[reason, message]")
    segment = read_segment(record.get("segment"), where)
    labels = fields.labels("labels") if "labels" in record else {}
    caption = None if record.get("caption") is None else fields.text("caption")
    return FileSource(
        fields.text("path"),
        fields.text("key"),
        labels,
        segment,
        None if error is None else (error[0], error[1]),
        within_of(fields),
        sound_of(fields),
        caption,
    )


def list_files(roots: Sequence[Path], suffixes: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number of the root, path below it) of the files with a suffix, in order; the path is "" if the root is a file.

    Raises:
        FileNotFoundError: a root that does not exist, or a folder without such files.
        ValueError: two files that would have the same key.
    """
    allowed = frozenset(suffixes)
    names: dict[str, Path] = {}
    folders: list[Path] = []
    for number, root in enumerate(roots):
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder")
        is_empty = True
        for below in [""] if root.is_file() else files_below(root, allowed):
            is_empty = False
            name, path = below or root.name, root / below
            others = [names[name]] if name in names else []
            for other in [*others, *(folder / name for folder in folders)]:
                if other.is_file():
                    raise ValueError(
                        f"{other} and {path} would both be called {name!r}; embed them in two calls, or the folder "
                        "above"
                    )
            yield number, below
        if is_empty:
            raise FileNotFoundError(f"{root}: no files below this folder with the suffixes {' '.join(sorted(allowed))}")
        if root.is_file():
            names[root.name] = root
        else:
            folders.append(root)


def write_listing(file: Path, sources: Iterable[FileSource]) -> int:
    """Write sources to `file`, one a line, and the offsets of lines beside it (.npy); return their number.

    Not atomic: the caller records elsewhere that the listing is complete.
    """
    offsets, count = [], 0
    with clear_errors(file, "written"), file.open("wb") as lines:
        for source in sources:
            if count % LINES_PER_STEP == 0:
                offsets.append(lines.tell())
            lines.write(json.dumps(_record(source)).encode("ascii") + b"\n")
            count += 1
        lines.flush()
        os.fsync(lines.fileno())
    beside, content = file.with_suffix(".npy"), io.BytesIO()  # np.save to a file does not say that the disk is full
    np.save(content, np.array([*offsets, count], np.int64))
    with clear_errors(beside, "written"), beside.open("wb") as stream:
        stream.write(content.getvalue())
        stream.flush()
        os.fsync(stream.fileno())
    return count


def read_listing(file: Path) -> Iterator[FileSource]:
    """The sources of a listing, in order. ValueError names a line that does not fit."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            yield _file_of(parse(line, where), where)


class Listing(Sequence[FileSource]):
    """Sources by number, from a file of `write_listing`. Picklable; LINES_PER_STEP lines are in memory."""

    def __init__(self, file: Path) -> None:
        self.file = file
        *self._offsets, self._count = np.load(file.with_suffix(".npy"), allow_pickle=False).tolist()
        self._step, self._lines = -1, [b""]

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, number: Any) -> Any:
        """The source with this number, from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"entry {number} of a listing of {len(self)}")
        step, line = divmod(number, LINES_PER_STEP)
        if step != self._step:
            with self.file.open("rb") as lines:
                lines.seek(self._offsets[step])
                self._lines = list(islice(lines, LINES_PER_STEP))
            self._step = step
        where = f"{self.file}, line {number + 1}"
        return _file_of(parse(self._lines[line], where), where)
