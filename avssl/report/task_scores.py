"""The results of evaluation tasks (RUN/evaluations/*.json): one table a task, a row for each metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl.eval.intervals import DIFFERENCE
from avssl.files.checked_json import Fields
from avssl.report.markup import Html, join, tag
from avssl.report.scores import interval_text, value_text
from avssl.report.stored import count_of, interval_of, trained_on_text


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
    columns = {**result["results"], **_differences(result), "chance": result["chance"]}
    metrics = list(dict.fromkeys(metric for values in columns.values() for metric in values))
    repeats = len(next(iter(result["repeats"].values())))
    title = " · ".join(part for part in (str(result["task"]).replace("_", " "), str(result["name"])) if part)
    titles = ("Metric", "samples", *columns)
    head = tag("tr", *(tag("th", name, scope="col") for name in titles))
    body = []
    for metric in metrics:
        cells = [_cell(result, columns, name, metric) for name in columns]
        count = count_of(result, metric)
        body.append(
            tag("tr", tag("th", tag("code", metric), scope="row"), tag("td", "–" if count is None else count), *cells)
        )
    table = tag("table", tag("thead", head), tag("tbody", *body), aria_label=title)
    data = result["data"]
    spread = f"; mean ± deviation of {repeats} folds or seeds" if repeats > 1 else ""
    spread += "; small: 95 % intervals over other samples of that kind" if result.get("intervals") else ""
    seen = trained_on_text(result)
    entries = [
        join(tag("dt", str(name).replace("_", " ")), tag("dd", str(value)))
        for name, value in {**result["protocol"], "weights": result["weights"], **result["environment"]}.items()
    ]
    return tag(
        "div",
        tag("h3", title),
        tag("p", f"{data['test'] or data['train']}{spread}"),
        tag("p", f"{seen}.", class_="warnings") if seen else "",
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {title}"),
        tag("details", tag("summary", "How this was measured"), tag("dl", *entries)),
        class_="box",
    )


def _differences(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The column of what training gave; {} of results without intervals or untrained weights."""
    known = result.get("intervals", {}).get(DIFFERENCE)
    if not known:
        return {}
    trained, untrained = (result["results"][weights] for weights in ("trained", "untrained"))
    return {DIFFERENCE: {metric: trained[metric] - untrained[metric] for metric in known}}


def _cell(result: Mapping[str, Any], columns: Mapping[str, Mapping[str, float]], name: str, metric: str) -> Html:
    value = columns[name].get(metric)
    if value is None:
        return tag("td", tag("span", "–", aria_label="not measured"))
    text = value_text(metric, value)
    deviation = result["deviation"].get(name, {}).get(metric)
    if deviation is not None:
        text += f" ± {value_text(metric, deviation)}"
    known = result["intervals"][DIFFERENCE].get(metric) if name == DIFFERENCE else None
    ends = (known[0], known[1]) if known and None not in known else interval_of(result, name, metric)
    return tag("td", text, "" if ends is None else tag("small", interval_text(metric, ends), class_="interval"))
