"""Curves of loss and diagnostics from metrics.jsonl, of one run or of several runs in the same charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from avssl.files.checked_json import Fields, parse
from avssl.pages.markup import Html, join, number, tag
from avssl.report.charts import MAX_POINTS, MAX_POINTS_OF_ALL_RUNS, NUM_COLORS, Curves, Numbers, Series, curve_controls
from avssl.train.collapse import CollapseWatch

# Axes of the curves; an axis is offered if every run has it. The first one is shown at first.
AXES = {"samples_seen": "samples seen", "step": "optimizer steps", "hours": "hours of training"}
MAIN = ""  # the group of the charts that are not folded away
_NOT_SCORES = frozenset({"step", "samples_seen"})  # of a line of the online probe
_NOT_CURVES = frozenset({"step", "epoch", "samples_seen", "seconds", "batch", "phase", "run", "time"})


@dataclass(frozen=True)
class Panel:
    """One chart: its title, {key: name in the legend}, and a note on how to read it."""

    title: str
    keys: dict[str, str]
    note: str
    y_unit: str = ""
    include: tuple[float, ...] = ()
    group: str = MAIN
    colors: dict[str, str] = field(default_factory=dict)
    dashes: dict[str, int] = field(default_factory=dict)


# Suffixes of the diagnostics that every loss logs, by the panel that shows them.
_SUFFIXES = {
    "Embedding spread": "_embedding_spread",
    "Effective rank": "_effective_rank",
    "Uniformity": "_uniformity",
    "Alignment": "_alignment",
    "Use of clusters": "_entropy",
}
SPACE, PACE, OTHERS = "More on the embeddings", "Speed and learning rate", "Other logged values"
PROBE = "probe_"  # prefix of the scores of the online probe
_MODALITY_COLORS = {
    f"{modality}{suffix}": modality for modality in ("video", "audio") for suffix in list(_SUFFIXES.values())[:3]
}
# AVID's terms as they are logged, and the same as AVID+CMA's instance terms.
_DIRECTIONS: dict[str, str] = {}
_SCORES: dict[str, str] = {}
_SCORE_COLORS: dict[str, str] = {}
for _prefix in ("", "instance_"):
    for _name, _arrow, _modality in (
        ("video_to_audio", "video → audio", "video"),
        ("audio_to_video", "audio → video", "audio"),
    ):
        _DIRECTIONS[_prefix + _name] = _arrow
        _MODALITY_COLORS[_prefix + _name] = _modality
        for _kind, _pairs, _color in (("positive", "true pairs", "c2"), ("negative", "wrong pairs", "c5")):
            _SCORES[f"{_prefix}{_name}_{_kind}_score"] = f"{_pairs}, {_arrow}"
            _SCORE_COLORS[f"{_prefix}{_name}_{_kind}_score"] = _color
PANELS = (
    Panel("Loss", {"loss": "loss"}, "Falling is good; its level depends on the number of negatives."),
    Panel(
        "Scores of pairs",
        _SCORES,
        "Cosine of true and of wrong pairs. In training they should move apart.",
        colors=_SCORE_COLORS,
    ),
    Panel(
        "Embedding spread",
        {},  # those that were logged
        "How different the embeddings of a batch are. Near 0 = collapse: every sample looks the same.",
        include=(0.0,),
        colors=_MODALITY_COLORS,
    ),
    Panel(
        "Effective rank",
        {},
        "In how many directions the embeddings of a batch lie. Near 1 = collapse; at most the batch size or the dim.",
        include=(0.0,),
        colors=_MODALITY_COLORS,
    ),
    Panel(
        "Alignment",
        {},
        "Squared distance of what belongs together: 0 equal, 2 unrelated. Good only while uniformity stays low.",
        include=(0.0,),
        group=SPACE,
    ),
    Panel(
        "Uniformity",
        {},
        "How evenly a batch covers the sphere: 0 = collapse, near -4 = all over it.",
        include=(0.0,),
        colors=_MODALITY_COLORS,
        group=SPACE,
    ),
    Panel(
        "Use of clusters",
        {},
        "Entropy over its highest value. Of labels and of predictions over a batch: 0 = one cluster for all. Of the "
        "assignment of one sample: 1 = it belongs to all alike.",
        include=(0.0,),
        group=SPACE,
    ),
    Panel(
        "Online probe",
        {},
        "kNN and linear accuracy (or mean average precision) on held-out labels while the run went on.",
        include=(0.0, 1.0),
    ),
    Panel(
        "Loss by direction",
        _DIRECTIONS,
        "Should fall together; a large gap means one modality carries the task.",
        colors=_MODALITY_COLORS,
    ),
    Panel(
        "Waiting for data",
        {"data_wait_share": "share of the time"},
        "High = the loader is the bottleneck: more workers or smaller frames.",
        y_unit="%",
        include=(0.0,),
        colors={"data_wait_share": "c6"},
        group=PACE,
    ),
    Panel(
        "Learning rate",
        {"lr": "learning rate"},
        "As the schedule set it.",
        include=(0.0,),
        group=PACE,
        colors={"lr": "c7"},
    ),
    Panel(
        "Speed",
        {"samples_per_second": "samples per second"},
        "Whole loop, loading included.",
        include=(0.0,),
        colors={"samples_per_second": "c9"},
        group=PACE,
    ),
)


@dataclass(frozen=True)
class Metrics:
    """The rows of a metrics.jsonl, one per step (of a repeated step the last), and the number of unreadable lines."""

    rows: list[dict[str, Any]]
    num_unreadable: int = 0

    def names(self) -> list[str]:
        """Names with at least one number, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows for key, value in row.items() if _is_number(value)))

    def axes(self) -> dict[str, Numbers]:
        """The axes that every row has, of AXES: {name: float64 (rows,)}. Hours are those of the steps that count."""
        found = {name: self._column(name) for name in ("samples_seen", "step")}
        seconds = [row.get("seconds", 0.0 if is_of_probe(row) else None) for row in self.rows]
        if self.rows and all(_is_number(value) for value in seconds):
            found["hours"] = np.cumsum(np.array(seconds, dtype=np.float64)) / 3600
        return {name: values for name in AXES if (values := found.get(name)) is not None}

    def _column(self, name: str) -> Numbers | None:
        is_whole = self.rows and all(_is_number(row.get(name)) for row in self.rows)
        return np.array([row[name] for row in self.rows], dtype=np.float64) if is_whole else None


