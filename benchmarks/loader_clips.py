"""The corpus of the loader's benchmarks: films as AVID-CMA's loader reads them, and shards made of them. Made once.

Films are 340 x 256 px and last ten seconds. They are drawn at twice the size and halved, as data sets scale videos from
the web down to this size, so that their grain is that of a scaled film.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.claims import ROOT
from benchmarks.made_files import FPS, natural_frames, write_file

HEIGHT_PX, WIDTH_PX, SECONDS, NUM_FILMS = 256, 340, 10, 4
FOLDER = ROOT / ".cache" / "loader_clips"


def film(path: Path, seed: int) -> None:
    """Write a film."""
    frames = (
        frame.reshape(HEIGHT_PX, 2, WIDTH_PX, 2, 3).mean((1, 3), dtype=np.float32).round().astype(np.uint8)
        for frame in natural_frames(SECONDS * FPS, 2 * WIDTH_PX, 2 * HEIGHT_PX, seed)
    )
    write_file(path, frames, WIDTH_PX, HEIGHT_PX, seed)


def write_shards(source: Path, shards: Path, *index_options: str) -> None:
    """Make shards of a folder by `python -m data_prep`, with its defaults."""
    manifest = str(shards.with_suffix(".jsonl"))
    for arguments in (
        ["index", str(source), "--out", manifest, *index_options],
        ["write", manifest, "--out", str(shards), "--num-workers", "1"],
    ):
        subprocess.run([sys.executable, "-m", "data_prep", *arguments], cwd=ROOT, check=True)


def prepared() -> tuple[list[Path], Path]:
    """The films, and the folder of the only shard that is made of them."""
    films, shards = FOLDER / "films", FOLDER / "shards"
    if not (shards / "index.json").is_file():
        films.mkdir(parents=True, exist_ok=True)
        for seed in range(NUM_FILMS):
            film(films / f"{seed}.mp4", seed)
        write_shards(films, shards)
    return sorted(films.glob("*.mp4")), shards
