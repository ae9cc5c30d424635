"""Results of evaluations as the report takes them: the JSON, and the rows beside it where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avssl.eval.outcome import Repeat
from avssl.eval.results import read_rows
from avssl.files.checked_json import Fields

Evaluation = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """record: the JSON. rows: {weights: repeats}; {} of results without rows, between which no difference is known."""

    record: Evaluation
    rows: Mapping[str, Sequence[Repeat]] = field(default_factory=dict)


def read_result(path: Path) -> Result:
    """A stored result, with its rows. ValueError names a file that is damaged; rows that were removed are none."""
    record = Fields.read(path).record
    parts = ("results", "chance", "protocol", "intervals", "overlap")
    if not all(isinstance(record.get(part, {}), dict) for part in parts):
        raise ValueError(f"{path} is no result: {', '.join(parts)} must be objects; run the evaluation again")
    if "rows" not in record:
        return Result(record)
    try:
        return Result(record, {weights: read_rows(path, record, weights) for weights in record.get("results", {})})
    except FileNotFoundError:
        return Result(record)


def result_of(evaluation: Evaluation | Path) -> Result:
    """Of a stored file, or of a JSON that somebody has already, of which no rows are known."""
    return read_result(evaluation) if isinstance(evaluation, Path) else Result(evaluation)


def interval_of(record: Evaluation, weights: str, metric: str) -> tuple[float, float] | None:
    """The interval of a metric that a result says; None of results that say none."""
    found = record.get("intervals", {}).get("values", {}).get(weights, {}).get(metric)
    return (found[0], found[1]) if found and None not in found else None


def count_of(record: Evaluation, metric: str) -> int | None:
    """Over how many samples a metric is; of earlier results the number of test samples, None where nobody says."""
    known = record.get("intervals", {}).get("num_rows", {})
    found = known.get(metric, record.get("protocol", {}).get("num_test"))
    return found if isinstance(found, int) else None


def trained_on_text(record: Evaluation) -> str:
    """How many test samples were trained on, "" if none or nobody knows."""
    tests = dict(record.get("overlap", {})).get("tests", [])
    seen = [max(one.get("num_in_run") or 0, one.get("num_in_train") or 0) for one in tests]
    total = sum(one.get("num_test") or 0 for one in tests)
    return f"{sum(seen)} of {total} test samples were trained on" if any(seen) else ""
