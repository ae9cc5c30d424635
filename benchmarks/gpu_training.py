"""Training throughput on one GPU against the bare encoder: R(2+1)D-18, 8 x 224 x 224, bf16. No network, no files.

    python benchmarks/gpu_training.py [--batch-size 64] [--encoder r2plus1d_18]
    python benchmarks/gpu_training.py --device cpu --tiny              # shows that the code runs

The whole step of AVID (copy from pinned memory, views, both encoders, heads, loss with two banks of 1.78 M rows, fused
Adam, banks, log every tenth step) in clips per second, against forward and backward of both encoders on views in GPU
memory; both with the same setting of memory order and compilation. Every setting is measured; the claim is about the
fastest one. Batches are synthetic, so that decoding on the host is not measured: `loader` measures that.

Model FLOPs are counted by PyTorch's counter on one forward and backward; the peak is the vendor's dense bf16 number.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl import device as device_settings
from benchmarks.claims import Claim, command_line, publish, take_turns
from benchmarks.whole_step import Size, WholeStep

# Dense bf16 TFLOP/s of the vendor's data sheets; the first of these names that the device's name contains is used.
PEAK_TERAFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0}
SETTINGS = {
    "plain": {"channels_last": False, "compiled": False},
    "channels last": {"channels_last": True, "compiled": False},
    "channels last, compiled": {"channels_last": True, "compiled": True},
}


def prepare(arguments: Any, setting: str) -> WholeStep:
    """The step with its encoders in one of SETTINGS, after three steps of warm-up."""
    chosen = SETTINGS[setting]
    size = Size(batch_size=arguments.batch_size, size_px=224, video={"name": arguments.encoder})
    if arguments.tiny:
        size = Size(
            batch_size=4, num_samples=1000, num_negatives=16, num_frames=2, size_px=32,
            video={"name": "avid_video", "depth": 10, "width": 4}, audio={"name": "avid_audio", "width": 4},
            changes=("views.audio.seconds=0.5", "views.audio.rate_hz=16000", "views.audio.num_frames=24"),
        )  # fmt: skip
    step = WholeStep(size, arguments.device, "bf16")
    device_settings.use_channels_last(step.loss, chosen["channels_last"], step.device)
    if chosen["compiled"]:
        device_settings.compile_encoders(step.loss, "aot_eager" if arguments.tiny else "inductor")
    step.optimizer.zero_grad()  # gradients lie in memory as their weights do
    for _ in range(3):
        step.whole()
    return step


def teraflops_of(step: WholeStep) -> float:
    """10^12 floating-point operations of one forward and backward of both encoders on the whole batch."""
    with FlopCounterMode(display=False) as counter:
        step.encode()
    return float(counter.get_total_flops()) / 1e12


def encode(step: WholeStep) -> None:
    """Both encoders forward and backward into new gradients, as a step makes them."""
    step.encode()
    step.optimizer.zero_grad()


def several(function: Any, times: int, device: str) -> Any:
    """A function that calls another `times` times and waits for what that started on the GPU."""

    def run() -> None:
        for _ in range(times):
            function()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(arguments: Any, setting: str, teraflops: float) -> Claim:
    """The row of a setting: clips per second of the whole step and of the bare encoders."""
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = prepare(arguments, setting)
    batch = step.size.batch_size
    times = 1 if arguments.tiny else arguments.steps
    methods = {"whole": step.whole, "encoders": lambda: encode(step)}
    turns = {name: several(method, times, arguments.device) for name, method in methods.items()}
    seconds = take_turns(turns, arguments.rounds, time.perf_counter)
    rate = {name: times * batch / statistics.median(taken) for name, taken in seconds.items()}
    note = f"{teraflops * rate['encoders'] / batch:.3g} TFLOP/s bare, {teraflops * rate['whole'] / batch:.3g} whole"
    peak = arguments.peak_teraflops or peak_of_device(arguments.device)
    if peak:
        note += f"; utilization {teraflops * rate['whole'] / batch / peak:.1%} of {peak:g}"
    if arguments.device == "cuda":
        note += f"; peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    step.close()
    what = "tiny networks" if arguments.tiny else f"{arguments.encoder}, 8 x 224 px"
    name = f"training, {arguments.device}: {what}, bf16, batch {batch}, {setting}"
    ratios = [a / b for a, b in zip(seconds["encoders"], seconds["whole"], strict=True)]
    return Claim(name, rate["whole"], rate["encoders"], "clips/s", "both encoders alone, on resident views",
                 statistics.median(ratios), "at least", None, note)  # fmt: skip


def peak_of_device(device: str) -> float:
    """The data sheet's TFLOP/s, 0 for a device that is not listed."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for key, peak in PEAK_TERAFLOPS.items() if key in name), 0.0)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--encoder", default="r2plus1d_18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each turn")
    parser.add_argument("--peak-teraflops", type=float, default=0.0, help="dense bf16, of a device that is not listed")
    parser.add_argument("--tiny", action="store_true", help="networks and media of no use, to show that it runs")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here; --device cpu --tiny shows that the code runs")
    plain = prepare(arguments, "plain")
    teraflops = teraflops_of(plain)
    plain.close()
    del plain
    claims = []
    for setting in SETTINGS:
        claims.append(measure(arguments, setting, teraflops))
        print(claims[-1], flush=True)  # a later setting that fails takes no result with it
    best = max(claims, key=lambda claim: claim.ours)
    if not arguments.tiny:
        claims[claims.index(best)] = Claim(**{**vars(best), "goal": 0.95})
    publish(claims, arguments.json)


if __name__ == "__main__":
    main()
