"""data_prep facts: every listed sample has a row, measured once whatever kills it; nothing is made up."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from avssl.shards.format import dump_json
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from data_prep.__main__ import main
from data_prep.facts import run as facts_run
from data_prep.facts.run import make_facts
from data_prep.facts.sources import FileTask, open_corpus
from data_prep.facts.table import COLUMNS, read_metadata
from data_prep.measures.audio import measure_audio
from data_prep.measures.video import measure_image, measure_video
from data_prep.write.job import Share
from tests.clips import make_clip
from tests.conftest import run_python

KEYS = ["clip_0", "clip_1", "clip_2", "clip_3", "part", "gone"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three clips, a file that is none, half a second of the first clip, and a file that the manifest says is gone."""
    folder = tmp_path_factory.mktemp("facts")
    for seed in range(3):
        make_clip(folder / "videos" / f"clip_{seed}.mp4", seed)
    (folder / "videos" / "clip_3.mp4").write_text("no video\n")
    rows = [{"path": f"videos/clip_{seed}.mp4", "key": f"clip_{seed}", "labels": {"label": ["a"]}} for seed in range(4)]
    rows.append({"path": "videos/clip_0.mp4", "key": "part", "labels": {}, "segment": [0.25, 0.75]})
    rows = [row | {"error": None} for row in rows]
    gone = {"reason": "missing_file", "message": "gone"}
    rows.append({"path": "videos/gone.mp4", "key": "gone", "labels": {}, "error": gone})
    (folder / "corpus.jsonl").write_bytes(b"".join(map(dump_json, rows)))
    return folder / "corpus.jsonl"


@pytest.fixture(scope="module")
def table(manifest):
    """The facts of the manifest."""
    make_facts(str(manifest), manifest.parent / "facts.parquet")
    return manifest.parent / "facts.parquet"


def rows_of(path):
    return {row["key"]: row for row in pq.read_table(path).to_pylist()}


def test_every_listed_sample_has_a_row_in_its_order_also_what_cannot_be_read(manifest, table):
    stored = pq.read_table(table)
    assert stored.column_names == list(COLUMNS)
    assert stored["key"].to_pylist() == KEYS
    assert stored["reason"].to_pylist() == [None, None, None, "not_media", None, "missing_file"]
    assert read_metadata(table)["unreadable_by_reason"] == {"missing_file": 1, "not_media": 1}
    rows = rows_of(table)
    whole, part = rows["clip_0"], rows["part"]
    content = (manifest.parent / "videos/clip_0.mp4").read_bytes()
    assert whole["content"] == hashlib.sha256(content).hexdigest() != part["content"]
    assert whole["bytes"] == len(content)
    assert json.loads(whole["labels"]) == {"label": ["a"]}
    assert (whole["width_px"], whole["height_px"], whole["fps"], whole["rate_hz"], whole["channels"]) == (
        64,
        48,
        20,
        48000,
        1,
    )
    assert abs(whole["duration_seconds"] - 1) < 0.05
    assert abs(part["duration_seconds"] - 0.5) < 0.05
    assert {
        value for name, value in rows["gone"].items() if name not in ("key", "path", "reason", "message", "labels")
    } == {None}


def test_a_part_of_a_file_is_measured_alone(tmp_path):
    """The first half is still and silent, the second is not: rows of either half say so."""
    frames = np.full((40, 48, 64, 3), 90, np.uint8)
    frames[20:] = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    sound = np.zeros((1, 96000), np.float32)
    sound[0, 48000:] = 0.5 * np.sin(np.arange(48000) * 0.05)
    make_clip(tmp_path / "clip.mp4", video=frames, audio=sound)
    rows = [
        {"path": "clip.mp4", "key": f"half_{n}", "labels": {}, "error": None, "segment": [n, n + 1.0]} for n in (0, 1)
    ]
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(map(dump_json, rows)))
    make_facts(str(tmp_path / "corpus.jsonl"), tmp_path / "facts.parquet")
    first, second = rows_of(tmp_path / "facts.parquet").values()
    assert (first["still_share"], first["middle_hash"], first["sound_hash"], first["loudness_lufs"]) == (
        1,
        None,
        None,
        None,
    )
    assert first["silent_share"] > 0.9
    assert second["still_share"] == 0
    assert second["motion"] > 5 > first["motion"]
    assert second["silent_share"] < 0.1
    assert abs(second["peak_dbfs"] - 20 * np.log10(0.5)) < 1
    assert second["sound_hash"] is not None


