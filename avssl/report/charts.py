"""Charts of curves: what charts.js draws with uPlot, and the caption and legend that need no script."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.pages.markup import Html, join, number, tag

Numbers = NDArray[np.float64]
MAX_POINTS = 600  # of a line; fewer where there are many lines
MAX_POINTS_OF_ALL_RUNS = 3000
DIGITS = 6  # significant, of a value in the page
NUM_COLORS = 12  # c0 to c11 in style.css
NUM_LEGEND_LINES = 8  # a longer legend is folded


@dataclass(frozen=True)
class Series:
    """One line of a chart: y float64 (n,), where NaN is a gap, over several axes.

    x: {name of the axis: float64 (n,), not falling}. color: a class of style.css, c0 to c11, video or audio. dash: 0
    (solid) to 3. run, run_name: number and name of the run of the line; "" if there is only one.
    """

    key: str
    x: Mapping[str, Numbers]
    y: Numbers
    color: str = "c0"
    dash: int = 0
    run: int = 0
    run_name: str = ""

    @property
    def name(self) -> str:
        """The key, after the name of its run if the chart has several."""
        return ": ".join(part for part in (self.run_name, self.key) if part)


@dataclass
class Curves:
    """The data of all charts of a page, for charts.js: axes are stored once for all lines that share them.

    max_points: of a line, see `binned`.
    """

    max_points: int = MAX_POINTS
    axes: list[dict[str, list[float]]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"axes": [{name: values}], "charts": [{"title", "unit", "include", "lines"}]}."""
        return {"axes": self.axes, "charts": self.charts}

    def _axis(self, x: Mapping[str, Numbers]) -> int:
        identity = b"".join(name.encode() + values.tobytes() for name, values in x.items())
        if identity not in self._known:
            self._known[identity] = len(self.axes)
            self.axes.append({name: _rounded(values) for name, values in x.items()})
        return self._known[identity]

    def _line(self, series: Series) -> dict[str, Any]:
        mean, low, high = binned(series.y, self.max_points)
        line = {"name": series.name, "color": series.color, "dash": series.dash, "run": series.run}
        line |= {"axis": self._axis({name: binned(x, self.max_points)[0] for name, x in series.x.items()})}
        line |= {"mean": _rounded(mean)}
        if len(series.y) > self.max_points:
            line |= {"low": _rounded(low), "high": _rounded(high)}
        return line

    def chart(
        self, title: str, lines: Sequence[Series], *, note: str = "", y_unit: str = "", include: Sequence[float] = ()
    ) -> Html:
        """A figure with caption, the place that charts.js draws in, and a legend with last values.

        lines: at least one with a finite value; others are left out. y_unit "%": y is a share in [0, 1]. include: y
        values that the axis reaches while the whole run is shown.
        """
        drawn = [line for line in lines if len(line.y) and np.isfinite(line.y).any()]
        if not drawn:
            raise ValueError(f"chart {title!r} has no finite value to draw; leave it out")
        described = [self._line(line) for line in drawn]
        self.charts.append({"title": title, "unit": y_unit, "include": list(include), "lines": described})
        values = [(line, _last_value(line, y_unit)) for line in drawn]
        summary = "; ".join(f"{line.name} ends at {value}" for line, value in values[:NUM_LEGEND_LINES])
        label = f"{title}. {summary}. Arrow keys read values, plus and minus zoom, 0 shows all."
        plot = tag("div", class_="plot", data_chart=len(self.charts) - 1, tabindex=0, role="img", aria_label=label)
        caption = tag("figcaption", tag("h3", title), tag("p", note) if note else "")
        return tag("figure", caption, plot, _legend(values), class_="panel")


def _rounded(values: Numbers) -> list[float]:
    """Values with DIGITS significant digits; None where they are not finite, which JSON has no number for."""
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]  # type: ignore[misc]


