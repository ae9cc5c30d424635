"""What CMA adds to AVID that is trained as long, and when: five seeds at several agreements of a corpus' classes.

    python benchmarks/cma_claim.py [--corpus shapes] [--agreements 0.5,0.9,1] [--num-positives 64] [--out FOLDER]

The demo's networks. A start of AVID goes on with AVID and, for as many steps of the same order, with AVID+CMA; both
rates end at 0 along a cosine. Judged by kNN, ranks and the precision of the four kinds of positives; differences are
paired by seed. Every run is a line of FOLDER/runs.jsonl and not made again.
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
from benchmarks.claims import ROOT, machine
from benchmarks.small_runs import AGREEMENTS, MODALITIES, Corpus, SmallRun, interval, store, stored

RECIPES = ROOT / "recipes/configs"
START, LONGER, CMA = "start", "avid", "avid_cma"
METRICS = ("video_knn", "audio_knn", "median_rank")
Result = dict[str, object]


def one_seed(
    corpus: Corpus, seed: int, start_steps: int, steps: int, num_positives: int
) -> dict[str, dict[str, float]]:
    """{start, avid, avid_cma: metrics at the end}."""
    drawn = [f"seed={seed}", f"loss.seed={seed}"]
    first = SmallRun(corpus, [str(RECIPES / "demo_avid.yaml"), f"steps={start_steps}", *drawn])
    results = {START: end_of(first, num_positives)}
    again = [f"seed={seed + 100}", f"loss.seed={seed + 100}", f"steps={steps}", "optim.schedule=cosine"]
    for name, recipe in ((LONGER, "demo_avid.yaml"), (CMA, "demo_avid_cma.yaml")):
        own = [f"loss.num_positives={num_positives}"] if name == CMA else []
        run = SmallRun(corpus, [str(RECIPES / recipe), *again, *own], first)
        results[name] = end_of(run, num_positives)
    return results


def end_of(run: SmallRun, num_positives: int) -> dict[str, float]:
    """Metrics after the last step, with the precision of positives."""
    *_, last = run.train(every_steps=run.cfg.steps)
    return {**last, **run.positive_precision(num_positives)}


def report(results: Sequence[Result], agreements: Sequence[float]) -> str:
    """Tables: metrics with paired differences, and precisions."""
    rows = [["agreement", "seeds", *(f"{name}: AVID, AVID+CMA, difference" for name in METRICS)]]
    precisions = [["agreement", "label of", *(f"{name}: AVID, AVID+CMA" for name in AGREEMENTS)]]
    for agreement in agreements:
        runs = {name: by_seed(results, agreement, name) for name in (LONGER, CMA)}
        seeds = sorted(set(runs[LONGER]) & set(runs[CMA]))
        if not seeds:
            continue
        cells = []
        for metric in METRICS:
            both = [[number(runs[name][seed][metric]) for seed in seeds] for name in (LONGER, CMA)]
            differences = [after - before for before, after in zip(*both, strict=True)]
            cells.append(", ".join(map(interval, (*both, differences))))
        rows.append([f"{agreement:g}", str(len(seeds)), *cells])
        for modality in MODALITIES:
            found = [
                ", ".join(
                    interval([number(runs[name][seed][f"{kind}, {modality}"]) for seed in seeds]) for name in runs
                )
                for kind in AGREEMENTS
            ]
            precisions.append([f"{agreement:g}", modality, *found])
    return f"{learning.markdown(rows)}\n\n{learning.markdown(precisions)}"


def by_seed(results: Sequence[Result], agreement: float, name: str) -> dict[int, Result]:
    """{seed: the result of a run}."""
    return {
        int(number(result["seed"])): result
        for result in results
        if (result["agreement"], result["run"]) == (agreement, name)
    }


def number(value: object) -> float:
    """A stored number."""
    assert isinstance(value, int | float)
    return float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="shapes")
    parser.add_argument("--agreements", default="0.5,0.75,0.9,1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--start-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=500, help="of AVID and of AVID+CMA after the start")
    parser.add_argument(
        "--num-positives", type=int, default=64, help="for each clip; about as many as clips belong together"
    )
    parser.add_argument("--out", type=Path, default=Path(".cache/cma_claim"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    agreements = [float(text) for text in arguments.agreements.split(",")]
    counts = {name: getattr(arguments, name) for name in ("start_steps", "steps", "num_positives")}
    for seed in range(arguments.seeds):
        for agreement in agreements:
            which = {"corpus": arguments.corpus, "agreement": agreement, "seed": seed, **counts}
            if any(which.items() <= one.items() for one in stored(path)):
                continue
            corpus = Corpus(arguments.corpus, prepare(arguments.corpus, folder / "corpora", agreement))
            ends = one_seed(corpus, seed, **counts)
            store(path, *({**end, "run": name, **which} for name, end in ends.items()))
    of_all = {"corpus": arguments.corpus, **counts}
    results = [one for one in stored(path) if of_all.items() <= one.items()]
    print(machine(), report(results, agreements), sep="\n\n")


if __name__ == "__main__":
    main()
