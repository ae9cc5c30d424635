"""Small clips, and facts of shard folders, for the tests of data_prep."""

import hashlib
import json

import numpy as np

from data_prep.inspect.verify import verify_folder
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions

OPTIONS = WriteOptions(short_side_px=48, samples_per_shard=3)


def square_frames(num_frames, seed=0, height=48, width=64):
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 200, 3, dtype=np.uint8)
    frames = np.broadcast_to(background, (num_frames, height, width, 3)).copy()
    for k in range(num_frames):
        frames[k, 8:24, (2 * k) % 40 : (2 * k) % 40 + 16] = 255 - background
    return frames


def tone(seconds, rate_hz=48000, seed=0):
    hz = 300 + 50 * seed
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)[None]


def make_clip(path, seed=0, seconds=1.0, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "video": square_frames(round(20 * seconds), seed), "video_fps": 20, "audio": tone(seconds, seed=seed),
        "audio_rate_hz": 48000,
    }  # fmt: skip
    write_media(path, **(settings | changes))


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def complaints(folder, **options):
    return [f"{problem.file}: {problem.message}" for problem in verify_folder(folder, **options).problems]


def skips(folder):
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {record["key"]: record for record in map(json.loads, lines)}
