"""A folder of embeddings: every source once, as rows or as a reason, through kills, processes, parts and batches."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

import avssl
from avssl.embedding import parquet
from avssl.embedding.folder import FolderJob
from avssl.embedding.index import FolderIndex, Share
from avssl.embedding.rows import RowSpool
from avssl.embedding.table import EmbeddingTable
from avssl.shards.shard_set import ShardSet
from avssl.transforms.raw_view import RawView
from data_prep.transcode.encode import write_media
from tests.conftest import ROOT, run_python
from tests.embedding_folders import make_embeddings
from tests.test_embed import frames, same_rows, sine

GRID = {"window_seconds": 0.5, "stride_seconds": 0.25}
OPTIONS = ["--window", "0.5", "--stride", "0.25", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos with and without audio, audio files, and two files that are not media, in folders."""
    root = tmp_path_factory.mktemp("sources")
    for number in range(3):
        (root / f"{number}").mkdir()
        video = {"video": frames(20 + 8 * number, 32), "video_fps": 16}
        audio = {"audio": sine(0.8 + number), "audio_rate_hz": 24_000}
        write_media(root / f"{number}" / "film.mp4", **video, **audio)
        write_media(root / f"{number}" / "mute.mp4", **video)
        write_media(root / f"{number}" / "sound.wav", **audio, audio_codec="pcm_s16le")
    (root / "1" / "text.mp4").write_text("this is no video")
    (root / "2" / "empty.wav").touch()
    (root / "notes.txt").write_text("not even tried")
    return root


@pytest.fixture(scope="module")
def embedder(tiny_run):
    return avssl.load_embedder(str(tiny_run))


@pytest.fixture(scope="module")
def whole(embedder, folder):
    """What `embed` gives, at once: the table and the failures."""
    return embedder.embed(folder, **GRID)


def embed(embedder, folder, out, *, share=None, batch_size=64, num_workers=0, spool_rows=16_384, **options):
    job = FolderJob.begin(embedder, [folder], out, **GRID, **options)
    return job.run(embedder, share=share, batch_size=batch_size, num_workers=num_workers, spool_rows=spool_rows)


