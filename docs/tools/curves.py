"""docs/figures/curves_*.svg: what the curves of real small runs look like, from their metrics.jsonl.

    make demo                                   # or avssl demo: runs/avid and runs/avid_cma
    avssl pretrain demo_avid run=demo/runs/plateau data.shards=demo/shards/train steps=400 \
        loss.projector_hidden_dims=[128,128] loss.projector_final_batch_norm=false loss.temperature=0.07 optim.lr=1e-3
    avssl pretrain demo_avid run=demo/runs/diverged data.shards=demo/shards/train steps=200 optim.lr=0.5
    python docs/tools/curves.py demo/runs
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import svg

Points = list[tuple[float, float]]
WIDTH, HEIGHT, TOP = 196, 130, 46


def series(run: Path, name: str) -> Points:
    """(step, value) of a logged name; each the mean of so many logged steps that some 20 are left."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [(float(row["step"]), float(row[name])) for row in rows if math.isfinite(row.get(name, math.nan))]
    size = max(1, len(points) // 20)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def panel(left: float, title: str, lines: list[tuple[str, Points, str]], low: float, high: float) -> list[str]:
    """One chart. lines: (words, points, color); low, high: the ends of its axis."""
    last = max((points[-1][0] for _, points, _ in lines if points), default=1.0)

    def place(step: float, value: float) -> tuple[float, float]:
        share = (min(max(value, low), high) - low) / (high - low)
        return left + WIDTH * step / last, TOP + HEIGHT * (1 - share)

    parts = [svg.text(left, 28, title, "bold"), svg.curve([place(0, low), place(last, low)], "var(--line)")]
    for value in (low, (low + high) / 2, high):
        parts.append(svg.text(left - 6, place(0, value)[1] + 4, f"{value:g}", "end soft"))
        parts.append(svg.curve([place(0, value), place(last, value)], "var(--line)", "2 4"))
    parts.append(svg.text(left + WIDTH, TOP + HEIGHT + 18, f"step {last:g}", "end soft"))
    for number, (words, points, color) in enumerate(lines):
        parts.append(svg.curve([place(*point) for point in points], color))
        y = TOP + HEIGHT + 38 + 18 * number
        parts += [svg.curve([(left, y - 4), (left + 18, y - 4)], color), svg.text(left + 24, y, words, "soft")]
    return parts


def figure(runs: Path, name: str, title: str) -> None:
    """The curves of one run side by side."""
    run, (blue, orange, green) = runs / name, svg.HUES[:3]
    loss = series(run, "loss")
    values = [value for _, value in loss] or [0.0, 1.0]
    parts = panel(46, "loss", [("loss", loss, blue)], math.floor(min(values)), math.ceil(max(values)))
    first = "instance_" if name == "avid_cma" else ""
    scores = [
        ("of the right pair", series(run, f"{first}video_to_audio_positive_score"), green),
        ("of other pairs", series(run, f"{first}video_to_audio_negative_score"), orange),
    ]
    parts += panel(286, "cosine, video to audio", scores, -0.25, 0.75)
    spread = [
        ("video", series(run, "video_embedding_spread"), blue),
        ("audio", series(run, "audio_embedding_spread"), orange),
    ]
    parts += panel(526, "embedding spread", spread, 0, 1)
    svg.save(f"curves_{name}", 740, 240, title, parts)


def main(runs: Path) -> None:
    """Write the figures of the runs that are there."""
    titles = {
        "avid": "A healthy run of AVID: the loss stands, then falls, and right pairs part from others",
        "plateau": "A run that stands still: right pairs hardly part from others, and the spread falls to nothing",
        "diverged": "A run that falls apart: the loss jumps above its start, and all cosines move together",
        "avid_cma": "A healthy run of AVID+CMA after AVID",
    }
    for name, title in titles.items():
        if (runs / name / "metrics.jsonl").is_file():
            figure(runs, name, title)
            print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
