"""The outcome of a task as files: a JSON with values, deviation, chance and the whole protocol, and the test rows.

The JSON is RUN/evaluations/<task>-<name>.json, or RUN/evaluation.json for the task `standard`; the rows lie beside it
as <stem>.<12 hex digits of their sha256>.npz. The JSON names its rows and is written last, so that each result that
exists is whole wherever writing is stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.eval.configs import TaskConfig
from avssl.eval.intervals import DIFFERENCE, intervals_of, units_text
from avssl.eval.outcome import Metric, Outcome, Repeat, keys_digest, settings_of
from avssl.files.checked_json import Fields, parse
from avssl.files.damaged_files import open_npz
from avssl.files.locks import locked
from avssl.files.plain_text import plain
from avssl.files.scratch import remove_leftovers
from avssl.files.whole import write_whole

FORMAT_VERSION = 1
SOURCES = "source_digests"  # of the rows, beside their columns; results of earlier versions have none
# Keys of the configuration without influence on the values.
NOT_PROTOCOL = (
    "task", "name", "train", "test", "batch_size", "num_workers", "device", "untrained", "allow_overlap", "folder",
    "log_every_steps", "checkpoint_every_steps", "plugins", "checkpoint",
)  # fmt: skip
PACKAGES = ("avssl", "torch", "numpy", "scikit-learn", "av")


def mean_and_deviation(repeats: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float | None]]:
    """({metric: mean}, {metric: standard deviation over the repeats, with n - 1; None for a single one})."""
    names = list(dict.fromkeys(name for values in repeats for name in values))
    table = {name: [values[name] for values in repeats if name in values] for name in names}
    means = {name: float(np.mean(values)) for name, values in table.items()}
    deviations = {name: float(np.std(values, ddof=1)) if len(values) > 1 else None for name, values in table.items()}
    return means, deviations


def evaluation_of(
    outcomes: Mapping[str, Outcome],
    config: TaskConfig,
    run: str,
    weights: Mapping[str, str],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON of a result, without what it says about the file of rows.

    outcomes, weights: {"trained": ..., "untrained": ...}; weights has the hash of each set. inputs: the views of the
    run; they are a property of the run and do not belong to the protocol.

    Raises:
        ValueError: the two sets of weights were evaluated by different protocols or on different rows.
    """
    first = outcomes["trained"]
    lists = {
        repeat.name: {"train": keys_digest(repeat.train_keys), "test": keys_digest(repeat.keys)}
        for repeat in first.repeats
    }
    rows = [repeat.keys for repeat in first.repeats]
    results, deviation, repeats = {}, {}, {}
    for name, outcome in outcomes.items():
        if outcome.protocol != first.protocol or [repeat.keys for repeat in outcome.repeats] != rows:
            raise ValueError(f"trained and {name} weights were not evaluated on the same rows by the same protocol")
        values = [repeat.values() for repeat in outcome.repeats]
        results[name], deviation[name] = mean_and_deviation(values)
        named = zip(outcome.repeats, values, strict=True)
        repeats[name] = [{"name": repeat.name, "num_test": len(repeat.keys), **metrics} for repeat, metrics in named]
    levels = [
        {name: metric.chance for name, metric in repeat.metrics.items() if metric.chance is not None}
        for repeat in first.repeats
    ]
    settings = {name: value for name, value in settings_of(config).items() if name not in NOT_PROTOCOL}
    return {
        "format_version": FORMAT_VERSION,
        "task": config.task,
        "name": config.name,
        "run": run,
        "weights": dict(weights),
        "data": {"train": config.train, "test": config.test},
        "protocol": {**settings, **first.protocol, "samples": lists},
        "inputs": dict(inputs),
        "chance": mean_and_deviation(levels)[0],
        "results": results,
        "deviation": deviation,
        "intervals": intervals_of(outcomes),
        "repeats": repeats,
        "facts": {name: outcome.facts for name, outcome in outcomes.items()},
        "environment": {"versions": installed_versions(PACKAGES), "commit": commit(), "plugins": config.plugins},
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """{"python" or package: version} of those of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def commit() -> str | None:
    """The commit of the source folder, with "+changes" if tracked files differ; None outside a git repository."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None


def result_path(run: Path, config: TaskConfig) -> Path:
    """RUN/evaluations/<task>-<name>.json, or RUN/evaluation.json for the task `standard`.

    Of a checkpoint always the former, with -step_<step> behind the name: it is no result of the finished run.
    """
    if config.checkpoint:
        return run / "evaluations" / f"{stem_of(config.task, config.name)}-step_{int(config.checkpoint):06d}.json"
    if config.task == "standard":
        return run / "evaluation.json"
    return run / "evaluations" / f"{stem_of(config.task, config.name)}.json"


def stem_of(task: str, name: str) -> str:
    """<task>-<name>, the stem of the files of a result; <task> without a name."""
    return "-".join(part for part in (task, name) if part)


def write(folder: Path, outcomes: Mapping[str, Outcome], evaluation: dict[str, Any], stem: str = "") -> Path:
    """Write both files of a result; returns the path of the JSON.

    stem: of both files, default <task>-<name>. An earlier result of the same stem with another test set, protocol or
    weights is kept as <stem>-<identity>.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = stem or stem_of(evaluation["task"], evaluation["name"])
    arrays: dict[str, NDArray[Any]] = {}
    described: dict[str, list[dict[str, Any]]] = {}
    for weights, outcome in outcomes.items():
        described[weights] = []
        for number, repeat in enumerate(outcome.repeats):
            prefix = f"{weights}/{number}"
            arrays[f"{prefix}/keys"] = np.array(repeat.keys)
            if repeat.sources is not None:
                arrays[f"{prefix}/{SOURCES}"] = repeat.sources
            arrays |= {f"{prefix}/{column}": values for column, values in repeat.columns.items()}
            metrics = {name: [metric.kind, list(metric.columns)] for name, metric in repeat.metrics.items()}
            described[weights].append({"name": repeat.name, "metrics": metrics})
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    # The name depends on the content: an earlier result keeps its rows until the new JSON replaces it.
    rows = folder / f"{stem}.{digest[:12]}.npz"
    evaluation = {**evaluation, "rows": {"file": rows.name, "sha256": digest, "repeats": described}}
    text = json.dumps(without_nan(evaluation), indent=1, allow_nan=False)
    with locked(folder / ".results.lock"):
        remove_leftovers(folder, rf"{re.escape(stem)}([.-].*)?\.(json|npz)")  # of a command that was killed
        write_whole(rows, content.getvalue())
        keep_earlier(folder / f"{stem}.json", evaluation)
        path = write_whole(folder / f"{stem}.json", text)
        (folder / f"{stem}-{identity(evaluation)}.json").unlink(missing_ok=True)  # the same, evaluated again
        _remove_unused_rows(folder, stem)
    return path


def identity(evaluation: Mapping[str, Any]) -> str:
    """10 hex digits of task, name, data, overlap, protocol and weights: equal for a repeated evaluation."""
    keys = ("task", "name", "data", "overlap", "protocol", "weights")
    stored = without_nan({key: evaluation.get(key) for key in keys})
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:10]


def keep_earlier(path: Path, evaluation: Mapping[str, Any]) -> None:
    """Copy an earlier result at `path` to <stem>-<identity>.json, unless the new one is the same evaluation repeated.

    A kill leaves at most the earlier result under both names.
    """
    try:
        content = path.read_bytes()
        earlier = parse(content, str(path))
    except FileNotFoundError:
        return
    except ValueError:
        earlier = None
    if not isinstance(earlier, dict):
        raise ValueError(f"{path} is damaged: it is no result; move it away or remove it, then evaluate again")
    if identity(earlier) != identity(evaluation):
        write_whole(path.with_name(f"{path.stem}-{identity(earlier)}.json"), content)


def _remove_unused_rows(folder: Path, stem: str) -> None:
    """Remove rows of this stem that no result names: of a replaced result, or of a command that was killed."""
    named = re.compile(rf"{re.escape(stem)}(\.[0-9a-f]{{12}})?\.npz")
    needed = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.json")]
    for rows in folder.glob("*.npz"):
        if named.fullmatch(rows.name) and not any(f'"{rows.name}"' in text for text in needed):
            rows.unlink()


def standard_results(run: Path) -> list[Path]:
    """The paths of the results of the task `standard` in the folder of a run, the newest first."""
    newest = run / "evaluation.json"
    return [*([newest] if newest.exists() else []), *sorted(run.glob("evaluation-*.json"))]


def without_nan(value: Any) -> Any:
    """The value with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(name): without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """The JSON of a result. ValueError for a file of another format or version, FileNotFoundError for a missing one."""
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; give a result of `avssl evaluate`, a .json")
    evaluation = parse(source.read_bytes(), str(source))
    if not isinstance(evaluation, dict) or evaluation.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{source}: is no result of a task with rows (format_version {FORMAT_VERSION}). An evaluation.json of an "
            "earlier version has none: evaluate the run again"
        )
    return evaluation


