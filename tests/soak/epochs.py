"""Nothing grows with the epochs: memory, descriptors, threads, processes and files of a run, and of long-lived readers.

    python -m tests.soak.epochs --epochs 300

The recipe trains two losses, each in a process of its own: AVID+CMA, whose every tenth epoch reads the whole data set
in workers of their own, and MoCo, with banks, a queue, teachers, real shards, two workers and checkpoints. A third
process reads one shard folder, embeds a film window by window and reads the table of it, as often. Every quantity of
each is a case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from avssl import config, losses
from avssl.embedding.embedder import Embedder
from avssl.embedding.table import EmbeddingTable
from avssl.losses.base import EpochContext
from avssl.shards.shard_set import ShardSet
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from recipes import pretrain
from tests.clips import make_clip
from tests.conftest import TINY, TINY_CMA
from tests.made_runs import SMALL_AVID, made_run
from tests.soak.memory import heap_bytes
from tests.soak.outcome import Outcome

NUM_CLIPS, CHECKPOINT_EVERY_STEPS = 8, 40
MEASURED_EVERY = 5  # epochs: the search for garbage takes longer than a tiny epoch
Measured = dict[str, list[int]]
# The shortest time in which something becomes what it stays: caches of libraries, pieces of memory for batches.
WARM_UP = 0.3
# Bytes an epoch that are no growth. One view of one sample that is kept would be 12 kB, a batch of them 50 kB.
LARGEST_SLOPES = {
    "heap bytes": 2_000,
    "anonymous bytes": 10_000,
    "anonymous bytes of workers": 10_000,
    "shared bytes": 2_000,
}
CHANGES: dict[str, Sequence[str]] = {
    "avid_cma": [*TINY_CMA, "loss.search_every_epochs=10"],
    "moco": [
        "loss.modalities=[video, audio]",
        "loss.queue_size=8",
        "loss.shuffle_groups=0",
        "loss.embedding_dim=8",
        "loss.projector_hidden_dims=[16]",
    ],
}


def descendants(process: int) -> list[int]:
    """Processes below this one."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def status(process: int, key: str) -> int:
    """A number of /proc/PROCESS/status: kB as bytes, threads as they are; 0 of a process that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                value, *unit = line.split()[1:]
                return int(value) * (1024 if unit else 1)
    return 0


def descriptors(process: int) -> int:
    """How many are open."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return len(list(Path(f"/proc/{process}/fd").iterdir()))
    return 0


def measure(folder: Path) -> dict[str, int]:
    """Every quantity now; folder: where the process writes, temporary files and all."""
    me, others = os.getpid(), descendants(os.getpid())
    names = list(Path("/dev/shm").iterdir())
    return {
        "heap bytes": heap_bytes(),  # collects garbage first
        "anonymous bytes": status(me, "RssAnon"),
        "anonymous bytes of workers": sum(status(one, "RssAnon") for one in others),
        "shared bytes": sum(status(one, "RssShmem") for one in (me, *others)),
        "descriptors": sum(descriptors(one) for one in (me, *others)),
        "threads": sum(status(one, "Threads") for one in (me, *others)),
        "processes": len(others),
        "files": sum(1 for _ in folder.rglob("*")),
        "files in shared memory": sum(f"_{one}_" in path.name for path in names for one in (me, *others)),
    }  # fmt: skip


def note(measured: Measured, folder: Path) -> None:
    """Append what is so now."""
    for key, value in measure(folder).items():
        measured.setdefault(key, []).append(value)


def growth(values: Sequence[int]) -> tuple[float, float]:
    """Least-squares slope an epoch and its standard error, from means of ten blocks: neighbors are not independent."""
    blocks = np.array([block.mean() for block in np.array_split(np.array(values, float), 10)])
    at = (np.arange(10) + 0.5) * len(values) * MEASURED_EVERY / 10
    (slope, _), covariance = np.polyfit(at, blocks, 1, cov=True)
    return float(slope), float(covariance[0, 0]) ** 0.5


