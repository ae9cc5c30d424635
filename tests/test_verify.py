"""`verify` finds what is wrong with a shard folder, and accepts what earlier versions wrote."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avssl.media.decode import read_video
from avssl.shards.format import dump_json
from avssl.shards.shard_set import Sample, ShardSet
from data_prep.__main__ import main
from data_prep.inspect.verify import verify_folder
from data_prep.transcode.encode import write_media
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, prepare_eight_clips, rewrite
from tests.conftest import built_once


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of prepare_eight_clips; copy what is to be changed."""
    return built_once(tmp_path_factory, "eight_clips", prepare_eight_clips)


@pytest.fixture
def shards(prepared, tmp_path):
    return Path(shutil.copytree(prepared / "shards", tmp_path / "shards"))


def test_verify_finds_one_flipped_byte(shards):
    path = shards / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    assert any("shard-000001.tar: has sha256" in line for line in complaints(shards))
    assert main(["verify", str(shards), "--num-workers", "1"]) == 1


def test_verify_finds_missing_and_foreign_files(shards, capsys):
    (shards / "shard-000000.tar").unlink()
    (shards / "shard-000001.json").unlink()
    (shards / "shard-000007.tar").write_bytes(b"")
    (shards / "skipped.jsonl").unlink()
    found = "\n".join(complaints(shards))
    for name in ("shard-000000.tar: is missing", "shard-000001.json: the shard's side-car is missing",
                 "shard-000007.tar: is not listed", "skipped.jsonl: is missing"):  # fmt: skip
        assert name in found


def test_verify_refuses_another_schema_version(shards, capsys):
    content = json.loads((shards / "index.json").read_text())
    (shards / "index.json").write_text(json.dumps(content | {"schema_version": 99}))
    assert main(["verify", str(shards), "--num-workers", "1"]) == 1
    assert "schema version 99" in capsys.readouterr().out


def test_shards_of_earlier_versions_with_copied_streams_are_read_and_verified(shards):
    """At the source's frame rate, with B-frames; `write` makes none any more."""
    content = io.BytesIO()
    frames = np.arange(50, dtype=np.uint8)[:, None, None, None].repeat(48, 1).repeat(64, 2).repeat(3, 3) * 4
    write_media(content, video=frames, video_fps=25, video_options={"bf": "3"}, container_format="mp4")

    def copied(samples):
        info = samples[0].info
        source = info.source | {"is_copied": True}
        facts = {"video_fps": 25.0, "num_frames": 50, "audio_rate_hz": 0, "num_audio_samples": 0}
        facts |= {"duration_seconds": 2.0, "av_offset_seconds": 0.0, "source": source}
        return [Sample(replace(info, **facts), content.getvalue(), None), *samples[1:]]

    rewrite(shards, "shard-000000.tar", copied)
    assert verify_folder(shards, decode_all=True).problems == []
    stored = ShardSet(shards).read(0)
    assert stored.info.source["is_copied"] is True
    assert read_video(stored.video, [k / 25 for k in (0, 7, 49)]).shape == (3, 3, 48, 64)


@pytest.mark.parametrize(("video", "is_same"), [("encode", True), ("copy", False)])
def test_a_folder_of_an_earlier_version_is_known_again_unless_streams_were_copied(prepared, shards, video, is_same):
    manifest = prepared / "corpus.jsonl"
    path = shards / "index.json"
    index = json.loads(path.read_text())
    index["options"] |= {"video": video, "copy_keyframe_interval": 32}
    path.write_bytes(dump_json(index))
    before = path.read_bytes()
    if is_same:
        write_shards(manifest, shards, OPTIONS)
    else:
        with pytest.raises(ValueError, match="video: 'copy' there, None now"):
            write_shards(manifest, shards, OPTIONS)
    assert path.read_bytes() == before


def test_verify_finds_samples_that_lie_about_themselves(shards):
    def change(samples):
        first, second, third = samples
        return [
            replace(first, info=replace(first.info, index=first.info.index + 1)),
            replace(second, info=replace(second.info, num_frames=second.info.num_frames + 1, duration_seconds=1.0625)),
            replace(third, video=third.video[:200]),
        ]

    rewrite(shards, "shard-000000.tar", change)
    found = complaints(shards, decode_all=True)
    assert len(found) == 3
    for words, line in zip(("index 1", "frames; its json says", "video.mp4"), found, strict=True):
        assert words in line


def test_verify_finds_a_key_that_is_there_twice(shards):
    other = ShardSet(shards).read(0).info.key
    rewrite(
        shards, "shard-000001.tar", lambda old: [replace(old[0], info=replace(old[0].info, key=other)), *old[1:]]
    )  # fmt: skip
    assert any(f"the key {other} is also in shard-000000.tar" in line for line in complaints(shards))


def test_verify_compares_the_skips_with_the_index(shards):
    record = {"path": "x.mp4", "key": "x", "reason": "no_audio", "message": "x.mp4: has none"}
    (shards / "skipped.jsonl").write_bytes(dump_json(record))
    assert any("skipped.jsonl: counts {'no_audio': 1}; index.json says {}" in line for line in complaints(shards))
