"""How facts are distributed over the samples that are kept and those that are left out: charts with the cuts."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from avssl.pages.markup import Html, tag
from data_prep.inspect.stats.charts import (
    FLOOR,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    bar_starts,
    grouped_bins,
    label_place,
    ticks,
)
from data_prep.inspect.stats.tally import Histogram, Quantity
from data_prep.inspect.stats.units import shown

QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("duration_seconds", "Duration", "s", 1e-3, 1e6, 600, True),
        Quantity("bytes", "Size", "B", 1, 1e14, 900, True),
        Quantity("width_px", "Width, px", "", 1, 1e5, 400, True),
        Quantity("height_px", "Height, px", "", 1, 1e5, 400, True),
        Quantity("fps", "Frames per second", "", 0, 240, 240),
        Quantity("rate_hz", "Audio rate, Hz", "", 1e3, 1e6, 300, True),
        Quantity("channels", "Channels", "", 0, 16, 32),
        Quantity("loudness_lufs", "Loudness, BS.1770", "LUFS", -70, 5, 150),
        Quantity("silent_share", "Share of silence", "%", 0, 1, 100),
        Quantity("peak_dbfs", "Peak", "dBFS", -120, 6, 252),
        Quantity("motion", "Motion, levels of 255", "", 1e-2, 256, 200, True),
        Quantity("still_share", "Share of still video", "%", 0, 1, 100),
        Quantity("num_shots", "Shots", "", 1, 1e4, 200, True),
        Quantity("brightness", "Brightness, 0 to 1", "", 0, 1, 100),
        Quantity("entropy_bits", "Entropy, bits", "", 0, 8, 160),
        Quantity("nearest_video", "Nearest other video, cosine", "", -1, 1, 200),
        Quantity("nearest_audio", "Nearest other sound, cosine", "", -1, 1, 200),
        Quantity("nearest_image", "Nearest other image, cosine", "", -1, 1, 200),
        Quantity("av_cosine", "Own picture and sound, cosine", "", -1, 1, 200),
        Quantity("av_correspondence", "Picture and sound belong together", "%", 0, 1, 100),
    )
}


@dataclass
class Distribution:
    """The values of a fact: of all samples that can be read, and of those that are kept. cuts: numbers on its axis."""

    listed: Histogram
    kept: Histogram
    cuts: Collection[float] = ()

    @classmethod
    def of(cls, name: str, cuts: Collection[float] = ()) -> Distribution:
        """Of no samples yet."""
        return cls(Histogram(QUANTITIES[name]), Histogram(QUANTITIES[name]), sorted(set(cuts)))


def chart(found: Distribution) -> Html:
    """A figure with a bar per range of values, the lower part of which is kept, and a line at each cut.

    At least two bins must not be empty.
    """
    quantity, unit = found.listed.quantity, found.listed.quantity.unit
    edges, counts = grouped_bins(found.listed)
    scale = np.log(edges) if quantity.is_logarithmic else edges

    def across(value: float) -> float:
        position = math.log(max(value, 1e-300)) if quantity.is_logarithmic else value
        place = float((position - scale[0]) / (scale[-1] - scale[0]))
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(place, 0.0), 1.0)

    parts: list[Html] = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=FLOOR, y2=FLOOR, class_="axis")]
    for low, high, count, kept in zip(edges[:-1], edges[1:], counts, _kept_in_bars(found), strict=True):
        if count:
            left, right = across(float(low)), across(float(high))
            hint = f"{shown(low, unit)} to {shown(high, unit)}: {count:,}, of which {kept:,} are kept"
            tall, low_part = (max(1.5, (FLOOR - TOP) * float(many / counts.max())) for many in (count, kept))
            box = {"x": left + 0.5, "width": max(1.0, right - left - 1)}
            bars = [tag("rect", y=FLOOR - tall, height=tall, class_="listed", **box)]
            bars += [tag("rect", y=FLOOR - low_part, height=low_part, class_="column", **box)] if kept else []
            parts.append(tag("g", tag("title", hint), *bars))
    taken = -math.inf
    for value in ticks(float(edges[0]), float(edges[-1]), quantity.is_logarithmic):
        text = shown(value, unit)
        x, (middle, half) = across(value), label_place(across(value), text)
        if middle - half >= taken:
            taken = middle + half + 6
            parts.append(tag("line", x1=x, x2=x, y1=FLOOR, y2=FLOOR + 4, class_="axis"))
            parts.append(tag("text", text, x=middle, y=FLOOR + 18, class_="tick"))
    for value in found.cuts:
        x, text = across(value), shown(value, unit)
        parts.append(tag("line", x1=x, x2=x, y1=TOP - 8, y2=FLOOR, class_="median"))
        parts.append(tag("text", text, x=label_place(x, text)[0], y=TOP - 13, class_="tick strong"))
    span = f"{shown(found.listed.least, unit)} to {shown(found.listed.most, unit)}"
    cut = f", cut at {' and '.join(shown(value, unit) for value in found.cuts)}" if found.cuts else ""
    label = f"{quantity.title}: {span}{cut}"
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    note = f"{found.listed.num_values:,} samples, {span}; {found.kept.num_values:,} kept"
    caption = tag("figcaption", quantity.title, " ", tag("code", quantity.name), tag("small", note))
    return tag("figure", caption, svg, class_="panel")


def _kept_in_bars(found: Distribution) -> list[int]:
    """How many samples of each bar are kept."""
    starts, size = bar_starts(found.listed)
    kept: list[int] = np.add.reduceat(found.kept.counts[: starts[-1] + size], starts).tolist()
    return kept
