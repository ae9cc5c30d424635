"""What the fuzzer tries: for each target, how a good file is damaged and what then reads it.

A case is a pure function of (target, seed, number) and of the material. `try_case` raises AssertionError unless it
gave a result or one of our errors that names the file.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avssl.checkpoint.weights import read_provenance, read_weights
from avssl.config import ConfigError, RunConfig, parse
from avssl.embedding.table import EmbeddingTable
from avssl.eval.results import read_evaluation, read_rows
from avssl.exchange.statistics import _read_npz
from avssl.media.decode import probe, read_audio, read_video
from avssl.media.images import probe_image, read_image
from avssl.report.curves import read_metrics
from avssl.shards.format import ShardIndex, SideCar
from avssl.shards.manifest import stream_manifest
from avssl.shards.shard_set import ShardSet, parse_members
from avssl.types import MediaError
from data_prep.index.lists.formats import READERS, detect
from data_prep.index.lists.row import ListSettings
from data_prep.index.mnist import open_idx_file
from tests.soak import damage

NAME = "fuzzed"  # of the folder that is read, so of every file's path: an error must name it
OURS = (MediaError, ConfigError, ValueError, FileNotFoundError)  # these alone, not what is derived from them
MOST_CPU_SECONDS, MOST_CHARACTERS = 5.0, 20_000
Case = Callable[[random.Random, Path, Path], None]


def try_case(target: str, seed: int, number: int, material: Path, work: Path) -> None:
    """Damage and read once. work: a folder for this process alone; what is in it is removed."""
    rng = random.Random(f"{target}/{seed}/{number}")
    folder = work / NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.process_time()
    try:
        TARGETS[target](rng, material, folder)
    except OURS as error:
        _check(error)
    took = time.process_time() - began
    assert took < MOST_CPU_SECONDS, f"took {took:.1f} s of the processor"


def _check(error: Exception) -> None:
    text = str(error)
    assert type(error) in OURS, f"{type(error).__name__} in place of an error of ours: {text[:500]}"
    assert len(text) <= MOST_CHARACTERS, f"the message has {len(text)} characters: {text[:500]}"
    if type(error) is not ConfigError:  # of a command line there is no file
        _check_name(error)


def _check_name(error: Exception) -> None:
    assert NAME in str(error), f"the message does not name the file: {str(error)[:500]}"


@cache
def _good(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _pick(rng: random.Random, folder: Path) -> tuple[str, bytes, tuple[bytes, ...]]:
    """(name, content, other contents) of one of the good files of a folder."""
    files = _good(folder)
    name = rng.choice(list(files))
    return name, files[name], tuple(files.values())


def _json_or_bytes(content: bytes, rng: random.Random) -> bytes:
    return damage.odd_json(content, rng) if rng.random() < 0.7 else damage.damaged(content, rng)


def _lines(content: bytes, rng: random.Random) -> bytes:
    """json lines of which one or more is odd."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = damage.odd_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def _members(rng: random.Random, material: Path, folder: Path) -> None:
    """The bytes of one sample, as they lie in a shard."""
    files = _good(material / "shards")
    offsets = json.loads(files["shard-000000.json"])["offsets"]
    tar = files["shard-000000.tar"]
    begin, end = rng.choice(list(pairwise(offsets)))
    content = damage.damaged(tar[begin:end], rng, (tar,))
    parse_members(damage.with_checksums(content) if rng.random() < 0.7 else content, str(folder))


def _shards(rng: random.Random, material: Path, folder: Path) -> None:
    """A whole folder whose tar files, side-cars or index.json are damaged; sizes are made to fit half of the time."""
    files = dict(_good(material / "shards"))
    name = rng.choice(list(files))
    if name.endswith(".tar"):
        content = damage.damaged(files[name], rng)
        files[name] = damage.with_checksums(content) if rng.random() < 0.7 else content
        _fit_sizes(files, name)
    else:
        files[name] = _json_or_bytes(files[name], rng)
    for one, content in files.items():
        (folder / one).write_bytes(content)
    shards = ShardSet(folder)
    try:
        for position in range(min(shards.num_samples, 5)):
            for read in (shards.read, shards.read_info):
                try:
                    read(position)
                except MediaError as error:
                    _check_name(error)
    finally:
        shards.close()


