"""All claims about speed that this machine can check, in one table.

    python -m benchmarks [--only loader,avid_loss] [--gpu]

Each script runs alone, in a process of its own. The command fails if a script ends with an error, but not if a row
falls short: people judge the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.claims import ROOT, Claim, machine, table

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
                     "--batch-size", "256", "--workers", "12", "--steps", "40"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated names of scripts")
    parser.add_argument("--gpu", action="store_true", help="the scripts that need a GPU instead")
    arguments = parser.parse_args()
    scripts = GPU if arguments.gpu else CPU
    names = arguments.only.split(",") if arguments.only else list(scripts)
    unknown = sorted(set(names) - set(scripts))
    if unknown:
        parser.error(f"no such script: {', '.join(unknown)}; there are {', '.join(scripts)}")
    print(machine(), flush=True)
    claims, failed = run_all({name: scripts[name] for name in names})
    print(f"\n{machine()}\n\n{table(claims)}")
    short = [claim.name for claim in claims if claim.mark == "FALLS SHORT"]
    print(f"\n{len(claims)} rows, {len(short)} fall short; {len(failed)} scripts failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def run_all(scripts: dict[str, list[str]]) -> tuple[list[Claim], list[str]]:
    """(rows of all scripts, names of the scripts that ended with an error)."""
    claims, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in scripts.items():
            rows = Path(folder) / f"{name}.jsonl"
            print(f"\n## {name} {' '.join(options)}", flush=True)
            began = time.perf_counter()
            command = [sys.executable, f"benchmarks/{name}.py", *options, "--json", str(rows)]
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                failed.append(name)
            print(f"{time.perf_counter() - began:.0f} s", flush=True)
            if rows.is_file():
                claims += [Claim(**json.loads(line)) for line in rows.read_text().splitlines()]
    return claims, failed


if __name__ == "__main__":
    main()
