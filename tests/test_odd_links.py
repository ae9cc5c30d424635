"""Links, pipes, devices and folders that nobody can read: each is skipped with a reason, and all the rest is done."""

import os
import shutil
import socket
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from avssl.embedding.media import open_media
from avssl.embedding.sources import files_below
from avssl.files import folders
from avssl.media.images import read_image
from avssl.shards.manifest import stream_manifest
from avssl.types import MediaError
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.mnist import open_idx_file
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, make_clip, skips

ODD = ("device.SUFFIX", "loop.SUFFIX", "nowhere.SUFFIX", "one.SUFFIX", "other.SUFFIX", "pipe.SUFFIX", "socket.SUFFIX")


def make_odd(folder, suffix):
    """One of each kind that has the name of a file and is none, and cycles of folders."""
    (folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
    (folder / f"one.{suffix}").symlink_to(f"other.{suffix}")
    (folder / f"other.{suffix}").symlink_to(f"one.{suffix}")
    (folder / f"nowhere.{suffix}").symlink_to(folder / "gone" / f"nowhere.{suffix}")
    (folder / f"device.{suffix}").symlink_to("/dev/zero")
    os.mkfifo(folder / f"pipe.{suffix}")
    (folder / "up").symlink_to("..")
    (folder / "itself").symlink_to("itself")
    with socket.socket(socket.AF_UNIX) as end:
        opened = os.open(folder, os.O_RDONLY)
        end.bind(f"/proc/self/fd/{opened}/socket.{suffix}")  # their paths are short
        os.close(opened)
    return [name.replace("SUFFIX", suffix) for name in ODD]


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "media"
    make_clip(root / "a" / "good.mp4", seconds=0.5)
    shutil.copy(root / "a" / "good.mp4", root / "z.mp4")
    (root / "a" / "linked.mp4").symlink_to("good.mp4")
    (root / "folder.mp4").mkdir()
    return root


def refuse(monkeypatch, name):
    """Let no folder of this name be read, which a test cannot ask of the system where it may do everything."""
    real = os.scandir

    def scandir(path):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)


def test_what_is_no_file_is_listed_with_its_reason_and_skipped_and_the_rest_is_written(corpus, tmp_path, monkeypatch):
    odd = [f"a/{name}" for name in make_odd(corpus / "a", "mp4")]
    (corpus / "closed").mkdir()
    refuse(monkeypatch, "/closed")
    for probe in (True, False):
        summary = build_manifest(corpus, tmp_path / "corpus.jsonl", IndexOptions(probe=probe))
        assert summary.num_listed == 3 + len(odd) + 1
        assert summary.failed_by_reason == Counter(missing_file=len(odd) + 1)
        assert summary.ignored_by_suffix["links to folders"] == 1
        entries = {entry.path.removeprefix("media/"): entry for entry in stream_manifest(tmp_path / "corpus.jsonl")}
        assert {path for path, entry in entries.items() if entry.error} == {*odd, "closed"}
    written = write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert (written.num_listed, written.num_samples, written.num_skipped) == (3 + len(odd) + 1, 3, len(odd) + 1)
    assert "Too many levels of symbolic links" in skips(tmp_path / "shards")["a/loop_mp4"]["message"]


def test_what_becomes_no_file_after_it_was_listed_is_skipped_with_its_reason(corpus, tmp_path):
    build_manifest(corpus, tmp_path / "corpus.jsonl", IndexOptions())
    (corpus / "z.mp4").unlink()
    (corpus / "z.mp4").symlink_to("z.mp4")
    (corpus / "a" / "linked.mp4").unlink()
    os.mkfifo(corpus / "a" / "linked.mp4")
    written = write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert (written.num_samples, written.num_skipped) == (1, 2)
    assert {one["reason"] for one in skips(tmp_path / "shards").values()} <= {"missing_file", "changed_file"}


def test_images_likewise_and_a_folder_that_cannot_be_read_makes_no_videos_of_them(tmp_path, monkeypatch):
    root = tmp_path / "pictures"
    (root / "closed").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "good.png")
    odd = make_odd(root, "png")
    refuse(monkeypatch, "/closed")
    summary = build_manifest(root, tmp_path / "corpus.jsonl", IndexOptions())
    assert (summary.num_images, summary.num_listed) == (2 + len(odd), 2 + len(odd))
    assert summary.failed_by_reason == Counter(missing_file=len(odd) + 1)
    written = write_shards(tmp_path / "corpus.jsonl", tmp_path / "shards", OPTIONS)
    assert (written.num_samples, written.num_skipped) == (1, len(odd) + 1)


def test_a_listing_to_embed_holds_them_and_opening_them_gives_a_reason(corpus, monkeypatch):
    odd = [f"a/{name}" for name in make_odd(corpus / "a", "mp4")]
    (corpus / "closed" / "deeper").mkdir(parents=True)
    refuse(monkeypatch, "/closed/deeper")
    found = list(files_below(corpus, [".mp4"]))
    assert set(found) == {"a/good.mp4", "a/linked.mp4", "z.mp4", *odd, "closed/deeper"}
    for name in [*odd, "closed/deeper"]:
        with pytest.raises(MediaError) as caught:
            open_media(corpus / name, name, ["video"])
        assert caught.value.reason == "missing_file", name
    refuse(monkeypatch, "/media")
    with pytest.raises(OSError, match="Permission denied"):  # the folder that was asked for
        list(files_below(corpus, [".mp4"]))


@pytest.mark.parametrize("read", [read_image, lambda path: open_idx_file(path, with_labels=False)])
@pytest.mark.parametrize("kind", ["pipe", "loop"])
def test_no_reader_of_images_waits_for_a_pipe(tmp_path, read, kind):
    path = tmp_path / "x-images-idx3-ubyte"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    with pytest.raises(MediaError) as caught:
        read(path)
    assert caught.value.reason == "missing_file"