def _fit_sizes(files: dict[str, bytes], name: str) -> None:
    """Make index.json and the side-car say what size the shard now has."""
    side_car, index = json.loads(files[f"{name[:-4]}.json"]), json.loads(files["index.json"])
    side_car["bytes"] = len(files[name])
    for record in index["shards"]:
        record["bytes"] = len(files[record["name"]])
    index["total_bytes"] = sum(record["bytes"] for record in index["shards"])
    files[f"{name[:-4]}.json"], files["index.json"] = json.dumps(side_car).encode(), json.dumps(index).encode()


def _side_cars(rng: random.Random, material: Path, folder: Path) -> None:
    path = folder / "shard-000000.json"
    path.write_bytes(_json_or_bytes(_good(material / "shards")[path.name], rng))
    SideCar.load(path)


def _index(rng: random.Random, material: Path, folder: Path) -> None:
    (folder / "index.json").write_bytes(_json_or_bytes(_good(material / "shards")["index.json"], rng))
    ShardIndex.load(folder)


def _manifests(rng: random.Random, material: Path, folder: Path) -> None:
    content = _good(material / "lists")["corpus.jsonl"]
    path = folder / "corpus.jsonl"
    path.write_bytes(_lines(content, rng) if rng.random() < 0.7 else damage.damaged(content, rng))
    for _ in stream_manifest(path):
        pass


def _lists(rng: random.Random, material: Path, folder: Path) -> None:
    """Lists of every format, and idx files of images."""
    files = _good(material / "lists")
    name = rng.choice(list(files))
    for one, content in files.items():
        if "ubyte" in name and "ubyte" in one:
            (folder / one).write_bytes(content)
    content = files[name]
    if name.endswith(".jsonl") and rng.random() < 0.7:
        content = _lines(content, rng)
    elif name.endswith(".parquet") and rng.random() < 0.5:
        _write_odd_parquet(content, folder / name, rng)
        content = (folder / name).read_bytes()
    else:
        content = damage.damaged(content, rng, tuple(files.values()))
    (folder / name).write_bytes(content)
    kind = detect(folder / name)
    if kind in READERS:
        for _ in READERS[kind](folder / name, ListSettings()):
            pass
    elif "ubyte" in name:
        open_idx_file(folder / "train-images-idx3-ubyte")


def _write_odd_parquet(content: bytes, path: Path, rng: random.Random) -> None:
    """A Parquet file with some columns of another type, or without them."""
    table = pq.read_table(pa.BufferReader(content))
    at = rng.randrange(table.num_columns)
    name, rows = table.column_names[at], table.num_rows
    odd = rng.choice(("none", 7, -1.5, float("nan"), b"\xff\xfe", [1.0, None], {"a": 1}, True, None, [["a"]], "{", ""))
    if rng.random() < 0.2:
        table = table.remove_column(at)
    elif rng.random() < 0.3:
        keep = rng.randrange(rows + 1)
        metadata = rng.choice((None, {"avssl": "{"}, {"avssl": "[]"}, {"avssl": b"\xff"}, {"avssl": "1"},
                               {"avssl": '{"format_version": 1, "metadata": 3}'},
                               {"avssl": '{"format_version": 1}'}))  # fmt: skip
        table = table.slice(0, keep).replace_schema_metadata(metadata)
    else:
        table = table.set_column(at, rng.choice((name, name, f"{name}x")), pa.array([odd] * rows))
    pq.write_table(table, path)


def _configurations(rng: random.Random, material: Path, folder: Path) -> None:
    """YAML, damaged or with lines of other files, and changes of a command line."""
    name, content, others = _pick(rng, material / "configs")
    path = folder / name
    path.write_bytes(damage.damaged(content, rng, others))
    values = ("1", "-1", "null", "[", "{a: 1}", "${x}", "${oc.env:HOME}", "1e999", "???", "*a", "&a 1", "!!python/x y",
              "\0", "9" * 5000, "[" * 70 + "]" * 70, "true", "", "2026-01-01", "0x1F", "!!binary a",
              "<<", "a: b")  # fmt: skip
    keys = ("epochs", "seed", "data.shards", "loss.name", "encoders.video", "encoders.video.name", "views", "a.b", "",
            "optim", "data.num_workers", "encoders", "trackers", "views.video.size_px", "loss",
            "trackers[0]", "[", "a..b", ".", "mixed_precision", "loss.name.x", "encoders.x")  # fmt: skip
    changes = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.choice((0, 1, 1, 2)))]
    parse(RunConfig, rng.choice(([str(path), *changes], [str(path)], changes)))


