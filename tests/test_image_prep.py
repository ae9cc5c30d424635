"""data_prep on images: folders and MNIST-format files become shards, and come back as Pillow and NumPy read them."""

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from avssl.media.images import read_image
from avssl.shards.format import SampleInfo
from avssl.shards.manifest import Entry, stream_manifest
from avssl.shards.shard_set import Sample, ShardSet, parse_members, write_tar
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_idx_manifest, build_manifest
from data_prep.index.mnist import IdxFile
from data_prep.index.walk import Walk
from data_prep.transcode.options import WriteOptions
from data_prep.write.rows import scan
from data_prep.write.run import write_shards
from tests.test_data_prep import complaints, digest, make_clip, rewrite, skips
from tests.test_images import as_hwc, png_header, saved, scene
from tests.test_shards import tar_of

ROOT = Path(__file__).parent.parent
OPTIONS = WriteOptions(short_side_px=32, samples_per_shard=5)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def samples_of(folder):
    """{key: sample} of a shard folder."""
    shards = ShardSet(folder)
    return {key: shards.read(index) for index, key in enumerate(shards.keys)}


def prepared(source, out, labels="folder"):
    """{key: sample} of a folder of images, or a file of many; the shards lie in out/shards."""
    if source.is_dir():
        build_manifest(source, out / "corpus.jsonl", IndexOptions(labels=labels))
    else:
        build_idx_manifest(source, out / "corpus.jsonl", labels)
    write_shards(out / "corpus.jsonl", out / "shards", OPTIONS)
    return samples_of(out / "shards")


