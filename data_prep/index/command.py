"""The command `index`: writes the media files or images of a folder, or the files of a list, to a manifest."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from avssl.files.location import is_remote, local_path
from avssl.files.plain_text import emit, say, say_lines
from avssl.media.images import IMAGE_SUFFIXES
from avssl.plugins import required
from avssl.processes.limits import Limits, default_num_workers
from data_prep.index.build import (
    PROBE_LIMITS,
    SCENES_LIMITS,
    IndexOptions,
    IndexSummary,
    build_idx_manifest,
    build_manifest,
)
from data_prep.index.cutting import Cutting
from data_prep.index.gather import KINDS
from data_prep.index.lists.formats import FORMATS, HAVE_SPLITS, IDX, detect
from data_prep.index.lists.row import ListSettings
from data_prep.split.command import RULE_OPTIONS, add_rule_arguments, facts, rule_of, split
from data_prep.split.command import describe as describe_split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep index`."""
    parser.add_argument(
        "source",
        help="folder, searched with its sub-folders; a list of files; webdataset tars (x-{000..123}.tar, a folder of"
        " them, or URLs of either); or a file of images in MNIST's format (*images-idx3-ubyte with its labels beside"
        " it; .gz or not)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the manifest, e.g. corpus.jsonl")
    parser.add_argument(
        "--labels",
        help="folder: the top-level folder's name (default for folders); none (default for lists, whose own labels are"
        " kept); or a csv with a column path (relative to the folder), each other column a label field, several names"
        " separated by |. A file of images has its own labels; none leaves them out",
    )
    parser.add_argument(
        "--kind", choices=KINDS, help="media (video and audio files; default if there are any) or images"
    )
    parser.add_argument("--no-probe", action="store_true", help="do not open the files: record only whether they exist")
    parser.add_argument("--num-workers", type=int, default=default_num_workers(), help="processes (default: all cores)")
    _add_list_arguments(parser.add_argument_group("lists"))
    _add_table_arguments(parser.add_argument_group("tars and tables of others (docs/foreign_formats.md)"))
    _add_cutting_arguments(parser.add_argument_group("cutting long files into several samples"))
    add_rule_arguments(parser.add_argument_group("train and test: with a share, the manifest is split, too"))
    _add_limits(parser.add_argument_group("what one file may take"))


def _add_list_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--format",
        default="auto",
        help=f"of the source: {', '.join(FORMATS)}, or one of a plugin (default: by its name and first lines)",
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file of your own to run first, with a format of lists (docs/plugins.md); may be given several "
        "times",
    )
    parser.add_argument("--media", type=Path, help="where a list's files are (default: the folder of the list)")
    parser.add_argument("--split", help=f"take only the rows of this split; {', '.join(HAVE_SPLITS)} have some")
    parser.add_argument("--fold", type=int, help="which lists of a folder of UCF-101 or HMDB-51 lists: 1, 2 or 3")
    parser.add_argument(
        "--trimmed",
        action="store_true",
        help="Kinetics, AudioSet, VGGSound: a file named by the bare id holds the listed seconds alone (default: the"
        " whole video, of which they are the sample)",
    )
    parser.add_argument("--classes", type=Path, help="AudioSet's class_labels_indices.csv (default: beside the list)")
    parser.add_argument("--skip-bad-rows", action="store_true", help="go on without rows that cannot be used")