def assert_whole(out, whole, tolerance=1e-5):
    """The folder holds each row and each failure once, in order, and says so."""
    table, failures = whole
    found, index = EmbeddingTable.read(out), FolderIndex.read(out)
    same_rows(found, table, tolerance)
    for name in ("has_audio", "has_video", "end_seconds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name))
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [(row["key"], row["reason"]) for row in skipped] == [
        (key, error.reason) for key, error in sorted(failures.items())
    ]
    assert index.num_listed == 11 == index.num_embedded + index.num_skipped
    assert index.skipped_by_reason == {"empty_file": 1, "not_media": 1}
    assert index.num_rows == len(table) == sum(record.num_rows for record in index.files)
    assert index.rows_with == {"video": table.has_video.sum(), "audio": table.has_audio.sum()}
    assert {path.name for path in out.iterdir()} == {
        ".lock", "index.json", "skipped.jsonl", "sources.jsonl", *(record.name for record in index.files)
    }  # fmt: skip


def test_a_folder_holds_what_embed_gives(embedder, folder, whole, tmp_path):
    index = embed(embedder, folder, tmp_path)
    assert_whole(tmp_path, whole)
    assert [record.name for record in index.files] == ["embeddings.parquet"]
    metadata = EmbeddingTable.read(tmp_path).metadata
    assert metadata == {**whole[0].metadata, "keys": "manifest"}
    assert metadata["weights"] == embedder.weights_hash
    assert (metadata["window_seconds"], metadata["stride_seconds"], metadata["normalized"]) == (0.5, 0.25, True)
    assert (metadata["modalities"], metadata["avssl_version"]) == (["video", "audio"], avssl.__version__)


def test_rows_of_shards_are_those_of_embed(embedder, shards, tmp_path):
    index = embed(embedder, shards["test"], tmp_path, sources_per_block=4)
    table, _ = embedder.embed(ShardSet(shards["test"]), **GRID)
    found = EmbeddingTable.read(tmp_path)
    same_rows(found, table)
    assert (found.index.tolist(), found.labels) == (table.index.tolist(), table.labels)
    assert (index.num_listed, index.num_skipped) == (6, 0)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1, "sources_per_block": 1},
        {"batch_size": 2, "sources_per_block": 3, "spool_rows": 4},
        {"batch_size": 7, "sources_per_block": 2, "rows_per_file": 10},
        {"num_workers": 2, "sources_per_block": 2, "spool_rows": 8},
    ],
)
def test_rows_depend_on_no_batch_worker_block_file_or_spool(embedder, folder, whole, tmp_path, options):
    index = embed(embedder, folder, tmp_path, **options)
    assert_whole(tmp_path, whole)
    assert len(index.files) == (-(-len(whole[0]) // 10) if "rows_per_file" in options else 1)


@pytest.mark.slow
def test_twice_on_a_cpu_gives_the_same_bytes(embedder, folder, tmp_path):
    for name in ("first", "second"):
        embed(embedder, folder, tmp_path / name, rows_per_file=10)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert len(first) > 5
    assert first == second


class Stopped(BaseException):
    """What no code catches: as if the process had been killed there."""


@pytest.mark.slow
def test_every_state_on_the_disk_is_one_to_go_on_from(embedder, folder, tmp_path, monkeypatch):
    """A job that is stopped after each of its renames and leaves half a file gives the same bytes when run again."""
    replace, stop, writes = type(tmp_path).replace, {"at": -1}, []

    def stopping(path, target):
        writes.append(target.name)
        replace(path, target)
        if len(writes) == stop["at"]:
            raise Stopped

    def run(out):
        embed(embedder, folder / "1", out, sources_per_block=2, rows_per_file=10, spool_rows=10)

    def contents(out):
        return {path.name: path.read_bytes() for path in out.iterdir()}

    monkeypatch.setattr(type(tmp_path), "replace", stopping)
    run(tmp_path / "undisturbed")
    expected, num_writes = contents(tmp_path / "undisturbed"), len(writes)
    assert {"settings.json", "block-00000001.json", "skipped.jsonl", "index.json"} <= set(writes)
    for at in range(1, num_writes + 1):
        out = tmp_path / f"{at}"
        writes.clear()
        stop["at"] = at
        with pytest.raises(Stopped):
            run(out)
        stop["at"] = -1
        if not (out / "index.json").exists():
            (out / ".embeddings.parquet.host-1.tmp").touch()
            with pytest.raises(FileNotFoundError, match="unfinished"):
                EmbeddingTable.read(out)
        run(out)
        assert contents(out) == expected, at


@pytest.mark.parametrize("order", ["01", "10"])
def test_parts_do_the_work_once_and_the_last_one_finishes(embedder, folder, whole, tmp_path, order):
    first, second = (embed(embedder, folder, tmp_path, share=Share(int(n), 2), sources_per_block=2) for n in order)
    assert first is None
    assert second is not None
    assert_whole(tmp_path, whole)
    assert embed(embedder, folder, tmp_path, share=Share(int(order[0]), 2), sources_per_block=2) == second


def command(tiny_run, folder, out, *options):
    return [tiny_run, folder, "--out", out, *OPTIONS, "--sources-per-block", "1", "--num-workers", "0", *options]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_every_row_once(tiny_run, folder, whole, tmp_path):
    """SIGKILL while blocks appear; each start does at least one more of the eleven."""
    arguments = [str(argument) for argument in ["recipes/embed.py", *command(tiny_run, folder, tmp_path)]]
    blocks = lambda: len(list((tmp_path / ".progress").glob("block-*.json")))  # noqa: E731
    for wanted in (2, 8):
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while blocks() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert blocks() >= wanted
        assert not (tmp_path / "index.json").exists()
    process = run_python(*arguments)
    assert "listed 11 = embedded 9 + skipped 2 (1 empty_file, 1 not_media)" in process.stdout
    assert_whole(tmp_path, whole)


@pytest.mark.slow
def test_two_processes_of_torchrun_share_the_work(tiny_run, folder, whole, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = run_python(*launcher, "recipes/embed.py", *command(tiny_run, folder, tmp_path, "--batch-size", "5"))
    assert process.stdout.count("listed 11 = embedded 9 + skipped 2") >= 1
    assert_whole(tmp_path, whole)


def test_part_and_ranks_multiply(monkeypatch):
    assert Share.parse() == Share(0, 1)
    assert Share.parse("2/3") == Share(2, 3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Share.parse("2/3") == Share(9, 12)
    numbers = set()
    for number in range(3):
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            numbers.add(Share.parse(f"{number}/3").number)
    assert numbers == set(range(12))
    for wrong in ("3/3", "1", "-1/2", "a/b"):
        with pytest.raises(ValueError, match="it must be i/n"):
            Share.parse(wrong)


@pytest.mark.slow
def test_other_settings_are_refused_by_name(embedder, folder, tmp_path):
    out = tmp_path / "out"
    embed(embedder, folder, out, share=Share(0, 2), sources_per_block=2)

    def refused(match, **options):
        given = {**GRID, "sources_per_block": 2, **options}
        with pytest.raises(ValueError, match=match):
            FolderJob.begin(embedder, [given.pop("folder", folder)], out, **given)

    refused(r"window_seconds: 0\.5 there, 1\.0 now", window_seconds=1.0)
    refused(r"stride_seconds: 0\.25 there, 0\.5 now", stride_seconds=0.5)
    refused("sources_per_block: 2 there, 3 now", sources_per_block=3)
    refused("sources: ", folder=folder / "1")
    refused("modalities: ", modalities=["audio"])
    weights, embedder.weights_hash = embedder.weights_hash, "other"
    try:
        refused(f"weights: '{weights}' there, 'other' now")
    finally:
        embedder.weights_hash = weights
    embed(embedder, folder, out, share=Share(1, 2), sources_per_block=2)
    refused(r"window_seconds: 0\.5 there, 1\.0 now", window_seconds=1.0)
    (folder / "new.mp4").touch()
    try:
        refused("finished with 11 sources, and now there are 12")
    finally:
        (folder / "new.mp4").unlink()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "embeddings.parquet").touch()
    with pytest.raises(ValueError, match=r"holds embeddings\.parquet, of another program or version"):
        embed(embedder, folder, foreign)
    assert embed(embedder, folder, foreign, overwrite=True).num_embedded == 9


def test_overwrite_removes_nothing_before_all_sources_are_listed(embedder, folder, tmp_path):
    """A name written wrong, or a table of another program, leaves the earlier embeddings as they were."""
    out = tmp_path / "out"
    make_embeddings(out)
    (out / ".progress").mkdir()
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    def assert_kept():
        kept = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert {name: kept[name] for name in before} == before
        assert kept.keys() - before.keys() <= {".lock", "mine.parquet"}
        assert (out / ".progress").is_dir()

    with pytest.raises(FileNotFoundError, match=r"typo: no such file or folder"):
        FolderJob.begin(embedder, [folder, folder / "typo"], out, **GRID, overwrite=True)
    assert_kept()
    (out / "mine.parquet").touch()
    with pytest.raises(ValueError, match=r"holds mine\.parquet, of another program or version; choose another --out$"):
        FolderJob.begin(embedder, [folder], out, **GRID, overwrite=True)
    assert_kept()
    (out / "mine.parquet").unlink()
    job = FolderJob.begin(embedder, [folder], out, **GRID, overwrite=True)
    assert len(job.sources) == 11
    assert sorted(path.name for path in out.iterdir()) == [".lock", ".progress"]


def test_one_part_is_done_by_one_process_at_a_time(embedder, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "embed_windows", lambda *_, **__: embed(embedder, folder, tmp_path))
    with pytest.raises(ValueError, match="another process is at work on this part"):
        embed(embedder, folder, tmp_path)


def test_silence_and_black_images_have_rows(embedder, tmp_path):
    black = [np.zeros((32, 32, 3), np.uint8)] * 32
    silence = np.zeros((1, 48_000), np.float32)
    write_media(tmp_path / "nothing.mp4", video=black, video_fps=16, audio=silence, audio_rate_hz=24_000)
    write_media(tmp_path / "silence.wav", audio=silence, audio_rate_hz=24_000, audio_codec="pcm_s16le")
    table, failures = embedder.embed(tmp_path, **GRID)
    assert failures == {}
    assert (table.has_audio.all(), table.has_video.sum()) == (True, len(table) // 2)
    for name in ("video", "audio"):
        rows = table.embedding(name)[table.has(name)]
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        assert np.isfinite(getattr(table, f"{name}_feature")[table.has(name)]).all()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_embedding_without_direction_is_a_failure_with_its_reason(embedder, folder, tmp_path, monkeypatch, value):
    """Only the audio of 2/film.mp4 fails, from its third window on: the rows before are removed."""
    encode, calls = embedder.encode, []

    def spoiled(modality: str, raw: RawView):
        features, embeddings = encode(modality, raw)
        if modality == "audio":
            calls.append(len(raw.media))
            if len(calls) >= 3:
                embeddings = np.full_like(embeddings, value)
        return features, embeddings

    monkeypatch.setattr(embedder, "encode", spoiled)
    out = tmp_path / "out"
    index = FolderJob.begin(embedder, [folder / "2" / "film.mp4", folder / "1" / "mute.mp4"], out, **GRID).run(
        embedder, batch_size=1
    )
    assert index.skipped_by_reason == {"no_embedding": 1}
    assert set(EmbeddingTable.read(out).keys) == {"mute_mp4"}
    (line,) = (out / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["message"].startswith("film_mp4: from 0.5 to 1 s the audio embedding")


def test_a_source_without_the_modality_is_skipped_with_its_reason(embedder, folder, tmp_path):
    job = FolderJob.begin(embedder, [folder / "0"], tmp_path, modalities=["audio"])
    index = job.run(embedder)
    assert index.skipped_by_reason == {"no_audio": 1}
    assert sorted(set(EmbeddingTable.read(tmp_path).keys)) == ["film_mp4", "sound_wav"]


@pytest.mark.slow
def test_a_folder_that_gives_no_row_says_so(tiny_run, folder, tmp_path):
    process = run_python(
        "recipes/embed.py", tiny_run, folder / "1" / "text.mp4", "--out", tmp_path, "--num-workers", "0", check=False
    )
    assert process.returncode == 1
    assert "listed 1 = embedded 0 + skipped 1 (1 not_media)" in process.stdout
    assert "nothing could be embedded" in process.stderr
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        EmbeddingTable.read(tmp_path)


def test_a_spool_keeps_no_more_rows_than_it_may_and_gives_them_in_order(tmp_path):
    def rows(number, first, count):
        values = np.arange(first, first + count, dtype=float)
        return EmbeddingTable(
            [f"{number}"] * count, np.full(count, -1), values, values + 1, *np.zeros((2, count), bool)
        )

    spool = RowSpool(tmp_path / "spool", max_rows=20)
    for first in range(0, 100, 5):
        spool.put(7, rows(7, first, 5))
        spool.put(8, rows(8, first, 1))
    assert spool.most_rows <= 20
    assert list((tmp_path / "spool").iterdir())
    starts = [start for table in spool.take(7) for start in table.start_seconds]
    assert starts == list(range(100))
    spool.drop(8)
    assert list((tmp_path / "spool").iterdir()) == []
    assert list(spool.take(8)) == []


@pytest.mark.slow
def test_merged_files_have_the_same_bytes_however_the_rows_came(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 8)
    generator = np.random.default_rng(0)
    n = 50
    table = EmbeddingTable(
        [f"k{i}" for i in range(n)], np.full(n, -1), np.arange(n), np.arange(n) + 1.0, np.ones(n, bool),
        np.zeros(n, bool), audio_embedding=generator.standard_normal((n, 4)), metadata={"a": 1},
    )  # fmt: skip
    written = []
    for pieces in ([50], [7, 20, 23], [1] * 50):
        bounds = np.cumsum([0, *pieces])
        parts = [
            table.select(range(a, b)).write(tmp_path / f"p{len(pieces)}-{a:03d}.parquet") for a, b in pairwise(bounds)
        ]
        targets = [(tmp_path / f"{len(pieces)}-{k}.parquet", rows) for k, rows in enumerate((21, 21, 8))]
        parquet.merge_parquet(parts, targets)
        written.append([path.read_bytes() for path, _ in targets])
    assert written[0] == written[1] == written[2]
    merged = [EmbeddingTable.read(path) for path, _ in targets]
    assert [key for part in merged for key in part.keys] == table.keys
    np.testing.assert_array_equal(np.concatenate([part.audio_embedding for part in merged]), table.audio_embedding)
    with pytest.raises(ValueError, match="rows are missing"):
        parquet.merge_parquet(parts, [(tmp_path / "x.parquet", 51)])
    assert not (tmp_path / "x.parquet").exists()
    assert torch.get_num_threads() == 1
