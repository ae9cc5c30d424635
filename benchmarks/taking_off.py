"""What shortens the plateau of AVID on small corpora: steps until it takes off, and what is known after equal clips.

    python benchmarks/taking_off.py [--corpora shapes,garments] [--variants plain,large] [--seeds 3] [--out FOLDER]

The networks and settings of `make demo` on three corpora that differ (benchmarks/audiovisual_corpora.py). Each variant
sees the same number of clips, in batches of its own. A run takes off at the first look at which the kNN of video
features is 1.5 times that of the untrained networks; of films, whose untrained kNN is too high for this, at which the
median rank of test pairs is at most half of chance. Every look is a line of FOLDER/looks.jsonl; a finished run is not
made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import learn_audiovisual, learning
from benchmarks.audiovisual_corpora import NAMES, prepare
from benchmarks.claims import ROOT, machine
from benchmarks.small_runs import Corpus, SmallRun, interval, store, stored

RECIPE = str(ROOT / "recipes/configs/demo_avid.yaml")
SMALLER = {"garments": ["views.video.size_px=32"], "films": ["views.video.size_px=32"]}  # 48 px take twice the time
LARGE = ["data.global_batch_size=64", "optim.lr=5e-3"]
VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "fast": ["optim.lr=5e-3"],
    "batch32": ["data.global_batch_size=32"],
    "large": LARGE,
    "large_moderate": ["data.global_batch_size=64"],
    "few": ["loss.num_negatives=64"],  # 256 in the recipe
    "many": ["loss.num_negatives=590"],
    "fresh": ["loss.bank_momentum=0"],  # 0.5
    "slow": ["loss.bank_momentum=0.8"],
    "sharp": ["loss.temperature=0.1"],  # 0.2
    "soft": ["loss.temperature=0.4"],
}
PLAIN_BATCH = 16  # of the recipe
# Other losses across both modalities as learn_audiovisual.py sets them, with the optimizer of the recipe: NAME or
# NAME_BATCH.
OTHER_LOSSES = ("simclr", "vicreg", "lejepa")
TIMES_UNTRAINED, OF_CHANCE = 1.5, 0.5
METRICS = ("video_knn", "audio_knn", "median_rank")
Look = dict[str, Any]


def one_run(corpus: Corpus, variant: str, seed: int, clips: int, num_looks: int, path: Path) -> None:
    """Train once, and add its looks to the file."""
    size = batch_size(variant)
    own = [f"steps={clips // size}", f"seed={seed}"]
    which = {"corpus": corpus.name, "variant": variant, "seed": seed, "clips": clips}
    begun = time.process_time()
    for look in SmallRun(corpus, [*settings(variant, seed), *SMALLER.get(corpus.name, []), *own]).train(
        clips // size // num_looks
    ):
        store(path, {**which, **look, "batch": size, "cpu_seconds": round(time.process_time() - begun)})


def settings(variant: str, seed: int) -> list[str]:
    """Recipe and changes of a variant."""
    loss, _, batch = variant.partition("_")
    if loss not in OTHER_LOSSES:
        return [RECIPE, f"loss.seed={seed}", *VARIANTS[variant]]
    optimizer = ["optim.name=adam", "optim.weight_decay=0", "optim.schedule=constant", "optim.warmup_steps=0"]
    chosen = [f"loss.name={loss}", *learn_audiovisual.SETTINGS[loss], f"data.global_batch_size={batch or PLAIN_BATCH}"]
    return [*learn_audiovisual.SHARED, *optimizer, *chosen]


def batch_size(variant: str) -> int:
    """Clips of a batch."""
    changes = [change.partition("=") for change in settings(variant, 0)]
    sizes = [int(value) for key, _, value in changes if key == "data.global_batch_size"]
    return sizes[-1] if sizes else PLAIN_BATCH


def took_off(looks: Sequence[Look], num_pairs: int) -> float:
    """The step of the first look after take-off; infinity if there is none."""
    untrained, chance = looks[0]["video_knn"], (num_pairs + 1) / 2
    for look in looks[1:]:
        if looks[0]["corpus"] == "films":
            is_off = look["median_rank"] <= OF_CHANCE * chance
        else:
            is_off = look["video_knn"] >= TIMES_UNTRAINED * untrained
        if is_off:
            return float(look["step"])
    return float("inf")


def report(looks: Sequence[Look], num_pairs: dict[str, int]) -> str:
    """A line per corpus and variant: steps to take-off of each seed, metrics at the end, differences from plain."""
    times = ["batch", "steps to take-off, by seed", "CPU s, whole"]
    rows = [["corpus", "variant", *times, *METRICS, *(f"{name} - plain" for name in METRICS)]]
    for corpus in dict.fromkeys(look["corpus"] for look in looks):
        ends: dict[str, dict[int, Look]] = {}
        for variant in dict.fromkeys(look["variant"] for look in looks if look["corpus"] == corpus):
            runs: dict[int, list[Look]] = {}
            for look in looks:
                if (look["corpus"], look["variant"]) == (corpus, variant):
                    run = runs.setdefault(look["seed"], [])
                    run[:] = [*([] if look["step"] == 0 else run), look]  # a run that was ended began anew
            batch = batch_size(variant)
            runs = {seed: run for seed, run in runs.items() if run[-1]["step"] == run[-1]["clips"] // batch}
            if not runs:  # none has come to its end
                continue
            ends[variant] = {seed: run[-1] for seed, run in runs.items()}
            off = "/".join(f"{took_off(runs[seed], num_pairs[corpus]):g}" for seed in sorted(runs))
            values = [interval([ends[variant][seed][name] for seed in sorted(runs)]) for name in METRICS]
            paired = sorted(set(runs) & set(ends.get("plain", {})))
            differences = [
                interval([ends[variant][seed][name] - ends["plain"][seed][name] for seed in paired]) if paired else ""
                for name in METRICS
            ]
            seconds = interval([ends[variant][seed]["cpu_seconds"] for seed in sorted(runs)])
            rows.append([corpus, variant, str(batch), off, seconds, *values, *differences])
    return learning.markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", default=",".join(NAMES), help="comma-separated names")
    parser.add_argument("--variants", default="plain,large", help="comma-separated names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=19_200, help="that each run sees; an epoch has 600")
    parser.add_argument("--looks", type=int, default=24, help="of each run")
    parser.add_argument("--out", type=Path, default=Path(".cache/taking_off"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "looks.jsonl"
    corpora = {name: Corpus(name, prepare(name, folder / "corpora")) for name in arguments.corpora.split(",")}
    for seed in range(arguments.seeds):
        for name, corpus in corpora.items():
            for variant in arguments.variants.split(","):
                which = {"corpus": name, "variant": variant, "seed": seed, "clips": arguments.clips}
                last = {"step": arguments.clips // batch_size(variant)}
                if not any((which | last).items() <= one.items() for one in stored(path)):
                    one_run(corpus, variant, seed, arguments.clips, arguments.looks, path)
    looks = [look for look in stored(path) if look["clips"] == arguments.clips]
    print(machine(), report(looks, {name: len(one.labels["video"][1]) for name, one in corpora.items()}), sep="\n\n")


if __name__ == "__main__":
    main()
