"""Run all long checks and write their table into docs/promises.md.

    python -m tests.soak                    # all of it; see docs/promises.md for how long it takes
    python -m tests.soak --only epochs fuzz # some of it, printed and not written

Each check is a command of its own that ends with one line of JSON; here is only the list of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "promises.md"
BEGIN, END = "<!-- soak: python -m tests.soak -->", "<!-- end of soak -->"
MOST_SECONDS = 3600


@dataclass(frozen=True)
class Check:
    """A long check of one promise. command: a module of tests.soak with its arguments, or files for pytest."""

    promise: str
    command: str


CHECKS = {
    "preparation": Check("The same command twice gives the same bytes", "tests.soak.preparation_storm --rounds 12"),
    "training": Check("Stop anywhere, resume exactly", "tests.soak.training_storm --rounds 1 --kills 4"),
    "accounting": Check("Nothing disappears silently", "tests/test_odd_files.py tests/test_write_repair.py"),
    "alignment": Check("Audio and video stay aligned to within one frame", "tests/test_alignment.py"),
    "ranks": Check("N processes compute what one process computes", "tests.soak.losses_on_ranks"),
    "epochs": Check("An epoch always ends", "tests.soak.epoch_grid"),
    "leaks": Check("An epoch always ends, 300 times without growth", "tests.soak.epochs --epochs 300"),
    "embeddings": Check(
        "Embeddings are a function of the input; evaluation sees every sample exactly once",
        "tests.soak.embedding_grid",
    ),
    "malicious": Check("Opening data never runs code", "tests.soak.malicious"),
    "grids": Check("Every case of the grids of make test-all", "tests/ --soak -m grid -n 2"),
    "fuzz": Check("Bad input gives one typed error", "tests.soak.fuzz --cases 100000"),
}


def run(check: Check) -> dict[str, object]:
    """{"cases", "failures", "seconds"} of a check. One that says nothing of itself is a failure."""
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="avssl-soak-") as folder:
        report = Path(folder) / "report.xml"
        is_module = not check.command.startswith("tests/")
        command = ["-m", *(() if is_module else ("pytest", "-q", f"--junit-xml={report}")), *check.command.split()]
        process = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
            timeout=MOST_SECONDS, check=False,
        )  # fmt: skip
        seconds = round(time.monotonic() - began, 1)
        if is_module:
            lines = process.stdout.strip().splitlines()
            try:
                facts = json.loads(lines[-1])
                cases, failures = int(facts["cases"]), list(facts["failures"])
            except (IndexError, ValueError, KeyError):
                cases, failures = 0, [f"ended with {process.returncode} and without a result"]
        else:
            suite = ElementTree.parse(report).getroot().find("testsuite")
            assert suite is not None
            cases = int(suite.get("tests", 0))
            failures = [
                f"{case.get('classname')}::{case.get('name')}"
                for case in suite.iter("testcase")
                if case.find("failure") is not None or case.find("error") is not None
            ]
    if process.returncode and not failures:
        failures.append(f"ended with {process.returncode}")
    return {"cases": cases, "failures": failures, "seconds": seconds}


def row(check: Check, facts: dict[str, object]) -> str:
    """A line of the table."""
    failures = facts["failures"]
    assert isinstance(failures, list)
    result = "all held" if not failures else f"**{len(failures)} failed**"
    command = check.command if not check.command.startswith("tests/") else f"pytest {check.command}"
    return f"| {check.promise} | `python -m {command}` | {facts['cases']:,} | {result} | {facts['seconds']} |"


def heading() -> str:
    """When, on what."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    cpu = model.group(1) if model else platform.processor()
    day = time.strftime("%Y-%m-%d")
    return f"{day}, commit {commit or 'unknown'}, {os.cpu_count()} cores of {cpu}, PyTorch {torch.__version__}."


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, help="these checks alone; the document stays as it is")
    given = parser.parse_args(argv)
    names = given.only or list(CHECKS)
    rows, failed = [], 0
    for name in names:
        print(f"{name}: {CHECKS[name].promise}", file=sys.stderr, flush=True)
        facts = run(CHECKS[name])
        rows.append(row(CHECKS[name], facts))
        print(rows[-1], flush=True)
        for failure in facts["failures"]:  # type: ignore[attr-defined]
            print(f"  {failure}", flush=True)
            failed += 1
    if not given.only:
        head = ["| promise | long check | cases | result | seconds |", "| --- | --- | --- | --- | --- |"]
        table = "\n".join([BEGIN, heading(), "", *head, *rows, END])
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(before + table + after, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
