"""Makes the manifest of a folder, a list or a file of many images: which files there are, their facts and labels.

1. Rows are gathered in a spool on disk (gather.py), where their keys are made unique. Bad rows end the command here.
2. Files are probed in a sandbox (probing.py), each file once even if several rows list it.
3. Entries are written in the order of the rows; a file that is cut gives several entries (cutting.py).

A folder is searched either for video and audio files or for images, because the images beside videos are mostly
thumbnails and must not become samples unless they are asked for. Memory does not grow with the number of files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avssl.files.disk_errors import clear_errors
from avssl.files.location import Location, is_remote, local_path
from avssl.files.progress import track
from avssl.files.scratch import scratch_folder
from avssl.files.whole import hashed_file
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import MEDIA_SUFFIXES
from avssl.processes.limits import Limits
from avssl.shards.keys import plain_key, segment_key
from avssl.shards.manifest import Entry
from data_prep.index.cutting import Cutting, claimed_seconds, require_scenedetect
from data_prep.index.gather import KINDS, Gathered, ListSource, Target, gather_folder, gather_list, stored_text
from data_prep.index.labels import LabelGaps
from data_prep.index.lists.formats import ANYWHERE, FORMATS, HAVE_FOLDS, HOLD_MEDIA, IDX, OTHERS, READERS, detect
from data_prep.index.lists.row import BadRow, ListSettings
from data_prep.index.mnist import is_idx_file, open_idx_file
from data_prep.index.probing import FILES_PER_TASK, ProbedFile, Prober, probe_rows, without_opening
from data_prep.index.spool import IndexSpool, Pending
from data_prep.index.walk import suffix_of

PROBE_LIMITS, SCENES_LIMITS = Limits(seconds=60.0), Limits(seconds=1800.0)


@dataclass(frozen=True)
class IndexOptions:
    """Options of `avssl prep index`.

    format: of FORMATS, or the user's own. media: the folder of a list's files; None: the folder of the list. labels:
    see labels.py; None: "folder" for folders, "none" for lists, which bring their own. kind: "media" or "images"; None:
    by what the source holds. split: take only its rows. settings: facts that a published list does not state.
    skip_bad_rows: go on without bad rows. probe: False: do not open the files. cutting: into clips or scenes. limits:
    of one file; None: 60 s, or 1800 s for scenes.
    """

    format: str = "auto"
    media: Path | None = None
    labels: str | None = None
    kind: str | None = None
    split: str | None = None
    settings: ListSettings = field(default_factory=ListSettings)
    skip_bad_rows: bool = False
    probe: bool = True
    cutting: Cutting = field(default_factory=Cutting)
    num_workers: int = 1
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if self.format not in OTHERS:
            READERS.find(self.format)  # its error names those that there are
        if self.kind not in (None, *KINDS):
            raise ValueError(f"--kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.cutting.is_used and (not self.probe or self.kind == "images"):
            why = "--kind images lists none" if self.kind == "images" else "with --no-probe their lengths are unknown"
            raise ValueError(f"--clip-seconds and --scenes cut video and audio files, but {why}")
        if self.cutting.scenes:
            require_scenedetect()


@dataclass
class IndexSummary:
    """Counts of a manifest's entries, and of what was left out.

    failed_by_reason: entries whose files cannot be read. ignored_by_suffix: files of the folder that are no media.
    num_segments: entries that are a segment of a file. num_bad_rows: rows of a list that cannot be used.
    left_out_by_split: rows that --split left out. all_splits: rows of each split. label_gaps: of a csv of labels.
    """

    num_listed: int = 0
    failed_by_reason: Counter[str] = field(default_factory=Counter)
    ignored_by_suffix: dict[str, int] = field(default_factory=dict)
    num_with_video: int = 0
    num_with_audio: int = 0
    num_images: int = 0
    num_segments: int = 0
    num_bad_rows: int = 0
    left_out_by_split: dict[str, int] = field(default_factory=dict)
    all_splits: dict[str, int] = field(default_factory=dict)
    label_gaps: LabelGaps | None = None

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        self.num_listed += 1
        if entry.error:
            self.failed_by_reason[entry.error["reason"]] += 1
        self.num_with_video += entry.media.get("video") is not None
        self.num_with_audio += entry.media.get("audio") is not None
        self.num_images += entry.is_image
        self.num_segments += entry.segment is not None


def build_manifest(
    source: Location, manifest: Path, options: IndexOptions, prober: Callable[[Any], ProbedFile] | None = None
) -> IndexSummary:
    """Write the manifest of a folder, a list, archives or tables, after probing every file.

    prober: probes a file, default a `Prober`; another one must be importable by name.

    Raises:
        ValueError, FileNotFoundError: options that do not fit the source, a list that cannot be read or has bad rows.
    """
    list_format = detect(source) if options.format == "auto" else options.format
    list_format = _check_columns(list_format, options)
    if list_format not in ANYWHERE:
        source = local_path(source)
        if not source.exists():
            raise FileNotFoundError(
                f"{source}: is no folder; give the folder that holds the media files, or a list of them"
            )
        _check_format(source, list_format, options)
    _refuse_to_overwrite(manifest, source, options)
    with clear_errors(manifest, "written"):
        manifest.parent.mkdir(parents=True, exist_ok=True)
    # Beside the manifest, not in /tmp, which may be memory.
    with (
        clear_errors(manifest, "written"),
        scratch_folder(manifest.parent, manifest.name) as scratch,
        IndexSpool(scratch) as spool,
    ):
        gathered = _gather(source, list_format, options, Target(spool, manifest.parent, scratch))
        spool.finish()
        for bad in spool.repeated():
            gathered.add_bad(bad)
        gathered.check(source, options.split, skip_bad_rows=options.skip_bad_rows)
        if gathered.kind == "images" and options.cutting.is_used:
            raise ValueError(f"{source}: holds images; --clip-seconds and --scenes cut video and audio files")
        prober = prober or Prober(gathered.kind, options.cutting)
        good = (row for row in spool if not isinstance(row, BadRow))
        if options.probe:
            limits = options.limits or (SCENES_LIMITS if options.cutting.scenes else PROBE_LIMITS)
            per_task = 1 if options.cutting.scenes else FILES_PER_TASK[gathered.kind]
            probed = probe_rows(good, manifest.parent, prober, per_task, options.num_workers, limits)
        else:
            probed = without_opening(good, manifest.parent)
        bar = track(probed, "index", gathered.num_rows, "file")
        nothing = Prober(gathered.kind).nothing
        entries = (entry for row, facts in bar for entry in entries_of(row, facts, nothing, options.cutting, spool))
        summary = _write_manifest(manifest, entries)
    summary.num_bad_rows = gathered.num_bad
    summary.ignored_by_suffix = dict(sorted((+gathered.ignored).items()))
    summary.left_out_by_split = dict(gathered.left_out)
    summary.all_splits = dict(sorted(gathered.all_splits.items()))
    summary.label_gaps = gathered.label_gaps
    return summary


def _refuse_to_overwrite(manifest: Path, source: Location, options: IndexOptions) -> None:
    """ValueError if the manifest would take the place of what it is made of, or of a file that is no list of lines."""
    if not manifest.is_file():
        return
    labels = None if options.labels in ("folder", "none") else options.labels
    given: list[Location | None] = [source, options.settings.classes, labels]
    for path in (local_path(text) for text in given if text is not None and not is_remote(text)):
        if path.exists() and manifest.samefile(path):
            raise ValueError(f"--out is {manifest}, which the manifest is made of; give another name")
    if suffix_of(manifest.name) in MEDIA_SUFFIXES | IMAGE_SUFFIXES | set(HOLD_MEDIA):
        raise ValueError(f"--out is {manifest}, a file that is there and no manifest; give another name, like a.jsonl")


def _check_columns(list_format: str, options: IndexOptions) -> str:
    """The format that fits the options about columns. ValueError for options that do not fit the format."""
    settings = options.settings
    about = {"--columns": settings.columns, "--label-fields": settings.label_fields is not None,
             "--caption-field": settings.caption_field}  # fmt: skip
    given = [name for name, value in about.items() if value]
    if given and list_format == "parquet":
        list_format = "huggingface"
    if given and list_format not in (*ANYWHERE, "csv"):
        raise ValueError(f"{', '.join(given)} is for {', '.join((*ANYWHERE, 'csv', 'parquet'))}, not for {list_format}")
    others = {"--media": options.media, "--fold": settings.fold, "--classes": settings.classes}
    if list_format in ANYWHERE and (given := [name for name, value in others.items() if value is not None]):
        raise ValueError(f"{', '.join(given)} is for lists; {list_format} says itself where its media are")
    return list_format


def _check_format(source: Path, list_format: str, options: IndexOptions) -> None:
    is_folder = list_format == "folder"
    if list_format == IDX:
        raise ValueError(_no_list(source))
    if source.is_dir() and not is_folder and list_format not in HAVE_FOLDS:
        raise ValueError(f"{source}: is a folder; --format {list_format} takes a file")
    if is_folder and not source.is_dir():
        raise FileNotFoundError(f"{source}: is no folder; give the folder that holds the media files")
    list_options = {"--media": options.media, "--split": options.split, "--fold": options.settings.fold}
    if is_folder and (extra := [name for name, value in list_options.items() if value is not None]):
        raise ValueError(f"{source}: is a folder; {', '.join(extra)} is for lists. For a folder of lists give --format")
    if options.media is not None and not options.media.is_dir():
        raise FileNotFoundError(f"--media {options.media}: is no folder; give the folder that holds the listed files")


def _gather(source: Location, list_format: str, options: IndexOptions, target: Target) -> Gathered:
    if list_format == "folder":
        return gather_folder(local_path(source), target, options.labels or "folder", options.kind)
    media = options.media or Path()  # of archives and tables: they say where their media are
    if isinstance(source, Path):
        media = options.media or (source if source.is_dir() else source.parent)
    selection = options.settings, options.labels or "none", options.kind, options.split
    return gather_list(ListSource(source, list_format, media, *selection), target)


def entries_of(
    row: Pending, probed: ProbedFile, nothing: dict[str, object], cutting: Cutting, spool: IndexSpool
) -> Iterator[Entry]:
    """The entries of a row: one, or one per segment that its file is cut into. A row whose file cannot be used gives
    one entry that says why.

    nothing: `Entry.media` of a file about which probing found nothing.
    """
    entry = Entry(
        row.path,
        row.key,
        row.labels,
        probed.media or nothing,
        probed.error,
        probed.num_bytes,
        None,
        row.segment,
        probed.content,
        caption=row.caption,
        within=row.within,
        sound=row.sound,
    )
    seconds = claimed_seconds(probed.media) if probed.seconds is None else probed.seconds
    if probed.error is not None or seconds is None:
        yield entry
        return
    begin, end = row.segment or (0.0, seconds)
    if begin >= seconds:
        message = (
            f"{row.path}: lasts {seconds:.3f} s; its segment begins at {begin:.3f} s. If the files hold the listed "
            "seconds alone, say --trimmed"
        )
        yield replace(entry, error={"reason": "too_short", "message": message})
        return
    if not cutting.is_used:
        yield entry
        return
    is_empty = True
    for segment in cutting.segments((begin, min(end, seconds)), probed.cuts):
        key, is_empty = segment_key(row.key, segment), False
        if spool.has_key(key):
            key = spool.unused_key(key, f"{row.identity} {segment}")
        yield replace(entry, key=key, segment=segment)
    if is_empty:
        message = f"{row.path}: lasts {min(end, seconds) - begin:.3f} s, too short for a clip; see --min-clip-seconds"
        yield replace(entry, error={"reason": "too_short", "message": message})


def build_idx_manifest(path: Path, manifest: Path, labels: str = "folder", kind: str | None = None) -> IndexSummary:
    """Write the manifest of an idx file (mnist.py): one line per image, with its class as the label.

    labels: "folder": the classes of the label file; "none": no labels, and no label file is needed.

    Raises ValueError or FileNotFoundError for a file that is no idx file, or is damaged.
    """
    if not is_idx_file(path) or kind == "media":
        raise ValueError(_no_list(path))
    if labels not in ("folder", "none"):
        raise ValueError(f"--labels {labels}: {path} brings its own labels; allowed: none, or nothing")
    file, images, names = open_idx_file(path, with_labels=labels != "none")
    stored = stored_text(str(path.absolute()), str(manifest.parent.absolute()))
    stem = plain_key(re.sub(r"[-.]idx3[-.]ubyte(\.gz)?$", "", path.name))
    num_digits = max(6, len(str(len(images) - 1)))
    num_images, height, width = images.shape
    media, num_bytes = {"image": file.facts((width, height))}, height * width
    entries = (
        Entry(stored, f"{stem}/{item:0{num_digits}d}", {"label": [names[item]]} if names else {}, media, None,
              num_bytes, item)
        for item in range(num_images)
    )  # fmt: skip
    return _write_manifest(manifest, entries)


def _no_list(path: Path) -> str:
    return (
        f"{path}: is no folder, no list that is known by its name or its first lines (--format says which: "
        f"{', '.join(FORMATS[1:])}), and no file of images (*images-idx3-ubyte, .gz or not); for a video "
        "or an image give the folder that holds it"
    )


def _write_manifest(manifest: Path, entries: Iterable[Entry]) -> IndexSummary:
    """Write the entries one by one and count them. If that fails, an older manifest stays as it was."""
    summary = IndexSummary()
    with clear_errors(manifest, "written"):
        manifest.parent.mkdir(parents=True, exist_ok=True)
    with hashed_file(manifest) as file:
        for entry in entries:
            file.write(entry.to_json())
            summary.add(entry)
    return summary
