"""Bad files in index and write: each is skipped with its reason, and the numbers add up."""

import shutil
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media.info import MEDIA_SUFFIXES
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.walk import Walk
from data_prep.transcode.file import transcode
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, make_clip, prepare_eight_clips, skips, tone
from tests.conftest import built_once


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of prepare_eight_clips; copy what is to be changed."""
    return built_once(tmp_path_factory, "eight_clips", prepare_eight_clips)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Good and bad files; returns (folder, {file name: why it is skipped by default})."""
    folder = tmp_path_factory.mktemp("mixed")
    for seed in range(2):
        make_clip(folder / f"good_{seed}.mp4", seed)
    make_clip(folder / "silent.mp4", audio=None)
    make_clip(folder / "only_audio.m4a", video=None)
    (folder / "text.mp4").write_text("no video\n" * 100)
    (folder / "empty.mp4").write_bytes(b"")
    make_clip(folder / "whole.mp4", seconds=2.0)
    (folder / "no_index.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:-600])
    for suffix, codecs in {
        ".mkv": {"audio_codec": "flac"},
        ".webm": {"video_codec": "libvpx-vp9", "audio_codec": "libopus"},
        ".avi": {"video_codec": "mpeg4", "audio_codec": "libmp3lame"},
        ".flac": {"video": None, "audio_codec": "flac"},
    }.items():
        path = folder / f"half{suffix}"
        make_clip(path, seconds=3.0, **codecs)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    whole, front = folder / "whole.mp4", folder / "half.mp4"
    with av.open(str(whole)) as source, av.open(str(front), "w", options={"movflags": "faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    front.write_bytes(front.read_bytes()[: front.stat().st_size * 6 // 10])
    with wave.open(str(folder / "recording.wav"), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes((tone(1.0, 44100).repeat(2, axis=0).T * 32767).astype("<i2").tobytes())
    (folder / "notes.txt").write_text("ignored")
    (folder / ".hidden.mp4").write_text("ignored")
    reasons = {
        "silent_mp4": "no_audio", "only_audio_m4a": "no_video", "recording_wav": "no_video", "text_mp4": "not_media",
        "empty_mp4": "empty_file", "no_index_mp4": "truncated", "half_mkv": "truncated", "half_webm": "truncated",
        "half_avi": "truncated", "half_flac": "no_video", "half_mp4": "truncated",
    }  # fmt: skip
    return folder, reasons


def test_bad_files_are_skipped_by_reason_and_the_numbers_add_up(mixed, tmp_path, capsys):
    folder, reasons = mixed
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "shards"
    assert main(["index", str(folder), "--out", str(corpus), "--num-workers", "2"]) == 0
    assert "ignored, no media by their extension: 1 .txt, 1 hidden" in capsys.readouterr().out
    assert main(["write", str(corpus), "--out", str(out), "--num-workers", "2", "--samples-per-shard", "5"]) == 0
    printed = capsys.readouterr().out
    found = skips(out)
    assert {key: record["reason"] for key, record in found.items()} == reasons
    for key, record in found.items():
        assert Path(record["path"]).name.replace(".", "_") == key
        assert Path(record["path"]).name in record["message"]
    shards = ShardSet(out)
    assert sorted(shards.keys) == ["good_0_mp4", "good_1_mp4", "whole_mp4"]
    assert shards.index.num_listed == len(list(Walk(folder, MEDIA_SUFFIXES))) == 3 + len(reasons)
    assert f"{len(reasons) + 3} listed" in printed
    assert "5 skipped: truncated" in printed
    assert main(["verify", str(out), "--decode", "--num-workers", "1"]) == 0


@pytest.mark.slow
def test_keep_keeps_samples_with_one_stream(mixed, tmp_path):
    folder, reasons = mixed
    build_manifest(folder, tmp_path / "corpus.jsonl", IndexOptions(num_workers=2, labels="none"))
    options = WriteOptions(on_missing_audio="keep", on_missing_video="keep", min_duration_seconds=0.5)
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", options, num_workers=2)
    kept = {key for key, reason in reasons.items() if reason in ("no_audio", "no_video")} - {"half_flac"}
    shards = ShardSet(tmp_path / "shards")
    assert set(shards.keys) == {"good_0_mp4", "good_1_mp4", "whole_mp4"} | kept
    assert skips(tmp_path / "shards")["half_flac"]["reason"] == "truncated"
    samples = {key: shards.read(index) for index, key in enumerate(shards.keys)}
    assert samples["silent_mp4"].audio is None
    assert samples["recording_wav"].video is None
    assert samples["recording_wav"].info.num_audio_samples == 24000
    assert shards.index.label_names == {}
    assert complaints(tmp_path / "shards", decode_all=True) == []


def test_nothing_written_is_exit_code_1_and_short_files_have_a_reason(prepared, tmp_path, capsys):
    command = [
        "write",
        str(prepared / "corpus.jsonl"),
        "--out",
        str(tmp_path / "shards"),
        "--min-duration-seconds",
        "9",
        "--num-workers",
        "1",
    ]
    assert main(command) == 1
    output = capsys.readouterr()
    assert "8 skipped: too_short" in output.out
    assert "nothing was written" in output.err


def test_a_file_that_vanished_is_skipped(prepared, tmp_path):
    shutil.copytree(prepared / "videos", tmp_path / "videos")
    build_manifest(tmp_path / "videos", tmp_path / "corpus.jsonl", IndexOptions())
    (tmp_path / "videos" / "cats" / "clip 0.mp4").unlink()
    index = write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert (index.num_samples, index.skipped_by_reason) == (7, {"missing_file": 1})


def test_damaged_media_never_end_the_run(tmp_path):
    make_clip(tmp_path / "clip.mp4")
    good = np.frombuffer((tmp_path / "clip.mp4").read_bytes(), np.uint8)
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(25):
        bad = good.copy()
        bad[rng.integers(0, len(bad), 30)] ^= 0x5A
        (tmp_path / "bad.mp4").write_bytes(bad.tobytes())
        try:
            transcode(str(tmp_path / "bad.mp4"), WriteOptions())
            outcomes.add("written")
        except MediaError as error:
            outcomes.add(error.reason)
    assert len(outcomes) > 1
