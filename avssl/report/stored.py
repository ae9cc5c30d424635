"""Results of evaluations for the report: the JSON, and its rows if there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avssl.eval.intervals import units_text
from avssl.eval.outcome import Repeat
from avssl.eval.results import read_rows
from avssl.files.checked_json import Fields

Evaluation = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """record: the JSON. rows: {weights: repeats}, {} without a file of rows; only results with rows can be compared."""

    record: Evaluation
    rows: Mapping[str, Sequence[Repeat]] = field(default_factory=dict)


def read_result(path: Path) -> Result:
    """A stored result with its rows, without them if their file was removed. ValueError names a damaged file."""
    record = Fields.read(path).record
    keys = ("results", "chance", "protocol", "intervals", "overlap")
    if not all(isinstance(record.get(key, {}), dict) for key in keys):
        raise ValueError(f"{path} is no result: {', '.join(keys)} must be objects; run the evaluation again")
    if "rows" not in record:
        return Result(record)
    try:
        return Result(record, {weights: read_rows(path, record, weights) for weights in record.get("results", {})})
    except FileNotFoundError:
        return Result(record)


def result_of(evaluation: Evaluation | Path) -> Result:
    """The result of a file, with its rows, or of a JSON that was read already, without rows."""
    return read_result(evaluation) if isinstance(evaluation, Path) else Result(evaluation)


def interval_of(record: Evaluation, weights: str, metric: str) -> tuple[float, float] | None:
    """The stored interval of a metric, None without one."""
    interval = record.get("intervals", {}).get("values", {}).get(weights, {}).get(metric)
    return (interval[0], interval[1]) if interval and None not in interval else None


def count_of(record: Evaluation, metric: str) -> int | None:
    """The number of samples of a metric; for earlier results that of test samples, None without either."""
    counts = record.get("intervals", {}).get("num_rows", {})
    count = counts.get(metric, record.get("protocol", {}).get("num_test"))
    return count if isinstance(count, int) else None


def units_of(record: Evaluation) -> str:
    """A sentence on what the stored intervals are over, where that is not one sample a source; "" otherwise."""
    intervals = record.get("intervals", {})
    return units_text(intervals.get("num_rows", {}), intervals.get("num_sources", {}))


def trained_on_text(record: Evaluation) -> str:
    """A sentence if test samples were trained on; "" if none were, or if it is not known."""
    tests = dict(record.get("overlap", {})).get("tests", [])
    counts = [max(test.get("num_in_run") or 0, test.get("num_in_train") or 0) for test in tests]
    total = sum(test.get("num_test") or 0 for test in tests)
    return f"{sum(counts)} of {total} test samples were trained on" if any(counts) else ""
