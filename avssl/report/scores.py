"""The evaluation as tables: rows are weights, columns are metrics, chance is the last row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from avssl.report.markup import Html, escaped, join, number, tag

_SHARE_WORDS = ("recall", "knn", "precision", "accuracy", "share")
# (title, what the name of a metric starts with or holds, what the columns say)
GROUPS = (
    (
        "Does a video find its own sound?",
        "video_to_audio_",
        "Rank the sounds of all test clips by cosine to the video.",
    ),
    ("Does a sound find its own video?", "audio_to_video_", "The same from the sound's side."),
    (
        "Do neighbours have the same class?",
        "knn",
        "Weighted k nearest neighbours: the training split votes on the test split.",
    ),
    ("How pure are the positive sets?", "positive_precision", "Share of positives with the anchor's class."),
)
OTHER_GROUP = ("More metrics", "", "As the evaluation named them.")

Row = tuple[str, Mapping[str, float]]


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All numbers of a nested mapping by "outer/inner"; what is not a number is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


def group_of(metric: str) -> tuple[str, str, str]:
    """The group (title, pattern, note) that a metric belongs to."""
    return next((group for group in GROUPS if group[1] in metric), OTHER_GROUP)


def metric_title(metric: str) -> str:
    """A heading for people: video_to_audio_recall_at_5 -> Recall at 5, video_knn_visual -> Video kNN, visual."""
    text = metric
    for prefix in ("video_to_audio_", "audio_to_video_", "positive_precision_"):
        text = text.removeprefix(prefix)
    left, knn, right = text.partition("_knn")
    if knn:
        right = right.strip("_").replace("_", " ")
        text = f"{left} kNN" + (f", {right}" if right else "")
    text = text.replace("_", " ").replace("/", ", ")
    return text[:1].upper() + text[1:]


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1] and is shown in per cent."""
    return any(word in metric for word in _SHARE_WORDS)


def lower_is_better(metric: str) -> bool:
    """Ranks, losses and errors are better when small."""
    return any(word in metric for word in ("rank", "loss", "error"))


def value_text(metric: str, value: float) -> str:
    """48.5 % for shares, a plain number for everything else."""
    return f"{value * 100:.1f}\u00a0%" if is_share(metric) and abs(value) <= 1 else number(value)


def samples_text(evaluation: Mapping[str, Any]) -> str:
    """How many test samples a result is over, and how many of them were trained on; "" where it does not say."""
    protocol = evaluation.get("protocol")
    count = protocol.get("num_test") if isinstance(protocol, Mapping) else None
    tests = dict(evaluation.get("overlap", {})).get("tests", [])
    seen = sum(max(one.get("num_in_run") or 0, one.get("num_in_train") or 0) for one in tests)
    texts = [f"{count} test samples" if count else "", f"{seen} of them trained on" if seen else ""]
    return ", ".join(text for text in texts if text)


