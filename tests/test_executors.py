"""Many machines: Ray nodes that die, and Slurm's job arrays, give the bytes that one process gives."""

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from avssl.shards.format import dump_json
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, digest, make_clip
from tests.conftest import run_python


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Twelve clips and a file that is none, in five parts."""
    folder = tmp_path_factory.mktemp("executors")
    for seed in range(12):
        make_clip(folder / "videos" / f"clip_{seed}.mp4", seed, seconds=0.5)
    (folder / "videos" / "clip_12.mp4").write_text("no video\n")
    rows = [
        {"path": f"videos/clip_{seed}.mp4", "key": f"clip_{seed}", "labels": {}, "error": None} for seed in range(13)
    ]
    (folder / "corpus.jsonl").write_bytes(b"".join(dump_json(row) for row in rows))
    return folder / "corpus.jsonl"


@pytest.fixture(scope="module")
def written(manifest):
    write_shards(manifest, manifest.parent / "written", OPTIONS)
    return manifest.parent / "written"


@pytest.mark.slow
def test_ray_finishes_with_the_same_bytes_when_one_of_two_nodes_is_killed(manifest, written, tmp_path):
    pytest.importorskip("ray")
    run_python("-m", "tests.ray_cluster", tmp_path / "facts.json", "write", manifest, tmp_path / "shards")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["before"] == 3
    assert facts["after"] == 2
    assert facts["done_at_kill"][0] < 5  # half-way: parts were still to be made
    assert facts["count"] == 12
    assert digest(tmp_path / "shards") == digest(written)


@pytest.mark.slow
def test_a_ray_cluster_that_cannot_be_joined_is_named_and_not_the_shards(manifest, tmp_path):
    pytest.importorskip("ray")
    command = ["-m", "data_prep", "write", manifest, "--out", tmp_path / "shards", "--executor", "ray"]
    process = run_python(*command, check=False, RAY_ADDRESS="127.0.0.1:1")
    assert process.returncode == 2
    assert "error: cannot join the Ray cluster of RAY_ADDRESS=127.0.0.1:1 (" in process.stderr
    assert "could not be written" not in process.stderr
    assert "Traceback" not in process.stderr


# A scheduler that runs jobs on this machine, after sbatch has answered, as Slurm does, and heeds what they wait for.
SBATCH = """#!{python}
import os, re, subprocess, sys, time
text = open(sys.argv[-1]).read()
found = dict(re.findall(r"#SBATCH --([a-z-]+)=(\\S+)", text))
number = str(len(open({log!r}).read().splitlines()) + 100)
with open({log!r}, "a") as note:
    print(number, found.get("array"), found.get("dependency"), found.get("cpus-per-task"), file=note)
print("Submitted batch job", number, flush=True)
if "ONLY_SUBMIT" in os.environ or os.fork():
    os._exit(0)
os.setsid()
for descriptor in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
while "dependency" in found and not os.path.exists({log!r} + found["dependency"].partition(":")[2]):
    time.sleep(0.1)
first, last = (found.get("array") or "0-0").partition("%")[0].split("-")
for task in range(int(first), int(last) + 1):
    environment = dict(os.environ, SLURM_JOB_ID=number, SLURM_NTASKS="1", SLURM_NODELIST="here",
                       SLURM_JOB_NUM_NODES="1", SLURM_LOCALID="0", SLURM_PROCID="0", SLURM_NODEID="0")
    if "array" in found:
        environment.update(SLURM_ARRAY_JOB_ID=number, SLURM_ARRAY_TASK_ID=str(task))
    subprocess.run(["bash", sys.argv[-1]], env=environment)
open({log!r} + number, "w").close()
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do if [[ "$1" == "--output" || "$1" == "--error" ]]; then shift 2; else shift; fi; done
exec "$@"
"""


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """sbatch and srun on the PATH; returns the file that notes what was submitted."""
    tools, log = tmp_path / "tools", tmp_path / "submitted"
    tools.mkdir()
    log.touch()
    for name, text in (("sbatch", SBATCH.format(python=sys.executable, log=str(log))), ("srun", SRUN)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return log


def submit(manifest, out):
    options = ["--short-side-px", "48", "--samples-per-shard", "3", "--num-workers", "1", "--slurm-tasks", "3"]
    return run_python("-m", "data_prep", "write", manifest, "--out", out, "--executor", "slurm", *options)


def test_slurm_gets_an_array_of_shares_and_a_job_that_waits_for_it(manifest, tmp_path, scheduler, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("ONLY_SUBMIT", "1")
    assert "job array 100 with 3 jobs, then job 101" in submit(manifest, tmp_path / "shards").stdout
    array, last = scheduler.read_text().splitlines()
    assert array.split() == ["100", "0-2%3", "None", "1"]
    assert last.split()[1:] == ["None", "afterany:100", "1"]


@pytest.mark.slow
def test_what_slurm_runs_gives_the_bytes_of_one_process(manifest, written, tmp_path, scheduler):
    pytest.importorskip("submitit")
    out = tmp_path / "shards"
    submit(manifest, out)
    deadline = time.monotonic() + 300
    while not Path(f"{scheduler}101").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert complaints(out) == []
    assert digest(out) == digest(written)
    assert scheduler.read_text().count("\n") == 2


@pytest.mark.slow
def test_slurm_without_sbatch_is_refused_with_the_reason(manifest, tmp_path):
    pytest.importorskip("submitit")
    command = ["-m", "data_prep", "write", manifest, "--out", tmp_path / "shards", "--executor", "slurm"]
    process = run_python(*command, check=False, PATH=str(tmp_path))
    assert process.returncode == 2
    assert "cannot submit jobs" in process.stderr
