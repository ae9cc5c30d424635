"""Damaged input of every kind: each file gives a result or one typed error that names it, within time and memory.

    python -m tests.soak.fuzz --cases 100000 --seed 0 [--targets media tables]
    python -m tests.soak.fuzz --targets media --seed 0 --number 17      # one case again, here, with its traceback

A case is a function of target, seed and number. Cases run in a process of the sandbox: one that hangs, dies or takes
too much memory is found by trying the cases around it one at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from avssl.processes.limits import Limits
from avssl.processes.pool import Sandbox
from avssl.types import MediaError
from tests.soak.fuzz_material import MEDIA, make_material
from tests.soak.fuzz_targets import TARGETS, WEIGHTS, try_case
from tests.soak.outcome import Outcome

CLAIM = "Bad input of any kind gives one typed error that names the file"
LIMITS = Limits(seconds=60.0, memory_bytes=2 << 30)
CASES_AT_A_TIME = 100


@dataclass(frozen=True)
class Cases:
    """Some cases of a target, numbers first to end - 1. module: imported first; it may change TARGETS."""

    target: str
    seed: int
    first: int
    end: int
    material: Path
    work: Path


def try_cases(cases: Cases) -> dict[int, str]:
    """Runs in the sandbox: {number: what was wrong} of those that failed."""
    failed = {}
    for number in range(cases.first, cases.end):
        try:
            try_case(cases.target, cases.seed, number, cases.material, cases.work / str(os.getpid()))
        except Exception as error:  # whatever it is, it is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}, line {where.lineno}"
            failed[number] = f"{type(error).__name__}: {str(error)[:600]} ({place})"
    return failed


def fuzz(num_cases: int, seed: int, targets: list[str], folder: Path, outcome: Outcome, *, num_media: int) -> None:
    """Count num_cases, spread over the targets by their weights, in `outcome`. folder: for material and work."""
    material = folder / "material"
    make_material(material, num_media=num_media)
    total = sum(WEIGHTS[target] for target in targets)
    tasks = [
        Cases(target, seed, first, min(first + CASES_AT_A_TIME, number), material, folder / "work")
        for target in targets
        if (number := max(1, round(num_cases * WEIGHTS[target] / total)))
        for first in range(0, number, CASES_AT_A_TIME)
    ]
    with Sandbox(1, LIMITS) as sandbox:
        lost = [task for task, found in _tried(sandbox, tasks) if not _counted(outcome, task, found)]
        singles = [replace(task, first=one, end=one + 1) for task in lost for one in range(task.first, task.end)]
        for task, found in _tried(sandbox, singles):
            _counted(outcome, task, {task.first: str(found)} if isinstance(found, MediaError) else found)


def _tried(sandbox: Sandbox, tasks: list[Cases]):  # type: ignore[no-untyped-def]
    return sandbox.run(try_cases, tasks, lambda task: f"{task.target} {task.first} to {task.end - 1}")


def _counted(outcome: Outcome, task: Cases, found: dict[int, str] | MediaError) -> bool:
    """Count the cases; False if the process was lost over them."""
    if isinstance(found, MediaError):
        return False
    for number in range(task.first, task.end):
        with outcome.case(f"--targets {task.target} --seed {task.seed} --number {number}"):
            assert number not in found, found[number]
    return True


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--number", type=int, help="this case of one target alone, in this process")
    given = parser.parse_args(argv)
    outcome = Outcome(CLAIM)
    with tempfile.TemporaryDirectory(prefix="avssl-fuzz-") as name:
        if given.number is None:
            fuzz(given.cases, given.seed, given.targets, Path(name), outcome, num_media=len(MEDIA))
            return outcome.finish()
        make_material(Path(name) / "material")
        try_case(given.targets[0], given.seed, given.number, Path(name) / "material", Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
