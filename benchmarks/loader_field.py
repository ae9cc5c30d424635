"""This program's loader among others: clips per second and core, with workers by the clock, memory, first batch.

    python benchmarks/loader_field.py [--shards FOLDER] [--clips 48] [--rounds 7] [--methods ours,spdl] [--python P]

Each method runs in a process of its own, which gets requests and takes turns with the others. All load the same clips
of the same bytes: 8 frames at 16 per second, cropped to the same boxes and resized to 224 px by the same function, and
2 s of audio, drawn as AVID draws them; before anything is measured, frames and audio are compared with ours. Each
method has the settings that its documentation recommends for this: one thread a decoder, no scan of the file, workers.

ours         from the shard file; with workers the batches come as the training process gets them
torchcodec   VideoDecoder(seek_mode="approximate") and AudioDecoder, in PyTorch's DataLoader
spdl         spdl.io, demuxing from the keyframe on; with workers its own pipeline of threads
decord       decord2's VideoReader, in PyTorch's DataLoader; it reads no FLAC from memory: frames alone
webdataset   the tar read as a stream, decoded by torchcodec, in PyTorch's DataLoader
bare         the shortest program for PyAV, in PyTorch's DataLoader

CPU time is that of the process (in one process) and of it and all its workers (with workers). The packages are
installed below .cache, or lie in the environment of --python. torchcodec needs the system's FFmpeg.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.shards.shard_set import ShardSet
from benchmarks.claims import ROOT, Claim, command_line, machine, median_ratio, publish
from benchmarks.loader_field_methods import BATCH, METHODS, WORKERS, Loaded, Place, batches, places_of

PACKAGES = ("torchcodec==0.17.0", "spdl==0.8.0", "spdl-core==0.8.0", "spdl-io==0.8.0", "decord2==3.4.0")


def cpu_seconds_of_tree() -> float:
    """CPU seconds of this process and of all processes below it that live."""
    ticks, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:
            continue
        ticks += sum(map(int, fields[11:15]))  # its own, and those of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(folder: str, method: str) -> None:
    """Answer requests: {"places": [...], "workers": n, "check": bool} -> seconds, memory, or the clips' facts."""
    from avssl.data.workers import keep_freed_memory

    torch.set_num_threads(1)
    if method == "ours":
        keep_freed_memory()
    for line in sys.stdin:
        request = json.loads(line)
        places = [(index, start, sound, tuple(box)) for index, start, sound, box in request["places"]]
        if request["check"]:
            decode = METHODS[method]()
            shards = ShardSet(folder)
            found = [decode(shards.read(place[0]), place[1], place[2]) for place in places]
            torch.save(found, request["check"])
            print(json.dumps({}), flush=True)
            continue
        clock = cpu_seconds_of_tree if request["workers"] else time.process_time
        cpu, wall, count = clock(), time.perf_counter(), 0
        used = taken = 0.0
        is_first = request["workers"] > 0
        for batch in batches(folder, method, places, request["workers"]):
            if is_first:  # the workers have started
                cpu, wall, is_first = clock(), time.perf_counter(), False
                continue
            count += BATCH
            used, taken = clock() - cpu, time.perf_counter() - wall
            del batch
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        print(json.dumps({"cpu": used / max(1, count), "wall": taken / max(1, count), "mib": peak}), flush=True)


class Peer:
    """The process of a method."""

    def __init__(self, python: str, folder: str, method: str) -> None:
        self.begun = time.perf_counter()
        command = [python, str(Path(__file__).resolve()), "--serve", method, "--shards", folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, places: list[Place], workers: int = 0, check: str = "") -> dict[str, float]:
        """The answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"places": places, "workers": workers, "check": check}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of a method ended; see its message above")
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def differences(found: list[Loaded], ours_found: list[Loaded]) -> tuple[float, float, float]:
    """How a method's clips differ from ours: mean levels of pixels in the worst clip, the mean with ours moved by a
    frame (what a wrong frame would give), and the largest difference of the audio.
    """

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.float() - b.float()).abs().mean())

    levels = max(apart(a, b) for (a, _), (b, _) in zip(found, ours_found, strict=True))
    moved = float(np.mean([apart(a[1:], b[:-1]) for (a, _), (b, _) in zip(found, ours_found, strict=True)]))
    sound = max(float((a - b).abs().max()) for (_, a), (_, b) in zip(found, ours_found, strict=True))
    return levels, moved, sound


def check(peers: dict[str, Peer], places: list[Place], folder: Path) -> list[str]:
    """Compare all methods' frames and audio with ours; lines that say how they differ. SystemExit for other frames."""
    lines, found = [], {}
    for name, peer in peers.items():
        peer.ask(places, check=str(folder / f"{name}.pt"))
        found[name] = torch.load(folder / f"{name}.pt", weights_only=True)
    for name in peers:
        levels, moved, sound = differences(found[name], found["ours"])
        lines.append(f"{name}: frames {levels:.2f} levels from ours (a frame off: {moved:.1f}), audio {sound:.1e}")
        if levels > max(1.0, moved / 4) or (sound > 1e-3 and name != "decord"):
            sys.exit(f"{lines[-1]}: not the same clips")
    return lines


