"""`avssl export` of embeddings to CSV and NumPy: what is written reads back the same, and acts on no program."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from avssl.exchange.targets import command, csv_file, fiftyone_dataset, numpy_files, rows
from tests.conftest import ROOT, run_python
from tests.embedding_folders import HOSTILE, make_embeddings, media_of_row


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_comes_back_and_no_program_acts_on_it(text):
    cell = csv_file.cell(text)
    assert csv_file.original(cell) == text
    assert cell.isprintable()
    assert not cell.startswith(tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20"))
    assert csv_file.cell(None) is None


def test_a_csv_file_reads_back_as_the_rows_to_the_last_bit(tmp_path):
    table = make_embeddings(tmp_path / "rows")
    facts = csv_file.export(command.parse([str(tmp_path / "rows"), "--to", "csv", "--out", str(tmp_path / "r.csv")]))
    assert facts["num_rows"] == 40
    read = read_csv(tmp_path / "r.csv")
    assert [csv_file.original(row["key"]) for row in read] == table.keys
    for number, row in enumerate(read):
        assert json.loads(row["labels"]) == table.labels[number]
        assert csv_file.original(row["label"]) == table.labels[number]["label"][0]
        assert row["'=field"] == "x | a | b"
        assert row["label_key"] == ""  # a field of the name of a column; it has no names
        path, begin = media_of_row(number)
        assert csv_file.original(row["media"]) == path
        assert float(row["media_begin_seconds"]) == begin + table.start_seconds[number]
        assert float(row["media_end_seconds"]) == begin + table.end_seconds[number]
        assert csv_file.original(row["caption"]) == (table.captions[number] or "")
        for name in ("video", "audio"):
            vector = table.embedding(name)[number]
            cells = [row[f"{name}_embedding_{place}"] for place in range(len(vector))]
            assert (row[f"has_{name}"] == "true") == table.has(name)[number] == (cells[0] != "")
            assert not cells[0] or np.array_equal(np.array(cells, np.float32), vector)
    assert not any(name.startswith("video_feature") for name in read[0])
    physical = (tmp_path / "r.csv").read_bytes()
    assert physical.count(b"\n") == 41
    assert not [byte for byte in physical if byte < 32 and byte != ord("\n")]


def test_no_label_field_takes_the_column_of_another(tmp_path):
    """Of fields called like a column, and as that one is renamed."""
    make_embeddings(
        tmp_path / "rows", 2, labels=[{"key": ["one"], "label_key": ["two"], "label_label_key": ["three"]}] * 2
    )
    csv_file.export(command.parse([str(tmp_path / "rows"), "--to", "csv", "--out", str(tmp_path / "r.csv")]))
    row = read_csv(tmp_path / "r.csv")[0]
    assert sorted(value for name, value in row.items() if name.startswith("label_")) == ["one", "three", "two"]
    names = fiftyone_dataset.field_names(["key", "label_key", "label_label_key"])
    assert len(set(names.values()) - {"key"}) == 3


def test_arrays_read_back_without_pickle_and_may_be_mapped(tmp_path):
    table = make_embeddings(tmp_path / "rows")
    words = [tmp_path / "rows", "--to", "numpy", "--out", tmp_path / "arrays", "--vectors", "embedding", "feature"]
    numpy_files.export(command.parse(list(map(str, words))))
    loaded = {path.stem: np.load(path, mmap_mode="r") for path in (tmp_path / "arrays").glob("*.npy")}
    assert loaded["key"].tolist() == table.keys
    for name in ("video_embedding", "audio_embedding", "video_feature", "start_seconds", "has_video", "index"):
        np.testing.assert_array_equal(loaded[name], getattr(table, name))
        assert loaded[name].dtype == getattr(table, name).dtype
    lines = [json.loads(line) for line in (tmp_path / "arrays" / "rows.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == table.labels
    assert [line["caption"] for line in lines] == table.captions
    assert [line["media"] for line in lines] == [media_of_row(row)[0] for row in range(40)]
    described = json.loads((tmp_path / "arrays" / "columns.json").read_text())
    assert described["arrays"]["video_embedding"] == {"dtype": "<f4", "shape": [40, 5]}
    assert described["settings"]["weights"] == "w"
    assert {path.name for path in tmp_path.iterdir()} == {"rows", "arrays"}  # nothing is left beside it


def test_media_that_were_moved_are_linked_where_they_are_now(tmp_path):
    make_embeddings(tmp_path / "rows")
    source = rows.RowSource(tmp_path / "rows", moved=[("/films/", "s3://bucket/")])
    assert next(source.groups()).media[-1].startswith("s3://bucket/")


@pytest.mark.slow
def test_rows_of_shards_are_linked_to_the_tar_that_holds_them(shards, tmp_path, capsys):
    from avssl.shards.shard_set import ShardSet

    source = ShardSet(shards["train"])
    settings = {"shards": source.fingerprint, "sources": [str(shards["train"])]}
    table = make_embeddings(tmp_path / "rows", settings=settings)
    opened = rows.RowSource(tmp_path / "rows")
    links = opened._links()
    for index, key in enumerate(source.keys):
        path, offset, _ = links.find(key, index)
        names = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True).stdout
        assert f"{key}.json" in names.splitlines()
        assert offset == 0
    assert len(table) == 40
    gone = rows.RowSource(tmp_path / "rows", moved=[(str(shards["train"]), str(tmp_path / "gone"))])
    assert gone._links().find("any", 0)[0] is None
    assert "rows have no link to media" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("target", ["csv", "numpy"])
def test_two_exports_give_the_same_bytes(target, tmp_path):
    make_embeddings(tmp_path / "rows")
    written = []
    for name in ("one", "two"):
        run_python("-m", "avssl", "export", tmp_path / "rows", "--to", target, "--out", tmp_path / name)
        files = [tmp_path / name] if target == "csv" else sorted((tmp_path / name).iterdir())
        written.append([(path.name if target == "numpy" else "", path.read_bytes()) for path in files])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--to", "csv", "--out", "r.csv"], "is missing: nowhere is not a folder that `avssl embed` has"),
        (["rows", "--to", "csv", "--out", "there.csv"], "is there already; choose another --out, or --overwrite"),
        (
            ["rows", "--to", "csv", "--out", "cut", "--overwrite"],
            "cut is a folder, and a file is to be written there; choose",
        ),
        (
            ["rows", "--to", "csv", "--out", "empty"],
            "empty is a folder, and a file is to be written there; choose another --out",
        ),
        (
            ["rows", "--to", "lightly-studio", "--out", "empty"],
            "empty is a folder, and a file is to be written there; choose",
        ),
        (["rows", "--to", "numpy", "--out", "cut"], "is there already; choose another --out, or --overwrite"),
        (["rows", "rows", "--to", "csv", "--out", "r.csv"], "takes one folder of embeddings; 2 sources are given"),
        (["shards", "--to", "csv", "--out", "r.csv"], "holds shards, and --to csv is for embeddings; shards go to"),
        (["run", "--to", "csv", "--out", "r.csv"], "is a run: its weights are exported by `avssl exchange export RUN"),
        (["rows", "--to", "csv", "--out", "r.csv", "--moved", "x"], "--moved is 'x'; write OLD=NEW"),
        (["unlisted", "--to", "csv", "--out", "r.csv"], "are of no file in its list of sources; embed again"),
        (["cut", "--to", "csv", "--out", "r.csv"], "bytes; index.json says"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_do(words, message, tmp_path, monkeypatch, capsys, shards):
    for name in ("rows", "unlisted", "cut"):
        make_embeddings(tmp_path / name)
    (tmp_path / "unlisted" / "sources.jsonl").write_text('{"path": "/a", "key": "a"}\n')
    os.truncate(tmp_path / "cut" / "embeddings-1.parquet", 1000)
    (tmp_path / "shards").symlink_to(shards["test"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        command.command(words)
    assert left.value.code in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_export_of_models_says_how_data_are_exported(tmp_path):
    from avssl.exchange.__main__ import main

    make_embeddings(tmp_path / "rows", 2)
    with pytest.raises(SystemExit, match=r"rows is no run; shards and embeddings are exported by `avssl export"):
        main(["export", str(tmp_path / "rows"), "--out", str(tmp_path / "out")])


def test_overwrite_replaces_an_export_and_nothing_else(tmp_path, capsys):
    make_embeddings(tmp_path / "rows")
    words = [str(tmp_path / "rows"), "--to", "numpy", "--out", str(tmp_path / "arrays"), "--overwrite"]
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "mine").touch()
    with pytest.raises(SystemExit):
        command.command(words)
    assert "is there already, and no earlier export; choose another --out" in capsys.readouterr().err
    (tmp_path / "arrays" / "mine").unlink()
    command.command(words)
    (tmp_path / "arrays" / "old").touch()
    command.command(words)
    assert not (tmp_path / "arrays" / "old").exists()
    assert (tmp_path / "arrays" / "columns.json").is_file()


@pytest.mark.parametrize("target", ["csv", "numpy", "lance", "lightly-studio", "hf"])
@pytest.mark.parametrize("out", ["kept/rows", "kept", "kept/rows/index.json", "link/inside"])
def test_no_target_writes_over_its_source(target, out, tmp_path, shards, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if target == "hf":
        shutil.copytree(shards["test"], "kept/rows")
    else:
        make_embeddings(tmp_path / "kept" / "rows")
    (tmp_path / "link").symlink_to("kept/rows")
    before = {path: path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        command.command(["kept/rows", "--to", target, "--out", out, "--overwrite"])
    assert "the source kept/rows; choose another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("target", ["csv", "numpy"])
def test_a_killed_export_leaves_nothing_and_the_next_gives_the_same_bytes(target, tmp_path):
    make_embeddings(tmp_path / "rows", 60_000, rows_per_file=20_000, labels=[{}] * 60_000)
    words = ["-m", "avssl", "export", tmp_path / "rows", "--to", target, "--out"]
    run_python(*words, tmp_path / "whole")
    process = subprocess.Popen([sys.executable, *map(str, words), tmp_path / "cut"], cwd=ROOT)
    until = time.monotonic() + 60
    while not any(path.name.startswith(".cut") for path in tmp_path.iterdir()) and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    run_python(*words, tmp_path / "cut")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    pairs = [tmp_path / name for name in ("whole", "cut")]
    names = [path.name for path in pairs[0].iterdir()] if target == "numpy" else [""]
    assert all((pairs[0] / name).read_bytes() == (pairs[1] / name).read_bytes() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["csv", "numpy"])
def test_memory_does_not_grow_with_the_number_of_rows(target, tmp_path):
    peaks = []
    for num_rows in (20_000, 200_000):
        folder = tmp_path / str(num_rows)
        make_embeddings(folder, num_rows, rows_per_file=100_000, labels=[{"label": ["one"]}] * num_rows)
        code = (
            "import sys; from avssl.exchange.targets import command; command.command(sys.argv[1:]);"
            # not ru_maxrss, which a process inherits from the one that starts it: it was that of the tests
            "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        words = [folder, "--to", target, "--out", tmp_path / f"out{num_rows}"]
        peaks.append(int(run_python("-c", code, *words).stdout.split()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 15, peaks  # MiB; ten times the rows are 35 MB more of vectors, keys and times
