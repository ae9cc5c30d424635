"""Line charts as inline SVG. Colors are CSS classes, so that light and dark both work."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.pages.markup import Html, join, number, short, tag

WIDTH, HEIGHT = 380.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 10.0, 36.0
MAX_POINTS = 240


@dataclass(frozen=True)
class Series:
    """One line of a chart: x and y float64 (n,), where NaN in y is a gap.

    color: a class of style.css, c0 to c11, video or audio. dash: 0 (solid) to 3.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    color: str = "c0"
    dash: int = 0


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that cover [low, high], about `target` of them."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"axis limits must be finite, got {low} and {high}")
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, low + room
    raw = (high - low) / max(1, target - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(position * step, 12) for position in range(first, last + 1)]


def tick_text(value: float, unit: str = "") -> str:
    """A tick's label: 0.25, 96k, 1.5M, 2e-4; shares in per cent if the unit is "%"."""
    if unit == "%":
        return f"{value * 100:.4g}\u00a0%"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9999:
            return f"{value / size:.4g}{letter}"
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):.3g}e{int(power)}"
    return f"{value:.4g}"


def binned(
    x: NDArray[np.float64], y: NDArray[np.float64], max_points: int = MAX_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(x, mean, low, high) of at most max_points runs of neighboring points; NaN where a run has no finite value."""
    if len(x) <= max_points:
        return x, y, y, y
    edges = np.linspace(0, len(x), max_points + 1).astype(int)
    bins = [(x[a:b], y[a:b][np.isfinite(y[a:b])]) for a, b in itertools.pairwise(edges)]
    columns = [
        (xs.mean(), ys.mean(), ys.min(), ys.max()) if len(ys) else (xs.mean(), np.nan, np.nan, np.nan)
        for xs, ys in bins
    ]
    centers, mean, low, high = np.array(columns, dtype=np.float64).T
    return centers, mean, low, high


def path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """SVG path data through the points; a NaN leaves a gap, a single point between gaps becomes a dot."""
    commands: list[str] = []
    drawing = False
    for position in range(len(x)):
        if not np.isfinite(y[position]):
            drawing = False
            continue
        commands.append(f"{'L' if drawing else 'M'}{x[position]:.1f} {y[position]:.1f}")
        is_alone = not drawing and (position + 1 == len(x) or not np.isfinite(y[position + 1]))
        commands.extend(["h0.01"] if is_alone else [])
        drawing = True
    return "".join(commands)


@dataclass(frozen=True)
class Axes:
    """The linear map from values to the pixels of the chart, and the ticks."""

    x_ticks: list[float]
    y_ticks: list[float]
    x_low: float
    x_high: float

    def to_x(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values -> pixels from the left edge."""
        span = (self.x_high - self.x_low) or 1.0
        return LEFT + (values - self.x_low) / span * (WIDTH - LEFT - RIGHT)

    def to_y(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values -> pixels from the top edge."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (values - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _axes(lines: Sequence[Series], include: Sequence[float]) -> Axes:
    """Axes that cover every finite value (of binned series their extremes) and the values to include."""
    x = np.concatenate([line.x for line in lines])
    y = np.concatenate([np.concatenate(binned(line.x, line.y)[2:]) for line in lines])
    y = np.concatenate([y[np.isfinite(y)], np.asarray(include, dtype=np.float64)])
    x_low, x_high = float(x.min()), float(x.max())
    inside = [tick for tick in ticks(x_low, x_high) if x_low <= tick <= x_high] or [x_low]
    return Axes(inside, ticks(float(y.min()), float(y.max())), x_low, x_high)


def _grid(axes: Axes, x_label: str, y_unit: str) -> Html:
    bottom = HEIGHT - BOTTOM
    parts: list[Html] = []
    for value in axes.y_ticks:
        y = float(axes.to_y(np.array(value)))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", tick_text(value, y_unit), x=LEFT - 6, y=y + 3.5, class_="tick end"))
    for value in axes.x_ticks:
        x = float(axes.to_x(np.array(value)))
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(tag("text", tick_text(value), x=x, y=bottom + 16, class_="tick middle"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 3, class_="tick middle"))
    return join(*parts)


def _line(series: Series, axes: Axes) -> Html:
    x, mean, low, high = binned(series.x, series.y)
    pixels = axes.to_x(x)
    parts = []
    solid = np.isfinite(low)
    if len(series.x) > MAX_POINTS and solid.any():
        edge = np.concatenate([axes.to_y(low[solid]), axes.to_y(high[solid])[::-1]])
        outline = path(np.concatenate([pixels[solid], pixels[solid][::-1]]), edge)
        parts.append(tag("path", d=outline + "Z", class_=f"band {series.color}"))
    points = path(pixels, axes.to_y(mean))
    parts.append(tag("path", d=points, class_=f"line {series.color} dash{series.dash}", data_series=series.name))
    return join(*parts)


def _last_value(series: Series, y_unit: str) -> str:
    last = float(series.y[np.isfinite(series.y)][-1])
    return f"{last * 100:.3g}\u00a0%" if y_unit == "%" else number(last)


def legend(entries: Sequence[tuple[str, str, int, str]]) -> Html:
    """The legend of (name, color class, dash, value text): per line a sample of it, its name and its last value."""
    items = []
    for name, color, dash, value in entries:
        stroke = tag("path", d="M1 6H23", class_=f"line {color} dash{dash}")
        sample = tag("svg", stroke, viewBox="0 0 24 12", class_="key", aria_hidden="true")
        items.append(tag("li", sample, tag("span", name), tag("b", value) if value else ""))
    return tag("ul", *items, class_="legend")


def line_chart(
    title: str,
    lines: Sequence[Series],
    *,
    note: str = "",
    x_label: str = "samples seen",
    y_unit: str = "",
    include: Sequence[float] = (),
) -> Html:
    """A figure with axes, ticks, legend and last values.

    lines: at least one with a finite value; others are left out. y_unit "%": y is a share in [0, 1].
    include: y values that the axis must reach.
    """
    drawn = [line for line in lines if len(line.x) and np.isfinite(line.y).any()]
    if not drawn:
        raise ValueError(f"chart {title!r} has no finite value to draw; leave it out")
    axes = _axes(drawn, include)
    entries = [(line.name, line.color, line.dash, _last_value(line, y_unit)) for line in drawn]
    summary = "; ".join(f"{name} ends at {value}" for name, _, _, value in entries)
    area = {"x": LEFT, "y": TOP, "width": WIDTH - LEFT - RIGHT, "height": HEIGHT - TOP - BOTTOM}
    clip = f"clip-{zlib.crc32(title.encode()):x}"
    domain = " ".join(f"{value:.9g}" for value in (axes.x_low, axes.x_high, axes.y_ticks[0], axes.y_ticks[-1]))
    svg = tag(
        "svg",
        tag("clipPath", tag("rect", **area), id=clip),
        _grid(axes, x_label, y_unit),
        tag("g", *(_line(line, axes) for line in drawn), clip_path=f"url(#{clip})"),
        tag("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor"),
        viewBox=f"0 0 {short(WIDTH)} {short(HEIGHT)}",
        role="img",
        aria_label=f"{title} over {x_label}. {summary}.",
        class_="chart",
        data_domain=domain,
        data_area=" ".join(str(short(value)) for value in area.values()),
        data_unit=y_unit,
    )
    caption = tag("figcaption", tag("h3", title), tag("p", note) if note else "")
    return tag("figure", caption, svg, legend(entries), class_="panel")
