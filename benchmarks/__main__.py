"""All claims about speed that this machine can check, in one table.

    python -m benchmarks [--only loader,avid_loss] [--gpu] [--page docs/results_gpu.md] [--limit-seconds 600]

Each script runs alone, in a process of its own. The command fails if a script ends with an error, but not if a row
falls short: people judge the table. With --gpu the table is also written to docs/results_gpu.md, after each script
anew, and the scripts share ten minutes: one that is not done then is ended, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from avssl.files.whole import write_whole
from benchmarks.claims import ROOT, Claim, machine, table

GPU_PAGE, GPU_SECONDS = ROOT / "docs" / "results_gpu.md", 600.0

# {script: its options}; sizes are chosen so that all scripts together take less than 20 minutes on two cores.
CPU: dict[str, list[str]] = {
    "start_up": ["--rounds", "3"],
    "training_step": ["--rounds", "2"],
    "two_processes": ["--rounds", "1"],
    "image_losses": [],
    "scaling": ["--quick"],
    "avid_loss": [],
    "cma_search": ["--queries", "2048", "--rounds", "3"],
    "loader": ["--rounds", "5"],
    "loader_memory": ["--rounds", "2", "--passes", "8"],
    "multi_crop": ["--rounds", "5"],
    "embedding": ["--films", "4", "--film-seconds", "30"],
}
GPU: dict[str, list[str]] = {
    "gpu_training": [],
    "training_step": ["--device", "cuda"],
    "avid_loss": ["--device", "cuda"],
    "cma_search": ["--device", "cuda", "--rows", "1784108", "--queries", "65536", "--all"],
    # ResNet-50 at 224 px; lightly must be installed beforehand where there is no network.
    "image_losses": ["--device", "cuda", "--encoder", "resnet50", "--size-px", "224", "--data", "made",
                     "--batch-size", "256", "--num-workers", "12", "--steps", "40"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated names of scripts")
    parser.add_argument("--gpu", action="store_true", help="the scripts that need a GPU instead")
    parser.add_argument("--page", type=Path, help="Markdown file to write; with --gpu docs/results_gpu.md")
    parser.add_argument("--limit-seconds", type=float, help="of all scripts together; with --gpu 600")
    arguments = parser.parse_args()
    scripts = GPU if arguments.gpu else CPU
    names = arguments.only.split(",") if arguments.only else list(scripts)
    unknown = sorted(set(names) - set(scripts))
    if unknown:
        parser.error(f"no such script: {', '.join(unknown)}; there are {', '.join(scripts)}")
    page = arguments.page or (GPU_PAGE if arguments.gpu else None)
    limit = arguments.limit_seconds or (GPU_SECONDS if arguments.gpu else None)
    begun = machine()
    print(begun, flush=True)
    claims, outcomes = [], []
    for outcome in run_all({name: scripts[name] for name in names}, limit):
        claims += outcome.claims
        outcomes.append(outcome)
        if page is not None:
            whole = write_whole(page, page_text(begun, outcomes, names[len(outcomes) :]))
            print(f"written: {whole}", flush=True)
    print(f"\n{machine()}\n\n{table(claims)}")
    short = [claim.name for claim in claims if claim.mark == "FALLS SHORT"]
    failed = [outcome.name for outcome in outcomes if outcome.end != "done"]
    print(f"\n{len(claims)} rows, {len(short)} fall short; {len(failed)} scripts failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


@dataclass(frozen=True)
class Outcome:
    """How a script ended: "done", or why it did not; its options, rows and seconds."""

    name: str
    options: list[str]
    claims: list[Claim]
    seconds: float
    end: str


def run_all(scripts: dict[str, list[str]], limit_seconds: float | None) -> Iterator[Outcome]:
    """Run all scripts, one after the other; limit_seconds: of all together, None for no limit."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, options in scripts.items():
            rows = Path(folder) / f"{name}.jsonl"
            print(f"\n## {name} {' '.join(options)}", flush=True)
            at = time.monotonic()
            left = None if limit_seconds is None else max(0.0, limit_seconds - (at - began))
            command = [sys.executable, f"benchmarks/{name}.py", *options, "--json", str(rows)]
            end = run_one(command, left)
            seconds = time.monotonic() - at
            print(f"{seconds:.0f} s, {end}", flush=True)
            lines = rows.read_text().splitlines() if rows.is_file() else []
            yield Outcome(name, options, [Claim(**json.loads(line)) for line in lines], seconds, end)


def run_one(command: list[str], limit_seconds: float | None) -> str:
    """Run a script: "done", or why it did not end well. What it has started ends with it."""
    if limit_seconds == 0:
        return "not begun: the time was up"
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if status is None:
        return f"ended after {limit_seconds:.0f} s: the time was up"
    return "done" if status == 0 else f"failed with status {status}"


def page_text(begun: str, outcomes: list[Outcome], waiting: list[str]) -> str:
    """The page of results: the machine, how each script ended, and all rows. waiting: scripts that have not begun."""
    lines = ["# Results on a GPU", "", f"Written by `python -m benchmarks --gpu`. {begun}.", ""]
    lines += ["| script | options | seconds | |", "|---|---|---|---|"]
    for item in outcomes:
        options = f"`{' '.join(item.options)}`" if item.options else ""
        lines.append(f"| {item.name} | {options} | {item.seconds:.0f} | {item.end} |")
    lines += [f"| {name} | | | waits |" for name in waiting]
    lines += ["", table([claim for item in outcomes for claim in item.claims]), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
