"""data_prep on MNIST-format files of many images: they become shards, and come back as NumPy reads them."""

import gzip
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from avssl.media.images import read_image
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.index.build import build_idx_manifest
from data_prep.index.mnist import IdxFile
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.clips import complaints, digest, samples_of
from tests.conftest import ROOT
from tests.foreign import write_idx

OPTIONS = WriteOptions(short_side_px=32, samples_per_shard=5)


def digits(number=12, side=28, seed=0):
    """(uint8 (number, side, side), classes (number,) that are 0..3, each of them there)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (number, side, side), dtype=np.uint8), np.arange(number) % 4


@pytest.mark.quick(1)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_images_and_classes_come_back_bit_by_bit(tmp_path, suffix, capsys):
    images, classes = digits()
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    write_idx(path, images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", classes)
    assert main(["index", str(path), "--out", str(tmp_path / "corpus.jsonl")]) == 0
    assert "12 images" in capsys.readouterr().out
    assert main(["write", str(tmp_path / "corpus.jsonl"), "--out", str(tmp_path / "shards"), "--num-workers", "1"]) == 0
    samples = samples_of(tmp_path / "shards")
    assert sorted(samples) == [f"train-images/{number:06d}" for number in range(12)]
    for number in range(12):
        sample = samples[f"train-images/{number:06d}"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample.image))), images[number])
        assert np.array_equal(read_image(sample.image).numpy(), np.stack([images[number]] * 3))
        assert sample.info.labels == {"label": [str(classes[number])]}
        assert (sample.info.source["item"], sample.info.source["path"]) == (number, path.name)
    assert complaints(tmp_path / "shards") == []


def test_labels_none_needs_no_label_file_and_writes_no_classes(tmp_path):
    images, _ = digits(side=9)
    write_idx(tmp_path / "images-idx3-ubyte", images)
    build_idx_manifest(tmp_path / "images-idx3-ubyte", tmp_path / "corpus.jsonl", labels="none")
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    samples = samples_of(tmp_path / "shards")
    assert len(samples) == 12
    assert all(sample.info.labels == {} for sample in samples.values())


def test_an_idx_file_that_is_damaged_or_none_is_refused_by_name(tmp_path):
    images, classes = digits()
    write_idx(tmp_path / "train-images-idx3-ubyte", images)

    def message(path, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            build_idx_manifest(path, tmp_path / "corpus.jsonl", **options)
        assert not (tmp_path / "corpus.jsonl").exists()
        assert path.name in str(error.value)
        return str(error.value)

    good = tmp_path / "train-images-idx3-ubyte"
    assert "its labels are missing; looked for train-labels-idx1-ubyte and" in message(good)
    write_idx(tmp_path / "train-labels-idx1-ubyte", classes[:-1])
    assert "holds 11 labels for 12 images" in message(good)
    write_idx(tmp_path / "train-labels-idx1-ubyte", classes)
    assert "brings its own labels" in message(good, labels="labels.csv")
    content = good.read_bytes()
    for name, changed, reason in [
        ("short", content[:-1], "truncated"), ("long", content + b"x", "decode_error"),
        ("head", content[:9], "truncated"), ("other", b"\0\0\x0d\3" + content[4:], "not_media"),
        ("empty", b"", "empty_file"), ("claim", content[:4] + b"\xff" * 12, "truncated"),
    ]:  # fmt: skip
        path = tmp_path / f"{name}-images-idx3-ubyte"
        path.write_bytes(changed)
        assert message(path, labels="none").startswith(reason), name
    packed = gzip.compress(content)
    for name, changed, reason in [("cut", packed[:-30], "truncated"), ("plain", content, "decode_error")]:
        path = tmp_path / f"{name}-images-idx3-ubyte.gz"
        path.write_bytes(changed)
        assert message(path, labels="none").startswith(reason), name
    (tmp_path / "digits.csv").write_text("1,2,3,4,0\n")
    assert "no list that is known by its name or its first lines" in message(tmp_path / "digits.csv")


def test_a_folder_of_splits_asks_for_one_of_them(tmp_path, capsys):
    images, classes = digits()
    for split in ("train", "t10k"):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", classes)
    assert main(["index", str(tmp_path), "--out", str(tmp_path / "c.jsonl"), "--num-workers", "1"]) == 2
    assert "give that file: t10k-images-idx3-ubyte, train-images-idx3-ubyte" in capsys.readouterr().err
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert main(["index", str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "c.jsonl")]) == 2
    assert "give the folder that holds it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_changed_since_it_was_indexed_is_skipped_item_by_item(tmp_path):
    images, _ = digits()
    path = tmp_path / "train-images-idx3-ubyte"
    write_idx(path, images)
    build_idx_manifest(path, tmp_path / "corpus.jsonl", labels="none")
    write_idx(path, images[:10])
    index = write_shards(tmp_path / "corpus.jsonl", tmp_path / "fewer", OPTIONS)
    assert (index.num_samples, index.skipped_by_reason) == (10, {"decode_error": 2})
    path.write_bytes(path.read_bytes()[:-1])
    index = write_shards(tmp_path / "corpus.jsonl", tmp_path / "cut", OPTIONS)
    assert (index.num_samples, index.skipped_by_reason) == (0, {"truncated": 12})
    path.unlink()
    index = write_shards(tmp_path / "corpus.jsonl", tmp_path / "gone", OPTIONS)
    assert (index.num_samples, index.skipped_by_reason) == (0, {"missing_file": 12})


def test_a_damaged_file_is_read_once_and_not_for_each_image(tmp_path, monkeypatch):
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(b"\0" * 64)
    reads = []
    original = IdxFile.images
    monkeypatch.setattr(IdxFile, "images", lambda self: (reads.append(self), original(self))[1])
    for item in range(5):
        with pytest.raises(MediaError, match="not_media"):
            IdxFile(str(path)).image(item)
    assert len(reads) == 1


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    images, labels = digits(600)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    corpus, out, whole = tmp_path / "corpus.jsonl", tmp_path / "out", tmp_path / "whole"
    build_idx_manifest(tmp_path / "train-images-idx3-ubyte.gz", corpus)
    options = WriteOptions(samples_per_shard=15)
    command = [sys.executable, "-m", "data_prep", "write", str(corpus), "--out", str(out), "--num-workers", "1",
               "--samples-per-shard", "15"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((out / ".parts").glob("part-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= len(list((out / ".parts").glob("part-*.json"))) < 40
    write_shards(corpus, out, options)
    write_shards(corpus, whole, options)
    assert digest(out) == digest(whole)
