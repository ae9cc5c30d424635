"""A file that is another one than when it was listed is skipped with a reason of its own."""

import hashlib
import json
import os
from dataclasses import replace

import pytest

from avssl.files.whole import content_digest
from avssl.shards.shard_set import ShardSet
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.cutting import Cutting
from data_prep.inspect.coverage import measure
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, make_clip


@pytest.mark.slow
def test_a_file_replaced_after_it_was_listed_is_skipped_and_counted(tmp_path):
    media, manifest, out = tmp_path / "media", tmp_path / "corpus.jsonl", tmp_path / "shards"
    for seed in range(3):
        make_clip(media / f"{seed}.mp4", seed, seconds=0.5)
    build_manifest(media, manifest, IndexOptions())
    right = (media / "1.mp4").read_bytes()
    make_clip(media / "1.mp4", 9, seconds=1.0)
    written = write_shards(manifest, out, OPTIONS)
    assert written is not None
    assert written.skipped_by_reason == {"changed_file": 1}
    assert f"it had {len(right)}" in json.loads((out / "skipped.jsonl").read_text())["message"]
    total = measure(str(manifest), str(out)).total
    assert (total.listed, total.found, total.written, total.skipped) == (3, 3, 2, 1)
    assert total.reasons == {"changed_file": 1}
    again = write_shards(manifest, out, OPTIONS, retry_failed=True)
    assert again is not None
    assert again.skipped_by_reason == {"changed_file": 1}
    (media / "1.mp4").write_bytes(right)
    done = write_shards(manifest, out, OPTIONS, retry_failed=True)
    assert done is not None
    assert done.num_samples == 3


def test_every_clip_of_a_changed_file_is_skipped(tmp_path):
    media, manifest = tmp_path / "media", tmp_path / "corpus.jsonl"
    make_clip(media / "one.mp4", 1, seconds=1.0)
    make_clip(media / "two.mp4", 2, seconds=1.0)
    build_manifest(media, manifest, IndexOptions(cutting=Cutting(clip_seconds=0.5)))
    with (media / "two.mp4").open("ab") as file:
        file.write(b"\0" * 16)
    written = write_shards(manifest, tmp_path / "shards", replace(OPTIONS, samples_per_shard=8))
    assert written is not None
    assert written.skipped_by_reason == {"changed_file": 2}
    assert ShardSet(tmp_path / "shards").num_samples == 2


def test_a_file_replaced_by_one_of_the_same_size_is_skipped_and_a_copy_with_another_time_is_not(tmp_path):
    media, manifest = tmp_path / "media", tmp_path / "corpus.jsonl"
    for seed in range(2):
        make_clip(media / f"{seed}.mp4", seed, seconds=0.5)
    build_manifest(media, manifest, IndexOptions())
    os.utime(media / "0.mp4", ns=(1, 1))
    content = bytearray((media / "1.mp4").read_bytes())
    content[-1] ^= 1
    (media / "1.mp4").write_bytes(content)
    written = write_shards(manifest, tmp_path / "shards", OPTIONS)
    assert (written.num_samples, written.skipped_by_reason) == (1, {"changed_file": 1})


def test_the_digest_of_a_long_file_is_that_of_its_size_and_three_pieces(tmp_path):
    path, piece = tmp_path / "long", 65_536
    content = bytes(range(256)) * 4096
    path.write_bytes(content)
    middle = len(content) // 2 - piece // 2
    pieces = content[:piece] + content[middle : middle + piece] + content[-piece:]
    assert content_digest(path) == hashlib.sha256(f"{len(content)} ".encode() + pieces).hexdigest()[:16]
    (tmp_path / "empty").touch()
    assert content_digest(tmp_path / "empty") == hashlib.sha256(b"0 ").hexdigest()[:16]
