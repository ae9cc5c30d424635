"""Whether other moments of a clip as negatives teach synchrony, and what it costs elsewhere.

    python benchmarks/same_clip.py [--corpora shapes,garments] [--losses simclr,avid] [--seeds 3] [--out FOLDER]

Each loss trains the demo's networks on pairs in sync (audio and frames of the same half second): a start on batches of
32 clips with one moment each, from which it goes on with such batches and, for as many steps, with batches of 8 clips
with 3 other moments each as negatives: as many pairs pass through the networks. The start is without them because
8 clips are few to leave the plateau with; Korbar et al. (2018) begin with other clips too. `--start-steps 0` leaves it
out. Judged by the clips and measures of the task `synchronization` (0.5 s early or late, two places in each test clip),
by kNN and by retrieval; differences are paired by seed. Every run is a line of FOLDER/runs.jsonl and not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import learning
from benchmarks.audiovisual_corpora import prepare
from benchmarks.claims import machine
from benchmarks.learn_audiovisual import SETTINGS, SHARED
from benchmarks.small_runs import Corpus, SmallRun, interval, store, stored
from benchmarks.taking_off import SMALLER

START, NUM_PAIRS = "start", 32
NUM_MOMENTS = {"one moment": 0, "four moments": 3}  # {run: negatives of the same clip}
Result = dict[str, object]
IN_SYNC = [
    "views.max_offset_seconds=0",
    "views.audio={seconds: 0.5, rate_hz: 16000, transform: log_mel, num_mels: 40, window_samples: 512,"
    " hop_samples: 160, num_frames: 50}",
]
METRICS = ("auc", "pairs_told_apart", "video_knn", "audio_knn", "median_rank")


def one_run(
    corpus: Corpus, loss: str, num_moments: int, seed: int, steps: int, begun: SmallRun | None = None
) -> SmallRun:
    """A run to be trained, from the state of another one."""
    own = [f"loss.name={loss}", *SETTINGS[loss], f"loss.num_negatives_same_clip={num_moments}"]
    which = [
        f"steps={steps}",
        f"seed={seed}",
        f"loss.seed={seed}",
        f"data.global_batch_size={NUM_PAIRS // (1 + num_moments)}",
    ]
    return SmallRun(corpus, [*SHARED, *own, *IN_SYNC, *SMALLER.get(corpus.name, []), *which], begun)


def end_of(run: SmallRun) -> dict[str, float]:
    """Train; metrics at the end."""
    *_, last = run.train(every_steps=run.cfg.steps)
    return {name: value for name, value in (last | run.synchronization()).items() if name in METRICS}


def one_seed(corpus: Corpus, loss: str, seed: int, start_steps: int, steps: int) -> dict[str, dict[str, float]]:
    """{run: metrics at the end}."""
    results, begun = {}, None
    if start_steps:
        begun = one_run(corpus, loss, 0, seed, start_steps)
        results[START] = end_of(begun)
    for name, num_moments in NUM_MOMENTS.items():
        results[name] = end_of(one_run(corpus, loss, num_moments, seed + 100, steps, begun))
    return results


def table(results: Sequence[Result]) -> str:
    """Of every corpus and loss: both runs, and their difference paired by seed."""
    rows = [["corpus", "loss", "seeds", *(f"{name}: {', '.join(NUM_MOMENTS)}, difference" for name in METRICS)]]
    for corpus, loss in sorted({(str(one["corpus"]), str(one["loss"])) for one in results}):
        runs = [
            {one["seed"]: one for one in results if (one["corpus"], one["loss"], one["run"]) == (corpus, loss, name)}
            for name in NUM_MOMENTS
        ]
        cells = []
        for metric in METRICS:
            both = [[float(str(run[seed][metric])) for seed in run] for run in runs]
            differences = [after - before for before, after in zip(*both, strict=True)]
            cells.append(", ".join(map(interval, (*both, differences))))
        rows.append([corpus, loss, str(len(runs[0])), *cells])
    return learning.markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", default="shapes,garments", help="comma-separated names")
    parser.add_argument("--losses", default="simclr,avid,moco", help="comma-separated names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start-steps", type=int, default=900, help="with one moment of each clip")
    parser.add_argument("--steps", type=int, default=600, help="of both ways after the start")
    parser.add_argument("--out", type=Path, default=Path(".cache/same_clip"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    steps = {"start_steps": arguments.start_steps, "steps": arguments.steps}
    for seed in range(arguments.seeds):
        for corpus_name in arguments.corpora.split(","):
            corpus = Corpus(corpus_name, prepare(corpus_name, folder / "corpora"))
            for loss in arguments.losses.split(","):
                which = {"corpus": corpus_name, "loss": loss, "seed": seed, **steps}
                if not any(which.items() <= one.items() for one in stored(path)):
                    ends = one_seed(corpus, loss, seed, **steps)
                    store(path, *({**end, "run": name, **which} for name, end in ends.items()))
    print(machine(), table([one for one in stored(path) if steps.items() <= one.items()]), sep="\n\n")


if __name__ == "__main__":
    main()