def _checkpoints(rng: random.Random, material: Path, folder: Path) -> None:
    """provenance, weights, statistics and the log of a run."""
    name, content, _ = _pick(rng, material / "run")
    odd = {"safetensors": damage.odd_safetensors, "npz": damage.odd_arrays, "json": damage.odd_json, "jsonl": _lines}
    change = odd[name.rpartition(".")[2]] if rng.random() < 0.6 else damage.damaged
    (folder / name).write_bytes(change(content, rng))
    if name == "provenance.json":
        read_provenance(folder)
    elif name == "statistics.npz":
        _read_npz(folder / name, 5)
    elif name == "metrics.jsonl":
        read_metrics(folder / name)
    else:
        read_weights(folder)


def _tables(rng: random.Random, material: Path, folder: Path) -> None:
    """A folder of embeddings with its index.json."""
    files = dict(_good(material / "table"))
    name = rng.choice(list(files))
    for one, content in files.items():
        (folder / one).write_bytes(content)
    part = "part-000000.parquet"
    if name == "index.json":
        (folder / name).write_bytes(_json_or_bytes(files[name], rng))
    else:
        if rng.random() < 0.5:
            _write_odd_parquet(files[name], folder / name, rng)
        else:
            (folder / name).write_bytes(damage.damaged(files[name], rng))
        index = json.loads(files["index.json"])
        index["files"][0]["bytes"] = (folder / part).stat().st_size
        (folder / "index.json").write_text(json.dumps(index))
    EmbeddingTable.read(folder)


def _results(rng: random.Random, material: Path, folder: Path) -> None:
    files = _good(material / "results")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder / "knn-one.json"
    if rng.random() < 0.3:
        change = damage.odd_arrays if rng.random() < 0.6 else damage.damaged
        rows = next(content for name, content in files.items() if name.endswith(".npz"))
        _write_rows(path, change(rows, rng))
    else:
        path.write_bytes(_json_or_bytes(files[path.name], rng))
    read_rows(path, read_evaluation(path), "trained")


def _write_rows(path: Path, content: bytes) -> None:
    result = json.loads(path.read_bytes())
    path.with_name(result["rows"]["file"]).write_bytes(content)
    result["rows"]["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(result))


def _media(rng: random.Random, material: Path, folder: Path) -> None:
    """Videos and sounds: look, jump, and read from the beginning; each way may fail in its own way."""
    name, content, others = _pick(rng, material / "media")
    path = folder / name
    path.write_bytes(damage.damaged(content, rng, others))
    source = rng.choice((path, path.read_bytes()))
    label = str(path)
    for read in (
        lambda: probe(source, name=label),
        lambda: read_video(source, [0.1, 0.9, 0.5], name=label),
        lambda: read_audio(source, 0.4, 2000, 8000, name=label),
    ):
        try:
            read()
        except MediaError as error:
            _check_name(error)


def _pictures(rng: random.Random, material: Path, folder: Path) -> None:
    name, content, others = _pick(rng, material / "pictures")
    path = folder / name
    path.write_bytes(damage.damaged(content, rng, others))
    probe_image(path)
    read_image(path.read_bytes(), name=str(path))


TARGETS: dict[str, Case] = {
    "members": _members,
    "shards": _shards,
    "side_cars": _side_cars,
    "index": _index,
    "manifests": _manifests,
    "lists": _lists,
    "configurations": _configurations,
    "checkpoints": _checkpoints,
    "tables": _tables,
    "results": _results,
    "media": _media,
    "pictures": _pictures,
}
WEIGHTS = dict(zip(TARGETS, (30, 8, 14, 14, 12, 8, 0.5, 6, 2.5, 2, 2, 1), strict=True))  # of 100 cases