def _add_table_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help="the columns, or of tars the suffixes of members, that hold the media: one, or a video and its sound"
        " (default: by their types and names)",
    )
    parser.add_argument(
        "--label-fields",
        metavar="A,B",
        help="columns, or fields of each sample's json, that are labels (default: label, labels and class labels)",
    )
    parser.add_argument(
        "--caption-field", metavar="A", help="the column or field that is the caption (default: by its name)"
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _add_cutting_arguments(parser: argparse._ArgumentGroup) -> None:
    default = Cutting()
    parser.add_argument("--clip-seconds", type=float, help="length of a clip")
    parser.add_argument("--clip-stride", type=float, help="from one clip's begin to the next (default: clip-seconds)")
    parser.add_argument(
        "--min-clip-seconds", type=float, help="a shorter clip at the end is left out (default: half of clip-seconds)"
    )
    parser.add_argument(
        "--scenes", action="store_true", help="cut where scenes change (needs the extra avssl[scenes]; decodes all)"
    )
    parser.add_argument(
        "--scene-threshold", type=float, default=default.scene_threshold, help="of PySceneDetect (default: %(default)s)"
    )
    parser.add_argument(
        "--min-scene-seconds",
        type=float,
        default=default.min_scene_seconds,
        help="a shorter scene joins the one before (default: %(default)s)",
    )


def _add_limits(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--file-seconds",
        type=float,
        help=f"a file that takes longer is given up, with the reason timeout (default: {PROBE_LIMITS.seconds:g}; with "
        f"--scenes {SCENES_LIMITS.seconds:g})",
    )
    parser.add_argument(
        "--file-memory-mib",
        type=int,
        default=PROBE_LIMITS.memory_bytes >> 20,
        help="a file that takes more is given up, with the reason out_of_memory (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the manifest and print a summary. The exit code is 0 even if files cannot be read: they are listed with the
    reason.
    """
    shares = arguments.test_share, arguments.validation_share
    if any(shares):
        rule_of(arguments)  # its error comes before the work
    elif given := [flag for name, flag in RULE_OPTIONS.items() if getattr(arguments, name) not in (None, False)]:
        raise ValueError(f"{', '.join(given)} is for a split; give --test-share or --validation-share too")
    summary, parts = make_manifest(arguments), dict[str, object]()
    for line in describe(summary, arguments.out, arguments.split):
        say(line)
    if any(shares):
        divided = split(arguments.out, arguments)
        say_lines("\n".join(describe_split(divided)))
        parts = facts(divided)
    emit("result", manifest=arguments.out, **asdict(summary), **parts)
    return 0


def make_manifest(arguments: argparse.Namespace) -> IndexSummary:
    """Make the manifest; what it holds."""
    source, out = arguments.source, arguments.out
    required.use(arguments.plugin)
    is_file = not is_remote(source) and local_path(source).is_file()
    list_format = detect(source) if arguments.format == "auto" and is_file else arguments.format
    if list_format == IDX:
        return build_idx_manifest(local_path(source), out, arguments.labels or "folder", arguments.kind)
    return build_manifest(source, out, _options(arguments))


def _options(arguments: argparse.Namespace) -> IndexOptions:
    cutting = Cutting(
        arguments.clip_seconds,
        arguments.clip_stride,
        arguments.min_clip_seconds,
        arguments.scenes,
        arguments.scene_threshold,
        arguments.min_scene_seconds,
    )
    seconds = (SCENES_LIMITS if cutting.scenes else PROBE_LIMITS).seconds
    if arguments.file_seconds is not None:
        seconds = arguments.file_seconds
    return IndexOptions(
        format=arguments.format,
        media=arguments.media,
        labels=arguments.labels,
        kind=arguments.kind,
        split=arguments.split,
        settings=ListSettings(
            arguments.trimmed,
            arguments.classes,
            arguments.fold,
            arguments.kind,
            _names(arguments.columns) or (),
            _names(arguments.label_fields),
            arguments.caption_field,
        ),
        skip_bad_rows=arguments.skip_bad_rows,
        probe=not arguments.no_probe,
        cutting=cutting,
        num_workers=arguments.num_workers,
        limits=Limits(seconds, arguments.file_memory_mib << 20),
    )


def describe(summary: IndexSummary, out: Path, split: str | None) -> list[str]:
    """The summary as lines of text: what was listed, and what was not."""
    if summary.num_images:
        lines = [f"{out}: {summary.num_images} images"]
    else:
        what = f"entries, {summary.num_segments} of them segments of files" if summary.num_segments else "files"
        streams = f"{summary.num_with_video} with video, {summary.num_with_audio} with audio"
        lines = [f"{out}: {summary.num_listed} {what}, {streams}"]
    for reason, count in sorted(summary.failed_by_reason.items()):
        lines.append(f"  {count:8d} cannot be read: {reason} (listed with the reason; `write` skips them)")
    if summary.num_bad_rows:
        lines.append(f"  {summary.num_bad_rows:8d} bad rows are left out")
    for name, count in sorted(summary.left_out_by_split.items()):
        lines.append(f"  {count:8d} of the split {name} are left out")
    if split is None and len(summary.all_splits) - len(summary.left_out_by_split) > 1:
        splits = ", ".join(f"{name} ({count} rows)" for name, count in summary.all_splits.items())
        lines.append(f"  several splits are listed together: {splits}; --split takes one")
    gaps = summary.label_gaps
    if gaps and gaps.num_unlabeled:
        lines.append(
            f"  {gaps.num_unlabeled:8d} files have no row in --labels, and so no label, e.g. {gaps.unlabeled!a}"
        )
    if gaps and gaps.num_unused:
        lines.append(f"  {gaps.num_unused:8d} rows of --labels name no file that was found, e.g. {gaps.unused!a}")
    if summary.ignored_by_suffix:
        others = ", ".join(f"{count} {suffix}" for suffix, count in summary.ignored_by_suffix.items())
        what = "no images" if summary.num_images else "no media"
        lines.append(f"  ignored, {what} by their extension: {others}")
    if not summary.num_images and IMAGE_SUFFIXES & summary.ignored_by_suffix.keys():
        lines.append("  images beside video or audio files are not listed; --kind images lists them, and them alone")
    return [line.encode("utf-8", "backslashreplace").decode() for line in lines]
