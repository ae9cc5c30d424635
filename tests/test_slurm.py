"""Slurm's own daemons run the files of examples/cluster, with stand-ins for the programs: what is requeued, what not.

The stand-ins keep what `avssl pretrain` and torchrun promise at a signal (tests/test_stopping.py): they save, and end
with the status of a stopped run.
"""

import stat
import time
from functools import partial

import pytest

from tests.conftest import ROOT
from tests.slurm_cluster import missing, running_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"{missing()} not found: apt-get install slurm-wlm munge"),
]
FILES = ROOT / "examples" / "cluster"
HERE = ["--nodes=1", "--cpus-per-task=1", "--gpus-per-node=0"]  # what the files leave to the cluster
AVSSL = """#!/bin/bash
echo "avssl $*, restarts ${SLURM_RESTART_COUNT:-0}"
case $* in *mistake*) exit 2 ;; prep*) exit 0 ;; esac
[[ $* =~ stopped_status=([0-9]+) ]] && status=${BASH_REMATCH[1]}
trap 'echo "task $SLURM_PROCID saves"; exit $status' USR1 TERM
[ -n "$SLURM_RESTART_COUNT" ] && exit 0
for _ in {1..600}; do sleep 0.2; done
"""
TORCHRUN = """#!/bin/bash
echo "torchrun $*, restarts ${SLURM_RESTART_COUNT:-0}"
[[ $* =~ mistake ]] && exit 1
[[ $* =~ run=([^ ]+) ]] && run=${BASH_REMATCH[1]}
trap 'mkdir -p "$run/step_000012"; echo "task $SLURM_PROCID saves"; exit 1' USR1 TERM
[ -n "$SLURM_RESTART_COUNT" ] && exit 0
for _ in {1..600}; do sleep 0.2; done
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    tools = tmp_path_factory.mktemp("tools")
    for name, text in (("avssl", AVSSL), ("torchrun", TORCHRUN)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as running:
        running.environment["PATH"] = f"{tools}:{running.environment['PATH']}"
        yield running
    assert running.own_processes() == []


def submit(cluster, folder, file, tasks, *arguments):
    """Submit a training; the number of the job, and the path of its log."""
    log = folder / "log"
    options = [*HERE, f"--ntasks-per-node={tasks}", f"--output={log}"]
    return cluster.run("sbatch", "--parsable", *options, FILES / file, "avid", *arguments), log


def wait_for_text(log, text):
    deadline = time.monotonic() + 120
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


def by_scancel(number, cluster, job):
    cluster.run("scancel", f"--signal={number}", job)


def to_the_script(cluster, job):
    """As Slurm does 120 s before the end of the job's time, for --signal=B:USR1@120."""
    cluster.run("scancel", "--signal=USR1", "--batch", job)


def by_a_job_of_priority(cluster, job):
    """Slurm itself preempts: a job of the partition `high` needs both slots for a moment."""
    cluster.run("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")


@pytest.mark.parametrize(
    ("preempt", "file", "tasks"),
    [
        (partial(by_scancel, "USR1"), "train.sbatch", 2),
        (partial(by_scancel, "TERM"), "train.sbatch", 2),
        (to_the_script, "train.sbatch", 2),
        (by_a_job_of_priority, "train.sbatch", 2),
        (to_the_script, "train_torchrun.sbatch", 1),
    ],
    ids=["usr1", "term", "end of time", "preempted", "torchrun"],
)
def test_a_preempted_training_saves_is_requeued_and_completes(preempt, file, tasks, cluster, tmp_path):
    job, log = submit(cluster, tmp_path, file, tasks, f"run={tmp_path / 'run'}")
    wait_for_text(log, "restarts 0")
    time.sleep(1)  # the last task too has begun, and heeds signals
    preempt(cluster, job)
    cluster.let_begin(job)
    found = cluster.wait_for(job, "COMPLETED", "FAILED")
    text = log.read_text()
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), f"{text}\n{found}\n{cluster.logs()}"
    assert all(f"{task}: task {task} saves" in text for task in range(tasks)), text
    assert text.count("restarts 1") == tasks, text


def test_a_cancelled_training_saves_and_is_not_requeued(cluster, tmp_path):
    job, log = submit(cluster, tmp_path, "train.sbatch", 2, f"run={tmp_path / 'run'}")
    wait_for_text(log, "restarts 0")
    time.sleep(1)
    cluster.run("scancel", job)
    wait_for_text(log, "task 1 saves")
    deadline = time.monotonic() + 120
    while cluster.run("squeue", "--noheader", f"--jobs={job}", check=False) and time.monotonic() < deadline:
        time.sleep(0.2)
    found = cluster.state(job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0"), log.read_text()


@pytest.mark.parametrize(
    ("file", "tasks", "status"),
    [("train.sbatch", 2, "2:0"), ("train_torchrun.sbatch", 1, "1:0")],
    ids=["srun", "torchrun"],
)
def test_a_mistake_fails_and_is_not_requeued(file, tasks, status, cluster, tmp_path):
    job, log = submit(cluster, tmp_path, file, tasks, f"run={tmp_path / 'run'}", "mistake=1")
    found = cluster.wait_for(job, "COMPLETED", "FAILED")
    assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("FAILED", "0", status), log.read_text()


def test_an_array_of_shares_may_lose_one_and_the_last_job_finishes_all(cluster, tmp_path):
    command = ["sbatch", "--parsable", "--cpus-per-task=1", f"--output={tmp_path}/%A_%a.log"]
    arguments = [FILES / "write.sbatch", "corpus.jsonl", "--out", "shards"]
    array = cluster.run(*command, "--array=0-2", *arguments)
    cluster.run("scancel", f"{array}_2")
    last = cluster.run(*command, f"--dependency=afterany:{array}", *arguments)
    assert cluster.wait_for(last, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    said = sorted(path.read_text() for path in tmp_path.glob("*.log"))
    written = "avssl prep write corpus.jsonl --out shards --num-workers 1"
    shares = [f"{written} --part {number}/3" for number in range(2)]
    assert said == [f"{words}, restarts 0\n" for words in (*shares, written)]
