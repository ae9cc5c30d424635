"""The evaluation and report recipes on a tiny run."""

import json
import shutil

import pytest

from tests.conftest import run_python


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy: other tests use the run as it was."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluated") / "avid")


@pytest.fixture(scope="module")
def evaluated(run, shards):
    run_python(
        "recipes/evaluate.py", run, "recipes/configs/evaluate/standard.yaml",
        f"train={shards['train']}", f"test={shards['test']}", "num_neighbors=3", "num_positives=3", "num_workers=0",
    )  # fmt: skip
    return json.loads((run / "evaluation.json").read_text())


def test_trained_untrained_and_chance_are_given_for_every_metric(evaluated):
    wanted = {"video_knn_visual", "audio_knn_sound", "video_to_audio_recall_at_5", "audio_to_video_median_rank"}
    assert wanted <= evaluated["results"]["trained"].keys()
    assert wanted <= evaluated["results"]["untrained"].keys()
    assert evaluated["results"]["trained"].keys() == evaluated["chance"].keys()
    for agreement in ("consensus", "union", "video", "audio"):
        assert 0 <= evaluated["results"]["trained"][f"positive_precision_{agreement}_visual"] <= 1


def test_the_protocol_says_what_was_compared(evaluated):
    protocol = evaluated["protocol"]
    assert (protocol["num_train"], protocol["num_test"], protocol["num_neighbors"]) == (18, 6, 3)
    assert len(protocol["test_samples"]) == 16


def test_a_missing_shard_is_an_error_and_not_a_smaller_test_set(tiny_run, shards, tmp_path):
    copy = tmp_path / "test"
    shutil.copytree(shards["test"], copy)
    (copy / "shard-000000.tar").unlink()
    command = ["recipes/evaluate.py", tiny_run, f"train={shards['train']}", f"test={copy}"]
    process = run_python(*command, check=False)
    assert process.returncode == 1
    assert "the shard is missing" in process.stderr


@pytest.mark.slow
def test_labels_that_one_split_lacks_remote_runs_and_unknown_tasks_are_named(tiny_run, shards, corpus, tmp_path):
    run_python("-m", "data_prep", "index", corpus / "test", "--out", tmp_path / "test.jsonl")
    options = ["--short-side-px", "32"]
    run_python("-m", "data_prep", "write", tmp_path / "test.jsonl", "--out", tmp_path / "test", *options)
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    found = run_python(
        "recipes/evaluate.py",
        copy,
        f"train={shards['train']}",
        f"test={tmp_path}/test",
        "num_positives=3",
        "num_workers=0",
    )
    assert "no kNN: it needs a label field that both splits have; there are ['sound', 'visual'] in" in found.stdout
    remote = run_python("recipes/evaluate.py", "hf://a/b", "task=knn", check=False)
    assert "results go below RUN, which must be a folder here" in remote.stderr
    for arguments, words in ((["knm"], "Did you mean 'knn'"), (["recipes/configs/evaluate/knn_imagefolder.yaml"], "")):
        usage = run_python("recipes/evaluate.py", "--help", *arguments, check=False)
        assert (usage.returncode, words in usage.stderr) == (1 if words else 0, True)
        assert ("\nknn:\n" in usage.stdout) == (not words)


@pytest.mark.slow
def test_the_report_of_a_run_is_one_page_with_its_numbers(run, shards, evaluated):
    run_python("recipes/report.py", run, "--shards", shards["test"])
    page = (run / "report.html").read_text()
    assert 'src="http' not in page
    assert "data:video/mp4" in page
    assert "data:audio/flac" in page
    shown = f"{evaluated['results']['trained']['video_to_audio_median_rank']:g}"
    assert shown in page
