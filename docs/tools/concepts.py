"""docs/figures/avid.svg, agreement.svg and positives.svg: the ideas of AVID and AVID+CMA.

    python docs/tools/concepts.py RUN/evaluation.json

The first is a drawing. The second shows made-up similarities. The third shows what `avssl evaluate RUN standard`
measured: the precision of positive sets.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import svg

BLUE, ORANGE, GREEN = svg.HUES[0], svg.HUES[1], svg.HUES[2]
RULES = {"consensus": GREEN, "video": BLUE, "audio": ORANGE}


def avid() -> None:
    """The way from a clip to the two comparisons."""
    parts = [svg.box(16, 124, 92, 56, ["one clip", "sample i"])]
    for row, (modality, other, color, otherwise) in enumerate(
        (("video", "audio", BLUE, ORANGE), ("audio", "video", ORANGE, BLUE))
    ):
        y = 40 + 150 * row
        length = ("8 frames, 0.5 s", "2 s of sound")[row]
        parts += [
            svg.arrow(108, 152, 146, y + 28),
            svg.box(150, y, 118, 56, [f"{modality} network", length], color),
            svg.arrow(268, y + 28, 306, y + 28),
            svg.box(310, y, 100, 56, [f"{modality} of i", "unit vector"], color),
            svg.arrow(410, y + 28, 500, y + 28),
            svg.text(455, y + 18, "yes or no?", "middle soft"),
            svg.box(
                504, y - 8, 200, 72, [f"memory of {other}", "row i: the right one", "1,024 rows: others"], otherwise
            ),
        ]
    parts += [
        svg.arrow(410, 84, 504, 178, -10), svg.arrow(410, 202, 504, 110, 10),
        svg.text(342, 130, "after the step:", "middle soft"), svg.text(342, 156, "half old, half new", "middle soft"),
    ]  # fmt: skip
    svg.save("avid", 720, 290, "AVID: each modality's vector is compared with memory rows of the other modality", parts)


def agreement() -> None:
    """Similarities to one sample in both modalities, and what is taken as a positive."""
    generator = np.random.default_rng(1)
    both = np.clip(generator.normal([0.72, 0.7], [0.09, 0.1], (9, 2)), 0, 0.97)
    only_video = np.clip(generator.normal([0.78, 0.25], [0.09, 0.12], (10, 2)), 0, 0.97)
    only_audio = np.clip(generator.normal([0.25, 0.8], [0.12, 0.08], (10, 2)), 0, 0.97)
    others = np.clip(generator.normal([0.22, 0.22], [0.12, 0.12], (70, 2)), 0, 0.97)
    rows = np.concatenate([both, only_video, only_audio, others])
    least = np.sort(rows.min(axis=1))[-9]
    left, bottom, side = 70, 300, 260

    def place(video: float, audio: float) -> tuple[float, float]:
        return left + side * video, bottom - side * audio

    corner = place(least, least)
    parts = [
        svg.curve([place(0, 1), place(0, 0), place(1, 0)], "var(--line)"),
        svg.curve([place(least, 1), corner, place(1, least)], GREEN, "5 4"),
        svg.text(left + side / 2, bottom + 26, "similarity of the pictures", "middle soft"),
        f'<g transform="translate({left - 14},{bottom - side / 2}) rotate(-90)">'
        f"{svg.text(0, 0, 'similarity of the sounds', 'middle soft')}</g>",
        svg.text(360, 70, "one dot: another sample, seen from one sample", "soft"),
    ]
    for video, audio in rows.tolist():
        taken = min(video, audio) >= least
        parts.append(svg.dot(*place(video, audio), GREEN if taken else "var(--soft)", 4 if taken else 3))
    lines = (
        ("close in both: positives of CMA", GREEN),
        ("close in pictures alone: the same lawn, another dog", "var(--soft)"),
        ("close in sound alone: the same wind, another place", "var(--soft)"),
        ("close in neither: the others", "var(--soft)"),
    )
    for number, (words, color) in enumerate(lines):
        parts += [svg.dot(366, 106 + 28 * number, color, 5), svg.text(380, 110 + 28 * number, words)]
    parts.append(svg.text(360, 232, "The order is by the smaller of the two similarities.", "soft"))
    svg.save("agreement", 720, 340, "Positives of CMA are the samples that are similar in both modalities", parts)


def positives(result: dict[str, dict[str, dict[str, float]]]) -> None:
    """Precision of the positive sets by rule and label field, and chance: bars from 0 to 1."""
    measured = result["results"]["trained"]
    fields = sorted({name.rpartition("_")[2] for name in measured if name.startswith("positive_precision_")})
    left, width, y = 220, 400, 60
    parts = [svg.text(left, 32, "share of positives that are of the sample's class", "bold")]
    words = []
    for field in fields:
        parts.append(svg.text(16, y + 34, f"label: {field}", "bold"))
        for rule, color in RULES.items():
            value = measured[f"positive_precision_{rule}_{field}"]
            parts += [
                svg.text(left - 10, y + 14, {"consensus": "agreement"}.get(rule, f"{rule} alone"), "end"),
                f'<rect x="{left}" y="{y}" width="{width * value:.1f}" height="19" rx="3" fill="{color}"/>',
                svg.text(left + width * value + 8, y + 14, f"{value:.2f}"),
            ]
            words.append(f"{rule} {field} {value:.2f}")
            y += 27
        y += 22
    svg.save("positives", 720, y + 6, f"Precision of positives: {', '.join(words)}", parts)


if __name__ == "__main__":
    avid()
    agreement()
    if len(sys.argv) > 1:
        positives(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
