"""Images per second of whole training: ours against lightly's heads and losses in a plain loop with torchvision's
views.

    python benchmarks/image_losses.py [--losses simclr,byol,swav,barlow_twins] [--batch-size 32]
    python benchmarks/image_losses.py --device cuda --encoder resnet50 --size-px 224 --data made --batch-size 256 \
        --num-workers 12 --steps 40          # no network, if lightly 1.6.0 is installed beforehand

Ours is recipes/pretrain.py on shards. The peer is lightly 1.6.0 in an environment of its own, in a loop like that of
solo-learn: the same files, from memory, opened by PIL, torchvision's transforms in the workers of a DataLoader, SGD;
the same network (ResNet-18 for 32 px), augmentations, batch, optimizer, precision and number of workers; memory order
and fused optimizer are each side's default. Images are those of Fashion-MNIST, or synthetic photographs (--data made).

If the encoder takes nearly all of a step, no loader or loss can make the ratio large: the rate of the bare encoder,
forward and backward on both views in memory, is printed as the limit of the ratio. On a CPU with bfloat16 matrix units
(AMX), the first loss is also measured with both sides in bf16, where the encoder takes less of a step. The last rows
are without views: heads, loss and backward on equal features, CPU time of one thread.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl import config, device, losses
from avssl.models import create_encoder
from avssl.ops import kernels
from avssl.types import Progress
from benchmarks import image_data, learning
from benchmarks.claims import ROOT, Claim, command_line, cpu_seconds, median_ratio, publish

LOSSES = ("simclr", "byol", "swav", "barlow_twins")
AUGMENTS = "simclr"  # the set of augmentations of every loss; the peer's transforms are the same
SETTINGS = {
    "simclr": ["loss.projector_hidden_dims=[512]"],
    "byol": ["loss.projector_hidden_dims=[1024]", "loss.predictor_hidden_dims=[1024]"],
    "swav": ["loss.projector_hidden_dims=[512]", "loss.num_small_crops=0", "loss.num_prototypes=500"],
    "barlow_twins": ["loss.projector_hidden_dims=[1024,1024]", "loss.embedding_dim=1024"],
}


def changes_of(name: str, arguments: Any, shards: Path) -> list[str]:
    """The configuration of a run as key=value changes, for both sides."""
    small = ", small_stem: true" if arguments.size_px < 64 else ""
    return [
        f"loss.name={name}", f"loss.augments=[{AUGMENTS},{AUGMENTS}]", *SETTINGS[name], f"data.shards={shards}",
        f"cpu={str(arguments.device == 'cpu').lower()}", "epochs=1000",
        f"data.global_batch_size={arguments.batch_size}", f"data.num_workers={arguments.num_workers}",
        f"views.image.size_px={arguments.size_px}", f"encoders.image={{name: {arguments.encoder}{small}}}",
        "optim.name=sgd", "optim.lr=0.03", "optim.weight_decay=1e-4",
    ]  # fmt: skip


def ours(changes: list[str], arguments: Any, folder: Path) -> float:
    """Images per second of the recipe, from its own log; the first third of the steps is warm-up."""
    run = folder / "speed" / f"{time.time_ns()}"
    steps = [f"steps={3 * arguments.steps}", f"log_every_steps={arguments.steps}", "checkpoint_every_steps=1000000"]
    command = [sys.executable, "recipes/pretrain.py", *changes, *steps, f"run={run}"]
    learning.run_command(command, run.with_suffix(".log"), on_cpu=arguments.device == "cpu")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["samples_per_second"] for line in lines[1:])


def peer(mode: str, name: str, changes: list[str], arguments: Any, python: Path) -> float:
    """The number that benchmarks/lightly_images.py prints last: images per second, or CPU seconds in mode heads."""
    command = [str(python), "benchmarks/lightly_images.py", mode, name, str(arguments.steps), *changes]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def encoder_rate(arguments: Any, precision: str) -> float:
    """Images per second of the bare encoder as the recipe sets it up, forward and backward on two views of each."""
    encoder = create_encoder(arguments.encoder, **stem_of(arguments)).to(arguments.device)
    device.use_channels_last(torch.nn.ModuleDict({"image": encoder}), None, torch.device(arguments.device))
    shape = (2 * arguments.batch_size, 3, arguments.size_px, arguments.size_px)
    views = torch.randn(shape, device=arguments.device)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        with torch.autocast(arguments.device, torch.bfloat16, enabled=precision == "bf16"):
            value = encoder(views).float().sum()
        value.backward()
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return arguments.batch_size / statistics.median(seconds[1:])


def has_bfloat16(arguments: Any) -> bool:
    """Whether this CPU multiplies bfloat16 matrices (AMX), and PyTorch does so rightly: it warns if not."""
    file = Path("/proc/cpuinfo")
    if not file.is_file() or "amx_bf16" not in file.read_text():
        return False
    encoder = torch.nn.ModuleDict({"image": create_encoder(arguments.encoder, **stem_of(arguments))})
    return kernels.autocast_is_right(encoder, torch.bfloat16, torch.device("cpu"))


def stem_of(arguments: Any) -> dict[str, Any]:
    """The encoder's options for images of this size."""
    return {"small_stem": True} if arguments.size_px < 64 else {}


