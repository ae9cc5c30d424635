"""Gathers the rows of a folder or a list in a spool, each with the path of its file. No media file is opened yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from avssl.files.location import Location
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import MEDIA_SUFFIXES
from avssl.shards.keys import plain_key, row_key
from avssl.shards.places import Place
from data_prep.index.labels import LabelGaps, Labels
from data_prep.index.lists.formats import HAVE_SPLITS, NO_SPLITS, READERS
from data_prep.index.lists.row import BadRow, ListedFile, ListedFiles, ListSettings, is_url
from data_prep.index.mnist import is_idx_file
from data_prep.index.spool import IndexSpool, Pending
from data_prep.index.walk import NameIndex, Walk, kind_of, suffix_of

NUM_BAD_ROWS_SHOWN = 20
KINDS = ("media", "images")
UNUSED = "unused"  # the split of HMDB-51's videos that are in neither train nor test


@dataclass
class Gathered:
    """Counts of the gathered rows.

    kind: "media" or "images". ignored: files of a folder that are no media, by extension. all_splits: rows of each
    split. left_out: those among them that were not asked for. bad: the first bad rows. label_gaps: see labels.py.
    """

    kind: str
    ignored: Counter[str] = field(default_factory=Counter)
    all_splits: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    num_bad: int = 0
    bad: list[BadRow] = field(default_factory=list)
    label_gaps: LabelGaps | None = None

    def add_bad(self, row: BadRow) -> None:
        """Count a bad row, and keep it if it is among the first."""
        self.num_bad += 1
        if len(self.bad) < NUM_BAD_ROWS_SHOWN:
            self.bad.append(row)

    def check(self, source: Location, split: str | None, *, skip_bad_rows: bool) -> None:
        """ValueError if there are bad rows that are not to be skipped, or no rows at all."""
        if self.num_bad and not skip_bad_rows:
            shown = "\n".join(f"  {row.where}: {row.message}" for row in self.bad)
            more = f"\n  and {self.num_bad - len(self.bad)} more" if self.num_bad > len(self.bad) else ""
            raise ValueError(
                f"{source}: {self.num_bad} of {self.num_rows} rows cannot be used:\n{shown}{more}\n"
                "Correct them, or go on without them with --skip-bad-rows"
            )
        if self.num_rows == sum(self.left_out.values()) + self.num_bad:
            splits = ", ".join(f"{name} ({count} rows)" for name, count in sorted(self.all_splits.items()))
            if split is not None:
                raise ValueError(f"{source}: no row has the split {split!r}; there are {splits or 'no splits'}")
            raise ValueError(f"{source}: lists nothing" + (", bad rows aside" if self.num_bad else ""))


@dataclass(frozen=True)
class Target:
    """Where rows go. spool: takes the rows. folder: of the manifest. scratch: a folder for temporary files."""

    spool: IndexSpool
    folder: Path
    scratch: Path


@dataclass(frozen=True)
class ListSource:
    """A list and how to read it.

    media: the folder of the files. labels: as `--labels`. kind: "media" or "images"; None: by the first row. split:
    take only its rows; None: all rows but those of UNUSED.
    """

    path: Location
    format: str
    media: Path
    settings: ListSettings
    labels: str = "none"
    kind: str | None = None
    split: str | None = None


def gather_folder(folder: Path, target: Target, labels: str, kind: str | None) -> Gathered:
    """Add all media files, or all images, of a folder to the spool. ValueError if there are none."""
    gathered = Gathered(kind or kind_of(folder))
    walk = Walk(folder, IMAGE_SUFFIXES if gathered.kind == "images" else MEDIA_SUFFIXES, gathered.ignored)
    table = Labels(labels, target.scratch / "labels.db")
    base, manifest_folder = str(folder.absolute()), str(target.folder.absolute())
    for relative in walk:
        path = stored_text(f"{base}/{relative}", manifest_folder)
        target.spool.add(Pending(relative, path, plain_key(relative), False, relative, table.of(relative)))
        gathered.num_rows += 1
    if not gathered.num_rows:
        _refuse_without_media(folder, gathered.kind, walk)
    gathered.label_gaps = table.check()
    return gathered


def _refuse_without_media(folder: Path, kind: str, walk: Walk) -> None:
    others = Walk(folder, (".gz", ".idx3-ubyte", "")) if walk.ignored else ()
    files = [path for path in others if is_idx_file(path)]
    if files:
        raise ValueError(
            f"{folder}: holds no {kind} files. If one of these holds the images of a split, give that file: "
            f"{', '.join(files[:20])}"
        )
    found = ", ".join(f"{count} {suffix}" for suffix, count in walk.ignored.most_common(20)) or "nothing"
    raise ValueError(
        f"{folder}: holds no {kind} files; it holds {found} (looked for {' '.join(sorted(walk.suffixes))})"
    )


def gather_list(source: ListSource, target: Target) -> Gathered:
    """Add all rows of a list, each with its file, to the spool. Bad rows are counted, see `Gathered.check`.

    ValueError for a split of a list that has none.
    """
    if source.split is not None and source.format in NO_SPLITS:
        raise ValueError(
            f"--split {source.split}: {source.format} lists have no splits, only {', '.join(HAVE_SPLITS)} have"
        )
    rows = READERS.find(source.format)(source.path, source.settings)
    head = _up_to_usable(rows)
    gathered = Gathered(source.kind or (_kind_of_row(head[-1]) if head else "media"))
    suffixes = IMAGE_SUFFIXES if gathered.kind == "images" else MEDIA_SUFFIXES
    table = Labels(source.labels, target.scratch / "labels.db")
    media, folder = str(source.media.absolute()), str(target.folder.absolute())
    finder: NameIndex | None = None
    with ExitStack() as stack:
        for where, row in _of_split(chain(head, rows), source.split, gathered):
            if row.kind or row.within is not None or row.error is not None:
                pending = _within(where, row, folder)
            elif row.path is not None:
                pending = _listed(where, row, media, folder)
            else:
                if finder is None:
                    finder = stack.enter_context(NameIndex(source.media, suffixes, target.scratch / "names.db"))
                pending = _named(where, row, media, folder, finder)
            target.spool.add(replace(pending, labels=row.labels | table.of(row.name or row.path or "")))
    if len(target.spool):
        gathered.label_gaps = table.check()
    return gathered


def _up_to_usable(rows: ListedFiles) -> list[tuple[str, ListedFile | BadRow]]:
    """The next rows up to the first that can be used."""
    head = []
    for where, row in rows:
        head.append((where, row))
        if isinstance(row, ListedFile):
            break
    return head


def _kind_of_row(first: tuple[str, ListedFile | BadRow]) -> str:
    row = first[1]
    if isinstance(row, ListedFile) and row.kind:
        return row.kind
    path = row.path if isinstance(row, ListedFile) else None
    return "images" if path is not None and suffix_of(path) in IMAGE_SUFFIXES - MEDIA_SUFFIXES else "media"


def _of_split(rows: ListedFiles, split: str | None, gathered: Gathered) -> Iterator[tuple[str, ListedFile]]:
    """The usable rows of the split. All rows are counted in `gathered`."""
    for where, row in rows:
        gathered.num_rows += 1
        if isinstance(row, BadRow):
            gathered.add_bad(row)
            continue
        if row.split is not None:
            gathered.all_splits[row.split] += 1
        if row.split != split and (split is not None or row.split == UNUSED):
            gathered.left_out[row.split or "none"] += 1
            continue
        yield where, row


def _listed(where: str, row: ListedFile, media: str, folder: str) -> Pending:
    """The pending row of a row that states a path."""
    path = row.path or ""
    if is_url(path):
        stored, name = path, path.split("://", 1)[1]
    else:
        stored, name = _stored(path, media, folder), path
        if path.startswith("/"):
            name = path.removeprefix(f"{media}/").lstrip("/")
    identity = name if row.segment is None else f"{name} {row.segment}"
    if row.sound is not None:  # one video may be listed with several sounds
        identity += f" {row.sound.path}"
    return Pending(
        where,
        stored,
        row.key or row_key(name, row.segment),
        row.key is not None,
        identity,
        row.labels,
        row.segment,
        caption=row.caption,
        sound=None if row.sound is None else Place(_stored(row.sound.path, media, folder)),
    )


def _stored(path: str, media: str, folder: str) -> str:
    """A listed path as the manifest states it."""
    return path if is_url(path) else stored_text(path if path.startswith("/") else f"{media}/{path}", folder)


def _within(where: str, row: ListedFile, folder: str) -> Pending:
    """The pending row of a row of an archive or a table."""
    path = row.path or ""
    stored = path if is_url(path) else stored_text(path, folder)
    sound = row.sound
    if sound is not None and not is_url(sound.path):
        sound = replace(sound, path=stored_text(sound.path, folder))
    reason, missing = row.error or ("missing_file", None)
    key = row.key or row_key(row.name, row.segment)
    identity = f"{path} {row.name} {'' if row.within is None else row.within.to_json()} {row.segment or ''}"
    return Pending(
        where, stored, key, row.key is not None, identity, row.labels, row.segment, missing, reason, row.caption,
        row.within, sound,
    )  # fmt: skip


def _named(where: str, row: ListedFile, media: str, folder: str, finder: NameIndex) -> Pending:
    """The pending row of a row that states names. Its file is one that holds just the listed seconds, otherwise one
    that holds the whole video.
    """
    folders = [*(name for names in row.labels.values() for name in names), *([row.split] if row.split else [])]
    path, segment, missing = finder.find(row.names, folders), None, None
    if path is None:
        path, segment = finder.find(row.whole_names, folders), row.segment
    if path is None:
        names = [*row.names, *row.whole_names]
        path = names[-1]
        missing = f"{media}/{path}: no media file in any folder below {media} is called {' or '.join(names)}"
    stored = stored_text(f"{media}/{path}", folder)
    return Pending(where, stored, plain_key(row.name), False, row.name, row.labels, segment, missing)


def stored_text(path: str, folder: str) -> str:
    """A file's path as the manifest in `folder` states it (both absolute): relative if the file lies below the folder,
    so that both can be moved together; otherwise absolute. The result cannot be mistaken for a URL.
    """
    text = path.removeprefix(f"{folder.rstrip('/')}/")
    first = text.partition("/")[0]
    return f"./{text}" if "::" in first or first.startswith("pipe:") or first.endswith(":") else text