def read_rows(path: str | Path, evaluation: Mapping[str, Any], weights: str) -> list[Repeat]:
    """The repeats of one set of weights. FileNotFoundError without the file of rows, ValueError if it is another."""
    rows = Fields.of(evaluation, str(path)).section("rows")
    stored = rows.section("repeats")
    source = Path(path).with_name(rows.file_name("file"))
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: it belongs to {path} and holds its rows")
    if hashlib.sha256(source.read_bytes()).hexdigest() != rows.text("sha256"):
        raise ValueError(f"{source} does not belong to {path}: its sha256 is another; run the evaluation again")
    if weights not in stored.record:
        raise ValueError(f"{path} has no weights {weights!r}; it has {', '.join(map(plain, stored.record))}")
    repeats = []
    with open_npz(source, f"file of the rows of {path}") as arrays:
        for number, described in enumerate(stored.sections(weights)):
            prefix = f"{weights}/{number}/"
            columns = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
            keys, sources = columns.pop("keys").tolist(), columns.pop(SOURCES, None)
            metrics = {name: Metric(kind, tuple(names)) for name, (kind, names) in described.mapping("metrics").items()}
            repeats.append(Repeat(described.text("name"), keys, columns, metrics, sources=sources))
    return repeats


def table(evaluation: Mapping[str, Any]) -> str:
    """A table with a line per metric: samples, trained (± deviation over repeats), untrained, difference, chance."""
    results, deviation, intervals = evaluation["results"], evaluation["deviation"], evaluation["intervals"]
    confidence = f"{intervals['confidence']:.0%} interval"
    columns = [part for weights in results for part in (weights, confidence)]
    has_difference = bool(intervals[DIFFERENCE])
    rows = [["", "samples", *columns, *([DIFFERENCE, confidence] if has_difference else []), "chance"]]
    for name, value in results["trained"].items():
        cells = []
        for weights, values in results.items():
            spread = deviation[weights].get(name)
            cells += ["-" if name not in values else f"{values[name]:.3f}" + (f" ± {spread:.3f}" if spread else "")]
            cells += [_ends_text(intervals["values"][weights].get(name))]
        if has_difference:
            baseline = results["untrained"].get(name)
            cells += [
                "-" if baseline is None else f"{value - baseline:+.3f}",
                _ends_text(intervals[DIFFERENCE].get(name), "+"),
            ]
        level = evaluation["chance"].get(name)
        count = str(intervals["num_rows"][name])
        rows.append([plain(name), count, *cells, "-" if level is None else f"{level:.3f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([*lines, *filter(None, [units_text(intervals["num_rows"], intervals.get("num_sources", {}))])])


def _ends_text(ends: Sequence[float | None] | None, sign: str = "") -> str:
    if ends is None:
        return "-"
    return ", ".join("-" if end is None else f"{end:{sign}.3f}" for end in ends).join("[]")
