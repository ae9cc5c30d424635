"""Whether other moments of a clip as negatives teach synchrony, and what it costs elsewhere.

    python benchmarks/same_clip.py [--corpora shapes,garments] [--losses simclr,avid] [--seeds 1] [--out FOLDER]

Each loss trains the demo's networks on pairs in sync (audio and frames of the same half second), on batches of 32 clips
with one moment each, and of 8 clips with 3 other moments each as negatives: as many pairs pass through the networks.
Judged by the clips and measures of the task `synchronization` (0.5 s
early or late, two places in each test clip), by kNN and by retrieval. Every run is a line of FOLDER/runs.jsonl and not
made again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import learning
from benchmarks.audiovisual_corpora import prepare
from benchmarks.claims import machine
from benchmarks.learn_audiovisual import SETTINGS, SHARED
from benchmarks.small_runs import Corpus, SmallRun, interval, store, stored
from benchmarks.taking_off import SMALLER

NUM_MOMENTS, NUM_PAIRS = (3, 0), 32
IN_SYNC = [
    "views.max_offset_seconds=0",
    "views.audio={seconds: 0.5, rate_hz: 16000, transform: log_mel, num_mels: 40, window_samples: 512,"
    " hop_samples: 160, num_frames: 50}",
]
METRICS = ("auc", "pairs_told_apart", "video_knn", "audio_knn", "median_rank")


def one_run(corpus: Corpus, loss: str, num_moments: int, seed: int, steps: int) -> dict[str, float]:
    """Train once: metrics at the end."""
    own = [f"loss.name={loss}", *SETTINGS[loss], f"loss.num_negatives_same_clip={num_moments}"]
    which = [
        f"steps={steps}",
        f"seed={seed}",
        f"loss.seed={seed}",
        f"data.global_batch_size={NUM_PAIRS // (1 + num_moments)}",
    ]
    run = SmallRun(corpus, [*SHARED, *own, *IN_SYNC, *SMALLER.get(corpus.name, []), *which])
    *_, last = run.train(every_steps=steps)
    return {name: value for name, value in (last | run.synchronization()).items() if name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", default="shapes,garments", help="comma-separated names")
    parser.add_argument("--losses", default="simclr,avid,moco", help="comma-separated names")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--out", type=Path, default=Path(".cache/same_clip"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    names = ("corpus", "loss", "moments", "seed", "steps")
    rows = [["corpus", "loss", "moments", *METRICS]]
    for corpus_name in arguments.corpora.split(","):
        corpus = Corpus(corpus_name, prepare(corpus_name, folder / "corpora"))
        for loss in arguments.losses.split(","):
            for num_moments in NUM_MOMENTS:
                found = []
                for seed in range(arguments.seeds):
                    which = dict(zip(names, (corpus_name, loss, num_moments, seed, arguments.steps), strict=True))
                    if not any(which.items() <= one.items() for one in stored(path)):
                        store(path, which | one_run(corpus, loss, num_moments, seed, arguments.steps))
                    found.append(next(one for one in stored(path) if which.items() <= one.items()))
                cells = [interval([float(str(one[name])) for one in found]) for name in METRICS]
                rows.append([corpus_name, loss, str(num_moments), *cells])
    print(machine(), learning.markdown(rows), sep="\n\n")


if __name__ == "__main__":
    main()
