"""Kill `index`, `write` and `embed` at random moments, again and again: the same command gives the same bytes.

    python -m tests.soak.preparation_storm --rounds 8 --kills 4 --seed 0

A round starts a command in a process group of its own, kills it `--kills` times at random moments, either the whole
group or its first process alone, and runs it once more to the end.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.clips import make_clip
from tests.made_runs import SMALL_AVID, made_run
from tests.odd_files import ODD
from tests.soak.outcome import Outcome

ROOT = Path(__file__).parents[2]
NUM_CLIPS = 24
SOME_ODD_FILES = ("half.mp3", "damaged.mov", "7.1.m4a", "clock_restarts.ts")


def make_sources(folder: Path) -> None:
    """Clips, some odd files, a text that is named as a film is, and an empty file."""
    for seed in range(NUM_CLIPS):
        make_clip(folder / f"class {seed % 3}" / f"clip {seed}.mp4", seed, seconds=0.5 + 0.1 * (seed % 4))
    for name in SOME_ODD_FILES:
        ODD[name].make(folder / name)
    (folder / "text.mp4").write_text("no video\n")
    (folder / "empty.wav").touch()


def digest(path: Path) -> dict[str, str]:
    """sha256 of every file below a folder, hidden ones too, or of one file: nothing of a killed command may stay."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, on one thread."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def run_to_end(arguments: list[str], log: Path) -> float:
    """Seconds that the command took; AssertionError with its last words if it failed."""
    began = time.monotonic()
    status = start(arguments, log).wait(timeout=300)
    assert status == 0, f"{arguments[:4]} left with {status}: {log.read_text(errors='replace')[-800:]}"
    return time.monotonic() - began


def killed_rounds(
    outcome: Outcome, name: str, command: Callable[[Path], list[str]], folder: Path, rounds: int, kills: int, seed: int
) -> None:
    """All rounds of one command: command(out) are its arguments."""
    log, undisturbed = folder / f"{name}.log", folder / f"{name}-undisturbed"
    seconds = run_to_end(command(undisturbed), log)
    wanted = digest(undisturbed)
    moments = random.Random(f"{name} {seed}")
    landed = 0
    for number in range(rounds):
        out = folder / f"{name}-{number}"
        with outcome.case(f"{name}, round {number} of seed {seed}, {kills} kills"):
            for _ in range(kills):
                process = start(command(out), log)
                time.sleep(moments.uniform(0.3, 1.0) * seconds)
                landed += process.poll() is None
                kill_one = moments.random() < 0.3
                if kill_one:
                    process.kill()
                else:
                    with suppress(ProcessLookupError):  # it has ended by itself
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            run_to_end(command(out), log)
            assert digest(out) == wanted, sorted(wanted.items() ^ digest(out).items())[:6]
            leftovers = [path.name for path in folder.glob(f".{out.name}*")]
            assert not leftovers, f"left behind: {leftovers}"
        shutil.rmtree(out, ignore_errors=True)
    print(f"{name}: {landed} of {rounds * kills} kills met a running command", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of each of the three commands")
    parser.add_argument("--kills", type=int, default=4, help="of a round")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    outcome = Outcome("index, write and embed give the same bytes however often they are killed")
    with tempfile.TemporaryDirectory(prefix="avssl-soak-") as temporary:
        folder = Path(temporary)
        sources, manifest = folder / "sources", folder / "corpus.jsonl"
        make_sources(sources)
        run_to_end(["-m", "data_prep", "index", str(sources), "--out", str(manifest)], folder / "log")
        run = made_run(folder / "run", "loss.name=avid", *SMALL_AVID)
        commands: dict[str, Callable[[Path], list[str]]] = {
            "index": lambda out: ["-m", "data_prep", "index", str(sources), "--out", str(out), "--num-workers", "2"],
            "write": lambda out: ["-m", "data_prep", "write", str(manifest), "--out", str(out), "--num-workers", "2",
                                  "--short-side-px", "48", "--samples-per-shard", "3"],
            "embed": lambda out: ["recipes/embed.py", str(run), str(sources), "--out", str(out), "--window", "0.5",
                                  "--device", "cpu", "--sources-per-block", "3"],
        }  # fmt: skip
        for name, command in commands.items():
            killed_rounds(outcome, name, command, folder, given.rounds, given.kills, given.seed)
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