def _rows(evaluations: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per run and kind of weights, trained ones first inside a run, as the dicts order them."""
    several = len({evaluation.get("run") for evaluation in evaluations}) > 1
    rows: list[Row] = []
    for evaluation in evaluations:
        for weights, values in dict(evaluation.get("results", {})).items():
            name = f"{evaluation.get('run', 'run')} · {weights}" if several else str(weights)
            name += f" · {samples_text(evaluation)}" if samples_text(evaluation) else ""
            rows.append((name, flat_numbers(values)))
    return rows


def _chance_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The chance row; several if the runs were evaluated on sets with different chance."""
    found: list[Row] = []
    for evaluation in evaluations:
        values = flat_numbers(evaluation.get("chance", {}))
        clash = any(math.isclose(values[m], other[m]) is False for _, other in found for m in values.keys() & other)
        if values and (not found or clash):
            found.append(("chance" if not found else f"chance · {evaluation.get('run', 'run')}", values))
        elif values:
            found[0] = (found[0][0], {**values, **found[0][1]})
    return found


def _bar(value: float, chance: float | None, text: Html) -> Html:
    """A bar of a share with a mark where chance lies; the number stands beside it, so it is hidden from readers."""
    fill = tag("rect", x=0, y=0, width=max(0.0, min(1.0, value)) * 100, height=6, class_="fill")
    mark = "" if chance is None else tag("rect", x=min(99.0, chance * 100), y=0, width=1, height=6, class_="mark")
    box = {"viewBox": "0 0 100 6", "preserveAspectRatio": "none", "class_": "bar", "aria_hidden": "true"}
    return join(text, tag("svg", tag("rect", width=100, height=6, class_="back"), fill, mark, **box))


def _cell(metric: str, value: float | None, chance: float | None) -> Html:
    if value is None:
        return tag("td", tag("span", "–", aria_label="not measured"))
    text = tag("span", value_text(metric, value))
    shown = _bar(value, chance, text) if is_share(metric) and abs(value) <= 1 else text
    return tag("td", shown)


def _heading(metric: str) -> Html:
    """Column heading with the metric's own name below it, which may be broken after each underscore."""
    name = tag("code", join(*metric.split("_"), by="_<wbr>"))
    direction = tag("small", "lower is better") if lower_is_better(metric) else ""
    return tag("th", metric_title(metric), direction, name, scope="col", data_metric=metric)


def _table(group: tuple[str, str, str], metrics: Sequence[str], rows: Sequence[Row], chance: Sequence[Row]) -> Html:
    headings = [_heading(metric) for metric in metrics]
    level = chance[0][1] if chance else {}
    body = []
    for name, values in rows:
        cells = [_cell(m, values.get(m), level.get(m)) for m in metrics]
        if any(metric in values for metric in metrics):
            body.append(tag("tr", tag("th", name, scope="row"), *cells))
    for name, values in chance:
        cells = [_cell(metric, values.get(metric), None) for metric in metrics]
        if any(metric in values for metric in metrics):
            body.append(tag("tr", tag("th", name, scope="row"), *cells, class_="chance"))
    head = tag("thead", tag("tr", tag("th", "Weights", scope="col"), *headings))
    table = tag("table", head, tag("tbody", *body), aria_label=group[0])
    scroll = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {group[0]}")
    size = "box" if len(metrics) > 2 else "box small"
    return tag("div", tag("h3", group[0]), tag("p", group[2]), scroll, class_=size)


def _metrics(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [values for _, values in (*_rows(evaluations), *_chance_rows(evaluations))]
    return list(dict.fromkeys(metric for values in rows for metric in values))


def scores_section(evaluations: Sequence[Mapping[str, Any]]) -> Html:
    """Tables of every metric of every evaluation, in groups, and the protocols they were measured under."""
    metrics = _metrics(evaluations)
    if not metrics:
        return tag(
            "p", "No evaluation yet: run recipes/evaluate.py on this run, then make the report again.", class_="note"
        )
    tables = []
    for group in (*GROUPS, OTHER_GROUP):
        members = [metric for metric in metrics if group_of(metric) == group]
        if members:
            tables.append(_table(group, members, _rows(evaluations), _chance_rows(evaluations)))
    protocols = []
    for evaluation in evaluations:
        pairs = [(name, value) for name, value in dict(evaluation.get("protocol", {})).items()]
        entries = [join(tag("dt", str(name).replace("_", " ")), tag("dd", str(value))) for name, value in pairs]
        if entries:
            protocols.append(tag("div", tag("h3", f"Protocol of {evaluation.get('run', 'run')}"), tag("dl", *entries)))
    details = tag("details", tag("summary", "How this was measured"), *protocols) if protocols else ""
    note = (
        "The bar under a number is its share of 100 %, the upright mark in it is chance. No number is called the best: "
        "python recipes/evaluate.py --compare gives paired intervals of the differences."
    )
    return join(tag("div", *tables, class_="tables"), tag("p", note, class_="note"), details)


def headline(evaluations: Sequence[Mapping[str, Any]]) -> Html:
    """The first metric of each group as a large number, with untrained weights and chance below it."""
    if not evaluations:
        return escaped(None)
    results = {name: flat_numbers(values) for name, values in dict(evaluations[0].get("results", {})).items()}
    chance = flat_numbers(evaluations[0].get("chance", {}))
    main = next(iter(results), None)
    if main is None:
        return escaped(None)
    cards = []
    for group in GROUPS:
        metric = _leading(group, results[main])
        if metric is None:
            continue
        others = {**{name: row for name, row in results.items() if name != main}, "chance": chance}
        compared = [f"{name} {value_text(metric, row[metric])}" for name, row in others.items() if metric in row]
        title = f"{group[0]} {metric_title(metric)}"
        parts = (tag("dt", title), tag("dd", value_text(metric, results[main][metric]), class_="big"))
        cards.append(tag("div", *parts, tag("dd", " · ".join(compared)), class_="card"))
    return tag("dl", *cards, class_="cards") if cards else escaped(None)


def _leading(group: tuple[str, str, str], values: Mapping[str, float]) -> str | None:
    """The metric of a group that stands for it: recall at 5 of a direction, otherwise the first."""
    members = [metric for metric in values if group_of(metric) == group]
    return next((metric for metric in members if metric.endswith("recall_at_5")), members[0] if members else None)
