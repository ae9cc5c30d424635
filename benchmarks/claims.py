"""Helpers of the benchmarks of speed: methods that take turns, claims as ratios, and the table that judges them.

A script measures this program and what it is compared with on one machine, in turn; a claim is the median over the
rounds of their ratio. Absolute numbers are printed beside it; no claim is about them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    name: what was done, at which size. ours, other: measurements in `unit`; other is None if nothing is compared.
    against: what is compared with. ratio: what is judged: it must be "at least" or "at most" `goal`; None: nothing was
    promised. note: a remark in the last column.
    """

    name: str
    ours: float
    other: float | None
    unit: str
    against: str
    ratio: float
    relation: Literal["at least", "at most"] = "at least"
    goal: float | None = None
    note: str = ""

    @property
    def mark(self) -> str:
        """pass or FALLS SHORT; "" if nothing was promised."""
        if self.goal is None:
            return ""
        holds = self.ratio >= self.goal if self.relation == "at least" else self.ratio <= self.goal
        return "pass" if holds else "FALLS SHORT"


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children: other programs affect it less than wall time."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def take_turns(
    methods: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up_rounds: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each method in each round; every other round calls them in the opposite order.

    Methods that run on a GPU must end with torch.cuda.synchronize().
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(-warm_up_rounds, rounds):
        for name in list(methods)[:: 1 if number % 2 else -1]:
            before = clock()
            methods[name]()
            if number >= 0:
                seconds[name].append(clock() - before)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over the rounds of above / below."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def command_line(text: str | None) -> argparse.ArgumentParser:
    """A parser with the option that `python -m benchmarks` uses to collect the rows."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object per line")
    return parser


def publish(claims: Sequence[Claim], json_file: Path | None) -> None:
    """Print the table, and add the rows to a file if one was given."""
    print(table(claims), flush=True)
    if json_file is not None:
        with json_file.open("a") as file:
            file.writelines(json.dumps(asdict(claim)) + "\n" for claim in claims)


def table(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown table."""
    lines = ["| what | ours | other | against | ratio | goal | |", "|---|---|---|---|---|---|---|"]
    for claim in claims:
        other = "" if claim.other is None else f"{short(claim.other)} {claim.unit}"
        goal = "" if claim.goal is None else f"{claim.relation} {claim.goal:g}"
        ours, mark = f"{short(claim.ours)} {claim.unit}", " ".join(filter(None, (claim.mark, claim.note)))
        lines.append(f"| {claim.name} | {ours} | {other} | {claim.against} | {claim.ratio:.3g} | {goal} | {mark} |")
    return "\n".join(lines)


def short(value: float) -> str:
    """A number with three digits, from 100 on as a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """A line with date, commit, processor, cores, GPU, versions and load."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit or 'unknown'}, {processor()}, {os.cpu_count()} cores, {device}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, load average {os.getloadavg()[0]:.1f}"
    )


def processor() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
