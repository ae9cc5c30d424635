"""The evaluation as tables: rows are weights, columns are metrics, chance is the last row."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avssl.eval.compare import is_comparable
from avssl.eval.intervals import leaders
from avssl.pages.markup import Html, escaped, join, number, tag
from avssl.report.stored import Result, count_of, interval_of, trained_on_text, units_of

PER_CENT = "\u00a0%"
_SHARE_WORDS = ("recall", "knn", "precision", "accuracy", "share")
_LOWER_WORDS = frozenset({"rank", "loss", "error"})
# (title, part of the names of its metrics, note)
GROUPS = (
    (
        "Does a video find its own audio?",
        "video_to_audio_",
        "The audio of all test clips is ranked by cosine to the video.",
    ),
    ("Does audio find its own video?", "audio_to_video_", "The same with audio as the query."),
    (
        "Do neighbors have the same class?",
        "knn",
        "Weighted k nearest neighbors: the training split votes on the test split.",
    ),
    ("How pure are the positive sets?", "positive_precision", "Share of positives with the anchor's class."),
)
OTHER_GROUP = ("More metrics", "", "With the names of the evaluation.")


@dataclass(frozen=True)
class ScoreRow:
    """Values by metric of one run and set of weights, the ends of their intervals, and the metrics it is best in."""

    name: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    leads: frozenset[str] = frozenset()
    note: str = ""  # below the name


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"outer/inner": number} of the numbers of a nested mapping; other values are left out."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{name}"] = float(value)
    return numbers


def group_of(metric: str) -> tuple[str, str, str]:
    """The group (title, part of the name, note) of a metric."""
    return next((group for group in GROUPS if group[1] in metric), OTHER_GROUP)


def metric_title(metric: str) -> str:
    """The heading of a metric: video_to_audio_recall_at_5 -> Recall at 5, video_knn_visual -> Video kNN, visual."""
    text = metric
    for prefix in ("video_to_audio_", "audio_to_video_", "positive_precision_"):
        text = text.removeprefix(prefix)
    modality, knn, label_field = text.partition("_knn")
    if knn:
        label_field = label_field.strip("_").replace("_", " ")
        text = f"{modality} kNN" + (f", {label_field}" if label_field else "")
    text = text.replace("_", " ").replace("/", ", ")
    return text[:1].upper() + text[1:]


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1] and is shown in per cent."""
    return any(word in metric for word in _SHARE_WORDS)


def lower_is_better(metric: str) -> bool:
    """Whether smaller is better: for ranks, losses and errors."""
    own = re.split("knn|precision|accuracy", metric)[0]  # behind these is the name of a label field or of a class
    return not _LOWER_WORDS.isdisjoint(re.split("[_/]", own))


def value_text(metric: str, value: float) -> str:
    """A value as text: 48.5 % for shares, otherwise a plain number."""
    return f"{value * 100:.1f}{PER_CENT}" if is_share(metric) and abs(value) <= 1 else number(value)


def interval_text(metric: str, ends: tuple[float, float]) -> str:
    """An interval as text: 48.5 to 51.2 % for shares, otherwise plain numbers."""
    low, high = (value_text(metric, end) for end in ends)
    return f"{low.removesuffix(PER_CENT) if high.endswith(PER_CENT) else low} to {high}"


def _rows(results: Sequence[Result]) -> list[ScoreRow]:
    """One row per run and set of weights, in the order of the results; trained weights come first."""
    several = len({result.record.get("run") for result in results}) > 1
    leads = _leads(results)
    rows: list[ScoreRow] = []
    for result in results:
        for weights, metrics in dict(result.record.get("results", {})).items():
            name = f"{result.record.get('run', 'run')} · {weights}" if several else str(weights)
            values = flat_numbers(metrics)
            all_intervals = {metric: interval_of(result.record, weights, metric) for metric in values}
            intervals = {metric: ends for metric, ends in all_intervals.items() if ends is not None}
            leading = frozenset(metric for metric, leader in leads.items() if leader == len(rows))
            rows.append(ScoreRow(name, values, intervals, leading, trained_on_text(result.record)))
    return rows


