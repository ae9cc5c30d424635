"""The numbers of `stats` as text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.inspect.stats.collect import Stats
from data_prep.inspect.stats.tally import Histogram
from data_prep.inspect.stats.units import bytes_text, count_of, shown

QUANTILES = (0.05, 0.5, 0.95)
NUMBER_COLUMNS = ("min", "5 %", "median", "95 %", "max", "mean", "sum")


def number_cells(histogram: Histogram) -> list[str]:
    """A text for each of NUMBER_COLUMNS; the sum is "" where it means nothing."""
    unit = histogram.quantity.unit
    values = [histogram.least, *map(histogram.quantile, QUANTILES), histogram.most, histogram.mean]
    has_sum = histogram.quantity.name in ("duration_seconds", "num_frames") or unit == "B"
    return [shown(value, unit) for value in values] + [shown(histogram.total, unit) if has_sum else ""]


def totals(stats: Stats) -> str:
    """A line with samples, shards, bytes, hours, and the files that `write` skipped."""
    tally, index = stats.tally, stats.index
    parts = [f"{count_of(tally.num_samples, 'sample')} in {count_of(len(index.shards), 'shard')}",
             bytes_text(index.total_bytes)]  # fmt: skip
    if "duration_seconds" in tally.numbers:
        parts.append(shown(tally.numbers["duration_seconds"].total, "s"))
    if index.num_skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in index.skipped_by_reason.items())
        parts.append(f"{index.num_skipped:,} listed files were skipped ({reasons})")
    return ", ".join(parts)


def limits_note(stats: Stats) -> Iterator[str]:
    """Sentences that say how much is silent, still or flat, and by which thresholds."""
    tally, limits = stats.tally, stats.thresholds
    if "silent_share" in tally.numbers:
        silent = tally.numbers["silent_share"]
        yield (
            f"silence: {silent.mean:.1%} of a sample's audio in the mean (50 ms below {limits.silence_dbfs:g} dBFS "
            f"RMS); {tally.counts['wholly silent']} of {silent.num_values} are silent throughout, "
            f"{tally.counts['digital silence']} of them hold only zeros"
        )
    if "still_share" in tally.numbers:
        still = tally.numbers["still_share"]
        yield (
            f"still video: {still.mean:.1%} of a video in the mean (no square of 16 x 16 changes by "
            f"{limits.still_levels:g} levels in half a second); {tally.counts['wholly still']} of {still.num_values} "
            "are still throughout"
        )
    if tally.counts["flat images"]:
        yield f"flat: {tally.counts['flat images']} images or middle frames are of one color and were not compared"
