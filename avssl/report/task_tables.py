"""The results of tasks (RUN/evaluations): a table for each of a run, and one for each task of several runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl.eval.compare import is_comparable
from avssl.eval.intervals import DIFFERENCE
from avssl.files.checked_json import Fields
from avssl.pages.markup import Html, tag
from avssl.report.scores import flat_numbers, interval_text, protocol_entries, value_text
from avssl.report.stored import count_of, interval_of, trained_on_text, units_of


def read_task_results(run_folder: Path) -> list[dict[str, Any]]:
    """The results in RUN/evaluations/, sorted by file name. ValueError names a file that is no JSON."""
    results = []
    for path in sorted((run_folder / "evaluations").glob("*.json")):
        try:
            results.append(Fields.read(path).record)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); run the evaluation again") from error
    return results


def tasks_section(run_folder: Path) -> Html:
    """A table per task result, with deviations over folds or seeds; the protocols are collapsed."""
    tables = [_task(result) for result in read_task_results(run_folder)]
    return tag("div", *tables, class_="tables") if tables else Html("")


def _task(result: Mapping[str, Any]) -> Html:
    columns = {**result["results"], **_differences(result), "chance": result["chance"]}
    metrics = list(dict.fromkeys(metric for values in columns.values() for metric in values))
    repeats = len(next(iter(result["repeats"].values())))
    title = _title(result)
    titles = ("Metric", "samples", *columns)
    head = tag("tr", *(tag("th", name, scope="col") for name in titles))
    body = []
    for metric in metrics:
        cells = [_score_cell(result, columns, name, metric) for name in columns]
        count = count_of(result, metric)
        body.append(
            tag("tr", tag("th", tag("code", metric), scope="row"), tag("td", "–" if count is None else count), *cells)
        )
    table = tag("table", tag("thead", head), tag("tbody", *body), aria_label=title)
    data = result["data"]
    spread = f"; mean ± deviation of {repeats} folds or seeds" if repeats > 1 else ""
    spread += "; small: 95 % intervals over other samples of that kind" if result.get("intervals") else ""
    spread += f"; {units}" if (units := units_of(result)) else ""
    seen = trained_on_text(result)
    entries = protocol_entries({**result["protocol"], "weights": result["weights"], **result["environment"]})
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
    """The column trained - untrained, of metrics with both values; {} without intervals or untrained weights."""
    intervals = result.get("intervals", {}).get(DIFFERENCE)
    if not intervals:
        return {}
    trained, untrained = (flat_numbers(result["results"][weights]) for weights in ("trained", "untrained"))
    shared = [metric for metric in intervals if metric in trained and metric in untrained]
    return {DIFFERENCE: {metric: trained[metric] - untrained[metric] for metric in shared}}


def _score_cell(result: Mapping[str, Any], columns: Mapping[str, Mapping[str, float]], name: str, metric: str) -> Html:
    value = columns[name].get(metric)
    if value is None:
        return tag("td", tag("span", "–", aria_label="not measured"))
    text = value_text(metric, value)
    deviation = result["deviation"].get(name, {}).get(metric)
    if deviation is not None:
        text += f" ± {value_text(metric, deviation)}"
    interval = result["intervals"][DIFFERENCE].get(metric) if name == DIFFERENCE else None
    ends = (interval[0], interval[1]) if interval and None not in interval else interval_of(result, name, metric)
    return tag("td", text, "" if ends is None else tag("small", interval_text(metric, ends), class_="interval"))


def runs_section(runs: Mapping[str, Path]) -> Html:
    """A table per task and name of results, with the trained weights of each run that has one, and chance.

    Those of a checkpoint have a table for each step.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run, folder in runs.items():
        for record in read_task_results(folder):  # of several of one name the last is the newest, NAME.json
            found.setdefault(_title(record), {})[run] = record
    tables = [_of_runs(title, records) for title, records in sorted(found.items())]
    return tag("div", *tables, class_="tables") if tables else Html("")


def _of_runs(title: str, records: Mapping[str, Mapping[str, Any]]) -> Html:
    first = next(iter(records.values()))
    columns = {run: record["results"]["trained"] for run, record in records.items()}
    metrics = list(dict.fromkeys(metric for values in columns.values() for metric in values))
    head = tag("tr", *(tag("th", name, scope="col") for name in ("Metric", "samples", *columns, "chance")))
    body = []
    for metric in metrics:
        counts = sorted({count for record in records.values() if (count := count_of(record, metric)) is not None})
        cells = [_score_cell(record, {"trained": columns[run]}, "trained", metric) for run, record in records.items()]
        chance = first["chance"].get(metric)
        body.append(
            tag(
                "tr",
                tag("th", tag("code", metric), scope="row"),
                tag("td", " to ".join(map(str, sorted({counts[0], counts[-1]}))) if counts else "–"),
                *cells,
                tag("td", "–" if chance is None else value_text(metric, chance)),
            )
        )
    others = [run for run, record in records.items() if not is_comparable(first, record)]
    apart = f" Not measured as {next(iter(records))} was, and not to be compared with it: {', '.join(others)}."
    note = (
        "Trained weights; small: 95 % intervals over other samples. Those of differences: `avssl evaluate --compare`."
    )
    units = "".join(
        f" {text[:1].upper()}{text[1:]}." for text in dict.fromkeys(map(units_of, records.values())) if text
    )
    table = tag("table", tag("thead", head), tag("tbody", *body), aria_label=title)
    return tag(
        "div",
        tag("h3", title),
        tag("p", note, units, apart if others else ""),
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {title}"),
        class_="box",
    )


def _title(result: Mapping[str, Any]) -> str:
    step = result.get("checkpoint_step")
    at = "" if step is None else f"checkpoint of step {step}"
    return " · ".join(part for part in (str(result["task"]).replace("_", " "), str(result["name"]), at) if part)
