"""Several runs side by side: in which values their configurations differ, and what came out of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from avssl.config import flat, read_values
from avssl.pages.markup import Html, join, number, tag
from avssl.report.curves import Metrics, duration_text, training_seconds

# Where a run lies and what it is called says nothing about what was trained.
NOT_COMPARED = ("run", "trackers", "resume", "stopped_status", "log_every_steps", "checkpoint_every_steps")
ABSENT = "–"


def run_folders(folder: Path) -> list[Path]:
    """The run folders in a folder, sorted by name: those with a config.yaml or config.json."""
    return sorted(path for path in folder.iterdir() if is_run(path))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: `avssl pretrain` writes its configuration there."""
    return (folder / "config.yaml").is_file() or (folder / "config.json").is_file()


def run_names(folders: Sequence[Path]) -> dict[str, Path]:
    """{name: folder}: the folder's name, and its path in brackets if another one has the same name."""
    names: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        names[name if name not in names else f"{name} ({folder})"] = folder
    return names


def differences(configurations: Mapping[str, Mapping[str, object]]) -> dict[str, list[object]]:
    """{dotted key: its value in each run} of the keys whose values differ; ABSENT where a run does not have the key."""
    keys = dict.fromkeys(key for values in configurations.values() for key in values)
    rows = {key: [values.get(key, ABSENT) for values in configurations.values()] for key in keys}
    return {
        key: values
        for key, values in rows.items()
        if key not in NOT_COMPARED and any(value != values[0] for value in values)
    }


def comparison_section(runs: Mapping[str, Path], metrics: Mapping[str, Metrics]) -> Html:
    """Two tables with a column per run: the differences of the configurations, and where each run ended."""
    configurations = {}
    lacking = []
    for name, folder in runs.items():
        if (folder / "config.yaml").is_file():
            configurations[name] = flat(read_values(folder / "config.yaml"))
        else:
            lacking.append(name)
    found = differences(configurations)
    note = f"No config.yaml to compare: {', '.join(lacking)}." if lacking else ""
    if found:
        note = "Keys of config.yaml that are not the same in all runs. " + note
        table = _table("What differs", list(configurations), {tag("code", key): row for key, row in found.items()})
    else:
        table = tag("p", "The configurations are the same but for names and logging.", class_="note")
    ends = {
        "Optimizer steps": [_last(metrics[name], "step") for name in runs],
        "Samples seen": [_last(metrics[name], "samples_seen") for name in runs],
        "Time of training": [_time(metrics[name]) for name in runs],
        "Last loss": [_last(metrics[name], "loss") for name in runs],
    }
    ended = _table("Where each run is", list(runs), {Html(name): row for name, row in ends.items()})
    losses = "Losses of different kinds, or with other numbers of negatives, cannot be compared."
    parts = [
        tag("div", tag("h3", "What differs"), tag("p", note), table, class_="box"),
        tag("div", tag("h3", "Where each run is"), tag("p", losses), ended, class_="box"),
    ]
    return tag("div", *parts, class_="tables")


def _last(metrics: Metrics, key: str) -> str:
    values = [row[key] for row in metrics.rows if isinstance(row.get(key), int | float)]
    return number(values[-1]) if values else ABSENT


def _time(metrics: Metrics) -> str:
    seconds = training_seconds(metrics)
    return ABSENT if seconds is None else duration_text(seconds)


def _table(title: str, columns: Sequence[str], rows: Mapping[Html, Sequence[object]]) -> Html:
    head = tag("tr", tag("th", "", scope="col"), *(tag("th", name, scope="col") for name in columns))
    body = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", _text(value)) for value in values))
        for name, values in rows.items()
    ]
    table = tag("table", tag("thead", head), tag("tbody", *body), aria_label=title, class_="plain")
    return tag("div", join(table), class_="scroll", tabindex=0, role="region", aria_label=f"Table: {title}")


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
