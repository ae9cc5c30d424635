"""Memory of the loader's workers, time to the first batch, and whether memory grows.

    python benchmarks/loader_memory.py [--passes 20] [--samples 200]

Memory of a worker is that of its private pages, because shared libraries exist once for all; it is compared with the
formula of docs/loading.md. The first batch is timed by wall clock, from the start of a process that first starts the
server of workers, as recipes/pretrain.py does, and from building the loader after all imports. Growth is measured on
the resident memory of the worker and of this process, without mapped files and free memory of malloc, after each pass
over 200 clips of two seconds: the claim is the slope of a straight line through the passes of the second half.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.data.loader import Loader
from avssl.data.loader_config import LoaderConfig
from avssl.shards.shard_set import ShardSet
from avssl.transforms.audio import AudioParams
from avssl.transforms.color_augment import ColorParams
from avssl.transforms.config import ViewsConfig, image_augment, view_size_px
from avssl.transforms.jigsaw import NUM_TILES, jigsaw_size
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View
from benchmarks.claims import ROOT, Claim, command_line, machine, publish
from benchmarks.loader_clips import FOLDER, prepared, write_shards

# Private memory of a worker: 22 MiB of pages that it changes of the libraries and Python, and a decoded clip.
WORKER_MIB = 40
VIEWS = (View("video", "video"), View("audio", "audio"))
CPU = torch.device("cpu")
FIRST_BATCH = """
import time
from pathlib import Path
ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
age = float(Path("/proc/uptime").read_text().split()[0]) - ticks / 100
begin = time.perf_counter() - age
from avssl.processes.worker_server import start_worker_server
start_worker_server()
from benchmarks.loader_memory import loader_of
imported = time.perf_counter()
next(iter(loader_of({folder!r}, 16, 2, 2).epoch(0)))
ended = time.perf_counter()
print(ended - imported, ended - begin)
"""


def sample_bytes(views: Sequence[View], config: ViewsConfig) -> int:
    """Bytes that a worker sends per sample in training: all views and the index."""
    return 8 + sum(_audio_bytes(view, config) if view.modality == "audio" else _image_bytes(view, config)
                   for view in views)  # fmt: skip


def host_mib(views: Sequence[View], config: ViewsConfig, batch_size: int, workers: int, prefetch_batches: int) -> float:
    """An upper bound on the host memory, in MiB, of a training process' workers, without shared libraries.

    batch_size: samples per batch of this process. It holds for stored clips of about ten frames of 340 x 256 px;
    docs/loading.md explains the formula.
    """
    batch_mib = batch_size * sample_bytes(views, config) / 2**20
    # The rows of the batch that is being made, and batches in shared memory: prefetch_batches, and the one in use.
    return workers * (WORKER_MIB + (2 + prefetch_batches) * batch_mib)


def _image_bytes(view: View, config: ViewsConfig) -> int:
    """Bytes of a uint8 RGB view and its color parameters."""
    augment = image_augment(view, config)
    settings = config.image if view.modality == "image" else config.video
    side = view_size_px(augment, settings)
    num_patches = 1
    if augment is not None and augment.jigsaw:
        num_patches, side = NUM_TILES, jigsaw_size(side).patch_px
    num_frames = config.video.num_frames if view.modality == "video" else 1
    color_params = 0 if augment is None else 4 * num_patches * len(ColorParams._fields)
    return num_patches * num_frames * 3 * side**2 + color_params


def _audio_bytes(view: View, config: ViewsConfig) -> int:
    """Bytes of a float32 waveform, its drawn parameters, and the audio that is mixed in."""
    waveform = 4 * round(config.audio.seconds * config.audio.rate_hz)
    if view.augment == "test":
        return waveform
    mixed_in = waveform if config.audio.augment.mixup_ratio > 0 else 0
    tiles = 8 * NUM_TILES if view.augment == "jigsaw" else 0
    return waveform + 4 * len(AudioParams._fields) + mixed_in + tiles


def loader_of(folder: str, batch_size: int, num_workers: int, prefetch_batches: int) -> Loader:
    """A loader of the two views that AVID reads."""
    settings = LoaderConfig(global_batch_size=batch_size, num_workers=num_workers, prefetch_batches=prefetch_batches)
    maker = ViewMaker(ViewsConfig(), ["audio", "video"])
    return Loader(ShardSet(folder), settings, VIEWS, maker, seed=0, device=CPU)


def samples(num_samples: int) -> Path:
    """The folder of shards with about this many two-second segments of the films."""
    films, _ = prepared()
    shards = FOLDER / f"shards_{num_samples}"
    if not (shards / "index.json").is_file():
        stride = f"{8 / (num_samples / len(films) - 1):.4f}"
        write_shards(films[0].parent, shards, "--clip-seconds", "2", "--clip-stride", stride)
    return shards


def workers_of(loader: Loader) -> list[int]:
    """The ids of the processes that decode for the loader now."""
    return [worker.pid for worker in loader._stream._workers]  # type: ignore[union-attr]


def private_mib(pid: int | str) -> float:
    """MiB of the pages of a process that no other process maps."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def resident_mib(pid: int | str, kinds: Sequence[str]) -> float:
    """MiB of the resident pages of these kinds. Anon: memory of the process itself; Shmem: shared with others."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return sum(int(facts[f"Rss{kind}"].split()[0]) for kind in kinds) / 1024


def memory_rows(folder: Path) -> list[Claim]:
    """The largest private memory of a worker while batches of several sizes are read, against the formula."""
    rows = []
    for batch_size, prefetch in ((8, 2), (32, 2), (32, 4)):
        loader = loader_of(str(folder), batch_size, 2, prefetch)
        stream = loader.epoch(0)
        measured = 0.0
        for _ in range(min(12, loader.steps_per_epoch)):
            next(stream)
            measured = max(measured, *map(private_mib, workers_of(loader)))
        formula = host_mib(VIEWS, ViewsConfig(), batch_size, 1, prefetch)
        name = f"memory of a worker, batch {batch_size} of 8 x 224 px + 2 s, {prefetch} waiting"
        rows.append(Claim(name, measured, formula, "MiB", "formula", measured / formula, "at most", 1.0))
        stream.close()
        del loader, stream
    return rows


def first_batch_rows(folder: Path, rounds: int) -> list[Claim]:
    """Wall seconds to the first batch."""
    command = [sys.executable, "-c", FIRST_BATCH.format(folder=str(folder))]
    seconds = []
    for _ in range(rounds):
        output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        seconds.append([float(word) for word in output.split()])
    from_loader, from_process = (median(column) for column in zip(*seconds, strict=True))
    what = "first batch of 16, two workers"
    return [
        Claim(what, from_loader, None, "s", "from building the loader", from_loader, "at most", 3.0),
        Claim(what, from_process, None, "s", "from the start of the process", from_process, "at most", 3.0),
    ]


def growth_row(folder: Path, passes: int, batch_size: int = 8) -> Claim:
    """Growth of resident memory over passes. Pages of shared memory are counted in the worker, which owns them."""
    loader = loader_of(str(folder), batch_size, 1, 2)
    own_mib, worker_mib = [], []
    for number in range(passes):
        for _ in loader.epoch(number):
            pass
        ctypes.CDLL(None).malloc_trim(0)  # otherwise free memory varies by up to 60 MiB from pass to pass
        own_mib.append(resident_mib("self", ("Anon",)))
        worker_mib.append(sum(resident_mib(worker, ("Anon", "Shmem")) for worker in workers_of(loader)))
    for name, values in (("this process", own_mib), ("the worker", worker_mib)):
        print(f"resident MiB of {name} after each pass: " + " ".join(f"{value:.0f}" for value in values))
    last = (np.array(own_mib) + worker_mib)[passes // 2 :]
    slope = float(np.polyfit(np.arange(len(last)), last, 1)[0])
    name = f"growth of resident memory, passes {passes // 2 + 1} to {passes} over {len(loader.shards)} clips"
    return Claim(name, slope, None, "MiB per pass", "none", slope, "at most", 0.5)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of the first batch")
    arguments = parser.parse_args()
    if arguments.passes < 4:
        parser.error(f"--passes is {arguments.passes}; a line needs at least 4")
    torch.set_num_threads(1)
    print(machine())
    began = time.perf_counter()
    folder = samples(arguments.samples)
    rows = first_batch_rows(folder, arguments.rounds)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    rows += memory_rows(folder)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    rows.append(growth_row(folder, arguments.passes))
    publish(rows, arguments.json)


if __name__ == "__main__":
    main()
