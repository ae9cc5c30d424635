"""data_prep on folders of images: they become shards, and come back as Pillow reads them."""

import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from avssl.media.images import read_image
from avssl.shards.manifest import Entry, stream_manifest
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.walk import Walk
from data_prep.transcode.options import WriteOptions
from data_prep.write.rows import scan
from data_prep.write.run import write_shards
from tests.clips import complaints, digest, make_clip, rewrite, samples_of, skips
from tests.test_images import as_hwc, png_header, saved, scene

OPTIONS = WriteOptions(short_side_px=32, samples_per_shard=5)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


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
    assert main(["index", str(images), "--out", str(corpus), "--num-workers", "1"]) == 0
    assert "15 images" in capsys.readouterr().out
    assert main(["write", str(corpus), "--out", str(out), "--num-workers", "1", "--image-quality", "90"]) == 0
    assert main(["verify", str(out), "--num-workers", "1"]) == 0
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
    build_manifest(images, tmp_path / "corpus.jsonl", IndexOptions(labels=str(table)))
    write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    samples = samples_of(tmp_path / "shards")
    assert samples["cat/small_jpg"].info.labels == {"animal": ["cat", "kitten"], "place": ["home"]}
    assert samples["dog/exact_png"].info.labels == {"animal": ["dog"]}
    assert samples["dog/gray_png"].info.labels == {}


def test_thumbnails_beside_videos_become_samples_only_on_request(tmp_path, capsys):
    folder, corpus = tmp_path / "mixed", tmp_path / "corpus.jsonl"
    make_clip(folder / "clip.mp4")
    (folder / "clip.jpg").write_bytes(saved(Image.fromarray(scene()), "JPEG"))
    command = ["index", str(folder), "--out", str(corpus), "--num-workers", "1"]
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
    assert main(["index", str(folder), "--out", str(corpus), "--num-workers", "1"]) == 0
    assert "24 images" in capsys.readouterr().out
    (folder / "gone.png").unlink()
    assert main(["write", str(corpus), "--out", str(out), "--num-workers", "1"]) == 0
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
    assert main(["index", str(tmp_path / "images"), "--out", str(tmp_path / "c.jsonl"), "--num-workers", "1"]) == 0
    assert main(["write", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "out"), "--num-workers", "1"]) == 1
    assert "1 skipped: not_media" in capsys.readouterr().out


# --- the same bytes, whatever happens -------------------------------------------------------------------------------


def test_one_and_three_workers_write_the_same_bytes(manifest, written, tmp_path):
    write_shards(manifest, tmp_path / "again", OPTIONS, num_workers=3)
    assert digest(tmp_path / "again") == digest(written)


def test_other_options_of_images_are_refused_and_those_of_videos_do_not_matter(manifest, written, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(written, shards)
    write_shards(manifest, shards, replace(OPTIONS, crf=30, min_duration_seconds=5))
    assert digest(shards) == digest(written)
    with pytest.raises(ValueError, match="image_quality: 95 there, 80 now"):
        write_shards(manifest, shards, replace(OPTIONS, image_quality=80))


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