def measured(
    python: str, folder: str, names: list[str], arguments: Any, scratch: Path
) -> dict[str, dict[str, list[float]]]:
    """{method: {measure: a value for each round}}. Prints how the methods' clips differ from ours."""
    shards = ShardSet(folder)
    values: dict[str, dict[str, list[float]]] = {
        name: {key: [] for key in ("cpu", "wall2", "cpu2", "mib", "first")} for name in names
    }
    peers = {name: Peer(python, folder, name) for name in names}
    try:
        lines = check(peers, places_of(shards, BATCH, 99), scratch)
        for number in range(-1, arguments.rounds):
            places = places_of(shards, arguments.clips, number + 1)
            for name in names[:: 1 if number % 2 else -1]:
                answer = peers[name].ask(places)
                if number >= 0:
                    values[name]["cpu"].append(answer["cpu"])
                    values[name]["mib"] = [answer["mib"]]
        print("\n".join([*lines, table_of(values)]), flush=True)  # what follows may take minutes
        for number in range(arguments.worker_rounds):
            places = places_of(shards, 4 * arguments.clips, 1000 + number)
            for name in names[:: 1 if number % 2 else -1]:
                answer = peers[name].ask(places, WORKERS)
                values[name]["wall2"].append(answer["wall"])
                values[name]["cpu2"].append(answer["cpu"])
    finally:
        for peer in peers.values():
            peer.__exit__()
    for number in range(arguments.worker_rounds):
        for name in names[:: 1 if number % 2 else -1]:
            with Peer(python, folder, name) as peer:
                peer.ask(places_of(shards, BATCH, 0), WORKERS)
                values[name]["first"].append(time.perf_counter() - peer.begun)
    return values


def table_of(values: dict[str, dict[str, list[float]]]) -> str:
    """Medians in Markdown, and the ratios to ours, round by round."""
    lines = [
        f"| loader | clips/s and core, one process | ours is | clips/s, {WORKERS} workers | ours is | "
        f"clips/s and core, {WORKERS} workers | first batch s | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    mine = values["ours"]
    for name, found in values.items():
        times = [median_ratio(found[key], mine[key]) if found[key] else float("nan") for key in ("cpu", "wall2")]
        rate = {key: 1 / statistics.median(found[key]) for key in ("cpu", "wall2", "cpu2") if found[key]}
        first = f"{statistics.median(found['first']):.1f}" if found["first"] else ""
        lines.append(
            f"| {name} | {rate['cpu']:.0f} | {times[0]:.2f} | {rate.get('wall2', 0):.0f} | {times[1]:.2f} | "
            f"{rate.get('cpu2', 0):.0f} | {first} | {found['mib'][0]:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--shards", default="", help="a folder of shards with audio (default: made films)")
    parser.add_argument("--clips", type=int, default=48, help="in a round of a method")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker-rounds", type=int, default=3, help="with workers, of four times as many clips")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; ours is always one")
    parser.add_argument("--python", default="", help="of an environment that has the packages")
    parser.add_argument("--serve", choices=METHODS, help="what the processes of the methods are started with")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.shards, arguments.serve)
    from benchmarks.environments import beside_project
    from benchmarks.loader_clips import prepared

    folder = arguments.shards or str(prepared()[1])
    python = arguments.python or str(beside_project(ROOT / ".cache" / "loader_field", *PACKAGES))
    names = list(dict.fromkeys(["ours", *arguments.methods.split(",")]))
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        values = measured(python, folder, names, arguments, Path(scratch))
    print(table_of(values))
    claims = []
    for name, found in values.items():
        if name != "ours":
            ours_cpu = values["ours"]["cpu"]
            goal = 1.6 if name in ("torchcodec", "spdl") else None
            claims.append(Claim("loader: a clip in one process", 1 / statistics.median(ours_cpu),
                                1 / statistics.median(found["cpu"]), "clips/s/core", name,
                                median_ratio(found["cpu"], ours_cpu), goal=goal))  # fmt: skip
    publish(claims, arguments.json)
    return None


if __name__ == "__main__":
    main()