def _leads(results: Sequence[Result]) -> dict[str, int]:
    """{metric: number of the row that is best by more than the interval of the difference}.

    {} unless all results are comparable and have their rows.
    """
    first = results[0] if results else None
    if first is None or not all(is_comparable(first.record, result.record) and result.rows for result in results):
        return {}
    repeats_of_rows = [result.rows[weights] for result in results for weights in result.record["results"]]
    # A metric that some rows lack (precision of positives) is compared among the rows that have it.
    metrics_by_rows: dict[tuple[int, ...], list[str]] = {}
    for metric in dict.fromkeys(name for repeats in repeats_of_rows for repeat in repeats for name in repeat.metrics):
        rows = tuple(
            row for row, repeats in enumerate(repeats_of_rows) if any(metric in repeat.metrics for repeat in repeats)
        )
        metrics_by_rows.setdefault(rows, []).append(metric)
    best_rows: dict[str, int] = {}
    for rows, metrics in metrics_by_rows.items():
        best = leaders([repeats_of_rows[row] for row in rows], lower_is_better)
        best_rows |= {metric: rows[best[metric]] for metric in metrics if metric in best}
    return best_rows


def _chance_rows(results: Sequence[Result]) -> list[ScoreRow]:
    """The chance row; several if the runs were evaluated on sets with different chance."""
    rows: list[ScoreRow] = []
    for result in results:
        values = flat_numbers(result.record.get("chance", {}))
        clash = any(
            not math.isclose(values[metric], row.values[metric])
            for row in rows
            for metric in values.keys() & row.values
        )
        if values and (not rows or clash):
            rows.append(ScoreRow("chance" if not rows else f"chance · {result.record.get('run', 'run')}", values))
        elif values:
            rows[0] = ScoreRow(rows[0].name, {**values, **rows[0].values})
    return rows


def _bar(value: float, chance: float | None, text: Html) -> Html:
    """The text and a bar of the share with a mark at chance; the bar is hidden from screen readers."""
    fill = tag("rect", x=0, y=0, width=max(0.0, min(1.0, value)) * 100, height=6, class_="fill")
    mark = "" if chance is None else tag("rect", x=min(99.0, chance * 100), y=0, width=1, height=6, class_="mark")
    box = {"viewBox": "0 0 100 6", "preserveAspectRatio": "none", "class_": "bar", "aria_hidden": "true"}
    return join(text, tag("svg", tag("rect", width=100, height=6, class_="back"), fill, mark, **box))


def _cell(metric: str, row: ScoreRow, chance: float | None) -> Html:
    if metric not in row.values:
        return tag("td", tag("span", "–", aria_label="not measured"))
    value = row.values[metric]
    best = tag("small", " best", class_="best") if metric in row.leads else ""
    text = tag("span", value_text(metric, value), best)
    shown = _bar(value, chance, text) if is_share(metric) and abs(value) <= 1 else text
    ends = row.intervals.get(metric)
    return tag("td", shown, "" if ends is None else tag("small", interval_text(metric, ends), class_="interval"))


def _heading(metric: str, counts: str) -> Html:
    """A column heading with the name of the metric, which may be broken after each underscore."""
    name = tag("code", join(*metric.split("_"), by="_<wbr>"))
    direction = tag("small", "lower is better") if lower_is_better(metric) else ""
    size = tag("small", counts) if counts else ""
    return tag("th", metric_title(metric), size, direction, name, scope="col", data_metric=metric)


def samples_text(results: Sequence[Result], metric: str) -> str:
    """The text "300 samples", or "280 to 300 samples" if the results differ; "" if none has a number."""
    counts = {count for result in results if (count := count_of(result.record, metric)) is not None}
    if not counts:
        return ""
    sources = {result.record.get("intervals", {}).get("num_sources", {}).get(metric) for result in results}
    count = next(iter(sources)) if len(sources) == 1 else None
    of_sources = f" of {count} sources" if isinstance(count, int) and count < max(counts) else ""
    return f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} samples{of_sources}"


def _table(
    group: tuple[str, str, str], metrics: Sequence[str], results: Sequence[Result], rows: Sequence[ScoreRow]
) -> Html:
    chance = _chance_rows(results)
    headings = [_heading(metric, samples_text(results, metric)) for metric in metrics]
    level = chance[0].values if chance else {}
    body = []
    for row in rows:
        if any(metric in row.values for metric in metrics):
            cells = [_cell(metric, row, level.get(metric)) for metric in metrics]
            note = tag("small", row.note) if row.note else ""
            body.append(tag("tr", tag("th", row.name, note, scope="row"), *cells))
    for row in chance:
        if any(metric in row.values for metric in metrics):
            cells = [_cell(metric, row, None) for metric in metrics]
            body.append(tag("tr", tag("th", row.name, scope="row"), *cells, class_="chance"))
    head = tag("thead", tag("tr", tag("th", "Weights", scope="col"), *headings))
    table = tag("table", head, tag("tbody", *body), aria_label=group[0])
    scroll = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {group[0]}")
    size = "box" if len(metrics) > 2 else "box small"
    return tag("div", tag("h3", group[0]), tag("p", group[2]), scroll, class_=size)