def test_a_file_whose_name_is_no_unicode_has_a_row_and_is_selected(tmp_path):
    rows = [
        {"path": "caf\udce9.mp4", "key": "caf_", "labels": {"label": ["caf\udce9"]}, "error": None},
        {"path": "other.mp4", "key": "other", "labels": {}, "error": None},
    ]
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(map(dump_json, rows)))
    make_facts(str(tmp_path / "corpus.jsonl"), tmp_path / "corpus.facts.parquet")
    first = rows_of(tmp_path / "corpus.facts.parquet")["caf_"]
    assert (first["path"], first["reason"]) == ("caf\\udce9.mp4", "missing_file")
    assert json.loads(first["labels"]) == rows[0]["labels"]
    assert main(["select", str(tmp_path / "corpus.jsonl"), "--out", str(tmp_path / "kept.jsonl")]) == 0
    assert len((tmp_path / "kept.select.left_out.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_facts_of_a_shard_folder_are_what_stats_measures_of_its_samples(shards, image_shards, tmp_path):
    folder = shards["test"]
    make_facts(str(folder), tmp_path / "facts.parquet")
    stored, samples = ShardSet(folder), pq.read_table(tmp_path / "facts.parquet").to_pylist()
    assert [row["key"] for row in samples] == stored.keys
    for number, row in enumerate(samples):
        sample = stored.read(number)
        video = measure_video(sample.video, sample.info.num_frames, sample.info.video_fps, 2.0, "video")
        audio = measure_audio(sample.audio, sample.info.audio_rate_hz, -60.0, "audio")
        assert row["motion"] == pytest.approx(video.motion, rel=1e-5)
        assert (row["still_share"], row["middle_hash"], row["first_hash"]) == (
            video.still_share, video.middle_hash, video.first_hash
        )  # fmt: skip
        assert row["loudness_lufs"] == pytest.approx(audio.loudness_lufs, abs=1e-6)
        assert (row["peak_dbfs"], row["silent_share"]) == (pytest.approx(audio.peak_dbfs), audio.silent_share)
        assert row["duration_seconds"] == sample.info.duration_seconds
    make_facts(str(image_shards), tmp_path / "images.parquet")
    for number, row in enumerate(pq.read_table(tmp_path / "images.parquet").to_pylist()):
        assert row["image_hash"] == measure_image(ShardSet(image_shards).read(number).image, "image")
        assert (row["width_px"], row["height_px"], row["motion"], row["duration_seconds"]) == (48, 40, None, None)
        assert (row["brightness"] > 0.5) == (json.loads(row["labels"])["label"] == ["light"])


@pytest.mark.slow
def test_shares_give_the_bytes_of_one_process_and_what_is_done_is_not_measured_again(
    manifest, table, tmp_path, monkeypatch
):
    monkeypatch.setattr(facts_run, "ROWS_PER_BLOCK", 2)
    out = tmp_path / "facts.parquet"
    for number in (0, 1):
        assert make_facts(str(manifest), out, share=Share(number, 2)) is None
    assert not out.exists()
    (out.parent / "facts.parquet.parts" / "block-00000001.parquet").unlink()  # as a kill leaves it
    measured = []
    run_blocks = facts_run._run

    def noted(blocks, missing, *rest):
        measured.extend(missing)
        return run_blocks(blocks, missing, *rest)

    monkeypatch.setattr(facts_run, "_run", noted)
    facts = make_facts(str(manifest), out)
    assert measured == [1]
    assert facts.num_samples == 6
    assert out.read_bytes() == table.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["facts.parquet"]
    make_facts(str(manifest), out)
    assert measured == [1]


def test_wrong_use_is_one_line_that_says_what_to_do(manifest, table, shards, tmp_path, capsys):
    def error(*arguments):
        assert main(["facts", *map(str, arguments)]) == 2
        text = capsys.readouterr().err.strip()
        assert text.startswith("error: ")
        assert "\n" not in text
        return text

    out = tmp_path / "facts.parquet"
    assert "no such manifest; make one with `avssl prep index`" in error(tmp_path / "none.jsonl", "--out", out)
    assert "neither a manifest of `avssl prep index` (.jsonl) nor a finished" in error(tmp_path, "--out", out)
    assert "with the suffix .parquet" in error(manifest, "--out", tmp_path / "facts.csv")
    assert "holds facts of another corpus; choose another --out" in error(shards["test"], "--out", table)
    assert "--part is 3/2; it must be i/n" in error(manifest, "--out", out, "--part", "3/2")
    assert "leave out --part" in error(manifest, "--out", out, "--executor", "slurm", "--part", "0/2")
    out.write_bytes(b"no table")
    assert "Parquet" in error(manifest, "--out", out)
    pq.write_table(pq.read_table(table).replace_schema_metadata({}), out)
    assert "is no table of facts" in error(manifest, "--out", out)


def test_the_command_says_in_json_how_many_cannot_be_read(manifest, tmp_path, capsys):
    assert main(["facts", "--json", str(manifest), "--out", str(tmp_path / "facts.parquet"), "--num-workers", "2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["command"]) == ("result", "prep facts")
    assert (result["num_samples"], result["unreadable_by_reason"]) == (6, {"missing_file": 1, "not_media": 1})


def test_a_task_whose_process_dies_costs_only_the_sample_that_kills_it(monkeypatch, tmp_path, manifest):
    """Images are measured many at a time; the sandbox reports one outcome for all of them."""

    class Dying:
        num_workers = 1

        def run(self, work, tasks, name):
            for task in tasks:
                died = any(entry.key == "clip_1" for entry in task.entries)
                yield task, MediaError("crashed", f"{name(task)} died") if died else work(task)

    corpus = open_corpus(str(manifest), tmp_path, 1)
    together = FileTask(tuple(corpus.rows.read(range(3))), corpus.root)
    rows = [row for part in facts_run._rows(Dying(), [together]) for row in part]
    assert [row.get("reason") for row in rows] == [None, "crashed", None]
    assert [row["key"] for row in rows] == KEYS[:3]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    for seed in range(6):
        make_clip(tmp_path / "videos" / f"clip_{seed}.mp4", seed)
    rows = [{"path": f"videos/clip_{n % 6}.mp4", "key": f"clip_{n}", "labels": {}, "error": None} for n in range(600)]
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(map(dump_json, rows)))
    command = [sys.executable, "-m", "data_prep", "facts", str(tmp_path / "corpus.jsonl"), "--out"]
    out, parts = tmp_path / "killed.parquet", tmp_path / "killed.parquet.parts"
    process = subprocess.Popen([*command, str(out)], start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list(parts.glob("block-*.parquet")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("block-*.parquet")}
    assert 1 <= len(done) < 3
    assert not out.exists()
    make_facts(str(tmp_path / "corpus.jsonl"), out, num_workers=2)
    make_facts(str(tmp_path / "corpus.jsonl"), tmp_path / "once.parquet", num_workers=1)
    assert out.read_bytes() == (tmp_path / "once.parquet").read_bytes()


@pytest.mark.slow
def test_ray_gives_the_same_bytes(manifest, table, tmp_path):
    pytest.importorskip("ray")
    run_python("-m", "data_prep", "facts", manifest, "--out", tmp_path / "facts.parquet", "--executor", "ray")
    assert (tmp_path / "facts.parquet").read_bytes() == table.read_bytes()


def test_slurm_jobs_run_the_command_with_a_share_each_and_the_last_one_adds_the_embeddings(
    monkeypatch, capsys, tmp_path
):
    made = {}

    def submit(name, command_of, count, out, **options):
        made.update(name=name, commands=[command_of("0/2"), command_of(None)], count=count, **options)
        return "submitted"

    monkeypatch.setattr("data_prep.facts.command.submit_array", submit)
    monkeypatch.chdir(tmp_path)
    options = [
        "--embeddings",
        "rows",
        "--executor",
        "slurm",
        "--slurm-tasks",
        "2",
        "--num-workers",
        "3",
        "--file-seconds",
        "9",
    ]
    assert main(["facts", "corpus.jsonl", "--out", "facts.parquet", *options]) == 0
    assert "submitted" in capsys.readouterr().out
    share, last = ([word.removeprefix(f"{Path.cwd()}/") for word in words[3:]] for words in made["commands"])
    common = ["facts", "corpus.jsonl", "--out", "facts.parquet", "--num-workers", "3", "--file-seconds", "9"]
    common += ["--file-memory-mib", "4096"]
    assert share == [*common, "--part", "0/2"]
    assert last == [*common, "--embeddings", "rows"]
    assert (made["count"], made["cpus"]) == (2, 3)
