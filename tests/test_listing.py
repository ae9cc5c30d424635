"""Listings: every file once, in the order of the names, at constant memory, whatever names there are."""

import os
import pickle
from pathlib import Path

import pytest

from avssl.embedding.sources import (
    LINES_PER_STEP,
    Listing,
    files_below,
    list_files,
    list_sources,
    read_listing,
    write_listing,
)
from avssl.shards.keys import plain_key


@pytest.fixture
def folder(tmp_path):
    """Folders and files whose names sort differently as whole paths, a link, another suffix, and no UTF-8."""
    root = tmp_path / "root"
    for name in ("a.b/x.mp4", "a/y.MP4", "a/deep/er/z.wav", "a0.mp4", "b/c.mp4", "b/notes.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "link.mp4").symlink_to(root / "a0.mp4")
    (root / "broken.mp4").symlink_to(root / "nowhere.mp4")
    (root / "loop").symlink_to(root)
    (root / "folder.mp4").mkdir()
    return root


def test_the_order_is_that_of_sorted_paths_however_few_names_are_held(folder):
    expected = [
        path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".mp4", ".wav") and not path.is_dir()
    ]
    assert len(expected) == 7
    assert folder / "broken.mp4" in expected  # reading it says that it leads nowhere
    for names_in_memory in (1, 2, 3, 1000):
        found = list(files_below(folder, [".mp4", ".wav"], names_in_memory))
        assert [folder / name for name in found] == expected


def test_a_listing_is_read_by_number_also_in_another_process(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    names = [f"{number:04d}.wav" for number in range(2 * LINES_PER_STEP + 3)]
    for name in names:
        (root / name).touch()
    (tmp_path / "single.wav").touch()
    roots = [root, tmp_path / "single.wav"]
    (tmp_path / "scratch").mkdir()
    count = write_listing(tmp_path / "sources.jsonl", list_sources(roots, ["audio"], tmp_path / "scratch"))
    listing = pickle.loads(pickle.dumps(Listing(tmp_path / "sources.jsonl")))
    assert len(listing) == count == len(names) + 1
    for number in (0, LINES_PER_STEP - 1, LINES_PER_STEP, 5, 2 * LINES_PER_STEP + 2):
        assert (listing[number].path, listing[number].key) == (str(root / names[number]), f"{number:04d}_wav")
    assert (listing[count - 1].path, listing[count - 1].key) == (str(tmp_path / "single.wav"), "single_wav")
    assert list(read_listing(tmp_path / "sources.jsonl")) == [listing[number] for number in range(count)]
    with pytest.raises(IndexError):
        listing[count]
    assert len((tmp_path / "sources.jsonl").read_text().splitlines()) == count


def test_names_that_are_no_text_are_listed_and_their_key_is(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / name).touch()
    (tmp_path / "scratch").mkdir()
    sources = list_sources([tmp_path / "root"], ["audio"], tmp_path / "scratch")
    write_listing(tmp_path / "sources.jsonl", sources)
    source = Listing(tmp_path / "sources.jsonl")[0]
    assert Path(source.path).is_file()
    assert source.key == plain_key(name) == "caf_wav"


def test_what_cannot_be_listed_is_said(tmp_path, folder):
    def listed(*roots):
        return list(list_files(roots, [".mp4"]))

    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        listed(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no files below this folder with the suffixes \.mp4"):
        listed(folder / "folder.mp4")
    (tmp_path / "other" / "b").mkdir(parents=True)
    (tmp_path / "other" / "b" / "c.mp4").touch()
    with pytest.raises(ValueError, match=r"root/b/c\.mp4 and .*other/b/c\.mp4 would both be called 'b/c\.mp4'"):
        listed(folder, tmp_path / "other")
    with pytest.raises(ValueError, match=r"would both be called 'c\.mp4'"):
        listed(folder / "b" / "c.mp4", tmp_path / "other" / "b" / "c.mp4")
    if os.geteuid() != 0:
        (folder / "a").chmod(0)
        with pytest.raises(PermissionError):
            listed(folder)
        (folder / "a").chmod(0o755)
