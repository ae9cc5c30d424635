"""Curves of loss and diagnostics from metrics.jsonl, of one run or of several runs in the same charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from avssl.files.checked_json import Fields, parse
from avssl.pages.markup import Html, join, number, tag
from avssl.report.charts import Series, line_chart
from avssl.train.collapse import CollapseWatch

X_KEYS = ("samples_seen", "step")
_NOT_CURVES = frozenset({"step", "epoch", "samples_seen", "seconds", "batch", "phase", "run", "time"})


@dataclass(frozen=True)
class Panel:
    """One chart: its title, {key: name in the legend}, and a note on how to read it."""

    title: str
    keys: dict[str, str]
    note: str
    y_unit: str = ""
    include: tuple[float, ...] = ()
    colors: dict[str, str] = field(default_factory=dict)


# Suffixes of the diagnostics that every loss logs, by the panel that shows them.
_SUFFIXES = {
    "Embedding spread": "_embedding_spread",
    "Effective rank": "_effective_rank",
    "Uniformity": "_uniformity",
    "Alignment": "_alignment",
    "Use of clusters": "_entropy",
}
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
    ),
    Panel(
        "Uniformity",
        {},
        "How evenly a batch covers the sphere: 0 = collapse, near -4 = all over it.",
        include=(0.0,),
        colors=_MODALITY_COLORS,
    ),
    Panel(
        "Use of clusters",
        {},
        "Entropy over its highest value. Of labels and of predictions over a batch: 0 = one cluster for all. Of the "
        "assignment of one sample: 1 = it belongs to all alike.",
        include=(0.0,),
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
    ),
    Panel("Learning rate", {"lr": "learning rate"}, "As the schedule set it.", include=(0.0,), colors={"lr": "c7"}),
    Panel(
        "Speed",
        {"samples_per_second": "samples per second"},
        "Whole loop, loading included.",
        include=(0.0,),
        colors={"samples_per_second": "c9"},
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

    def x_key(self) -> str | None:
        """The x axis that every row has: samples_seen, else step, else none."""
        return next((key for key in X_KEYS if self.rows and all(_is_number(row.get(key)) for row in self.rows)), None)


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
        scores = {f"{PROBE}{key}": value for key, value in result.items() if key not in ("step", "samples_seen")}
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
    return [line for line in lines if "error" not in line]


def _series(runs: Mapping[str, Metrics], panel: Panel, x_key: str) -> list[Series]:
    """One line per key and run: runs differ by dash, keys by color, or runs by color too if there is one key."""
    lines = []
    for run_number, (run, metrics) in enumerate(runs.items()):
        for key_number, (key, name) in enumerate(panel.keys.items()):
            rows = [row for row in metrics.rows if _is_number(row.get(x_key)) and _is_number(row.get(key))]
            if not rows:
                continue
            color = panel.colors.get(key, f"c{key_number}")
            if len(panel.keys) == 1 and run_number:
                color = f"c{run_number}"
            shown = name if len(runs) == 1 else f"{run}: {name}" if len(panel.keys) > 1 else run
            x, y = (np.array([row[column] for row in rows], dtype=np.float64) for column in (x_key, key))
            lines.append(Series(shown, x, np.where(np.isfinite(y), y, np.nan), color, run_number % 4))
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
        Panel(key[:1].upper() + key[1:].replace("_", " "), {key: key}, "A term of the loss or of the loop, as logged.")
        for key in keys
        if key not in shown and not key.startswith("failures/")
    ]


def curves_section(runs: Mapping[str, Metrics]) -> Html:
    """The charts of all runs {name: metrics}, or a sentence if there is nothing to draw."""
    keys = {metrics.x_key() for metrics in runs.values() if metrics.rows}
    x_key = next((key for key in X_KEYS if keys == {key} or (key == "step" and keys == set(X_KEYS))), None)
    if x_key is None:
        return tag("p", "No training curves: no metrics.jsonl with samples_seen or step was found.", class_="note")
    charts = []
    for panel in _panels(runs):
        lines = [line for line in _series(runs, panel, x_key) if np.isfinite(line.y).any()]
        if lines:
            label = "samples seen" if x_key == "samples_seen" else "optimizer steps"
            charts.append(
                line_chart(
                    panel.title, lines, note=panel.note, x_label=label, y_unit=panel.y_unit, include=panel.include
                )
            )
    return join(_collapses(runs), tag("div", *charts, class_="charts"), _footnote(runs))


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
    notes = ["Long runs: the line is the mean of neighboring logging steps, the band their lowest and highest value."]
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
    seconds = [float(row["seconds"]) for row in metrics.rows if _is_number(row.get("seconds"))]
    if seconds:
        facts["Training time"] = duration_text(sum(seconds))  # a row has the time since the row before it
    for key in metrics.names():
        if key.startswith("failures/"):
            values: Sequence[float] = [row[key] for row in metrics.rows if _is_number(row.get(key))]
            facts[f"Unreadable samples: {key.removeprefix('failures/')}"] = f"{number(max(values))} (highest logged)"
    return facts


def duration_text(seconds: float) -> str:
    """A duration as text: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{number(round(seconds, 1))} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )
