"""The main job, start to finish, on an embedded corpus: `make demo`.

Makes a labelled audio-visual corpus as real media files, prepares and verifies shards, pretrains AVID, branches
AVID+CMA off from it beside AVID trained on for the same number of steps, evaluates, and writes the report. Every step
is the command that a user would type; it is printed before it runs. What is finished is not done again.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
RUNS = ("avid", "avid_longer", "avid_cma")
CLAIMS = 0  # set below


def run(*command: str) -> None:
    """Run one command of the tool with this Python, printing it as the user would type it."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})


def prepare(split: str) -> None:
    shards = f"demo/shards/{split}"
    run(
        "-m",
        "data_prep",
        "index",
        f"demo/videos/{split}",
        "--out",
        f"demo/{split}.jsonl",
        "--labels",
        f"demo/videos/{split}/labels.csv",
    )
    run(
        "-m",
        "data_prep",
        "write",
        f"demo/{split}.jsonl",
        "--out",
        shards,
        "--short-side-px",
        "64",
        "--samples-per-shard",
        "100",
    )
    run("-m", "data_prep", "verify", shards)


def table(evaluations: dict[str, dict]) -> list[list[str]]:
    """Rows of the closing table: metric, chance, untrained, then every run."""
    first = evaluations["avid"]
    rows = [["", "chance", "untrained", *RUNS]]
    for name, chance in first["chance"].items():
        values = [
            first["results"]["untrained"].get(name),
            *(evaluations[r]["results"]["trained"].get(name) for r in RUNS),
        ]
        rows.append([name, f"{chance:.3f}", *("-" if value is None else f"{value:.3f}" for value in values)])
    return rows


def main() -> None:
    began = time.monotonic()
    if not (DEMO / "videos/test/labels.csv").is_file():
        run("-m", "data_prep", "demo-corpus", "demo/videos", "--num-train", "600", "--num-test", "200")
    for split in ("train", "test"):
        prepare(split)

    train = ("recipes/pretrain.py", "recipes/configs/demo_avid.yaml", "data.shards=demo/shards/train")
    run(*train, "run=demo/runs/avid")
    run(*train, "run=demo/runs/avid_longer", "init_from=demo/runs/avid", "seed=1")
    run(
        "recipes/pretrain.py",
        "recipes/configs/demo_avid_cma.yaml",
        "data.shards=demo/shards/train",
        "run=demo/runs/avid_cma",
        "init_from=demo/runs/avid",
        "seed=1",
    )
    for name in RUNS:
        run(
            "recipes/evaluate.py",
            f"demo/runs/{name}",
            "recipes/configs/evaluate.yaml",
            "train=demo/shards/train",
            "test=demo/shards/test",
        )
    run(
        "recipes/embed.py",
        "demo/runs/avid_cma",
        "demo/videos/test/bars",
        "--out",
        "demo/embeddings",
        "--window",
        "1",
        "--stride",
        "0.5",
    )
    run(
        "recipes/report.py",
        "demo/runs/avid_cma",
        "demo/runs/avid",
        "demo/runs/avid_longer",
        "--shards",
        "demo/shards/test",
    )

    evaluations = {name: json.loads((DEMO / "runs" / name / "evaluation.json").read_text()) for name in RUNS}
    rows = table(evaluations)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print(
            "  ".join(
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    print(f"\nfinished in {time.monotonic() - began:.0f} s")
    for path in (
        "videos",
        "shards",
        "runs/avid_cma/encoders.safetensors",
        "runs/avid_cma/evaluation.json",
        "embeddings",
        "runs/avid_cma/report.html",
    ):
        print(DEMO / path)


if __name__ == "__main__":
    main()
