"""Two processes against one with the same batch per process: AVID's training step under DDP and gloo, on a core each.

    python benchmarks/two_processes.py [--steps 3] [--batch-size 8]

One process on one core, then two on two cores by torchrun, in turn: clips per second of both together against those of
one process; 2 would be perfect. The time of a step is the wall time of the slowest process, which includes other work
of the machine; therefore the CPU time per step, which has no waiting in it, is printed beside it.

Then what each loss sends in a step, counted in a process that takes itself for one of two: collectives, and the bytes
that one process sends per sample of its own (of 8), without DDP's gradients (4 bytes per trainable weight, in buckets
of 25 MB). Embeddings have their default dim; SwAV sends 4 bytes per prototype and view, here of 12 prototypes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl import losses
from benchmarks.claims import ROOT, Claim, command_line, cpu_seconds, publish
from benchmarks.collectives import pretended_world
from benchmarks.whole_step import Size, WholeStep


def work(arguments: Any) -> None:
    """Run some steps in this process and write their wall and CPU seconds to a file."""
    from accelerate import PartialState

    state = PartialState(cpu=True)  # the process group that torchrun asks for
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[state.process_index % len(cores)]})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = Size(batch_size=arguments.batch_size, num_samples=arguments.rows)
    step = WholeStep(size)
    if state.num_processes > 1:
        model = torch.nn.parallel.DistributedDataParallel(step.loss, broadcast_buffers=False)
        step.model = model
    step.optimizer.zero_grad()
    step.whole()
    state.wait_for_everyone()
    wall, used = [], cpu_seconds()
    for _ in range(arguments.steps):
        began = time.perf_counter()
        step.whole()
        wall.append(time.perf_counter() - began)
    result = {"wall": wall, "cpu": (cpu_seconds() - used) / arguments.steps}
    Path(arguments.work, f"{state.process_index}.json").write_text(json.dumps(result))
    state.wait_for_everyone()
    state.destroy_process_group()
    step.close()


def run(num_processes: int, arguments: Any) -> tuple[float, float]:
    """Wall seconds of a step (median over steps of the slowest process) and mean CPU seconds of a process's step."""
    options = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("steps", "batch-size", "rows")]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "benchmarks/two_processes.py", *options, f"--work={folder}"]
        subprocess.run(command, cwd=ROOT, check=True, env=environment)
        results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    slowest = [max(seconds) for seconds in zip(*(result["wall"] for result in results), strict=True)]
    return statistics.median(slowest), statistics.mean(result["cpu"] for result in results)


def sent_in_a_step(name: str) -> tuple[dict[str, int], int]:
    """({collective: number of calls}, bytes that one process sends) in a loss's step, of two processes with 8 samples
    each.
    """
    from tests.tiny import Run, loss_options

    pair = losses.get(name).pairs[0]
    wide = "embedding_dim" in loss_options(name, pair)
    full = {"embedding_dim": losses.get(name).Config().embedding_dim} if wide else {}
    experiment = Run(name, pair, **full)
    experiment.step()  # the first step sends more than the others
    views = {key: view[:8] for key, view in experiment.make_views(torch.arange(8), (), 0).items()}
    with pretended_world(2) as world:
        outputs = experiment.loss(views)
        result = experiment.loss.loss(outputs, torch.arange(8), experiment.progress)
        result.total.backward()
        experiment.loss.update(outputs, torch.arange(8))
        experiment.loss.after_step(experiment.progress)
    return dict(Counter(call for call, _ in world.calls)), sum(size for _, size in world.calls)


def communication() -> str:
    """A Markdown table of every registered loss on its first combination of modalities."""
    lines = ["| loss | collectives per step | bytes that a process sends per sample of its own |", "|---|---|---|"]
    for name in losses.names():
        calls, size = sent_in_a_step(name)
        shown = ", ".join(f"{count} {call}" for call, count in calls.items()) or "none"
        lines.append(f"| {name} | {shown} | {size / 8:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8, help="of a process")
    parser.add_argument("--rows", type=int, default=232_067, help="of each bank")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", help="run as one of the processes and write the result to this folder")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    seconds: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for number in range(arguments.rounds):
        for count in (1, 2) if number % 2 == 0 else (2, 1):
            seconds[count].append(run(count, arguments))
    rates = {count: [count * arguments.batch_size / wall for wall, _ in rounds] for count, rounds in seconds.items()}
    cpu = {count: statistics.median(used for _, used in rounds) for count, rounds in seconds.items()}
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    note = f"CPU time of a step {cpu[2] / cpu[1]:.3f} of one process's; {cores} cores, load average {load:.1f}"
    ratio = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    name = f"two processes: AVID, R(2+1)D-18 8 x 112 px, {arguments.batch_size} clips per process, gloo"
    publish(
        [Claim(name, statistics.median(rates[2]), statistics.median(rates[1]), "clips/s", "one process on one core",
               ratio, "at least", 1.9, note)],
        arguments.json,
    )  # fmt: skip
    print(f"\n{communication()}")


if __name__ == "__main__":
    main()
