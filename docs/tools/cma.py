"""docs/figures/cma_claim.svg: AVID+CMA less AVID trained as long, of the runs of benchmarks/cma_claim.py.

python docs/tools/cma.py FOLDER/runs.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import svg

WIDTH, HEIGHT, TOP, GAP = 150, 150, 46, 76
KINDS = ("consensus", "union", "video", "audio")
PANELS = (("video_knn", "video kNN", 0.15), ("audio_knn", "sound kNN", 0.15), ("median_rank", "median rank of 300", 30))
Runs = dict[tuple[float, int], dict[str, dict[str, float]]]  # {(agreement, seed): {run: metrics}}


def read(path: Path) -> Runs:
    """The runs of one corpus."""
    runs: Runs = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        runs[run["agreement"], run["seed"]][run["run"]] = run
    return {key: found for key, found in runs.items() if {"avid", "avid_cma"} <= found.keys()}


def frame(left: float, title: str, low: float, high: float, agreements: list[float]) -> list[str]:
    """Title, axis and names of a panel."""
    parts = [svg.text(left, 28, title, "bold")]
    for value in (low, (low + high) / 2, high):
        y = TOP + HEIGHT * (high - value) / (high - low)
        parts += [svg.text(left - 6, y + 4, f"{value:g}", "end soft")]
        parts += [svg.curve([(left, y), (left + WIDTH, y)], "var(--line)", "2 4")]
    return parts + [
        svg.text(place(left, number, agreements), TOP + HEIGHT + 18, f"{agreement:g}", "middle soft")
        for number, agreement in enumerate(agreements)
    ]


def place(left: float, number: int, agreements: list[float]) -> float:
    """Where an agreement stands."""
    return left + WIDTH * (number + 0.5) / len(agreements)


def differences(left: float, runs: Runs, metric: str, title: str, most: float) -> list[str]:
    """A dot per seed, and a line at the mean."""
    agreements = sorted({agreement for agreement, _ in runs})
    parts = frame(left, title, -most, most, agreements)
    for number, agreement in enumerate(agreements):
        x = place(left, number, agreements)
        found = [pair["avid_cma"][metric] - pair["avid"][metric] for (one, _), pair in runs.items() if one == agreement]
        heights = [TOP + HEIGHT * (most - min(max(value, -most), most)) / (2 * most) for value in found]
        parts += [svg.dot(x + 5 * (seed - (len(found) - 1) / 2), y, svg.HUES[0]) for seed, y in enumerate(heights)]
        parts.append(svg.curve([(x - 16, mean(heights)), (x + 16, mean(heights))], svg.HUES[1]))
    return parts


def precisions(left: float, runs: Runs) -> list[str]:
    """How often a positive has the label of its anchor, by kind, the mean over seeds and both labels."""
    agreements = sorted({agreement for agreement, _ in runs})
    parts = frame(left, "precision of positives", 0, 1, agreements)
    for kind, color in zip(KINDS, svg.HUES, strict=False):
        points = []
        for number, agreement in enumerate(agreements):
            pairs = [pair["avid"] for (one, _), pair in runs.items() if one == agreement]
            value = mean((pair[f"{kind}, video"] + pair[f"{kind}, audio"]) / 2 for pair in pairs)
            points.append((place(left, number, agreements), TOP + HEIGHT * (1 - value)))
        parts += [svg.curve(points, color), *(svg.dot(x, y, color) for x, y in points)]
        y = TOP + HEIGHT + 38 + 18 * KINDS.index(kind)
        words = f"near in {'sound' if kind == 'audio' else kind} alone" if kind in KINDS[2:] else kind
        parts += [svg.curve([(left, y - 4), (left + 18, y - 4)], color), svg.text(left + 24, y, words, "soft")]
    return parts


def main(path: Path) -> None:
    """Write the figure."""
    runs, parts = read(path), []
    for number, (metric, name, most) in enumerate(PANELS):
        parts += differences(46 + number * (WIDTH + GAP), runs, metric, name, most)
    parts += precisions(46 + 3 * (WIDTH + GAP), runs)
    y = TOP + HEIGHT + 38
    parts += [
        svg.text(46, y, "AVID+CMA less AVID trained as long: a dot is a seed, the line their mean; lower ranks", "soft")
    ]
    parts += [
        svg.text(46, y + 18, "are better. Below each panel: how often picture and sound are of one class.", "soft")
    ]
    svg.save(
        "cma_claim",
        46 + 4 * (WIDTH + GAP),
        TOP + HEIGHT + 106,
        "What CMA adds to AVID at agreements of a corpus",
        parts,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
