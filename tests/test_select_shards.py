"""A selection of a shard folder: training reads the kept samples alone, and refuses the list of other shards."""

from __future__ import annotations

import json
import shutil

import pytest

from avssl import config
from avssl.shards.folders import ShardFolder, shard_folders
from avssl.shards.mixture import ShardMixture, open_shards
from avssl.shards.sample_digests import sample_digests
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from tests.made_facts import lines_of


def write_keys(path, shards, positions):
    """A file as `select` writes it."""
    lines = [json.dumps({"index": position, "key": shards.keys[position]}) + "\n" for position in positions]
    path.write_text("".join(lines))
    return str(path)


def test_keys_of_a_folder_are_read_as_if_it_held_these_samples_alone(shards, tmp_path):
    whole = ShardSet(shards["train"])
    keys = write_keys(tmp_path / "kept.jsonl", whole, [1, 4, 11, 17])
    some = open_shards([{"path": str(shards["train"]), "keys": keys}])
    assert some.keys == [whole.keys[position] for position in (1, 4, 11, 17)]
    assert [some.read(number).info.key for number in range(4)] == some.keys
    assert some.fingerprint != whole.fingerprint
    both = open_shards(
        [{"path": str(shards["train"]), "keys": keys, "weight": 2}, {"path": str(shards["test"]), "weight": 1}]
    )
    assert isinstance(both, ShardMixture)
    assert (both.num_samples, both.weights) == (10, [2.0, 1.0])
    digests = sample_digests(both)
    assert digests.media.tolist() == [
        *sample_digests(some).media.tolist(), *sample_digests(ShardSet(shards["test"])).media.tolist()
    ]  # fmt: skip
    assert shard_folders([{"path": "a", "keys": "k"}]) == [ShardFolder("a", None, "k")]


def test_keys_that_are_not_of_these_shards_are_refused(shards, tmp_path):
    whole = ShardSet(shards["train"])
    keys = write_keys(tmp_path / "kept.jsonl", whole, [1, 4])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "files.jsonl").write_text('{"path": "a.mp4", "key": "a"}\n')
    (tmp_path / "far.jsonl").write_text('{"index": 999, "key": "a"}\n')
    for folder, name, says in (
        ("test", keys, "line 1: .* has no sample 1 with the key .*a selection from other shards"),
        ("train", tmp_path / "far.jsonl", "has no sample 999"),
        ("train", tmp_path / "empty.jsonl", "lists no samples"),
        ("train", tmp_path / "files.jsonl", "lists files, not samples"),
        ("train", tmp_path / "gone.jsonl", "no such file; make it with `avssl prep select"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            open_shards([{"path": str(shards[folder]), "keys": str(name)}])
    for entry in ({"path": "a", "keys": 3}, {"path": "a", "keys": ""}):
        with pytest.raises(config.ConfigError, match="it must be a file of `avssl prep select`"):
            config.parse(config.RunConfig, [f"data.shards={json.dumps([entry])}"])


@pytest.mark.slow
def test_what_the_command_keeps_of_a_shard_folder_is_what_training_reads(shards, tmp_path):
    folder, out = tmp_path / "shards", tmp_path / "kept.jsonl"
    shutil.copytree(shards["train"], folder)
    assert (
        main(["select", str(folder), "--where", "duration_seconds > 1", "--max-hours", ".005", "--out", str(out)]) == 0
    )
    assert (tmp_path / "shards.facts.parquet").is_file()
    kept, left_out = lines_of(out), lines_of(tmp_path / "kept.select.left_out.jsonl")
    assert len(kept) + len(left_out) == 18
    assert open_shards([{"path": str(folder), "keys": str(out)}]).keys == [row["key"] for row in kept]