def scores_section(results: Sequence[Result]) -> Html:
    """Tables of all metrics of all results in groups, and the protocols of the results."""
    rows = _rows(results)
    metrics = list(dict.fromkeys(metric for row in (*rows, *_chance_rows(results)) for metric in row.values))
    if not metrics:
        return tag(
            "p",
            "No evaluation yet by the task standard: `avssl evaluate RUN train=SHARDS test=TEST_SHARDS` makes one.",
            class_="note",
        )
    tables = []
    for group in (*GROUPS, OTHER_GROUP):
        members = [metric for metric in metrics if group_of(metric) == group]
        if members:
            tables.append(_table(group, members, results, rows))
    protocols = []
    for result in results:
        entries = protocol_entries(result.record.get("protocol", {}))
        if entries:
            title = f"Protocol of {result.record.get('run', 'run')}"
            protocols.append(tag("div", tag("h3", title), tag("dl", *entries)))
    details = tag("details", tag("summary", "How this was measured"), *protocols) if protocols else ""
    return join(tag("div", *tables, class_="tables"), tag("p", _note(results, rows), class_="note"), details)


def protocol_entries(protocol: Mapping[str, Any]) -> list[Html]:
    """Names and values of a protocol, for a list of definitions."""
    return [join(tag("dt", str(name).replace("_", " ")), tag("dd", str(value))) for name, value in protocol.items()]


def _note(results: Sequence[Result], rows: Sequence[ScoreRow]) -> str:
    text = "The bar under a number is its share of 100 %, the upright mark in it is chance."
    if any(row.intervals for row in rows):
        text += " Small below it: the 95 % interval over other samples, which does not include other trainings."
        said = dict.fromkeys(units_of(result.record) for result in results)
        text += "".join(f" {units[:1].upper()}{units[1:]}." for units in said if units)
    if all(result.rows for result in results):
        return text + (
            " Best is a row that is better than each other one by more than the 95 % interval of their paired "
            "difference; a column without such a row has no best."
        )
    return text + (
        " No number is marked as best, because a result lacks its rows, which intervals of differences need: run "
        "avssl evaluate again."
    )


def headline(results: Sequence[Result]) -> Html:
    """The leading metric of each group as a large number, with untrained weights and chance below it."""
    if not results:
        return escaped(None)
    record = results[0].record
    values = {name: flat_numbers(metrics) for name, metrics in dict(record.get("results", {})).items()}
    chance = flat_numbers(record.get("chance", {}))
    main = next(iter(values), None)
    if main is None:
        return escaped(None)
    cards = []
    for group in GROUPS:
        metric = _leading(group, values[main])
        if metric is None:
            continue
        others = {**{name: row for name, row in values.items() if name != main}, "chance": chance}
        compared = [f"{name} {value_text(metric, row[metric])}" for name, row in others.items() if metric in row]
        ends = interval_of(record, main, metric)
        precision = [f"95 %: {interval_text(metric, ends)}" if ends else "", samples_text(results[:1], metric)]
        parts = (
            tag("dt", f"{group[0]} {metric_title(metric)}"),
            tag("dd", value_text(metric, values[main][metric]), class_="big"),
            tag("dd", " · ".join(part for part in precision if part)),
            tag("dd", " · ".join(compared)),
        )
        cards.append(tag("div", *parts, class_="card"))
    overlap = trained_on_text(record)
    warning = tag("p", f"{overlap}.", class_="warnings") if overlap else ""
    return join(warning, tag("dl", *cards, class_="cards") if cards else "")


def _leading(group: tuple[str, str, str], values: Mapping[str, float]) -> str | None:
    """The leading metric of a group: recall at 5 of a direction, otherwise the first; None without metrics."""
    members = [metric for metric in values if group_of(metric) == group]
    return next((metric for metric in members if metric.endswith("recall_at_5")), members[0] if members else None)
