"""The whole program on a synthetic corpus: `make demo`.

Makes a labeled audio-visual corpus of media files, prepares and verifies shards, pretrains AVID, continues it
with AVID+CMA and, for the same number of steps, with AVID, evaluates the three runs, and writes the report. Every step
is a command as a user types it, printed before it runs. A killed demo that is started again keeps its
shards and resumes training; `make clean` removes everything.

Exits with status 1 unless trained AVID beats untrained weights and chance clearly, on retrieval and on video kNN: by
more than the 95 % interval over other samples.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from avssl.eval.intervals import bootstrap, ends, values_of
from avssl.eval.outcome import Repeat
from avssl.eval.results import read_rows
from avssl.files.plain_text import begin_command, brief, emit, is_json, say, say_lines

DEMO = Path("demo")
DIRECTIONS = ("video_to_audio", "audio_to_video")
RUNS = ("avid", "avid_longer", "avid_cma")
SHARD_OPTIONS = "--short-side-px 64 --fps 8 --keyframe-interval 4 --audio-rate-hz 16000 --samples-per-shard 100"
RESULTS = (
    "videos",
    "shards",
    "runs/avid_cma/encoders.safetensors",
    "runs/avid_cma/evaluation.json",
    "embeddings/embeddings.parquet",
    "runs/avid_cma/report.html",
)


def run(command: str) -> None:
    """Run one command of the program with this Python, printing it as a user types it."""
    say()
    say(f"$ avssl {command}")
    emit("step", step=f"avssl {command}")
    # One thread for the networks: decoding has its own process, and small networks gain little from a second thread.
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = [*shlex.split(command), *(["--json"] if is_json() else [])]
    subprocess.run([sys.executable, "-m", "avssl", *words], check=True, env=environment)


def prepare(split: str) -> None:
    videos, manifest, shards = f"demo/videos/{split}", f"demo/{split}.jsonl", f"demo/shards/{split}"
    run(f"prep index {videos} --out {manifest} --labels {videos}/labels.csv")
    run(f"prep write {manifest} --out {shards} {SHARD_OPTIONS}")
    run(f"prep verify {shards}")


def pretrain(name: str, recipe: str, changes: str = "") -> None:
    configuration = f"{recipe} run=demo/runs/{name} data.shards=demo/shards/train"
    run(f"pretrain {configuration} {changes}".rstrip())


def evaluate(name: str) -> dict[str, Any]:
    task = "num_positives=64 num_workers=1"
    run(f"evaluate demo/runs/{name} {task} train=demo/shards/train test=demo/shards/test")
    result: dict[str, Any] = json.loads((DEMO / "runs" / name / "evaluation.json").read_text(encoding="utf-8"))
    return result


def cell(evaluation: dict[str, Any], weights: str, name: str) -> str:
    """A metric of trained or untrained weights with the ends of its interval, or "-"."""
    value = evaluation["results"][weights].get(name)
    if value is None:
        return "-"
    low, high = evaluation["intervals"]["values"][weights][name]
    digits = 1 if name.endswith("median_rank") else 3
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(evaluations: dict[str, dict[str, Any]]) -> str:
    """A table with a line per metric: samples, chance, untrained weights, then every run, with 95 % intervals."""
    first = evaluations["avid"]
    rows = [["", "samples", "chance", "untrained", *RUNS]]
    for name, chance in first["chance"].items():
        counted = str(first["intervals"]["num_rows"][name])
        cells = [cell(first, "untrained", name), *(cell(evaluations[run], "trained", name) for run in RUNS)]
        rows.append([name, counted, f"{chance:.3f}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join(lines)


Scores = dict[str, dict[str, float]]  # {run, "untrained" or "chance": {metric: value}}
KNN = "video_knn_visual"


def recall(metrics: dict[str, float]) -> float:
    return sum(metrics[f"{direction}_recall_at_10"] for direction in DIRECTIONS) / 2


def rank(metrics: dict[str, float]) -> float:
    return sum(metrics[f"{direction}_median_rank"] for direction in DIRECTIONS) / 2


def better_consensus(scores: Scores) -> float:
    precise = {name.removeprefix("positive_precision_"): value for name, value in scores["avid"].items()}
    return min(precise[f"consensus_{field}"] - precise[f"video_{field}"] for field in ("visual", "sound"))


# (claim, function that gives the margin by which it holds, whether it must hold)
CLAIMS = (
    (
        "AVID: video kNN at least 1.5 times untrained and chance",
        lambda scores: scores["avid"][KNN] - 1.5 * max(scores["untrained"][KNN], scores["chance"][KNN]),
        True,
    ),
    (
        "AVID: recall at 10 at least 1.5 times untrained and chance",
        lambda scores: recall(scores["avid"]) - 1.5 * max(recall(scores["untrained"]), recall(scores["chance"])),
        True,
    ),
    (
        "AVID: median rank at most 0.75 of untrained",
        lambda scores: 0.75 * rank(scores["untrained"]) - rank(scores["avid"]),
        True,
    ),
    ("consensus positives more precise than video-only ones, on both label fields", better_consensus, False),
    (
        "AVID+CMA: median rank no worse than 1.1 times AVID trained as long",
        lambda scores: 1.1 * rank(scores["avid_longer"]) - rank(scores["avid_cma"]),
        False,
    ),
    (
        "AVID+CMA: better video kNN than AVID trained as long",
        lambda scores: scores["avid_cma"][KNN] - scores["avid_longer"][KNN],
        False,
    ),
)


def judged(
    rows: dict[str, list[Repeat]], chance: dict[str, float]
) -> list[tuple[str, str, tuple[float, float, float], bool]]:
    """[(claim, verdict, (margin, low end and high end of its interval), whether it must hold)] of all claims.

    The verdict is "yes" or "NO" if the whole interval lies on that side of 0, otherwise "open".
    """
    drawn = dict(zip(rows, bootstrap(list(rows.values())), strict=True))
    point = {name: values_of(repeats) for name, repeats in rows.items()} | {"chance": chance}
    verdicts = []
    for claim, margin, required in CLAIMS:
        margins = []
        for draw in range(len(drawn["avid"][KNN])):
            scores = {name: {metric: values[draw] for metric, values in draws.items()} for name, draws in drawn.items()}
            margins.append(margin(scores | {"chance": chance}))
        low, high = ends(np.array(margins))
        verdict = "yes" if low > 0 else "NO" if high < 0 else "open"
        verdicts.append((claim, verdict, (margin(point), low, high), required))
    return verdicts


def stored_rows(evaluations: dict[str, dict[str, Any]]) -> dict[str, list[Repeat]]:
    """{run: rows of its trained weights}, and "untrained": those of untrained weights."""
    paths = {name: DEMO / "runs" / name / "evaluation.json" for name in evaluations}
    rows = {name: read_rows(paths[name], evaluations[name], "trained") for name in evaluations}
    return rows | {"untrained": read_rows(paths["avid"], evaluations["avid"], "untrained")}


def main() -> int:
    began = time.monotonic()
    run("prep demo-corpus demo/videos --num-train 600 --num-test 300 --difficulty 0.5 --agreement 0.9")
    for split in ("train", "test"):
        prepare(split)

    pretrain("avid", "demo_avid")
    pretrain("avid_longer", "demo_avid", "init_from=demo/runs/avid seed=1 steps=1000 optim.schedule=cosine")
    pretrain("avid_cma", "demo_avid_cma", "init_from=demo/runs/avid seed=1")
    evaluations = {name: evaluate(name) for name in RUNS}

    windows = "--window 1 --stride 0.5 --num-workers 1"
    run(f"embed demo/runs/avid_cma demo/videos/test --out demo/embeddings --overwrite {windows}")
    run("report demo/runs/avid_cma demo/runs/avid demo/runs/avid_longer --shards demo/shards/test")

    say_lines(f"\n{table(evaluations)}\n")
    verdicts = judged(stored_rows(evaluations), evaluations["avid"]["chance"])
    say("claims, the margin by which each holds, and its 95 % interval over other samples (open: 0 lies in it)")
    for claim, verdict, (margin, low, high), _ in verdicts:
        say(f"  {verdict:4}  {claim}: {margin:+.3f} [{low:+.3f}, {high:+.3f}]")
        emit("claim", claim=claim, verdict=verdict, margin=margin, interval=[low, high])
    say_lines(f"\nfinished in {time.monotonic() - began:.0f} s; look at")
    for path in RESULTS:
        say(f"  {DEMO / path}")
    has_learned = all(verdict == "yes" for _, verdict, _, required in verdicts if required)
    emit("result", has_learned=has_learned, files=[DEMO / path for path in RESULTS])
    return int(not has_learned)


def command(arguments: list[str]) -> int:
    """The program: its exit status."""
    arguments = begin_command("demo", arguments)
    if arguments:  # it takes no arguments, and must not run for half an hour because of one
        say_lines(__doc__)
        if arguments[0] in ("-h", "--help"):
            return 0
        message = f"the demo takes no arguments, got {brief(' '.join(arguments))}"
        say(f"error: {message}", sys.stderr)
        emit("error", message=message, status=1)
        return 1
    return main()


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
