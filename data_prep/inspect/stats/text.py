"""The numbers of `stats` as text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.inspect.stats.collect import Stats
from data_prep.inspect.stats.tally import Histogram

QUANTILES = (0.05, 0.5, 0.95)
NUMBER_COLUMNS = ("min", "5 %", "median", "95 %", "max", "mean", "sum")


def count_of(number: int, noun: str) -> str:
    """A number with its noun in singular or plural: 1 group, 2 groups, 12,000 classes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def shown(value: float, unit: str) -> str:
    """A value with its unit: 3.25 s, 1.5 h, 12.3 MB, -23.1 LUFS, 4 %."""
    if unit == "B":
        return _bytes(value)
    if unit == "%":
        return f"{value * 100:.1f} %".replace(".0 %", " %")
    if unit == "s":
        return _seconds(value)
    if unit in ("dBFS", "LUFS"):
        return f"{value:.1f} {unit}".replace(".0 ", " ")
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def number_cells(histogram: Histogram) -> list[str]:
    """A text for each of NUMBER_COLUMNS; the sum is "" where it means nothing."""
    unit = histogram.quantity.unit
    values = [histogram.least, *map(histogram.quantile, QUANTILES), histogram.most, histogram.mean]
    has_sum = histogram.quantity.name in ("duration_seconds", "num_frames") or unit == "B"
    return [shown(value, unit) for value in values] + [shown(histogram.total, unit) if has_sum else ""]


def _bytes(value: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}" if value < 999.5 * size else f"{value / size:.0f} {name}"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms" if value else "0 s"
    if abs(value) < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if abs(value) < 7200 else f"{value / 3600:,.1f} h"


def totals(stats: Stats) -> str:
    """A line with samples, shards, bytes, hours, and the files that `write` skipped."""
    tally, index = stats.tally, stats.index
    parts = [f"{count_of(tally.num_samples, 'sample')} in {count_of(len(index.shards), 'shard')}",
             _bytes(index.total_bytes)]  # fmt: skip
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
