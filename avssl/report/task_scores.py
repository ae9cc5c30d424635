"""The results of evaluation tasks (RUN/evaluations/*.json): one table a task, a row for each metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl.checked_json import Fields
from avssl.report.markup import Html, join, tag
from avssl.report.scores import value_text


def read_task_results(run_folder: Path) -> list[dict[str, Any]]:
    """All result files of a run, by name. ValueError names one that is no JSON."""
    found = []
    for path in sorted((run_folder / "evaluations").glob("*.json")):
        try:
            found.append(Fields.read(path).record)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); run the evaluation again") from error
    return found


def tasks_section(run_folder: Path) -> Html:
    """The tables, with deviations over folds or seeds and the protocols folded away; nothing without results."""
    tables = [_task(result) for result in read_task_results(run_folder)]
    return tag("div", *tables, class_="tables") if tables else Html("")


def _task(result: Mapping[str, Any]) -> Html:
    columns = {**result["results"], "chance": result["chance"]}
    metrics = list(dict.fromkeys(metric for values in columns.values() for metric in values))
    repeats = len(next(iter(result["repeats"].values())))
    title = " · ".join(part for part in (str(result["task"]).replace("_", " "), str(result["name"])) if part)
    head = tag("tr", tag("th", "Metric", scope="col"), *(tag("th", name, scope="col") for name in columns))
    body = [
        tag("tr", tag("th", tag("code", metric), scope="row"), *(_cell(result, name, metric) for name in columns))
        for metric in metrics
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), aria_label=title)
    data = result["data"]
    spread = f"; mean ± deviation of {repeats} folds or seeds" if repeats > 1 else ""
    entries = [
        join(tag("dt", str(name).replace("_", " ")), tag("dd", str(value)))
        for name, value in {**result["protocol"], "weights": result["weights"], **result["environment"]}.items()
    ]
    return tag(
        "div",
        tag("h3", title),
        tag("p", f"{data['test'] or data['train']}{spread}"),
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {title}"),
        tag("details", tag("summary", "How this was measured"), tag("dl", *entries)),
        class_="box",
    )


def _cell(result: Mapping[str, Any], name: str, metric: str) -> Html:
    values = result["chance"] if name == "chance" else result["results"][name]
    if values.get(metric) is None:
        return tag("td", tag("span", "–", aria_label="not measured"))
    text = value_text(metric, values[metric])
    deviation = result["deviation"].get(name, {}).get(metric)
    return tag("td", text if deviation is None else f"{text} ± {value_text(metric, deviation)}")
