"""What becomes of a split: shards say their part, a run refuses the test part, evaluation counts trained sources."""

import json
import shutil

import numpy as np
import pytest

from avssl.eval import overlap
from avssl.files.checked_json import Fields
from avssl.shards.format import ShardIndex
from avssl.shards.mixture import open_shards, refuse_test_part
from avssl.shards.sample_digests import sample_digests
from avssl.shards.shard_set import ShardSet
from data_prep.__main__ import main
from data_prep.split.rule import Row
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.conftest import TINY, run_python
from tests.test_split import entry, manifest_of


@pytest.fixture(scope="module")
def parts(corpus, tmp_path_factory):
    """{"train", "validation", "test": shards of a part}, of clips of 0.5 s of 24 videos."""
    folder = tmp_path_factory.mktemp("split")
    command = ["index", str(corpus), "--out", str(folder / "corpus.jsonl"), "--clip-seconds", "0.5", "--labels", "none"]
    assert main([*command, "--test-share", ".25", "--validation-share", ".15", "--seed", "auto"]) == 0
    names = ("train", "validation", "test")
    for name in names:
        write_shards(folder / f"corpus.{name}.jsonl", folder / name, WriteOptions(short_side_px=32))
    return {name: folder / name for name in names}


@pytest.mark.slow
def test_index_with_a_share_writes_parts_whose_shards_share_no_source(parts):
    """By the digests of evaluation, which know nothing of the split; and the split's own hashes are these digests."""
    found = {name: set(sample_digests(ShardSet(folder)).sources.tolist()) for name, folder in parts.items()}
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 24
    for name, folder in parts.items():
        lines = folder.with_name(f"corpus.{name}.jsonl").read_text().splitlines()
        assert {Row.of(Fields.parse(line, "a line")).source() for line in lines} == found[name]
        assert ShardIndex.load(folder).split_parts == [name]
        assert json.loads((folder / "index.json").read_text())["split_parts"] == [name]


def test_shards_of_a_manifest_without_parts_have_the_bytes_that_they_had(shards):
    assert "split_parts" not in json.loads((shards["train"] / "index.json").read_text())


@pytest.mark.slow
def test_a_run_refuses_the_test_part_by_name(parts):
    both = open_shards([str(parts["train"]), str(parts["test"])])
    with pytest.raises(ValueError, match=r"test holds the part test of a split .*data.allow_test_part=true"):
        refuse_test_part(both, allowed=False)
    refuse_test_part(both, allowed=True)
    refuse_test_part(open_shards(str(parts["train"])), allowed=False)


@pytest.mark.slow
def test_a_manifest_put_together_of_parts_counts_as_all_of_them(parts, tmp_path):
    lines = [parts["train"].with_name(f"corpus.{name}.jsonl").read_text() for name in ("train", "test")]
    mixed = parts["train"].with_name("mixed.jsonl")
    mixed.write_text("".join(lines))
    index = write_shards(mixed, tmp_path / "mixed", WriteOptions(short_side_px=16, fps=4.0))
    assert index.split_parts == ["test", "train"]


def test_evaluation_counts_sources_that_were_trained_on_and_names_wrong_parts(parts, tmp_path):
    overlap.write_training_data(tmp_path, ShardSet(parts["train"]), "")
    measured = overlap.measure_overlap(tmp_path, [(str(parts["train"]), str(parts["test"]))])
    assert overlap.describe_overlap(measured) == overlap.describe_parts(measured) == []
    wrong = overlap.measure_overlap(tmp_path, [(str(parts["test"]), str(parts["train"]))])
    digests = sample_digests(ShardSet(parts["train"]))
    num_samples, num_sources = len(digests.sources), len(np.unique(digests.sources))
    (line,) = overlap.describe_overlap(wrong)
    expected = f"are in the run's training too, and {num_sources} of {num_sources} test sources"
    assert line.startswith(f"{num_samples} of {num_samples} test samples of {parts['train']} {expected} (")
    assert [line.split(" holds ")[0] for line in overlap.describe_parts(wrong)] == [
        f"test={parts['train']}",
        f"train={parts['test']}",
    ]


def test_an_online_probe_on_the_test_part_is_warned_of(parts, tmp_path):
    overlap.write_training_data(tmp_path, ShardSet(parts["train"]), "")
    (line,) = overlap.probe_warnings(tmp_path, str(parts["test"]))
    assert line.startswith(f"probe.shards: {parts['test']} holds the test part of a split")
    assert overlap.probe_warnings(tmp_path, str(parts["validation"])) == []


@pytest.mark.slow
def test_the_first_hour_trains_on_one_part_and_evaluates_on_another(corpus, tmp_path):
    def prep(*words):
        return run_python("-m", "data_prep", *words)

    prep("index", corpus, "--out", tmp_path / "corpus.jsonl", "--labels", "none", "--test-share", ".3")
    for name in ("train", "test"):
        manifest = tmp_path / f"corpus.{name}.jsonl"
        prep("write", manifest, "--out", tmp_path / name, "--short-side-px", "32")
    run = tmp_path / "run"
    command = ["recipes/pretrain.py", "recipes/configs/avid.yaml", *TINY, f"run={run}", "steps=2"]
    refused = run_python(*command, f"data.shards={tmp_path / 'test'}", check=False)
    assert refused.returncode == 1
    assert "holds the part test of a split" in refused.stderr
    shutil.rmtree(run, ignore_errors=True)
    run_python(*command, f"data.shards={tmp_path / 'train'}")
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["data"]["split_parts"] == ["train"]
    evaluated = run_python("recipes/evaluate.py", run, "retrieval", f"test={tmp_path / 'test'}", "num_workers=0")
    assert "trained on" not in evaluated.stderr
    refused = run_python("recipes/evaluate.py", run, "retrieval", f"test={tmp_path / 'train'}", check=False)
    assert "test sources" in refused.stderr


def test_labels_of_another_field_than_label_are_named_where_no_share_is_held(tmp_path, capsys):
    rows = [entry(number, labels={"species": [f"bird {number % 2}"]}) for number in range(20)]
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    assert main(["split", str(manifest), "--test-share", "0.3"]) == 0
    assert (
        "no row has a label field label, so no shares of labels; --by takes one of species\n" in capsys.readouterr().out
    )
    assert main(["split", str(manifest), "--test-share", "0.3", "--by", "species"]) == 0
    assert "no row has a label field" not in capsys.readouterr().out
