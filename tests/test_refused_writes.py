"""A disk that is full, and other things that the system refuses: one line that names the file, and nothing is lost."""

import errno
import json
import subprocess
import sys

import pytest

from avssl.errors import one_line_errors
from avssl.files.disk_errors import clear_errors
from tests.conftest import ROOT, TINY, run_python

FILES = """
import resource, sys
from pathlib import Path
import torch
from avssl.files.tensors import write_tensors
from avssl.files.disk_errors import clear_errors
from avssl.files.whole import whole_path, write_whole
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
content = {"x": torch.zeros(9999)}
def tensors(path):
    with whole_path(path) as temporary:
        write_tensors(content, temporary, {})
def pickled(path):
    with clear_errors(path, "written"):
        torch.save(content, path)
def appended(path):
    with clear_errors(path, "written"), path.open("a") as file:
        file.write("x" * 9999)
for write in (tensors, pickled, appended, lambda path: write_whole(path, "x" * 9999)):
    path = folder / write.__name__
    try:
        write(path)
    except OSError as error:
        assert str(error).startswith(f"{path}: could not be written"), error
        print(error.errno)
"""
# The second checkpoint meets a limit on the size of files; or a named file a full disk.
RUN = """
import errno, resource, runpy, sys
from avssl import checkpoint
from avssl.files import whole as whole_files
what = sys.argv.pop(1)
save, sync, saved = checkpoint.save, whole_files.sync, []
def limited_save(*arguments):
    saved.append(arguments)
    if len(saved) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return save(*arguments)
def full_sync(path):
    if what in path.name:
        raise OSError(errno.ENOSPC, "No space left on device")
    sync(path)
whole_files.sync = full_sync
if what == "checkpoint":
    checkpoint.save = limited_save
sys.argv.pop(0)
runpy.run_path("recipes/pretrain.py", run_name="__main__")
"""


@pytest.mark.slow
def test_every_way_of_writing_names_the_file_and_leaves_no_half_of_one(tmp_path):
    for name in ("tensors", "<lambda>"):
        (tmp_path / name).write_text("before")
    process = subprocess.run(
        [sys.executable, "-c", FILES, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.stdout.split() == [str(one) for one in (errno.EFBIG, errno.EIO, errno.EFBIG, errno.EFBIG)], (
        process.stderr
    )
    for name in ("tensors", "<lambda>"):
        assert (tmp_path / name).read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"tensors", "pickled", "appended", "<lambda>"}


def arguments_of(shards, run):
    return [
        "recipes/pretrain.py", "recipes/configs/avid.yaml", *TINY, f"data.shards={shards['train']}", f"run={run}",
        "steps=6", "checkpoint_every_steps=2",
    ]  # fmt: skip


def refused(what, shards, run):
    """The error of a run whose disk is full where `what` is written."""
    process = run_python("-c", RUN, what, *arguments_of(shards, run), check=False)
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_checkpoint_that_meets_a_full_disk_leaves_the_one_before_to_go_on_from(shards, tmp_path):
    run = tmp_path / "run"
    said = refused("checkpoint", shards, run)
    assert said.startswith(f"error: {run}/step_000004: ")
    assert "the disk or quota is full; free space" in said or "is the disk or quota full?" in said
    assert [path.name for path in run.glob("step_*")] == ["step_000002"]
    process = run_python(*arguments_of(shards, run))
    assert "step_000002 at step 2 of 6" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "encoders.safetensors"])
def test_every_file_of_a_run_that_meets_a_full_disk_is_named(name, shards, tmp_path):
    said = refused(name, shards, tmp_path / "run")
    assert said.startswith(f"error: {tmp_path}/run/{name}: could not be written, the disk or quota is full")


@pytest.mark.slow
def test_metrics_that_meet_a_full_disk_are_named(shards, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    said = refused("nothing", shards, tmp_path / "run")
    assert said.startswith(f"error: {tmp_path}/run/metrics.jsonl: could not be written, the disk or quota is full")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/a"),
            "/runs/a: could not be used, the disk or quota is full",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/runs/a"),
            "/runs/a: could not be used, it lies on a read-only",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/runs/a"),
            "/runs/a: could not be used, access is refused",
        ),
        (FileNotFoundError("config.yaml is missing"), "config.yaml is missing"),
        (ValueError("trackers=['wandb']: not installed"), "trackers=['wandb']: not installed"),
        (ModuleNotFoundError("No module named 'x'"), "No module named 'x'"),
        (RuntimeError("The server socket has failed to listen: EADDRINUSE"), "port 29500 (MASTER_PORT) is in use"),
        (
            RuntimeError("[pair.cc:5] Connection closed by peer [::1]:1. Check"),
            "the connection to another process of this run",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), "a GPU was asked for, and PyTorch finds none"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5 vs 4"),
            "[Errno 5] is the disk or quota full?",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_system_refuses_is_one_line_and_a_status(error, said, capsys, monkeypatch, tmp_path):
    """torchrun repeats the line at the end of its report, from the file that it names."""
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as raised, one_line_errors():
        raise error
    assert raised.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    reported = json.loads((tmp_path / "error.json").read_text())["message"]
    assert reported["message"] == reported["extraInfo"]["py_callstack"] == line


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(IndexError), one_line_errors():
        [].pop()
    with pytest.raises(KeyError), clear_errors(ROOT, "written"):
        {}["x"]
