"""Histograms and bars of `stats` as inline SVG and HTML. Colors are CSS variables, see STYLE in page.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from data_prep.inspect.stats.tally import Histogram
from data_prep.inspect.stats.units import shown

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP = 10, 10, 30
FLOOR = HEIGHT - 26
MAX_BARS = 36
NUM_BARS_LISTED = 10
LETTER_PX = 7.8  # mean width of a letter


def grouped_bins(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(edges (n + 1,), counts (n,)) from the first to the last bin that is not empty. Equal numbers of neighboring bins
    are added up, so that there are at most MAX_BARS.
    """
    starts, size = bar_starts(histogram)
    counts = np.add.reduceat(histogram.counts[: starts[-1] + size], starts)
    edges = histogram.quantity.edges
    return edges[np.minimum(np.append(starts, starts[-1] + size), len(edges) - 1)], counts


def bar_starts(histogram: Histogram) -> tuple[NDArray[np.int64], int]:
    """(the first bin of each bar, (n,); the number of bins of a bar)."""
    filled = np.flatnonzero(histogram.counts)
    first, last = int(filled[0]), int(filled[-1])
    size = -(-(last - first + 1) // MAX_BARS)
    return np.arange(first, last + 1, size), size


def ticks(low: float, high: float, is_logarithmic: bool, target: int = 4) -> list[float]:
    """About `target` round numbers in [low, high]."""
    if is_logarithmic and high / low > 20:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = [factor * 10.0**power for power in powers for factor in factors]
            inside = [value for value in values if low <= value <= high]
            if len(inside) <= target + 1:
                return inside
        return inside[:: -(-len(inside) // target)]
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def histogram_chart(histogram: Histogram) -> str:
    """A figure with a bar per range of values, as HTML. At least two bins must not be empty."""
    quantity, unit = histogram.quantity, histogram.quantity.unit
    edges, counts = grouped_bins(histogram)
    scale = np.log(edges) if quantity.is_logarithmic else edges

    def across(value: float) -> float:
        position = math.log(value) if quantity.is_logarithmic else value
        return LEFT + (WIDTH - LEFT - RIGHT) * float((position - scale[0]) / (scale[-1] - scale[0]))

    parts = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=FLOOR, y2=FLOOR, class_="axis")]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            left, right = across(float(low)), across(float(high))
            height = max(1.5, (FLOOR - TOP) * float(count / counts.max()))
            hint = f"{shown(low, unit)} to {shown(high, unit)}: {count:,} ({count / counts.sum():.1%})"
            box = {"x": left + 0.5, "y": FLOOR - height, "width": max(1, right - left - 1), "height": height}
            parts.append(tag("rect", tag("title", escape(hint)), class_="column", **box))
    taken = -math.inf
    for value in ticks(float(edges[0]), float(edges[-1]), quantity.is_logarithmic):
        text = shown(value, unit)
        x, middle, half = across(value), *label_place(across(value), text)
        if middle - half >= taken:
            taken = middle + half + 6
            parts.append(tag("line", x1=x, x2=x, y1=FLOOR, y2=FLOOR + 4, class_="axis"))
            parts.append(tag("text", escape(text), x=middle, y=FLOOR + 18, class_="tick"))
    x, text = across(histogram.quantile(0.5)), f"median {shown(histogram.quantile(0.5), unit)}"
    parts.append(tag("line", x1=x, x2=x, y1=TOP - 8, y2=FLOOR, class_="median"))
    parts.append(tag("text", escape(text), x=label_place(x, text)[0], y=TOP - 13, class_="tick strong"))
    span = f"{shown(histogram.least, unit)} to {shown(histogram.most, unit)}"
    label = f"{quantity.title}: {text}, {span}"
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    return _figure(quantity.title, f"{histogram.num_values:,} samples, {span}", svg)


def bar_list(title: str, values: Sequence[tuple[str, int]], whole: int, note: str = "") -> str:
    """A figure with a horizontal bar per value, as HTML. values: most frequent first. whole: the 100 %."""
    rows = []
    most = max(count for _, count in values)
    for value, count in values[:NUM_BARS_LISTED]:
        share = f"{count / whole:.1%}" if count / whole < 0.1 else f"{count / whole:.0%}"
        rows.append(
            tag(
                "li",
                tag("span", escape(value), class_="value", title=value),
                tag("span", tag("i", style=f"width:{100 * count / most:.1f}%"), class_="track"),
                tag("span", f"{count:,}", class_="count"),
                tag("span", share, class_="share"),
            )
        )
    if len(values) > NUM_BARS_LISTED:
        rest = sum(count for _, count in values[NUM_BARS_LISTED:])
        rows.append(tag("li", f"and {len(values) - NUM_BARS_LISTED:,} more, together {rest:,}", class_="rest"))
    return _figure(title, note, tag("ul", *rows, class_="bars"))


def _figure(title: str, note: str, content: str) -> str:
    caption = tag("figcaption", escape(title), tag("small", escape(note)) if note else "")
    return tag("figure", caption, content, class_="panel")


def label_place(x: float, text: str) -> tuple[float, float]:
    """(middle of a label at x, moved so that it stays within the chart; half of its width)."""
    half = len(text) * LETTER_PX / 2
    return min(max(x, half), WIDTH - half), half


def tag(name: str, *children: str, **attributes: object) -> str:
    """The markup <name attributes>children</name>. Attribute values are escaped, children are markup already. In names
    of attributes, a final underscore is dropped and others become hyphens. Floats get two decimals.
    """
    shown_attributes = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:.2f}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{shown_attributes}>{''.join(children)}</{name}>"