def binned(y: Numbers, max_points: int = MAX_POINTS) -> tuple[Numbers, Numbers, Numbers]:
    """(mean, low, high) of at most max_points runs of neighboring points; NaN where a run has no finite value."""
    if len(y) <= max_points:
        return y, y, y
    edges = np.linspace(0, len(y), max_points + 1).astype(int)
    bins = [y[a:b][np.isfinite(y[a:b])] for a, b in itertools.pairwise(edges)]
    nothing = (np.nan, np.nan, np.nan)
    columns = [(values.mean(), values.min(), values.max()) if len(values) else nothing for values in bins]
    mean, low, high = np.array(columns, dtype=np.float64).T
    return mean, low, high


def _last_value(series: Series, y_unit: str) -> str:
    last = float(series.y[np.isfinite(series.y)][-1])
    return f"{last * 100:.3g}\u00a0%" if y_unit == "%" else number(last)


def _legend(values: Sequence[tuple[Series, str]]) -> Html:
    """Last values: a row per line, or a row per key and a column per run; folded if there are many."""
    runs = list(dict.fromkeys((line.run, line.run_name) for line, _ in values))
    keys = {line.key: line.dash for line, _ in values}
    if len(runs) == 1 or len(keys) == 1:
        rows = [_row((line.color, line.dash, line.name), [(line.run, text)], line.run) for line, text in values]
        table = tag("table", *rows, class_="values")
        return _folded(table, len(rows))
    cells = {(line.key, line.run): text for line, text in values}
    heads = [tag("th", name, scope="col", class_=f"c{run % NUM_COLORS}", data_run=run) for run, name in runs]
    rows = [tag("tr", tag("td", ""), *heads)]
    rows += [
        _row(("", dash, key), [(run, cells.get((key, run), "–")) for run, _ in runs], None)
        for key, dash in keys.items()
    ]
    return _folded(tag("div", tag("table", *rows, class_="values"), class_="scroll"), len(values))


def _row(head: tuple[str, int, str], cells: Sequence[tuple[int, str]], run: int | None) -> Html:
    """A row of a legend: a sample of the line with its name, and last values (run, text)."""
    color, dash, name = head
    stroke = tag("path", d="M1 6H23", class_=f"line {color} dash{dash}".replace("  ", " "))
    sample = tag("svg", stroke, viewBox="0 0 24 12", class_="key", aria_hidden="true")
    values = [tag("td", text, data_run=number) for number, text in cells]
    return tag("tr", tag("th", sample, tag("span", name), scope="row"), *values, data_run=run)


def _folded(table: Html, count: int) -> Html:
    return (
        table if count <= NUM_LEGEND_LINES else tag("details", tag("summary", f"Last values of {count} lines"), table)
    )


def curve_controls(axes: Mapping[str, str], runs: Sequence[str]) -> Html:
    """What all charts obey: the axis, smoothing, a logarithmic axis, the zoom, and which runs are drawn.

    axes: {name in Series.x: its label}, the first one is shown at first.
    """
    options = [tag("option", label, value=name) for name, label in axes.items()]
    buttons = [
        tag("button", text, type="button", data_zoom=name, aria_label=label)
        for name, text, label in (("in", "+", "Zoom in"), ("out", "−", "Zoom out"), ("reset", "Show all", "Show all"))
    ]
    parts = [
        tag("label", "Over ", tag("select", *options, id="x-axis")),
        tag(
            "label",
            "Smoothing ",
            tag("input", type="range", id="smoothing", min=0, max=0.99, step=0.01, value=0),
            tag("output", "0", for_="smoothing"),
        ),
        tag("label", tag("input", type="checkbox", id="log-axis"), " Logarithmic"),
        tag("span", *buttons, class_="zoom"),
    ]
    shown = [
        tag(
            "label",
            tag("input", type="checkbox", checked=True, data_run_switch=position),
            f" {name}",
            class_=f"c{position % NUM_COLORS}",
        )
        for position, name in enumerate(runs)
    ]
    hint = (
        "Drag across a chart, or turn the wheel with Ctrl, to zoom into all; a double click shows the whole run again."
    )
    return join(
        tag("div", *parts, class_="controls", role="group", aria_label="How all charts are drawn"),
        tag("div", *shown, class_="controls runs", role="group", aria_label="Runs that are drawn")
        if len(runs) > 1
        else "",
        tag("p", hint, class_="note", id="chart-hint"),
        tag("p", class_="unseen", role="status", id="chart-value"),
    )
