"""A full or read-only disk and a device that is not there: one line that names the file, and nothing half."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from avssl.device import usable_device
from avssl.embedding.embedder import Embedder
from avssl.embedding.sources import list_sources, write_listing
from avssl.embedding.table import EmbeddingTable
from avssl.eval.configs import StandardConfig
from avssl.files import whole
from avssl.files.tensors import write_tensors
from avssl.report.page import write_report
from avssl.shards.opened import opened
from avssl.shards.places import Place, Sounding
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.write.run import write_shards
from recipes import embed, evaluate
from tests.clips import OPTIONS, make_clip
from tests.conftest import run_python


@contextmanager
def files_of_at_most(num_bytes):
    """A real limit of the system, on the size of a file: it comes back from the same calls as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["bytes", "tensors"])
def test_a_full_disk_keeps_what_was_there(kind, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write():
        if kind == "bytes":
            whole.write_whole(path, bytes(5000))
            return
        with whole.whole_path(path) as temporary:
            write_tensors({"a": torch.zeros(5000)}, temporary, {})

    with files_of_at_most(1000), pytest.raises(OSError, match=r"/file: could not be written, the disk") as error:
        write()
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == b"before"
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "is full; free space"), (errno.EROFS, "read-only"), (errno.EACCES, "access is refused")],
)
def test_what_the_system_refuses_says_what_to_do_and_errors_of_other_files_stay(tmp_path, monkeypatch, code, message):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(whole, "sync", refuse)
        with pytest.raises(OSError, match=message) as error:
            whole.write_whole(tmp_path / "file", b"content")
    assert str(error.value).startswith(f"{tmp_path}/file: could not be written, ")
    assert files(tmp_path) == []
    other = OSError(code, os.strerror(code), "/elsewhere/source")
    with pytest.raises(OSError, match="source") as error, whole.whole_file(tmp_path / "file"):
        raise other
    assert error.value is other
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(OSError, match="a file lies where a folder is needed"):
        whole.write_whole(tmp_path / "plain" / "file", b"")


def test_an_error_of_the_source_is_not_told_as_one_of_what_is_written(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        build_manifest("memory://nothere/x.tar", tmp_path / "out.jsonl", IndexOptions(format="webdataset"))
    assert str(error.value).startswith("memory://nothere/x.tar: there is no such file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^[^ ]*/empty: no files below this folder"):
        write_listing(tmp_path / "listing.jsonl", list_sources([tmp_path / "empty"], ["audio"], tmp_path))


def test_offsets_that_do_not_fit_on_the_disk_name_their_file(tmp_path):
    with files_of_at_most(130), pytest.raises(OSError, match=r"listing\.npy: could not be written, the disk"):
        write_listing(tmp_path / "listing.jsonl", [])  # 128 bytes say what the file is, 8 are the number of sources


@pytest.mark.slow
def test_embedding_goes_on_after_a_full_disk_to_the_same_rows(tiny_run, corpus, tmp_path):
    options = ["--num-workers", "0", "--device", "cpu"]
    command = embed.parse([str(tiny_run), str(corpus / "test"), "--out", str(tmp_path / "out"), *options])
    with files_of_at_most(2500), pytest.raises(OSError, match=r"block-00000000\.parquet: .* is full; free space"):
        embed.main(command)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "out" / "index.json").exists()
    embed.main(command)
    embed.main(embed.parse([str(tiny_run), str(corpus / "test"), "--out", str(tmp_path / "new"), *options]))
    found, wanted = (EmbeddingTable.read(tmp_path / name) for name in ("out", "new"))
    assert found.keys == wanted.keys
    np.testing.assert_array_equal(found.video_embedding, wanted.video_embedding)


@pytest.mark.slow
def test_an_evaluation_on_a_full_disk_leaves_no_result_and_a_report_the_one_before(tiny_run, shards, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = files(run)
    task = StandardConfig(train=str(shards["train"]), test=str(shards["test"]), num_neighbors=3, num_positives=3)
    task.num_workers = 0
    with files_of_at_most(2500), pytest.raises(OSError, match=r"train\.parquet: could not be written, the disk"):
        evaluate.evaluate(run, task)
    assert files(run) == before
    page = write_report(run)
    content = page.read_bytes()
    with files_of_at_most(2500), pytest.raises(OSError, match=r"report\.html: could not be written, the disk"):
        write_report(run, title="another one")
    assert page.read_bytes() == content
    assert files(run) == sorted({*before, "report.html"})


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cuda:x", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name, tiny_run):
    with pytest.raises(ValueError, match=f"device is '{name}', which PyTorch cannot use .* there is: cpu"):
        Embedder.from_run(tiny_run, device=name)
    assert usable_device("cpu") == torch.device("cpu")


def test_the_commands_say_so_in_one_line(tiny_run, shards, corpus, tmp_path):
    data = [f"train={shards['train']}", f"test={shards['test']}"]
    commands = (
        ["recipes/embed.py", tiny_run, corpus / "test", "--out", tmp_path / "out", "--device", "cuda:99"],
        ["recipes/evaluate.py", tiny_run, "task=knn", "label_field=visual", "device=cuda:99", *data],
    )
    for command in commands:
        process = run_python(*command, check=False)
        assert process.returncode == 1
        assert process.stderr.splitlines()[-1].startswith("error: device is 'cuda:99'")
        assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


def full_disk(*_, **__):
    """As a transcoder, or a prober, of a file whose temporary copy found no room."""
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/copy.mp4")


def test_a_disk_without_room_for_a_copy_costs_no_sample(tmp_path, monkeypatch):
    """Neither index nor write goes on without the file: the same command reads it when there is room."""
    make_clip(tmp_path / "media" / "a.mp4", seconds=0.5)
    manifest, out = tmp_path / "corpus.jsonl", tmp_path / "shards"
    with pytest.raises(OSError, match="No space left on device"):
        build_manifest(tmp_path / "media", manifest, IndexOptions(), full_disk)
    assert not manifest.exists()
    build_manifest(tmp_path / "media", manifest, IndexOptions())
    with pytest.raises(OSError, match="No space left on device"):
        write_shards(manifest, out, OPTIONS, transcode=full_disk)
    assert write_shards(manifest, out, OPTIONS).num_samples == 1
    monkeypatch.setattr("avssl.files.storage.download", full_disk)
    with pytest.raises(OSError, match="No space left on device"), opened(Sounding(Place("memory://a.mp4"))):
        pass
