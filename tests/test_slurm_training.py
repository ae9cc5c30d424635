"""Slurm's own daemons run the programs themselves: a training that is preempted, and shards written by a job array.

What other signals lead to is tested with stand-ins for the programs, which are quicker (tests/test_slurm.py).
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from data_prep.write.run import write_shards
from tests.clips import OPTIONS, complaints, digest, make_clip
from tests.conftest import ROOT, TINY, run_python
from tests.slurm_cluster import missing, running_cluster
from tests.two_hosts import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"{missing()} not found: apt-get install slurm-wlm munge"),
]
HERE = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0"]  # what the file leaves open
KEYS = [*TINY, "data.num_workers=1", "log_every_steps=10", "checkpoint_every_steps=1000", "steps=200"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running
    assert running.own_processes() == []


def test_a_training_that_is_preempted_is_requeued_and_ends_with_the_weights_of_one_that_was_not(
    cluster, shards, tmp_path
):
    keys = [*KEYS, f"data.shards={shards['train']}"]
    run, straight, log = (tmp_path / name for name in ("run", "straight", "log"))
    run_python(*TORCHRUN, "recipes/pretrain.py", "avid", *keys, f"run={straight}")
    file = ROOT / "examples" / "cluster" / "train.sbatch"
    job = cluster.run("sbatch", "--parsable", *HERE, f"--output={log}", file, "avid", *keys, f"run={run}")

    def said():
        return f"{log.read_text() if log.exists() else ''}\n{cluster.state(job)}\n{cluster.logs()}"

    wait_until((run / "metrics.jsonl").exists, 600, said)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.let_begin(job)
    (saved,) = (int(path.name[5:]) for path in run.glob("step_*"))
    assert 0 < saved < 200, said()
    found = cluster.wait_for(job, "COMPLETED", "FAILED")
    text = log.read_text()
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), said()
    assert f"0: stopped by signal at step {saved}; the same command goes on from there\n" in text
    assert f"0: going on from {run}/step_{saved:06d} at step {saved} of 200\n" in text
    assert len(re.findall("status 85, job .* is RUNNING", text)) == 1, text
    assert json.loads((run / "provenance.json").read_text())["world_size"] == 2
    one, two = (load_file(folder / "encoders.safetensors") for folder in (straight, run))
    assert one.keys() == two.keys()
    assert [key for key, value in one.items() if not torch.equal(two[key], value)] == []


def test_a_job_array_writes_the_shards_of_one_process(cluster, tmp_path, monkeypatch):
    """`avssl prep write --executor slurm`, with submitit's own scripts, from a list of a file that is none, too."""
    pytest.importorskip("submitit")
    for seed in range(8):
        make_clip(tmp_path / "videos" / f"clip_{seed}.mp4", seed, seconds=0.5)
    (tmp_path / "videos" / "clip_8.mp4").write_text("no video\n")
    manifest, out = tmp_path / "corpus.jsonl", tmp_path / "shards"
    run_python("-m", "data_prep", "index", tmp_path / "videos", "--out", manifest)
    write_shards(manifest, tmp_path / "written", OPTIONS)
    options = ["--short-side-px", "48", "--samples-per-shard", "3", "--num-workers", "1", "--slurm-tasks", "2"]
    said = cluster.run("avssl", "prep", "write", manifest, "--out", out, "--executor", "slurm", *options)
    array, last = re.search(r"job array (\d+) with 2 jobs, then job (\d+)", said).groups()
    assert cluster.state(f"{array}_1")["ArrayTaskId"] == "1"
    assert cluster.wait_for(last, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", cluster.logs()
    assert complaints(out) == []
    assert digest(out) == digest(tmp_path / "written")