def check_growth(name: str, values: Sequence[int]) -> None:
    """Of values after the warm-up: bytes may not surely have a slope, and a count may not pass what it was."""
    if name in LARGEST_SLOPES:
        slope, error = growth(values)
        said = f"{slope:.0f} +- {error:.0f} an epoch, from {values[0]} to {values[-1]}"
        assert slope - 2 * error < LARGEST_SLOPES[name], said
    else:
        half = len(values) // 2
        # Two more: a batch on its way. One lost in fifty epochs would pass that.
        most = max(values[:half]) + 2
        assert max(values[half:]) <= most, f"from {max(values[:half])} to {max(values[half:])}"


def train(name: str, folder: Path, epochs: int) -> Measured:
    """Values of every quantity at the starts of epochs."""
    place, measured = folder / name, Measured()
    cls = losses.get(name)
    original: Callable[[Any, EpochContext], None] = cls.on_epoch_start

    def on_epoch_start(loss: Any, context: EpochContext) -> None:
        if context.epoch % MEASURED_EVERY == 0:
            note(measured, place)
        original(loss, context)

    cls.on_epoch_start = on_epoch_start  # type: ignore[method-assign]
    tiny = [one for one in TINY if not one.startswith(("loss.", "data.num_workers"))]
    own = [one for one in TINY if one.startswith("loss.")] if name.startswith("avid") else []
    steps = epochs * NUM_CLIPS // 4
    pretrain.main(config.parse(config.RunConfig, [
        f"loss.name={name}", *tiny, *own, *CHANGES[name], f"run={place / 'run'}", f"data.shards={folder / 'shards'}",
        f"steps={steps}", f"epochs={epochs}", "data.num_workers=2", f"checkpoint_every_steps={CHECKPOINT_EVERY_STEPS}",
        "keep_checkpoints=2",
    ]))  # fmt: skip
    return measured


def read(name: str, folder: Path, rounds: int) -> Measured:
    """As `train`: a shard folder that stays open, the windows of a film, and a table of them, once a round."""
    place, measured = folder / name, Measured()
    shards, embedder = (
        ShardSet(folder / "shards"),
        Embedder.from_run(made_run(place / "run", "loss.name=avid", *SMALL_AVID)),
    )
    film = folder / "clips" / "0.mp4"
    for number in range(rounds):
        for position in range(len(shards)):
            shards.read(position)
        table, failures = embedder.embed([film], window_seconds=0.5, stride_seconds=0.25)
        assert len(table) > 1
        assert not failures
        table.write(place / "table.parquet")
        assert len(EmbeddingTable.read(place / "table.parquet")) == len(table)
        if number % MEASURED_EVERY == 0:
            note(measured, place)
    return measured


def measured_apart(function: Callable[[str, Path, int], Measured], name: str, folder: Path, epochs: int) -> Measured:
    """The function in a process of its own, whose temporary files are below the folder."""
    (folder / name / "temporary").mkdir(parents=True)
    os.environ["TMPDIR"] = str(folder / name / "temporary")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as executor:
        return executor.submit(function, name, folder, epochs).result()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300, help="a multiple of 5, at least 100")
    parser.add_argument("--only", nargs="+", default=[*CHANGES, "readers"], choices=[*CHANGES, "readers"])
    given = parser.parse_args(argv)
    outcome = Outcome(f"an epoch always ends, {given.epochs} times without growth")
    with tempfile.TemporaryDirectory(prefix="avssl-soak-") as temporary:
        folder = Path(temporary)
        for number in range(NUM_CLIPS):
            make_clip(folder / "clips" / f"{number}.mp4", number, seconds=1.0)
        build_manifest(folder / "clips", folder / "corpus.jsonl", IndexOptions())
        write_shards(folder / "corpus.jsonl", folder / "shards", WriteOptions(short_side_px=32, samples_per_shard=4))
        for name in given.only:
            began, measured = time.monotonic(), Measured()
            with outcome.case(f"{name}: {given.epochs} epochs end"):
                measured = measured_apart(read if name == "readers" else train, name, folder, given.epochs)
                assert {len(values) for values in measured.values()} == {given.epochs // MEASURED_EVERY}
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            warm = int(WARM_UP * given.epochs / MEASURED_EVERY)
            for key, values in measured.items():
                with outcome.case(f"{key} of {name}"):
                    check_growth(key, values[warm:])
                slope, error = growth(values[warm:])
                said = f"{values[0]}, {values[warm]}, {values[-1]}: {slope:.2f} +- {error:.2f} an epoch"
                print(f"  {key}: {said}", file=sys.stderr, flush=True)
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
