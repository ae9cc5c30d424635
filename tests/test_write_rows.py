"""The rows of a manifest as `write` reads them: by number, in pieces, and bad ones by line."""

import hashlib
import os

import pytest

from avssl.shards.format import dump_json
from avssl.shards.manifest import stream_manifest
from data_prep.write.rows import scan


def fake_manifest(path, num_rows, **changes):
    with path.open("wb") as file:
        for number in range(num_rows):
            file.write(
                dump_json({"path": f"v/{number}.mp4", "key": f"k{number}", "labels": {}, "error": None} | changes)
            )


def test_rows_are_those_of_the_file_in_any_number_of_pieces(tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    fake_manifest(path, 1000)
    wanted, sha256 = list(stream_manifest(path)), hashlib.sha256(path.read_bytes()).hexdigest()
    for size in (100, 1001, 64 << 20):
        monkeypatch.setattr("data_prep.write.rows.RANGE_BYTES", size * 1000)
        rows = scan(path, tmp_path / f"work-{size}", num_workers=2)
        assert len(rows) == 1000
        assert rows.sha256 == sha256
        assert rows.read([999, 0, 500, 500]) == [wanted[999], wanted[0], wanted[500], wanted[500]]


def test_a_last_row_without_an_end_of_line_counts(tmp_path):
    path = tmp_path / "corpus.jsonl"
    fake_manifest(path, 3)
    path.write_bytes(path.read_bytes().rstrip())
    assert [entry.key for entry in scan(path, tmp_path / "work").read([2, 1])] == ["k2", "k1"]


def test_rows_that_do_not_fit_are_named_by_line_and_repeated_keys_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.write.rows.RANGE_BYTES", 2000)
    path = tmp_path / "corpus.jsonl"
    fake_manifest(path, 100)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:70], b"{broken\n", *lines[70:]]))
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 71: is not json"):
        scan(path, tmp_path / "work", num_workers=2)
    path.write_bytes(b"".join([*lines, lines[3], lines[90]]))
    with pytest.raises(ValueError, match="keys must be unique; repeated: k3, k90"):
        scan(path, tmp_path / "work", num_workers=2)
    path.write_bytes(
        b"".join([*lines, dump_json({"path": "a", "key": "b", "labels": {}, "error": None, "image": None})])
    )
    with pytest.raises(ValueError, match="images beside video or audio files"):
        scan(path, tmp_path / "work", num_workers=2)


def test_a_manifest_that_changes_meanwhile_is_noticed(tmp_path):
    path = tmp_path / "corpus.jsonl"
    fake_manifest(path, 10)
    rows = scan(path, tmp_path / "work")
    fake_manifest(path, 11)
    with pytest.raises(ValueError, match="changed while it was being written"):
        rows.read([1])
    before = path.stat()
    fake_manifest(path, 11, labels={"label": ["cat"]})
    rows = scan(path, tmp_path / "work")
    fake_manifest(path, 11, labels={"label": ["dog"]})  # as many bytes
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))  # some clocks have steps of a second
    with pytest.raises(ValueError, match="changed while it was being written"):
        rows.read([1])


def test_a_refused_manifest_changes_nothing_for_the_one_that_is_being_written(tmp_path):
    """As many rows, of other lengths: what was noted of one must not be taken for the other's."""
    path, other = tmp_path / "corpus.jsonl", tmp_path / "other.jsonl"
    fake_manifest(path, 5)
    running = scan(path, tmp_path / "work")
    fake_manifest(other, 5, key="a_longer_key_than_the_others")
    with pytest.raises(ValueError, match="keys must be unique"):
        scan(other, tmp_path / "work")
    fake_manifest(other, 5, labels={"label": ["a name"]})
    scan(other, tmp_path / "work")
    for rows in (running, scan(path, tmp_path / "work")):
        assert [entry.key for entry in rows.read(range(5))] == [f"k{number}" for number in range(5)]