def heads_seconds(name: str, changes: list[str], repeats: int) -> float:
    """Median CPU seconds of our heads, loss and backward on random features of two views."""
    cfg = config.parse(config.RunConfig, changes)
    encoders = {"image": PassedFeatures(512)}
    loss: Any = losses.get(name)(cfg.loss, encoders, 10_000)
    generator = torch.Generator().manual_seed(0)
    batch = cfg.data.global_batch_size
    views = {key: torch.randn(batch, 512, generator=generator).requires_grad_() for key in ("first", "second")}
    progress, index, seconds = Progress(total_steps=1000, batch=1), torch.arange(batch), []
    for _ in range(repeats + 2):
        began = cpu_seconds()
        outputs = loss(views)
        result = loss.loss(outputs, index, progress)
        result.total.backward()
        progress.step += 1
        loss.update(outputs, index)
        loss.after_step(progress)
        seconds.append(cpu_seconds() - began)
    return statistics.median(seconds[2:])


class PassedFeatures(torch.nn.Module):
    """An encoder whose input is its output."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.modality = dim, "image"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def training(name: str, changes: list[str], arguments: Any, folder: Path, python: Path, precision: str) -> Claim:
    """The row of whole training, with both sides in one precision."""
    changes = [*changes, f"mixed_precision={precision}"]
    rates, theirs = [], []
    for number in range(arguments.rounds):
        turns = [
            lambda: rates.append(ours(changes, arguments, folder)),
            lambda: theirs.append(peer("train", name, changes, arguments, python)),
        ]
        for turn in turns[:: 1 if number % 2 else -1]:
            turn()
    rate, other = statistics.median(rates), statistics.median(theirs)
    limit = encoder_rate(arguments, precision)
    what = f"{name}, {arguments.encoder} {arguments.size_px} px, batch {arguments.batch_size}, both in {precision}"
    note = f"bare encoder {limit:.3g} images/s, so at most {limit / other:.3g}"
    against = f"lightly, torchvision's views, {arguments.num_workers} worker(s) each"
    goal = None if precision == "bf16" and arguments.device == "cpu" else 1.3
    return Claim(f"image training: {what}", rate, other, "images/s", against, median_ratio(rates, theirs), goal=goal,
                 note=note)  # fmt: skip


def heads_alone(name: str, changes: list[str], arguments: Any, python: Path) -> Claim:
    """The row of heads, loss and backward on features."""
    changes = [*changes, f"data.global_batch_size={arguments.head_batch_size}"]
    pairs = [
        (heads_seconds(name, changes, arguments.repeats), peer("heads", name, changes, arguments, python))
        for _ in range(arguments.head_rounds)
    ]
    mine, theirs = zip(*pairs, strict=True)
    return Claim(f"image loss alone: {name}, batch {arguments.head_batch_size}", statistics.median(mine),
                 statistics.median(theirs), "s", "lightly's heads and loss on the same features",
                 median_ratio(theirs, mine), goal=1.0)  # fmt: skip


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size-px", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--head-batch-size", type=int, default=256)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="of each of three parts, the first of which is warm-up")
    parser.add_argument("--repeats", type=int, default=10, help="of the rows without views")
    parser.add_argument("--rounds", type=int, default=1, help="of whole training")
    parser.add_argument("--head-rounds", type=int, default=3, help="of the rows without views")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", choices=tuple(image_data.SOURCES), default="fashion")
    parser.add_argument("--folder", type=Path, default=Path(".cache/learn_images"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder.resolve() / arguments.data
    shards = image_data.prepare(folder, arguments.data)["train"]
    python = image_data.lightly_environment(folder)
    first, *rest = arguments.losses.split(",")
    usual = "fp32" if arguments.device == "cpu" else "bf16"
    runs = [(name, usual) for name in (first, *rest)]
    if usual == "fp32" and has_bfloat16(arguments):
        runs.append((first, "bf16"))
    changes = {name: changes_of(name, arguments, shards) for name, _ in runs}
    claims = [training(name, changes[name], arguments, folder, python, precision) for name, precision in runs]
    claims += [heads_alone(name, changes[name], arguments, python) for name in (first, *rest)]
    publish(claims, arguments.json)


if __name__ == "__main__":
    main()
