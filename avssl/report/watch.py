"""The page of a run that goes on: written again while a process holds the run's folder, and for the last time after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from avssl.pages.markup import Html, tag
from avssl.report.curves import read_metrics

POLL_SECONDS = 1.0


def watch(
    runs: Sequence[Path],
    write: Callable[[Html], Path],
    every_seconds: float,
    *,
    told: Callable[[str], None],
    at_work: Callable[[Path], bool],
) -> Path:
    """Write the page of the runs with `write(banner)`, again after a new row of a log, at most every `every_seconds`.

    It ends with the page without banner as soon as no run is at work, or with KeyboardInterrupt, before which that page
    is written, too. told: takes a line for every page. at_work: whether a process trains in a folder.
    """
    path: Path | None = None
    seen: list[tuple[int, int]] | None = None
    try:
        while any(at_work(run) for run in runs):
            state = [_state(run / "metrics.jsonl") for run in runs]
            if state != seen:
                path, seen = write(banner(runs, every_seconds)), state
                told(f"{path}: {_where(runs)}")
            until = time.monotonic() + every_seconds
            while time.monotonic() < until and any(at_work(run) for run in runs):
                time.sleep(min(POLL_SECONDS, every_seconds))
    finally:
        path = write(Html(""))
    told(f"{path}: no run is at work; {_where(runs)}")
    return path


def _state(path: Path) -> tuple[int, int]:
    """What changes with every row: the size of a log and when it was written; zeros without one."""
    if not path.exists():
        return (0, 0)
    facts = path.stat()
    return (facts.st_size, facts.st_mtime_ns)


def _where(runs: Sequence[Path]) -> str:
    steps = {run: [row["step"] for row in read_metrics(run / "metrics.jsonl").rows if "step" in row] for run in runs}
    return ", ".join(f"{run.name} at step {found[-1] if found else 0}" for run, found in steps.items())


def banner(runs: Sequence[Path], every_seconds: float) -> Html:
    """What the page says while a run goes on: when it was written, at which step, and that it reloads itself."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = f"The run goes on: {_where(runs)}, written {now}. The page reloads itself every {every_seconds:g} s. "
    button = tag("button", "Stop reloading", type="button")
    return tag("p", text, button, class_="live", data_reload_seconds=f"{every_seconds:g}")
