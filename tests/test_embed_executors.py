"""Embeddings made on many machines: Ray nodes that die, and Slurm's job arrays, give the files of one process."""

import json
import time
from pathlib import Path

import pytest

import avssl
from avssl.embedding.folder import FolderJob, RayTasks, embed_block
from avssl.processes import cluster
from data_prep.transcode.encode import write_media
from recipes import embed
from tests.conftest import run_python
from tests.test_embed import frames, sine
from tests.test_executors import scheduler  # noqa: F401  (a fixture)

GRID = ["--window", "0.5", "--stride", "0.25", "--sources-per-block", "2", "--num-workers", "1"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Seven videos and two files that are not media: five blocks of two."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(7):
        video = {"video": frames(16 + 4 * number, 32), "video_fps": 16}
        write_media(folder / f"{number}.mp4", **video, audio=sine(1.0), audio_rate_hz=24_000)
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.wav").touch()
    return folder


@pytest.fixture(scope="module")
def written(tiny_run, videos, tmp_path_factory):
    """What one process writes."""
    out = tmp_path_factory.mktemp("written")
    job = begin(tiny_run, videos, out)
    job.run(avssl.load_embedder(str(tiny_run)), run_folder=tiny_run)
    return contents(out)


def begin(run, videos, out):
    grid = {"window_seconds": 0.5, "stride_seconds": 0.25, "sources_per_block": 2}
    return FolderJob.begin(avssl.load_embedder(str(run)), [videos], out, **grid)


def contents(out):
    return {path.name: path.read_bytes() for path in Path(out).iterdir() if path.is_file()}


@pytest.mark.slow
def test_tasks_of_a_block_give_the_files_of_one_process_and_go_on_after_a_lost_one(
    tiny_run, videos, written, tmp_path, monkeypatch
):
    """Blocks by hand, in another order, one of them lost at first; from another folder than that of the command."""
    monkeypatch.chdir(tmp_path)
    tasks, done = RayTasks(str(tiny_run), num_workers=0), []

    def two_of_five(job, blocks):
        for block in list(blocks)[:1:-1]:
            done.append(block)
            yield embed_block(tasks, job, block)
        raise ChildProcessError("a node died")

    embedder = avssl.load_embedder(str(tiny_run))
    with pytest.raises(ChildProcessError, match="a node died"):
        begin(tiny_run, videos, "out").run(embedder, elsewhere=two_of_five)
    assert done == [4, 3, 2]

    def all_missing(job, blocks):
        monkeypatch.chdir("/")
        done.extend(blocks)
        for block in blocks:
            yield embed_block(tasks, job, block)
        monkeypatch.chdir(tmp_path)

    index = begin(tiny_run, videos, "out").run(embedder, elsewhere=all_missing, run_folder=tiny_run)
    assert done[3:] == [0, 1]
    assert contents(tmp_path / "out") == written
    assert (index.num_listed, index.num_embedded, index.skipped_by_reason) == (9, 7, {"empty_file": 1, "not_media": 1})


@pytest.mark.slow
def test_a_task_refuses_a_run_of_other_weights(tiny_run, videos, tmp_path):
    job = begin(tiny_run, videos, tmp_path)
    with pytest.raises(ValueError, match="all nodes must see the same run"):
        embed_block(RayTasks(str(tiny_run), {"untrained": True}), job, 0)


@pytest.mark.slow
def test_ray_finishes_with_the_same_files_when_one_of_two_nodes_is_killed(tiny_run, videos, written, tmp_path):
    pytest.importorskip("ray")
    run_python("-m", "tests.ray_cluster", tmp_path / "facts", "embed", tiny_run, videos, tmp_path / "out")
    facts = json.loads((tmp_path / "facts").read_text())
    assert (facts["before"], facts["after"], facts["count"]) == (3, 2, 7)
    assert facts["done_at_kill"][0] < 5  # half-way: blocks were still to be made
    assert contents(tmp_path / "out") == written


@pytest.mark.slow
def test_ray_is_started_here_and_gives_the_same_files_and_an_error_in_one_line(tiny_run, videos, written, tmp_path):
    pytest.importorskip("ray")
    command = ["-m", "avssl", "embed", tiny_run, videos, *GRID, "--executor", "ray", "--out"]
    process = run_python(*command, tmp_path / "out")
    assert "listed 9 = embedded 7 + skipped 2" in process.stdout
    assert contents(tmp_path / "out") == written
    refused = run_python(*command, tmp_path / "other", "--gpus-per-task", "64", check=False)
    assert refused.returncode == 1
    assert "each task asks for 1 processors and 64 GPUs" in refused.stderr
    assert "Traceback" not in refused.stderr


def submit(tiny_run, videos, out, *options):
    command = ["-m", "avssl", "embed", tiny_run, videos, "--out", out, *GRID, "--executor", "slurm", *options]
    return run_python(*command, "--slurm-tasks", "3")


@pytest.mark.slow
def test_slurm_gets_an_array_of_shares_with_gpus_and_a_job_that_waits_for_it(
    tiny_run, videos, tmp_path, scheduler, monkeypatch  # noqa: F811
):  # fmt: skip
    pytest.importorskip("submitit")
    monkeypatch.setenv("ONLY_SUBMIT", "1")
    said = submit(tiny_run, videos, tmp_path / "out", "--gpus-per-task", "2").stdout
    assert "job array 100 with 3 jobs, then job 101 that embeds what is missing and finishes" in said
    array, last = scheduler.read_text().splitlines()
    assert array.split() == ["100", "0-2%3", "None", "1"]
    assert last.split()[1:] == ["None", "afterany:100", "1"]
    scripts = [path.read_text() for path in (tmp_path / "out.slurm").glob("*submission*.sh")]
    assert len(scripts) >= 2
    assert all("#SBATCH --gpus-per-task=2\n" in script for script in scripts)


@pytest.mark.slow
def test_what_slurm_runs_gives_the_files_of_one_process(tiny_run, videos, written, tmp_path, scheduler):  # noqa: F811
    pytest.importorskip("submitit")
    submit(tiny_run, videos, tmp_path / "out")
    deadline = time.monotonic() + 300
    while not Path(f"{scheduler}101").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert contents(tmp_path / "out") == written
    again = submit(tiny_run, videos, tmp_path / "out")  # all is done: nothing is submitted
    assert "listed 9 = embedded 7 + skipped 2" in again.stdout
    assert scheduler.read_text().count("\n") == 2


def test_a_share_gets_every_option_that_changes_rows_or_effort(tmp_path, monkeypatch):
    """Each option of the command but those that choose the share's machine, with a value that is not its default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    own = "/plugins/own.py"
    given = [
        *("run", "here.mp4", "--out", "out", "--window", "2.5", "--stride", "1", "--set", "views.video.fps=2", "a=b"),
        *("--modalities", "audio", "video", "--batch-size", "3", "--num-workers", "5", "--file-seconds", "7"),
        *(
            "--file-memory-mib",
            "99",
            "--sources-per-block",
            "11",
            "--rows-per-file",
            "13",
            "--untrained",
            "--checkpoint",
            "300",
            "--json",
        ),
        *("--plugin", own, "--plugin", "other.py", "--plugin-changed", "--overwrite"),
        *("--executor", "slurm", "--slurm-tasks", "4", "--slurm-partition", "gpu", "--gpus-per-task", "1"),
    ]
    arguments = embed.parse(given)
    untouched = vars(embed.parse(["run", "here.mp4", "--out", "out"]))
    names = {name for name, value in vars(arguments).items() if value == untouched[name]}
    assert names <= {"run", "sources", "out", "device", "part"}  # every other option is given above
    words = embed.share_command(arguments, "1/4")
    assert words[1:4] == ["-m", "avssl", "embed"]
    found = vars(embed.parse(words[4:]))
    here = {"run": str(tmp_path / "run"), "out": str(tmp_path / "out"), "part": "1/4", "device": "cuda"}
    local = {name: untouched[name] for name in ("executor", "slurm_tasks", "slurm_partition", "gpus_per_task")}
    plugins = {"plugin": [own, str(tmp_path / "other.py")], "overwrite": False}
    assert found == {**vars(arguments), **here, **local, **plugins}
    assert embed.parse(embed.share_command(arguments, None)[4:]).part == "0/1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "ray", "--part", "0/2"], "makes the shares itself"),
        (["--executor", "slurm", "--gpus-per-task", "0.5"], "it must be a whole number"),
        (["--executor", "ray", "--gpus-per-task", "-1"], "it must be a whole number"),
        (["--gpus-per-task", "1"], "is for --executor ray and slurm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        embed.main(embed.parse(["run", "source", "--out", str(tmp_path / "out"), *options]))
    assert not (tmp_path / "out").exists()


def test_a_cluster_of_one_machine_that_is_too_small_is_an_error_and_another_one_is_waited_for(monkeypatch, caplog):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster._expect_room(nodes, 4, 0)
    with pytest.raises(ValueError, match=r"1 processors and 0.5 GPUs; the nodes .* have: 4 processors and 0 GPUs"):
        cluster._expect_room(nodes, 1, 0.5)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    cluster._expect_room(nodes, 1, 0.5)
    assert "Waiting for a node that is large enough" in caplog.text