def is_of_probe(row: Mapping[str, Any]) -> bool:
    """Whether a row has nothing but scores of the online probe, which has no time of its own."""
    return "loss" not in row and any(key.startswith(PROBE) for key in row)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_metrics(path: str | Path) -> Metrics:
    """Read a metrics.jsonl, and the scores of the online probe beside it. A missing file gives no rows.

    A line that a killed run left incomplete is counted as unreadable. A resumed run has logged some steps twice; the
    last one counts.
    """
    source = Path(path)
    if not source.exists():
        return Metrics([])
    rows: dict[object, dict[str, Any]] = {}
    num_unreadable = 0
    for position, line in enumerate(source.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            row = parse(line, str(source), finite=False) if line.strip() else None
        except ValueError:
            num_unreadable += 1
            continue
        if isinstance(row, dict):
            rows[row["step"] if _is_number(row.get("step")) else f"line {position}"] = row
    for result in _probe_results(source.with_name("probe.jsonl")):
        scores = {f"{PROBE}{key}": value for key, value in result.items() if key not in _NOT_SCORES}
        rows[result["step"]] = {**rows.get(result["step"], {}), **result, **scores}
    ordered = sorted(rows.values(), key=lambda row: row["step"] if _is_number(row.get("step")) else -1)
    return Metrics(ordered, num_unreadable)


def _probe_results(path: Path) -> list[dict[str, Any]]:
    """Lines of the online probe that have scores: {"step", "samples_seen", scores by name}."""
    if not path.exists():
        return []
    lines = [
        Fields.parse(line, str(path), finite=False).record
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.endswith("}")
    ]
    return [line for line in lines if "error" not in line and not line.keys() <= _NOT_SCORES]


def _series(runs: Mapping[str, Metrics], panel: Panel, axes: Mapping[str, Mapping[str, Numbers]]) -> list[Series]:
    """One line per key and run. Of one run, keys differ by color; of several, runs by color and keys by dash."""
    lines = []
    names = list(dict.fromkeys(panel.keys.values()))  # of terms that two losses log under other names
    for run_number, (run, metrics) in enumerate(runs.items()):
        for key_number, (key, name) in enumerate(panel.keys.items()):
            rows = [row for row, values in enumerate(metrics.rows) if _is_number(values.get(key))]
            if not rows:
                continue
            y = np.array([metrics.rows[row][key] for row in rows], dtype=np.float64)
            x = {axis: values[rows] for axis, values in axes[run].items()}
            color, dash = panel.colors.get(key, f"c{key_number % NUM_COLORS}"), panel.dashes.get(key, 0)
            if len(runs) > 1:
                color, dash = f"c{run_number % NUM_COLORS}", names.index(name) % 4
            of_run = run if len(runs) > 1 else ""
            shown = "" if of_run and len(names) == 1 else name
            lines.append(Series(shown, x, np.where(np.isfinite(y), y, np.nan), color, dash, run_number, of_run))
    return lines


def _panels(runs: Mapping[str, Metrics]) -> list[Panel]:
    """PANELS, and a panel for every other number that was logged, for example the terms of a loss."""
    keys = dict.fromkeys(key for metrics in runs.values() for key in metrics.names())

    def logged(title: str) -> dict[str, str]:
        if title == "Online probe":
            return {key: key.removeprefix(PROBE).replace("_", " ") for key in keys if key.startswith(PROBE)}
        suffix = _SUFFIXES.get(title, "\0")
        return {key: key.removesuffix(suffix).replace("_", " ") for key in keys if key.endswith(suffix)}

    panels = [replace(panel, keys=panel.keys or logged(panel.title)) for panel in PANELS]
    shown = {key for panel in panels for key in panel.keys} | _NOT_CURVES
    return panels + [
        Panel(
            key[:1].upper() + key[1:].replace("_", " "),
            {key: key},
            "A term of the loss or of the loop, as logged.",
            group=OTHERS,
        )
        for key in keys
        if key not in shown and not key.startswith("failures/")
    ]


def curves_section(runs: Mapping[str, Metrics]) -> tuple[Html, dict[str, Any]]:
    """(the charts of all runs {name: metrics}, or a sentence if there is nothing to draw; the data for charts.js)."""
    logged = {run: metrics for run, metrics in runs.items() if metrics.rows}
    axes = {run: metrics.axes() for run, metrics in logged.items()}
    shared = {name: label for name, label in AXES.items() if axes and all(name in found for found in axes.values())}
    if not shared:
        note = "No training curves: no metrics.jsonl with samples_seen or step was found."
        return tag("p", note, class_="note"), {}
    axes = {run: {name: found[name] for name in shared} for run, found in axes.items()}
    curves = Curves(max(120, min(MAX_POINTS, MAX_POINTS_OF_ALL_RUNS // len(logged))))
    groups: dict[str, list[Html]] = {}
    for panel in _panels(logged):
        lines = [line for line in _series(logged, panel, axes) if np.isfinite(line.y).any()]
        if lines:
            chart = curves.chart(panel.title, lines, note=panel.note, y_unit=panel.y_unit, include=panel.include)
            groups.setdefault(panel.group, []).append(chart)
    parts = [tag("div", *groups.pop(MAIN, []), class_="charts")]
    for name, charts in groups.items():
        summary = tag("summary", f"{name} ({len(charts)} chart{'s' if len(charts) > 1 else ''})")
        parts.append(
            tag("details", summary, tag("div", *charts, class_="charts"), class_="fold", id=f"group-{len(parts)}")
        )
    controls = curve_controls(shared, list(logged))
    return join(_collapses(runs), controls, *parts, _footnote(runs)), curves.to_json()


def _collapses(runs: Mapping[str, Metrics]) -> Html:
    """The collapses that the rules of avssl/train/collapse.py find in the logs, run by run."""
    items = []
    for run, metrics in runs.items():
        rows = [row for row in metrics.rows if _is_number(row.get("step"))]
        watch = CollapseWatch(int(rows[-1]["step"]) if rows else 0)
        for row in rows:
            watch.check(int(row["step"]), {key: float(value) for key, value in row.items() if _is_number(value)})
        items += [tag("li", f"{run}: {finding}" if len(runs) > 1 else str(finding)) for finding in watch.findings]
    return tag("ul", *items, class_="warnings") if items else Html("")


def _footnote(runs: Mapping[str, Metrics]) -> Html:
    notes = [
        "Long runs: a point of a line is the mean of neighboring logging steps, the band their lowest and highest."
    ]
    for run, metrics in runs.items():
        num_not_finite = sum(
            1 for row in metrics.rows for value in row.values() if _is_number(value) and not np.isfinite(float(value))
        )
        if num_not_finite:
            notes.append(f"{run}: values that are not finite and leave gaps in the lines: {num_not_finite}.")
        if metrics.num_unreadable:
            notes.append(f"{run}: unreadable lines in metrics.jsonl: {metrics.num_unreadable}.")
    return tag("p", " ".join(notes), class_="note")


def training_facts(metrics: Metrics) -> dict[str, str]:
    """Steps, epochs, samples and wall time at the end of the run, and unreadable samples by reason."""
    if not metrics.rows:
        return {}
    last = metrics.rows[-1]
    names = {"step": "Optimizer steps", "epoch": "Last epoch", "samples_seen": "Samples seen"}
    facts = {shown: number(last[key]) for key, shown in names.items() if _is_number(last.get(key))}
    seconds = training_seconds(metrics)
    if seconds is not None:
        facts["Training time"] = duration_text(seconds)
    for key in metrics.names():
        if key.startswith("failures/"):
            values: Sequence[float] = [row[key] for row in metrics.rows if _is_number(row.get(key))]
            facts[f"Unreadable samples: {key.removeprefix('failures/')}"] = f"{number(max(values))} (highest logged)"
    return facts


def training_seconds(metrics: Metrics) -> float | None:
    """The time of the steps that count, None if it was not logged. A row has the time since the row before it."""
    seconds = [float(row["seconds"]) for row in metrics.rows if _is_number(row.get("seconds"))]
    return sum(seconds) if seconds else None


def duration_text(seconds: float) -> str:
    """A duration as text: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{number(round(seconds, 1))} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )
