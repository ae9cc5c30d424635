"""The command `stats`: describes a shard folder in a table on the terminal, a page with plots, and json."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from avssl.files.plain_text import emit, say
from avssl.files.whole import write_whole
from avssl.processes.limits import default_num_workers
from avssl.shards.format import dump_json
from data_prep.inspect.stats.collect import Stats, Thresholds, collect_stats
from data_prep.inspect.stats.page import page
from data_prep.inspect.stats.tally import FACTS, QUANTITIES
from data_prep.inspect.stats.text import NUMBER_COLUMNS, limits_note, number_cells, totals
from data_prep.inspect.stats.units import count_of

PAGE_NAME = "stats.html"
NUM_VALUES = 6  # of a fact or label that are printed
NUM_GROUPS, NUM_KEYS = 3, 3  # groups of duplicates that are printed, and keys of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `avssl prep stats`."""
    default = Thresholds()
    parser.add_argument("shards", type=Path, help="a finished shard folder")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"write {PAGE_NAME}, one page with plots, to this folder"
    )
    parser.add_argument(
        "--numbers", type=Path, metavar="FILE", help="write all numbers and groups to this file, as JSON"
    )
    parser.add_argument("--num-workers", type=int, default=default_num_workers(), help="processes (default: all cores)")
    parser.add_argument(
        "--no-decode",
        action="store_true",
        help="only what the json says: no loudness, silence, motion or near duplicates; duplicates by equal bytes",
    )
    parser.add_argument(
        "--silence-dbfs",
        type=float,
        default=default.silence_dbfs,
        help="50 ms of audio with less RMS than this are silent (default: %(default)s)",
    )
    parser.add_argument(
        "--still-levels",
        type=float,
        default=default.still_levels,
        help="frames half a second apart are still if the mean luma of no square of 16 x 16 changes by so many levels"
        " of 255 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-distance",
        type=int,
        default=default.max_distance,
        help="near-duplicate images differ in at most this many of the 64 bits of their hashes (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Collect the statistics, print and write them. Exit code 1 if media of any sample cannot be read."""
    thresholds = Thresholds(arguments.silence_dbfs, arguments.still_levels, arguments.max_distance)
    stats = collect_stats(
        arguments.shards, decode=not arguments.no_decode, num_workers=arguments.num_workers, thresholds=thresholds
    )
    for line in lines(stats):
        say(line)
    if arguments.numbers is not None:
        write_whole(arguments.numbers, dump_json(stats.to_json()))
        say(f"numbers: {arguments.numbers}")
    if arguments.out is not None:
        path = arguments.out / PAGE_NAME
        write_whole(path, page(stats).encode())
        say(f"page: {path}")
    emit("result", **stats.to_json())
    return 1 if stats.tally.failed else 0


def lines(stats: Stats) -> Iterator[str]:
    """The table for the terminal."""
    tally = stats.tally
    yield f"{stats.folder}: {totals(stats)}"
    if stats.tally.num_samples == 0:
        return
    yield from _numbers(stats)
    yield ""
    for name, title in FACTS.items():
        if name in tally.facts:
            yield f"{title:<15} {_shares(tally.facts[name].most_common(), tally.facts[name].total())}"
    for name, counter in sorted(tally.labels.items()):
        unlabeled = tally.num_samples - tally.num_labeled[name]
        rest = f"; {unlabeled} without a label" if unlabeled else ""
        classes = count_of(len(counter), "class")
        yield f"label {name!r}: {classes}: {_shares(counter.most_common(), tally.num_samples)}{rest}"
    yield ""
    if stats.decode:
        yield from limits_note(stats)
    for title, groups in stats.groups.items():
        if not groups:
            yield f"{title}: none"
            continue
        yield f"{title}: {sum(map(len, groups))} samples in {count_of(len(groups), 'group')}"
        for group in groups[:NUM_GROUPS]:
            keys = ", ".join(stats.key_of(int(index)) for index in group[:NUM_KEYS])
            yield f"  {len(group):4d}: {keys}{', ...' if len(group) > NUM_KEYS else ''}"
        if len(groups) > NUM_GROUPS:
            yield f"  and {count_of(len(groups) - NUM_GROUPS, 'smaller or equal group')}; --numbers lists all"
    for reason, count in tally.failed.most_common():
        yield f"cannot be read: {count} {reason}"
    for message in tally.messages[:NUM_GROUPS]:
        yield f"  {message}"


def _numbers(stats: Stats) -> Iterator[str]:
    """A head, and a line per quantity."""
    yield " " * 28 + "".join(f"{name:>12}" for name in NUMBER_COLUMNS)
    for name, quantity in QUANTITIES.items():
        if name in stats.tally.numbers:
            cells = number_cells(stats.tally.numbers[name])
            yield (f"{quantity.title:<28}" + "".join(f"{cell:>12}" for cell in cells)).rstrip()


def _shares(values: Sequence[tuple[str, int]], whole: int) -> str:
    """The most frequent values with their counts. whole: the count that is 100 %."""
    if len(values) == 1:
        return f"{values[0][0]}, always" if values[0][1] == whole else f"{values[0][0]} {values[0][1]}"
    text = ", ".join(f"{value} {count} ({count / whole:.0%})" for value, count in values[:NUM_VALUES])
    return text + (f", {len(values) - NUM_VALUES} more" if len(values) > NUM_VALUES else "")
