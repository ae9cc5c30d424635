"""Small clips, shards of them, and facts of shard folders, for the tests of data_prep."""

import hashlib
import json

import numpy as np
from PIL import Image

from avssl.files.whole import sha256_file
from avssl.shards.format import ShardIndex, ShardRecord, SideCar
from avssl.shards.shard_set import ShardSet, write_tar
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.verify import verify_folder
from data_prep.transcode.encode import write_media
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards

OPTIONS = WriteOptions(short_side_px=48, samples_per_shard=3)


def square_frames(num_frames, seed=0, height=48, width=64):
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 200, 3, dtype=np.uint8)
    frames = np.broadcast_to(background, (num_frames, height, width, 3)).copy()
    for k in range(num_frames):
        frames[k, 8:24, (2 * k) % 40 : (2 * k) % 40 + 16] = 255 - background
    return frames


def landscape(seed, height=96, width=128):
    """uint8 (height, width, 3): soft random colors, as different from each other as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def panning(seed, num_frames, step=2):
    wide = landscape(seed, 96, 128 + step * num_frames)
    return [np.ascontiguousarray(wide[:, step * k : step * k + 128]) for k in range(num_frames)]


def sine(seconds, rate_hz, amplitude=1.0, hz=997.0):
    """float64 (samples,)."""
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def tone(seconds, rate_hz=48000, seed=0):
    """float32 (1, samples): another pitch for each seed."""
    return sine(seconds, rate_hz, 0.4, 300 + 50 * seed).astype(np.float32)[None]


def make_clip(path, seed=0, seconds=1.0, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "video": square_frames(round(20 * seconds), seed), "video_fps": 20, "audio": tone(seconds, seed=seed),
        "audio_rate_hz": 48000,
    }  # fmt: skip
    write_media(path, **(settings | changes))


def prepare_eight_clips(folder):
    """Make videos/ (eight good clips in two folders, two containers), corpus.jsonl and shards/ in a folder."""
    for seed in range(8):
        codecs = {"video_codec": "libvpx-vp9", "audio_codec": "libopus"} if seed % 2 else {}
        name = f"{'cats' if seed < 4 else 'dogs'}/clip {seed}{'.webm' if seed % 2 else '.mp4'}"
        make_clip(folder / "videos" / name, seed, **codecs)
    build_manifest(folder / "videos", folder / "corpus.jsonl", IndexOptions(num_workers=2))
    write_shards(folder / "corpus.jsonl", folder / "shards", OPTIONS, num_workers=2)


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def complaints(folder, **options):
    return [f"{problem.file}: {problem.message}" for problem in verify_folder(folder, **options).problems]


def skips(folder):
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {record["key"]: record for record in map(json.loads, lines)}


def samples_of(folder):
    """{key: sample} of a shard folder."""
    shards = ShardSet(folder)
    return {key: shards.read(index) for index, key in enumerate(shards.keys)}


def rewrite(shards, name, edit):
    """Change the samples of a shard and make all sizes, hashes and offsets fit again."""
    whole = ShardSet(shards)
    index, position = whole.index, [record.name for record in whole.index.shards].index(name)
    record = index.shards[position]
    samples = [whole.read(record.first_index + k) for k in range(record.num_samples)]
    whole.close()
    samples = edit(samples)
    with (shards / name).open("wb") as file:
        offsets = [0, *write_tar(file, samples)]
    path = shards / name
    new = ShardRecord(name, len(samples), path.stat().st_size, sha256_file(path), record.first_index)
    path.with_suffix(".json").write_bytes(SideCar(new, [s.info.key for s in samples], offsets).to_json())
    records = [new if one.name == name else one for one in index.shards]
    facts = {field: getattr(index, field) for field in ShardIndex.__dataclass_fields__}
    (shards / "index.json").write_bytes(ShardIndex(**(facts | {"shards": records})).to_json())
