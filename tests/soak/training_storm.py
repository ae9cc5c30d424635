"""Kill training and damage its checkpoints, again and again: every run ends as the uninterrupted one, bit for bit.

    python -m tests.soak.training_storm --rounds 1 --kills 4 --seed 0

Two parts. Every file of a checkpoint is damaged in every way, and the run goes on from the checkpoint before. Then runs
of six losses on one and two processes are ended in any way at random moments, their newest checkpoint is damaged, and
the same command is started again, at once, as a scheduler does.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from tests.conftest import TINY, TINY_CMA
from tests.soak.outcome import Outcome
from tests.soak.preparation_storm import start

NUM_STEPS, MOST_SECONDS = 16, 300
SMALL = [change for change in TINY if not change.startswith("loss.")]
SMALL_LOSSES: dict[str, list[str]] = {  # one of each family; avid and avid_cma are its own
    "avid": ["recipes/configs/avid.yaml", *TINY],
    "avid_cma": ["recipes/configs/avid_cma.yaml", *TINY, *TINY_CMA],
    "moco": ["loss.modalities=[audio,audio]", "loss.queue_size=8", "loss.embedding_dim=8", "loss.shuffle_groups=0"],
    "xdc": ["loss.num_clusters=6", "loss.pca_dim=4"],
    "byol": ["loss.modalities=[audio,audio]", "loss.projector_hidden_dims=[16]", "loss.predictor_hidden_dims=[16]",
             "loss.embedding_dim=8"],
    "vicreg": ["loss.modalities=[video,audio]", "loss.projector_hidden_dims=[16]", "loss.embedding_dim=8"],
}  # fmt: skip
ENDS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}


def keys_of(name: str, shards: Path, run: Path, *more: str) -> list[str]:
    """Arguments of the recipe."""
    own = SMALL_LOSSES[name]
    if not own[0].endswith(".yaml"):
        own = [*SMALL, f"loss.name={name}", *own]
    return [*own, f"data.shards={shards}", f"run={run}", *more]


def results(run: Path) -> dict[str, object]:
    """What must be equal: the loss of every step, and what the run exports."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "losses": [(record["step"], record["loss"]) for record in map(json.loads, lines)],
        "weights": hashlib.sha256((run / "encoders.safetensors").read_bytes()).hexdigest(),
    }


# --- every file, damaged in every way ---------------------------------------------------------------------------------


def flipped(place: float) -> Callable[[Path], object]:
    """Flips one bit at this share of a file's length."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(len(content) - 1, int(place * len(content)))] ^= 1 << int(8 * place) % 8
        path.write_bytes(content)

    return flip


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit flipped at its end": flipped(1.0),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": Path.unlink,
    "a bit flipped in its middle": flipped(0.55),
    "empty": lambda path: path.write_bytes(b""),
    "a bit flipped at its beginning": flipped(0.0),
    "a byte cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit flipped early": flipped(0.12),
}


def train(name: str, shards: Path, run: Path, *more: str) -> str:
    """A run of the recipe in this process, to its end; what it said."""
    from accelerate.state import AcceleratorState

    from avssl import config
    from recipes import pretrain

    AcceleratorState._reset_state(reset_partial_state=True)
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        pretrain.main(config.parse(config.RunConfig, keys_of(name, shards, run, *more)))
    return said.getvalue()


def damage_grid(outcome: Outcome, shards: Path, folder: Path, num_kinds: int) -> None:
    """Each file of the newest of two checkpoints in so many ways; another file begins with another way."""
    straight, stopped = folder / "straight", folder / "stopped"
    more = ("checkpoint_every_steps=2", "optim.schedule=constant", "optim.warmup_steps=0")
    train("avid", shards, straight, "steps=5", *more)
    train("avid", shards, stopped, "steps=4", *more)
    wanted, kinds = results(straight), list(DAMAGE)
    names = sorted(path.name for path in (stopped / "step_000004").iterdir())
    for number, name in enumerate(names):
        for kind in (kinds[(number + one) % len(kinds)] for one in range(num_kinds)):
            run = folder / "damaged"
            shutil.copytree(stopped, run)
            DAMAGE[kind](run / "step_000004" / name)
            with outcome.case(f"{name}: {kind}"):
                said = train("avid", shards, run, "steps=5", *more)
                assert f"step_000004 is damaged: {name}" in said, said
                assert "step_000002 at step 2 of 5" in said, said
                assert results(run) == wanted
            shutil.rmtree(run)


# --- kills at random moments ------------------------------------------------------------------------------------------


def command(ranks: int, keys: list[str]) -> list[str]:
    """The recipe, started as users do."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [*launcher, "recipes/pretrain.py", *keys]


