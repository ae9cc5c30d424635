"""A file that crashes its decoder, hangs or takes all memory costs its own rows, whatever else is embedded, once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import avssl
from avssl.embedding.folder import FolderJob
from avssl.embedding.index import FolderIndex, Share
from avssl.embedding.table import EmbeddingTable
from avssl.embedding.windows import WINDOWS_PER_READ, WindowReader
from avssl.processes.limits import Limits
from data_prep.transcode.encode import write_media
from tests.conftest import ROOT, run_python
from tests.test_embed import frames, sine

GRID = {"window_seconds": 0.25, "stride_seconds": 0.1}
LIMITS = Limits(memory_bytes=512 << 20)
REASONS = {"crash_mp4": "crashed", "memory_mp4": "out_of_memory", "bug_mp4": "crashed"}
# The recipe in a process of its own, whose decoding processes read with `Misbehaving`.
RECIPE = """
import sys
from avssl.embedding import embedder as embed
from recipes import embed as recipe
from tests.test_embed_sandbox import Misbehaving
embed.WindowReader = Misbehaving
assert recipe.main(recipe.parse(sys.argv[1:])) == 0
"""


class Misbehaving(WindowReader):
    """Some sources do to their process what their name says, after their second window batch."""

    def _batches(self, begun):
        for number, windows in enumerate(super()._batches(begun)):
            yield windows
            name = windows.media.key.rpartition("/")[2] if number == 1 else ""
            if name == "crash_mp4":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif name == "hang_mp4":
                time.sleep(120)
            elif name == "memory_mp4":
                bytearray(1 << 30)
            elif name == "bug_mp4":
                raise IndexError("list index out of range")


@pytest.fixture(scope="module")
def embedder(tiny_run):
    return avssl.load_embedder(str(tiny_run))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """good/: four videos and two audio files. mixed/: the same, and between them the files that misbehave."""
    root = tmp_path_factory.mktemp("sources")
    good, mixed = root / "good", root / "mixed"
    good.mkdir()
    for number, name in enumerate(("a.mp4", "d.mp4", "i.mp4", "z.mp4")):
        video = {"video": frames(72 if name == "i.mp4" else 36 + 8 * number, 32), "video_fps": 16}
        write_media(good / name, **video, audio=sine(2.3 + number / 2), audio_rate_hz=24_000)
    for name in ("c.wav", "n.wav"):
        write_media(good / name, audio=sine(1.0), audio_rate_hz=24_000, audio_codec="pcm_s16le")
    shutil.copytree(good, mixed)
    for folder, names in ((mixed, REASONS), (root, ["hang.mp4"])):
        for name in names:
            shutil.copy(good / "i.mp4", folder / name.replace("_", "."))
    return good, mixed


@pytest.fixture(scope="module")
def good_rows(embedder, folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("good")
    assert embed(embedder, folders[0], out).num_embedded == 6
    return EmbeddingTable.read(out)


def embed(embedder, folder, out, *, share=None, num_workers=2, **options):
    job = FolderJob.begin(embedder, [folder], out, **GRID, **options)
    return job.run(embedder, share=share, batch_size=16, num_workers=num_workers, limits=LIMITS)


@pytest.fixture
def misbehaving(embedder, monkeypatch):
    def window_reader(sources, settings, blocks=None):
        reader = type(embedder).window_reader(embedder, sources, settings, blocks)
        reader.__class__ = Misbehaving
        return reader

    monkeypatch.setattr(embedder, "window_reader", window_reader)


def assert_only_they_are_missing(out, good_rows):
    """The good files have the same rows to the bit, the others a reason each, and the counts add up."""
    table, index = EmbeddingTable.read(out), FolderIndex.read(out)
    assert table.keys == good_rows.keys
    for name in ("start_seconds", "video_embedding", "audio_embedding", "video_feature", "audio_feature"):
        np.testing.assert_array_equal(getattr(table, name), getattr(good_rows, name), err_msg=name)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in skipped} == REASONS
    assert all(row["message"].startswith(row["key"]) for row in skipped)
    assert (index.num_listed, index.num_embedded, index.num_skipped) == (9, 6, 3)
    assert not (out / ".progress").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_workers": 1}, {"num_workers": 3, "sources_per_block": 3}])
def test_they_cost_their_own_rows_and_no_others(
    embedder, folders, good_rows, misbehaving, tmp_path, options, monkeypatch
):
    from avssl.embedding.rows import RowSpool

    dropped, drop = {}, RowSpool.drop

    def watched(spool, number):
        dropped[number] = sum(map(len, spool._tables.get(number, [])))
        drop(spool, number)

    monkeypatch.setattr(RowSpool, "drop", watched)
    embed(embedder, folders[1], tmp_path, **options)
    assert_only_they_are_missing(tmp_path, good_rows)
    assert len(dropped) == 3
    assert max(dropped.values()) > 0, "rows of a video that could be read in part were waiting in the spool"
    assert max(dropped.values()) <= 2 * WINDOWS_PER_READ


@pytest.mark.slow
def test_parts_meet_each_of_them_once(embedder, folders, good_rows, misbehaving, tmp_path):
    first, second = (
        embed(embedder, folders[1], tmp_path, share=Share(number, 2), sources_per_block=1, num_workers=1)
        for number in range(2)
    )
    assert first is None
    assert second.num_skipped == 3
    assert_only_they_are_missing(tmp_path, good_rows)


@pytest.mark.slow
def test_a_file_that_hangs_is_given_up(embedder, folders, misbehaving):
    """When it has given no windows for so long; what it gave before is dropped."""
    good, _ = folders
    sources = [good / "a.mp4", good.parent / "hang.mp4", good / "c.wav"]
    table, failures = embedder.embed(sources, num_workers=2, limits=Limits(seconds=6.0), **GRID)
    assert sorted(set(table.keys)) == ["a_mp4", "c_wav"]
    assert {key: error.reason for key, error in failures.items()} == {"hang_mp4": "timeout"}
    assert failures["hang_mp4"].message == "hang_mp4: given up after 6 s; --file-seconds allows more"


@pytest.mark.slow
def test_samples_of_shards_that_misbehave_are_skipped_too(embedder, shards, tmp_path, monkeypatch, misbehaving):
    from avssl.shards.shard_set import ShardSet

    key = ShardSet(shards["test"]).keys[2]
    made = type(embedder).window_reader
    monkeypatch.setattr(embedder, "window_reader", lambda *a, **o: CrashOf(key, made(embedder, *a, **o)))
    table, failures = embedder.embed(shards["test"], num_workers=2)
    assert {name: error.reason for name, error in failures.items()} == {"sample 2": "crashed"}
    assert sorted(set(table.index)) == [0, 1, 3, 4, 5]


class CrashOf(WindowReader):
    """As the reader, but one key ends the process."""

    def __init__(self, key, reader):
        self.__dict__ |= reader.__dict__ | {"crashing_key": key}

    def _batches(self, begun):
        if begun.key == self.crashing_key:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield from super()._batches(begun)


def test_a_missing_shard_is_an_error_and_not_a_smaller_result(embedder, shards, tmp_path):
    folder = shutil.copytree(shards["test"], tmp_path / "shards")
    from avssl.shards.shard_set import ShardSet

    opened = ShardSet(folder)
    next(folder.glob("*.tar")).unlink()
    for num_workers in (0, 2):
        with pytest.raises(FileNotFoundError, match="No such file"):
            embedder.embed(opened, num_workers=num_workers)


def test_without_processes_an_exception_costs_its_file_alone(embedder, folders, misbehaving, tmp_path):
    sources = [folders[1] / name for name in ("a.mp4", "bug.mp4", "c.wav")]
    table, failures = embedder.embed(sources, num_workers=0, **GRID)
    assert sorted(set(table.keys)) == ["a_mp4", "c_wav"]
    (error,) = failures.values()
    assert error.reason == "crashed"
    assert "bug_mp4: IndexError: list index out of range (test_embed_sandbox.py line" in error.message


@pytest.mark.slow
def test_killed_and_started_again_it_skips_them_again_and_leaves_no_process(tiny_run, folders, good_rows, tmp_path):
    """SIGKILL to the recipe when the first of them are skipped; then the same command."""
    options = ["--window", "0.25", "--stride", "0.1", "--device", "cpu", "--batch-size", "16", "--num-workers", "2"]
    options += ["--sources-per-block", "1", "--file-memory-mib", "512"]
    arguments = [str(argument) for argument in ["-c", RECIPE, tiny_run, folders[1], "--out", tmp_path, *options]]
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    crashed = tmp_path / ".progress" / "block-00000003.json"  # a, bug, c, crash
    deadline = time.monotonic() + 120
    while not crashed.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    children = list(offspring(process.pid))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(crashed.read_text())["skipped"][0]["reason"] == "crashed"
    assert not (tmp_path / "index.json").exists()
    assert len(children) >= 2
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, children)), "decoding processes outlive the job"
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / ".progress").glob("block-*.json")}
    finished = run_python(*arguments)
    assert "listed 9 = embedded 6 + skipped 3 (2 crashed, 1 out_of_memory)" in finished.stdout
    assert len(done) >= 4
    assert_only_they_are_missing(tmp_path, good_rows)


def offspring(pid):
    """The processes below one, however deep."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        yield from offspring(child)


def is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_limits_are_checked(tiny_run, tmp_path):
    process = run_python("recipes/embed.py", tiny_run, tmp_path, "--out", tmp_path, "--file-seconds", "0", check=False)
    assert process.returncode == 1
    assert "a file may take 0.0 s and 4096 MiB; allowed are more than 0 s" in process.stderr
