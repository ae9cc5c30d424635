"""How the cost of AVID's training step grows: batch, rows of a bank, negatives, frames; world size by two_processes.py.

    python benchmarks/scaling.py [--quick]

CPU time of one thread. One size is varied, the others stay at their base: batch 16, banks of 100,000 x 128, K = 1024, 8
frames of 112 px. "outside" is everything but the encoders' forward and backward; "encoders" is measured on four clips
and divided by four. Memory is that of tensors: banks, weights with Adam's moments, and the views of a batch. There is
no goal: docs/scaling.md is derived from these rows.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.claims import Claim, command_line, cpu_seconds, publish, take_turns
from benchmarks.whole_step import Size, WholeStep

BASE = Size(batch_size=16, num_samples=100_000)
SERIES: dict[str, list[Size]] = {
    "batch": [replace(BASE, batch_size=count) for count in (16, 64)],
    "bank rows": [replace(BASE, num_samples=count) for count in (100_000, 1_000_000)],
    "negatives": [replace(BASE, num_negatives=count) for count in (1024, 8192)],
    "frames": [replace(BASE, num_frames=count) for count in (8, 16)],
}
ENCODER_ROWS = 4


def value_of(axis: str, size: Size) -> int:
    """The value of the size that a series varies."""
    fields = {"batch": "batch_size", "bank rows": "num_samples", "negatives": "num_negatives", "frames": "num_frames"}
    return int(getattr(size, fields[axis]))


def tensor_mib(step: WholeStep) -> dict[str, float]:
    """MiB of tensors: banks; weights, gradients and moments; views of a batch."""
    banks = sum(bank.rows.nbytes for bank in step.loss.banks.values())
    weights = sum(weight.nbytes for weight in step.loss.parameters())
    views = sum(view.nbytes for view in step.ready.values())
    return {"banks": banks / 2**20, "weights, gradients, moments": 4 * weights / 2**20, "views": views / 2**20}


def measure(axis: str, size: Size, rounds: int) -> list[Claim]:
    """The row of a size: seconds and memory."""
    step = WholeStep(size)
    methods = {"outside": step.outside, "encoders": lambda: step.encode(ENCODER_ROWS)}
    seconds = {name: statistics.median(taken) for name, taken in take_turns(methods, rounds, cpu_seconds).items()}
    memory = ", ".join(f"{name} {mib:,.0f} MiB" for name, mib in tensor_mib(step).items())
    step.close()
    name = f"scaling, {axis} {value_of(axis, size):,}"
    per_clip = seconds["outside"] / size.batch_size, seconds["encoders"] / ENCODER_ROWS
    ratio = per_clip[0] / per_clip[1]
    return [
        Claim(f"{name}: outside, per clip", *per_clip, "s", "both encoders, per clip", ratio, "at most", None, memory)
    ]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the first size of each series alone, once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    claims = []
    for axis, sizes in SERIES.items():
        for size in sizes[:1] if arguments.quick else sizes:
            claims += measure(axis, size, 1 if arguments.quick else arguments.rounds)
    publish(claims, arguments.json)


if __name__ == "__main__":
    main()
