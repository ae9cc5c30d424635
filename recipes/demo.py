"""The main job, start to finish, on an embedded corpus: `make demo`.

Makes a labelled audio-visual corpus as real media files, prepares and verifies shards, pretrains AVID, branches
AVID+CMA off from it beside AVID trained on for the same number of steps, evaluates, and writes the report. Every step
is the command that a user would type; it is printed before it runs. A killed demo that is started again keeps its
shards and goes on training where it was; `make clean` starts afresh.

Leaves with status 1 unless trained AVID beats untrained weights and chance clearly, on retrieval and on video kNN.
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
SHARD_OPTIONS = [
    "--short-side-px",
    "64",
    "--fps",
    "8",
    "--keyframe-interval",
    "4",
    "--audio-rate-hz",
    "16000",
    "--samples-per-shard",
    "100",
]
RESULTS = (
    "videos",
    "shards",
    "runs/avid_cma/encoders.safetensors",
    "runs/avid_cma/evaluation.json",
    "embeddings/embeddings.parquet",
    "runs/avid_cma/report.html",
)


def run(*command: str) -> None:
    """Run one command of the tool with this Python, printing it as the user would type it."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    # One thread for the networks: decoding has a process of its own, and small networks gain little from a second one.
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env=environment)


def prepare(split: str) -> None:
    videos, manifest, shards = f"demo/videos/{split}", f"demo/{split}.jsonl", f"demo/shards/{split}"
    run("-m", "data_prep", "index", videos, "--out", manifest, "--labels", f"{videos}/labels.csv")
    run("-m", "data_prep", "write", manifest, "--out", shards, *SHARD_OPTIONS)
    run("-m", "data_prep", "verify", shards)


def pretrain(name: str, recipe: str, *changes: str) -> None:
    run(
        "recipes/pretrain.py",
        f"recipes/configs/{recipe}.yaml",
        f"run=demo/runs/{name}",
        "data.shards=demo/shards/train",
        *changes,
    )


def evaluate(name: str) -> dict:
    splits = ("train=demo/shards/train", "test=demo/shards/test")
    run(
        "recipes/evaluate.py",
        f"demo/runs/{name}",
        "recipes/configs/evaluate.yaml",
        "num_positives=64",
        "num_workers=1",
        *splits,
    )
    return json.loads((DEMO / "runs" / name / "evaluation.json").read_text(encoding="utf-8"))


def table(evaluations: dict[str, dict]) -> str:
    """Metric by metric: chance, untrained weights, then every run."""
    first = evaluations["avid"]
    rows = [["", "chance", "untrained", *RUNS]]
    for name, chance in first["chance"].items():
        untrained = first["results"]["untrained"].get(name)
        values = [chance, untrained, *(evaluations[run]["results"]["trained"].get(name) for run in RUNS)]
        rows.append([name, *("-" if value is None else f"{value:.3f}" for value in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join(lines)


def claims(evaluations: dict[str, dict]) -> list[tuple[str, bool, bool]]:
    """(claim, does it hold, must it hold): what the table should show."""
    scores = {name: evaluation["results"]["trained"] for name, evaluation in evaluations.items()}
    untrained, chance = evaluations["avid"]["results"]["untrained"], evaluations["avid"]["chance"]
    avid, longer, cma = (scores[name] for name in RUNS)
    directions = ("video_to_audio", "audio_to_video")

    def recall(metrics: dict[str, float]) -> float:
        return sum(metrics[f"{direction}_recall_at_10"] for direction in directions) / 2

    def rank(metrics: dict[str, float]) -> float:
        return sum(metrics[f"{direction}_median_rank"] for direction in directions) / 2

    knn = "video_knn_visual"
    precise = all(
        avid[f"positive_precision_consensus_{field}"] > avid[f"positive_precision_video_{field}"]
        for field in ("visual", "sound")
    )
    return [
        (
            "AVID: video kNN at least 1.5 times untrained and chance",
            avid[knn] > 1.5 * max(untrained[knn], chance[knn]),
            True,
        ),
        (
            "AVID: recall at 10 at least 1.5 times untrained and chance",
            recall(avid) > 1.5 * max(recall(untrained), recall(chance)),
            True,
        ),
        ("AVID: median rank at most 0.75 of untrained", rank(avid) < 0.75 * rank(untrained), True),
        ("consensus positives more precise than video-only ones, on both label fields", precise, False),
        ("AVID+CMA: median rank no worse than 1.1 times AVID trained as long", rank(cma) <= 1.1 * rank(longer), False),
        ("AVID+CMA: better video kNN than AVID trained as long", cma[knn] > longer[knn], False),
    ]


def main() -> int:
    began = time.monotonic()
    run(
        "-m",
        "data_prep",
        "demo-corpus",
        "demo/videos",
        "--num-train",
        "600",
        "--num-test",
        "300",
        "--difficulty",
        "0.5",
        "--agreement",
        "0.9",
    )
    for split in ("train", "test"):
        prepare(split)

    pretrain("avid", "demo_avid")
    pretrain("avid_longer", "demo_avid", "init_from=demo/runs/avid", "seed=1", "steps=1000", "optim.schedule=cosine")
    pretrain("avid_cma", "demo_avid_cma", "init_from=demo/runs/avid", "seed=1")
    evaluations = {name: evaluate(name) for name in RUNS}

    windows = ("--window", "1", "--stride", "0.5", "--num-workers", "1")
    run(
        "recipes/embed.py",
        "demo/runs/avid_cma",
        "demo/videos/test",
        "--out",
        "demo/embeddings",
        "--overwrite",
        *windows,
    )
    run(
        "recipes/report.py",
        "demo/runs/avid_cma",
        "demo/runs/avid",
        "demo/runs/avid_longer",
        "--shards",
        "demo/shards/test",
    )

    print(f"\n{table(evaluations)}\n")
    found = claims(evaluations)
    for claim, holds, _ in found:
        print(f"  {'yes' if holds else 'NO '}  {claim}")
    print(f"\nfinished in {time.monotonic() - began:.0f} s; look at")
    for path in RESULTS:
        print(f"  {DEMO / path}")
    return int(not all(holds for _, holds, required in found if required))


if __name__ == "__main__":
    if sys.argv[1:]:  # it takes no arguments, and must not start for half an hour on one of them
        print(__doc__)
        sys.exit(0 if sys.argv[1] in ("-h", "--help") else f"error: the demo takes no arguments, got {sys.argv[1:]}")
    sys.exit(main())
