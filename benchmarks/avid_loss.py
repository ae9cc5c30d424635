"""AVID's loss step alone, forward and backward, against a plain implementation of the same loss.

    python benchmarks/avid_loss.py [--device cuda] [--threads 2]

Plain: the negatives of both banks are gathered as (B, K, D) and multiplied by the anchors with bmm, then softplus, and
the backward pass by autograd. Ours is `AVID.loss` with all that it does: drawing negatives, the metrics of the log.
Banks of 232,067 x 128 in float32 (Kinetics), batch 64, 1,024 negatives, cross-AVID; nothing else of a training step.

The last lines say what the machine allows: B K D numbers of each bank must be read once, 67 MB in all, from rows spread
over 119 MB each; a copy of as many consecutive bytes, and the plain gathers, are measured beside it.
On a CPU the claim is about one thread's CPU time, which other programs affect least; --threads and wall time are for an
idle machine. On a GPU it is wall time with torch.cuda.synchronize(), and the plain loss is also measured compiled.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize, softplus

sys.path.insert(0, str(Path(__file__).parent.parent))
from avssl import losses
from avssl.types import Progress
from benchmarks.claims import Claim, command_line, cpu_seconds, median_ratio, publish, take_turns

NUM_SAMPLES, DIM, BATCH, NEGATIVES = 232_067, 128, 64, 1024
TEMPERATURE = 0.07


class Features(torch.nn.Module):
    """An encoder that is not called."""

    dim = DIM


class Case:
    """A batch of embeddings, and both ways to compute its loss."""

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        cls = losses.get("avid")
        encoders = {"video": Features(), "audio": Features()}
        self.loss: Any = cls(cls.Config(name="avid"), encoders, NUM_SAMPLES).to(device)
        self.loss.partition.fill_(2.2)
        self.banks = {name: self.loss.banks[name].rows for name in ("video", "audio")}
        self.index = torch.randperm(NUM_SAMPLES, generator=generator)[:BATCH].to(device)
        self.z = {
            name: normalize(torch.randn(BATCH, DIM, generator=generator), dim=1).to(device).requires_grad_()
            for name in self.banks
        }
        self.batch = 1

    def negatives(self) -> torch.Tensor:
        """Rows of negatives (B, K), drawn uniformly from all but the sample's own."""
        draws = torch.randint(NUM_SAMPLES - 1, (BATCH, NEGATIVES), device=self.index.device)
        return draws + (draws >= self.index[:, None])

    def plain_loss(self, negatives: torch.Tensor) -> torch.Tensor:
        """The plain loss, a scalar."""
        log_noise = torch.log(self.loss.partition * NEGATIVES)
        values = []
        for anchor, memory in (("video", "audio"), ("audio", "video")):
            z = self.z[anchor][:, :, None]
            positive = torch.bmm(self.banks[memory][self.index][:, None], z)[:, :, 0] / TEMPERATURE
            negative = torch.bmm(self.banks[memory][negatives], z)[:, :, 0] / TEMPERATURE
            terms = softplus(log_noise - positive).mean(dim=1) + softplus(negative - log_noise).sum(dim=1)
            values.append(terms.mean())
        return torch.stack(values).mean()

    def ours(self) -> torch.Tensor:
        """One loss step; it leaves the gradients in self.z."""
        self.batch += 1
        total: torch.Tensor = self.loss.loss(self.z, self.index, Progress(batch=self.batch)).total
        return self.backward(total)

    def plain(self, loss: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """One plain loss step; it leaves the gradients in self.z."""
        return self.backward((loss or self.plain_loss)(self.negatives()))

    def backward(self, total: torch.Tensor) -> torch.Tensor:
        for z in self.z.values():
            z.grad = None
        total.backward()
        if total.is_cuda:
            torch.cuda.synchronize()
        return total

    def gathers(self) -> None:
        """The gathers of the plain loss alone."""
        negatives = self.negatives()
        kept = [bank[negatives] for bank in self.banks.values()]
        if kept[0].is_cuda:
            torch.cuda.synchronize()

    def difference(self) -> float:
        """Largest difference of both gradients on the same negatives, relative to the largest entry."""
        progress = Progress(batch=0)
        negatives = self.loss.draw_negatives(self.index[:, None], progress)
        self.backward(self.plain_loss(negatives))
        expected = {name: z.grad for name, z in self.z.items()}
        self.backward(self.loss.loss(self.z, self.index, progress).total)
        return max(float((self.z[n].grad - g).abs().max() / g.abs().max()) for n, g in expected.items())


def copying(device: str) -> Callable[[], None]:
    """A function that copies as many consecutive bytes as the negatives of both banks have, into allocated memory."""
    source = torch.ones(2 * BATCH * NEGATIVES, DIM, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if target.is_cuda:
            torch.cuda.synchronize()

    return copy


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    is_gpu = arguments.device.startswith("cuda")
    case = Case(arguments.device)
    difference = case.difference()
    if not difference < 1e-4:
        raise SystemExit(f"both gradients differ by {difference:.1e} of the largest gradient")
    methods: dict[str, Callable[[], Any]] = {
        "ours": case.ours,
        "plain": case.plain,
        "gathers": case.gathers,
        "copy": copying(arguments.device),
    }
    if is_gpu:
        compiled = torch.compile(case.plain_loss)
        methods["plain, compiled"] = lambda: case.plain(compiled)
    clock = cpu_seconds if arguments.threads == 1 and not is_gpu else time.perf_counter
    seconds = take_turns(methods, arguments.rounds, clock, warm_up_rounds=3)
    goal = 3.0 if is_gpu else 2.5
    unit = "ms" if clock is time.perf_counter else "ms of CPU"
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    where = f"{arguments.device}, {arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    name = f"AVID loss step, 2 banks {NUM_SAMPLES:,} x {DIM}, B = {BATCH}, K = {NEGATIVES} ({where})"
    publish(
        [
            Claim(
                name, milliseconds["ours"], milliseconds[other], unit, other,
                median_ratio(seconds[other], seconds["ours"]), goal=goal if other == "plain" else None,
            )
            for other in milliseconds
            if other != "ours"
        ],
        arguments.json,
    )  # fmt: skip
    megabytes = 2 * BATCH * NEGATIVES * DIM * 4 / 1e6
    print(
        f"\nrows that must be read: {megabytes:.0f} MB. Copied in a row: {milliseconds['copy']:.1f} ms "
        f"({2 * megabytes / milliseconds['copy']:.1f} GB/s, read and written). Gathered to new memory: "
        f"{milliseconds['gathers']:.1f} ms. Ours, all of it: {milliseconds['ours']:.1f} ms, "
        f"{megabytes / milliseconds['ours']:.1f} GB/s of rows. Gradients differ by {difference:.1e} of the largest."
    )


if __name__ == "__main__":
    main()