def write_idx(path, array):
    """An idx file as its definition says: two zero bytes, 8 for uint8, the number of dimensions, their sizes."""
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def digits(number=12, side=28, seed=0):
    """(uint8 (number, side, side), classes (number,) that are 0..3, each of them there)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (number, side, side), dtype=np.uint8), np.arange(number) % 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder per class, with an image of every kind."""
    folder = tmp_path_factory.mktemp("images") / "train"
    color, large = Image.fromarray(scene(20, 31)), Image.fromarray(scene(80, 125))
    gray = Image.fromarray(scene()[..., 0])
    files = {
        "cat/small.jpg": saved(color, "JPEG", quality=80, comment=b"kept"),
        "cat/gray.JPEG": saved(gray, "JPEG"),
        "cat/large.jpg": saved(large, "JPEG"),
        "cat/turned.jpg": saved(color, "JPEG", **turned(6)),
        "cat/upright.jpg": saved(color, "JPEG", **turned(1)),
        "cat/print.jpg": saved(Image.fromarray(scene(channels=4), "CMYK"), "JPEG"),
        "dog/exact.png": saved(color, "PNG"),
        "dog/gray.png": saved(gray, "PNG"),
        "dog/large.png": saved(large, "PNG"),
        "dog/alpha.png": saved(Image.fromarray(scene(channels=4), "RGBA"), "PNG"),
        "dog/lossy.webp": saved(color, "WEBP"),
        "dog/exact.webp": saved(color, "WEBP", lossless=True),
        "dog/tall.bmp": saved(large.rotate(90, expand=True), "BMP"),
        "dog/turned.tif": saved(color, "TIFF", **turned(8)),
        "loose.gif": saved(gray, "GIF"),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def manifest(images):
    path = images.parent / "corpus.jsonl"
    build_manifest(images, path, IndexOptions())
    return path


@pytest.fixture(scope="module")
def written(manifest, tmp_path_factory):
    """A finished shard folder; copy it before changing it."""
    folder = tmp_path_factory.mktemp("written") / "shards"
    write_shards(manifest, folder, OPTIONS)
    return folder


def upright(path):
    """Pillow's own way to an upright RGB image."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes()))).convert("RGB")


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_per_class_goes_all_the_way(images, tmp_path, capsys):
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "shards"
    assert main(["index", str(images), "--out", str(corpus), "--workers", "1"]) == 0
    assert "15 images" in capsys.readouterr().out
    assert main(["write", str(corpus), "--out", str(out), "--workers", "1", "--image-quality", "90"]) == 0
    assert main(["verify", str(out), "--workers", "1"]) == 0
    shards = ShardSet(out)
    assert shards.index.label_names == {"label": ["cat", "dog"]}
    assert [shards.read(index).info.index for index in range(15)] == list(range(15))
    assert {key: sample.info.labels for key, sample in samples_of(out).items()} == {
        key: {"label": [key.split("/")[0]]} if "/" in key else {} for key in shards.keys
    }
    assert (shards.index.options["image_quality"], shards.index.options["short_side_px"]) == (90, 256)
    assert "pillow_version" in shards.index.options
    assert "crf" not in shards.index.options


def test_small_upright_jpegs_are_copied_byte_for_byte(written, images):
    samples = samples_of(written)
    for name in ("cat/small.jpg", "cat/gray.JPEG", "cat/upright.jpg"):
        assert samples[name.replace(".", "_")].image == (images / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["dog/exact.png", "dog/gray.png", "dog/alpha.png", "dog/exact.webp", "dog/turned.tif", "loose.gif"]
)
def test_what_was_stored_without_loss_stays_exact(written, images, name):
    sample = samples_of(written)[name.replace(".", "_")]
    stored = Image.open(io.BytesIO(sample.image))
    assert stored.format == "PNG"
    assert stored.mode == ("L" if name in ("dog/gray.png", "loose.gif") else "RGB")
    assert np.array_equal(as_hwc(read_image(sample.image)), np.asarray(upright(images / name)))


@pytest.mark.parametrize("name", ["cat/turned.jpg", "cat/print.jpg", "dog/lossy.webp"])
def test_photographs_are_encoded_anew_at_the_given_quality(written, images, name):
    sample = samples_of(written)[name.replace(".", "_")]
    stored = Image.open(io.BytesIO(sample.image))
    assert sample.image == saved(upright(images / name), "JPEG", quality=95)
    assert (stored.format, stored.mode, dict(stored.getexif())) == ("JPEG", "RGB", {})


def test_large_images_get_the_short_side_and_small_ones_stay(written, images):
    samples = samples_of(written)
    sizes = {key: (sample.info.image_height_px, sample.info.image_width_px) for key, sample in samples.items()}
    assert (sizes["cat/large_jpg"], sizes["dog/large_png"], sizes["dog/tall_bmp"]) == ((32, 50), (32, 50), (50, 32))
    assert (sizes["cat/small_jpg"], sizes["cat/turned_jpg"]) == ((20, 31), (31, 20))
    for key, sample in samples.items():
        assert tuple(read_image(sample.image).shape) == (3, *sizes[key])
    wanted = Image.open(images / "dog/large.png").resize((50, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(as_hwc(read_image(samples["dog/large_png"].image)), np.asarray(wanted))


def test_the_json_says_what_the_source_was_and_that_there_is_a_image_alone(written, images):
    sample = samples_of(written)["cat/turned_jpg"]
    info = sample.info
    content = (images / "cat/turned.jpg").read_bytes()
    assert info.source == {
        "path": "train/cat/turned.jpg",
        "bytes": (images / "cat/turned.jpg").stat().st_size,
        "content": hashlib.sha256(f"{len(content)} ".encode() + content).hexdigest()[:16],  # less than 64 KiB
        "image": {"format": "JPEG", "mode": "RGB", "width": 31, "height": 20},
    }
    assert (info.has_image, info.has_video, info.has_audio, info.duration_seconds) == (True, False, False, 0.0)
    assert (sample.video, sample.audio) == (None, None)


def test_a_csv_gives_any_number_of_labels(images, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,animal,place\ncat/small.jpg,cat|kitten,home\ndog/exact.png,dog,\n")
    samples = prepared(images, tmp_path, labels=str(table))
    assert samples["cat/small_jpg"].info.labels == {"animal": ["cat", "kitten"], "place": ["home"]}
    assert samples["dog/exact_png"].info.labels == {"animal": ["dog"]}
    assert samples["dog/gray_png"].info.labels == {}


def test_thumbnails_beside_videos_become_samples_only_on_request(tmp_path, capsys):
    folder, corpus = tmp_path / "mixed", tmp_path / "corpus.jsonl"
    make_clip(folder / "clip.mp4")
    (folder / "clip.jpg").write_bytes(saved(Image.fromarray(scene()), "JPEG"))
    command = ["index", str(folder), "--out", str(corpus), "--workers", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "1 files, 1 with video" in printed
    assert "1 .jpg" in printed
    assert "--kind images lists them" in printed
    assert [entry.path for entry in stream_manifest(corpus)] == ["mixed/clip.mp4"]
    assert main([*command, "--kind", "images"]) == 0
    assert "1 images" in capsys.readouterr().out
    assert [entry.path for entry in stream_manifest(corpus)] == ["mixed/clip.jpg"]


def test_a_gif_is_what_the_others_are_and_alone_a_video(tmp_path):
    folder, corpus = tmp_path / "images", tmp_path / "corpus.jsonl"
    folder.mkdir()
    (folder / "a.gif").write_bytes(saved(Image.fromarray(scene()[..., 0]), "GIF"))
    assert build_manifest(folder, corpus, IndexOptions()).num_images == 0
    (folder / "b.png").write_bytes(saved(Image.fromarray(scene()), "PNG"))
    assert build_manifest(folder, corpus, IndexOptions()).num_images == 2
    assert build_manifest(folder, corpus, IndexOptions(kind="media")).num_with_video == 1


def test_a_manifest_of_images_and_videos_is_refused(manifest, tmp_path):
    line = Entry("clip.mp4", "clip_mp4", {}, {"video": {}}, None, 1).to_json()
    (tmp_path / "corpus.jsonl").write_bytes(manifest.read_bytes() + line)
    with pytest.raises(ValueError, match="lists images beside video or audio files"):
        scan(tmp_path / "corpus.jsonl", tmp_path / "work")


# --- bad images ---------------------------------------------------------------------------------------------------


def test_bad_images_are_skipped_by_reason_and_do_not_stop_the_rest(images, tmp_path, capsys):
    folder, corpus, out = tmp_path / "train", tmp_path / "corpus.jsonl", tmp_path / "shards"
    shutil.copytree(images, folder)
    photograph = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    bad = {
        "empty.jpg": (b"", "empty_file"),
        "half.jpg": (photograph[: len(photograph) // 2], "truncated"),
        "half.png": ((images / "dog/large.png").read_bytes()[:200], "truncated"),
        "text.png": (b"no image\n" * 9, "not_media"),
        "page.jpg": (b"<html>404</html>", "not_media"),
        "head.jpg": (photograph[:3] + bytes(50), "decode_error"),
        "bomb.png": (png_header(60_000, 60_000), "decode_error"),
        "depth.tif": (saved(Image.fromarray(scene()[..., 0].astype(np.float32)), "TIFF"), "decode_error"),
        "gone.png": (photograph, "missing_file"),
    }
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    assert main(["index", str(folder), "--out", str(corpus), "--workers", "1"]) == 0
    assert "24 images" in capsys.readouterr().out
    (folder / "gone.png").unlink()
    assert main(["write", str(corpus), "--out", str(out), "--workers", "1"]) == 0
    found = skips(out)
    assert {key: record["reason"] for key, record in found.items()} == {
        name.replace(".", "_"): reason for name, (_, reason) in bad.items()
    }
    assert all(Path(record["path"]).name in record["message"] for record in found.values())
    index = ShardSet(out).index
    assert (index.num_samples, index.num_skipped, index.num_listed) == (15, 9, 24)
    assert index.num_listed - 1 == len(list(Walk(folder, {".jpg", ".jpeg", ".png", ".tif", ".webp", ".bmp", ".gif"})))
    assert complaints(out) == []


def test_a_folder_of_broken_images_alone_writes_nothing(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"text")
    assert main(["index", str(tmp_path / "images"), "--out", str(tmp_path / "c.jsonl"), "--workers", "1"]) == 0
    assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    assert "1 skipped: not_media" in capsys.readouterr().out


# --- the same bytes, whatever happens -------------------------------------------------------------------------------


def test_one_and_three_workers_write_the_same_bytes(manifest, written, tmp_path):
    write_shards(manifest, tmp_path / "again", OPTIONS, num_workers=3)
    assert digest(tmp_path / "again") == digest(written)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    images, labels = digits(600)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    corpus, out, whole = tmp_path / "corpus.jsonl", tmp_path / "out", tmp_path / "whole"
    build_idx_manifest(tmp_path / "train-images-idx3-ubyte.gz", corpus)
    options = WriteOptions(samples_per_shard=15)
    command = [sys.executable, "-m", "data_prep", "write", str(corpus), "--out", str(out), "--workers", "1",
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


def test_other_options_of_images_are_refused_and_those_of_videos_do_not_matter(manifest, written, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(written, shards)
    write_shards(manifest, shards, replace(OPTIONS, crf=30, min_duration_seconds=5))
    assert digest(shards) == digest(written)
    with pytest.raises(ValueError, match="image_quality: 95 there, 80 now"):
        write_shards(manifest, shards, replace(OPTIONS, image_quality=80))


# --- files of many images -------------------------------------------------------------------------------------------


@pytest.mark.quick(1)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_images_and_classes_come_back_bit_by_bit(tmp_path, suffix, capsys):
    images, classes = digits()
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    write_idx(path, images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", classes)
    assert main(["index", str(path), "--out", str(tmp_path / "corpus.jsonl")]) == 0
    assert "12 images" in capsys.readouterr().out
    assert main(["write", str(tmp_path / "corpus.jsonl"), "--out", str(tmp_path / "shards"), "--workers", "1"]) == 0
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
    samples = prepared(tmp_path / "images-idx3-ubyte", tmp_path, labels="none")
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
    assert main(["index", str(tmp_path), "--out", str(tmp_path / "c.jsonl"), "--workers", "1"]) == 2
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


# --- the format -----------------------------------------------------------------------------------------------------


def old_sample(index, video=b"video", audio=b"audio"):
    """A sample from before there were images."""
    return Sample(
        SampleInfo(
            index=index,
            key=f"class/clip_{index}",
            duration_seconds=1.5,
            video_fps=16.0 if video else 0.0,
            num_frames=24 if video else 0,
            av_offset_seconds=-0.125 if video and audio else 0.0,
            audio_rate_hz=24000 if audio else 0,
            num_audio_samples=36000 if audio else 0,
            labels={"label": ["class"]},
            source={"path": "a.mp4", "bytes": 7},
        ),
        video,
        audio,
    )


def test_shards_of_videos_have_the_bytes_they_had_before_there_were_images():
    content = io.BytesIO()
    list(write_tar(content, [old_sample(0), old_sample(1, audio=None), old_sample(2, video=None)]))
    digest_then = "e4ddabe52fc8510baba0f174536ee256d62bcd9e447fc18fe7ec343e116f58db"
    assert hashlib.sha256(content.getvalue()).hexdigest() == digest_then
    assert not {"image_quality", "pillow_version"} & WriteOptions().to_json().keys()
    line = Entry("a.mp4", "a_mp4", {}, {"container": "mov", "video": {"width": 4}}, None, 9).to_json()
    assert json.loads(line) == {
        "path": "a.mp4", "key": "a_mp4", "labels": {}, "error": None, "bytes": 9, "container": "mov",
        "duration_seconds": None, "video": {"width": 4}, "audio": None,
    }  # fmt: skip


def test_json_from_before_there_were_images_is_read():
    content = (
        b'{"audio_rate_hz": 24000, "av_offset_seconds": -0.125, "duration_seconds": 1.5, "index": 0, "key": '
        b'"class/clip_0", "labels": {"label": ["class"]}, "num_audio_samples": 36000, "num_frames": 24, "source": '
        b'{"bytes": 7, "path": "a.mp4"}, "video_fps": 16.0}\n'
    )
    info = SampleInfo.from_json(content)
    assert info == old_sample(0).info
    assert not info.has_image
    assert (info.image_height_px, info.image_width_px) == (0, 0)


def image_sample(image, **changes):
    return Sample(
        replace(old_sample(0, None, None).info, image_height_px=4, image_width_px=5, **changes), None, None, image
    )


def test_a_image_is_a_member_named_by_what_it_is():
    for format, name in (("JPEG", "class/clip_0.image.jpg"), ("PNG", "class/clip_0.image.png")):
        sample = image_sample(saved(Image.fromarray(scene(4, 5)), format))
        content = io.BytesIO()
        list(write_tar(content, [sample]))
        assert name.encode() in content.getvalue()
        assert parse_members(content.getvalue()[:-1024], "shard") == sample
    with pytest.raises(ValueError, match=r"only image\.jpg and image\.png are stored"):
        list(write_tar(io.BytesIO(), [image_sample(b"GIF89a")]))


def test_a_image_that_is_missing_unannounced_or_one_too_many_is_a_bad_sample():
    png, jpg = (saved(Image.fromarray(scene(4, 5)), format) for format in ("PNG", "JPEG"))
    with_image = ("class/clip_0.json", image_sample(png).info.to_json())
    without = ("class/clip_0.json", old_sample(0, None, None).info.to_json())
    members = [("class/clip_0.image.png", png), ("class/clip_0.image.jpg", jpg)]
    assert parse_members(tar_of([with_image, members[0]]), "shard") == image_sample(png)
    for content in ([with_image], [without, members[0]], [with_image, *members]):
        with pytest.raises(MediaError, match="bad_sample"):
            parse_members(tar_of(content), "shard")


def test_verify_finds_images_that_do_not_decode_or_have_another_size(written, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(written, shards)

    def change(samples):
        first, second, third, *others = samples
        return [
            replace(first, info=replace(first.info, image_height_px=first.info.image_height_px + 1)),
            replace(second, info=replace(second.info, image_width_px=1)),
            replace(third, image=third.image[:60]),
            *others,
        ]

    rewrite(shards, "shard-000001.tar", change)
    found = complaints(shards)
    assert len(found) == 3
    assert "rows; its json says" in found[0]
    assert "columns; its json says 1" in found[1]
    assert samples_of(written)[ShardSet(written).keys[7]].info.key in found[2]