def run_to_end(arguments: list[str], log: Path) -> float:
    """Seconds that the command took; AssertionError with its last words if it failed."""
    began = time.monotonic()
    status = start(arguments, log).wait(timeout=MOST_SECONDS)
    assert status == 0, f"left with {status}: {log.read_text(errors='replace')[-1500:]}"
    return time.monotonic() - began


def num_lines(run: Path) -> int:
    """Steps that a run has logged."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def end_at_random(process: subprocess.Popen[bytes], run: Path, moments: random.Random, seconds: float) -> str:
    """Wait for a random moment, while it starts or trains, and end it in a random way: which, if it was running."""
    began = time.monotonic()
    if moments.random() < 0.2:
        time.sleep(moments.uniform(0, seconds))
    else:
        goal = num_lines(run) + moments.randrange(1, 6)
        while process.poll() is None and num_lines(run) < goal and time.monotonic() - began < MOST_SECONDS:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
    was_running = process.poll() is None
    name = moments.choice([*ENDS, "SIGKILL", "SIGKILL of the first process alone"])
    with suppress(ProcessLookupError):  # it has ended by itself
        if name in ENDS:
            os.killpg(process.pid, ENDS[name])
        else:
            process.kill()
    process.wait(timeout=MOST_SECONDS)
    return name if was_running else ""


def damage_newest(run: Path, moments: random.Random) -> str:
    """Damage a file of the newest checkpoint, if another one would be left; which and how."""
    found = sorted(run.glob("step_*"))
    if len(found) < 2 or moments.random() < 0.3:
        return ""
    path = moments.choice(sorted(found[-1].iterdir()))
    kind = moments.choice(["flipped", *DAMAGE])
    (flipped(moments.random()) if kind == "flipped" else DAMAGE[kind])(path)
    return f"{found[-1].name}/{path.name}: {kind}"


def killed_rounds(
    outcome: Outcome, name: str, ranks: int, shards: Path, folder: Path, given: argparse.Namespace
) -> None:
    """All rounds of one loss on so many processes."""
    log, straight = folder / f"{name}-{ranks}.log", folder / f"{name}-{ranks}-straight"
    more = (f"steps={NUM_STEPS}", "checkpoint_every_steps=1", "keep_checkpoints=3")
    seconds = run_to_end(command(ranks, keys_of(name, shards, straight, *more)), log)
    wanted = results(straight)
    moments = random.Random(f"{name} {ranks} {given.seed}")
    for number in range(given.rounds):
        run = folder / f"{name}-{ranks}-{number}"
        arguments = command(ranks, keys_of(name, shards, run, *more))
        events: list[str] = []
        with outcome.case(f"{name}, {ranks} processes, round {number} of seed {given.seed}"):
            for _ in range(given.kills):
                events.append(end_at_random(start(arguments, log), run, moments, seconds))
                if events[-1] != "SIGKILL of the first process alone" or ranks == 1:  # others may be saving still
                    events.append(damage_newest(run, moments))
            run_to_end(arguments, log)
            assert results(run) == wanted, events
        print(f"{run.name}: {', '.join(filter(None, events))}", file=sys.stderr, flush=True)
        shutil.rmtree(run, ignore_errors=True)


def make_shards(folder: Path) -> Path:
    """18 clips in three shards."""
    from data_prep.demo.corpus import make_demo_corpus
    from data_prep.index.build import IndexOptions, build_manifest
    from data_prep.transcode.options import WriteOptions
    from data_prep.write.run import write_shards

    corpus, manifest = folder / "corpus", folder / "corpus.jsonl"
    make_demo_corpus(
        corpus, num_train=18, num_test=1, seed=3, size_px=32, duration_seconds=1.5, num_workers=1, progress=False
    )
    build_manifest(corpus / "train", manifest, IndexOptions(labels=str(corpus / "train" / "labels.csv")))
    write_shards(manifest, folder / "shards", WriteOptions(short_side_px=32, samples_per_shard=7))
    return folder / "shards"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="of each loss on one and on two processes")
    parser.add_argument("--kills", type=int, default=4, help="of a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=int, default=len(DAMAGE), help="of damage to each file of a checkpoint")
    parser.add_argument("--losses", nargs="*", default=list(SMALL_LOSSES), choices=SMALL_LOSSES)
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--shards", type=Path, help="to train on; default: some are made")
    given = parser.parse_args(argv)
    outcome = Outcome("a run that is killed, and whose checkpoints are damaged, ends as the uninterrupted one")
    with tempfile.TemporaryDirectory(prefix="avssl-soak-") as temporary:
        folder = Path(temporary)
        shards = given.shards or make_shards(folder)
        damage_grid(outcome, shards, folder, given.kinds)
        for name in given.losses if given.rounds else ():
            for ranks in given.ranks:
                killed_rounds(outcome, name, ranks, shards, folder, given)
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
