"""What a training step costs besides the encoders' forward and backward: AVID with 1.78 million rows in each bank.

    python benchmarks/training_step.py [--rounds 3] [--device cuda] [--encoder-rows 256]

Outside the encoders: views (copy, augmentation, spectrogram), heads, negatives, loss and its backward, optimizer,
banks, log; at batch 256, K = 1024, banks 1.78 M x 128, clips of 8 x 112 x 112 and two seconds of audio. It is compared
with both encoders (AVID's R(2+1)D-18 and its audio network), forward and backward. On a CPU, the time of the encoders
is measured on --encoder-rows of the batch and multiplied (they work row by row; a whole batch would take minutes), and
all else on the whole batch, in CPU time of one thread. On a GPU nothing is multiplied, and the networks run in bf16.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.claims import Claim, command_line, cpu_seconds, median_ratio, publish, take_turns
from benchmarks.whole_step import Size, WholeStep

GOAL = {"cpu": 0.10, "cuda": 0.05}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rows", type=int, default=1_780_000, help="of each bank")
    parser.add_argument("--encoder-rows", type=int, default=0, help="of the batch (default: 8 on a CPU, else all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    on_gpu = arguments.device == "cuda"
    rows = min(arguments.encoder_rows or (arguments.batch_size if on_gpu else 8), arguments.batch_size)
    size = Size(batch_size=arguments.batch_size, num_samples=arguments.rows)
    step = WholeStep(size, arguments.device, "bf16" if on_gpu else "fp32")
    outputs, result = step.heads_and_loss()

    def log() -> None:
        step.progress.step += step.cfg.log_every_steps - step.progress.step % step.cfg.log_every_steps
        step.monitor.batch_done(batch_of(step), result, step.loss, outputs)

    parts: dict[str, Callable[[], Any]] = {
        "encoders": lambda: step.encode(rows),
        "outside": step.outside,
        "views": step.make_views,
        "heads, negatives, loss": step.heads_and_loss,
        "optimizer": step.optimize,
        "banks": lambda: step.loss.update(outputs, step.index),
        "log": log,
    }
    clock: Callable[[], float] = cpu_seconds
    if on_gpu:
        clock = time.perf_counter
        parts = {name: synchronized(part) for name, part in parts.items()}
    seconds = take_turns(parts, arguments.rounds, clock)
    publish(claims_of(seconds, arguments.batch_size / rows, arguments), arguments.json)
    step.close()


def batch_of(step: WholeStep) -> Any:
    from avssl.types import Batch

    return Batch({}, step.index)


def synchronized(part: Callable[[], Any]) -> Callable[[], None]:
    """A function that runs the part and waits for what it started on the GPU."""

    def run() -> None:
        part()
        torch.cuda.synchronize()

    return run


def claims_of(seconds: dict[str, list[float]], factor: float, arguments: Any) -> list[Claim]:
    """The row of the claim, and a row with each part's fraction of the step."""
    encoders = [factor * taken for taken in seconds.pop("encoders")]
    ours = statistics.median(seconds["outside"])
    size = f"AVID, batch {arguments.batch_size}, {arguments.rows:,} x 128, K = 1024"
    measured = "" if factor == 1 else f"encoders at batch {arguments.batch_size / factor:.0f}, times {factor:.0f}"
    claims = [
        Claim(f"step outside the encoders: {size}", ours, statistics.median(encoders), "s",
              "encoders forward and backward, 8 x 112 px", median_ratio(seconds["outside"], encoders), "at most",
              GOAL[arguments.device], measured)
    ]  # fmt: skip
    step = [a + b for a, b in zip(encoders, seconds["outside"], strict=True)]
    for name, taken in seconds.items():
        if name == "outside":
            continue
        is_views = name == "views" and arguments.device == "cuda"
        per_step = [value / (10 if name == "log" else 1) for value in taken]
        note = "every tenth step" if name == "log" else ""
        claims.append(
            Claim(f"step: {name}", statistics.median(per_step), statistics.median(step), "s", "the whole step",
                  median_ratio(per_step, step), "at most", 0.05 if is_views else None, note)
        )  # fmt: skip
    return claims


if __name__ == "__main__":
    main()
