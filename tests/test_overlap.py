"""A test set that was trained on is refused: by media and by source file, never by keys alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from avssl.eval import overlap
from avssl.eval.configs import LabelTaskConfig, TaskConfig
from avssl.eval.outcome import Outcome, Repeat
from avssl.shards.format import SideCar
from avssl.shards.sample_digests import sample_digests
from avssl.shards.shard_set import ShardSet
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.cutting import Cutting
from data_prep.inspect.verify import verify_folder
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from recipes.evaluate import checked_overlap
from tests.conftest import run_python


def made_shards(videos, folder, cutting=None, **options):
    """A shard folder of the files of a folder, or of excerpts of them."""
    manifest = folder.with_suffix(".jsonl")
    if cutting is None:
        build_manifest(videos, manifest, IndexOptions())
    else:
        build_manifest(videos, manifest, IndexOptions(cutting=cutting))
    write_shards(manifest, folder, WriteOptions(**{"short_side_px": 32, "samples_per_shard": 7} | options))
    return folder


@pytest.fixture(scope="module")
def videos(corpus, tmp_path_factory):
    """Four clips of the training split and two of the test split, under other names."""
    folder = tmp_path_factory.mktemp("mixed") / "clips"
    folder.mkdir()
    for split, count in (("train", 4), ("test", 2)):
        for number, path in enumerate(sorted((corpus / split).rglob("*.mp4"))[:count]):
            shutil.copy(path, folder / f"{split}_renamed_{number}.mp4")
    return folder


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A run folder with the digests of the training split as its training data."""
    run = tmp_path_factory.mktemp("trained")
    overlap.write_training_data(run, ShardSet(shards["train"]), "")
    return run


def counts(run, train, test):
    found = overlap.measure_overlap(run, [(str(train), str(test))])
    return found["by_run"], found["tests"][0]["num_in_train"], found["tests"][0]["num_in_run"]


def test_files_of_the_training_split_are_recognized_under_other_names_sizes_and_rates(
    videos, trained, shards, tmp_path
):
    mixed = made_shards(videos, tmp_path / "mixed", short_side_px=24, fps=4.0)
    assert counts(trained, shards["train"], mixed) == ("known", 4, 4)
    assert counts(trained, shards["test"], mixed) == ("known", 2, 4)
    assert counts(trained, shards["train"], shards["test"]) == ("known", 0, 0)


@pytest.mark.slow
def test_other_seconds_of_the_same_file_are_overlap(videos, trained, tmp_path):
    pieces = made_shards(videos, tmp_path / "pieces", Cutting(clip_seconds=0.5))
    found = overlap.measure_overlap(trained, [("", str(pieces))])["tests"][0]
    assert (found["num_test"], found["num_in_run"]) == (18, 12)
    assert all("train_renamed" in key for key in found["keys"])


def test_rows_of_a_result_know_their_source_files(videos, shards, tmp_path):
    pieces = made_shards(videos, tmp_path / "pieces1", Cutting(clip_seconds=0.5))
    keys = ShardSet(pieces).keys[::-1]
    rows = [Repeat(name, keys, {}, {}) for name in ("", "fold 1, seed 0")]
    folded = LabelTaskConfig(train=str(shards["train"]), test=str(tmp_path / "pieces{fold}"), folds=[1])
    for repeat, config in ((rows[0], TaskConfig(test=str(pieces))), (rows[1], folded)):
        (found,) = overlap.with_sources(Outcome([repeat]), config).repeats
        films = [key.rsplit("/", 1)[-1].split("_renamed_")[0] + key.split("_renamed_")[1][0] for key in keys]
        assert len(np.unique(found.sources)) == len(set(films)) == 6
        assert len(set(zip(found.sources.tolist(), films, strict=True))) == 6
    others = Outcome([Repeat("", [*keys, "no sample"], {}, {})])
    assert overlap.with_sources(others, TaskConfig(test=str(pieces))).repeats[0].sources is None
    anchors = Outcome([Repeat("positives", ShardSet(shards["train"]).keys, {}, {})])
    (found,) = overlap.with_sources(anchors, TaskConfig(train=str(shards["train"]), test=str(pieces))).repeats
    assert len(np.unique(found.sources)) == 18


def test_folds_of_a_field_that_share_a_file_are_refused(videos, tmp_path):
    """The folds of one folder were compared with the run alone: a test film could be a training film."""
    manifest, folder, run = tmp_path / "folds.jsonl", tmp_path / "folds", tmp_path / "run"
    build_manifest(videos, manifest, IndexOptions(cutting=Cutting(clip_seconds=0.5)))
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    films = sorted({row["path"] for row in rows if "path" in row})
    for shared in (1, 0):
        seen = set()
        for row in rows:
            if "path" in row:
                film = films.index(row["path"])
                fold = film % 2 if film or not shared or film in seen else 1
                seen.add(film)
                row["labels"] = {"fold": [str(fold)]}
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        shutil.rmtree(folder, ignore_errors=True)
        write_shards(manifest, folder, WriteOptions(short_side_px=32))
        found = overlap.measure_overlap(run, [("", str(folder))], "fold")
        (entry,) = found["tests"]
        assert (entry["num_in_train"], entry["num_sources_in_train"]) == (3 * shared, shared)
        assert len(entry["keys"]) == 3 * shared
        task = LabelTaskConfig(task="knn", train=str(folder), fold_field="fold")
        if shared:
            with pytest.raises(ValueError, match=r"3 of 18 test samples of .* in other folds of fold too, and 1 of 6"):
                checked_overlap(run, task)
        else:
            assert checked_overlap(run, task) == found


def test_equal_keys_and_paths_of_other_media_are_no_overlap(trained, shards, corpus, tmp_path):
    """Audio files of one length also have one size: name and size do not identify the content."""
    others = sorted((corpus / "test").rglob("*.mp4"))
    for path, other in zip(sorted((corpus / "train").rglob("*.mp4")), others, strict=False):
        place = tmp_path / path.relative_to(corpus)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(other, place)
    alike = made_shards(tmp_path / "train", tmp_path / "alike")
    assert set(ShardSet(alike).keys) <= set(ShardSet(shards["train"]).keys)
    assert counts(trained, shards["train"], alike) == ("known", 0, 0)


def test_older_shards_without_digests_are_read_for_them(shards, tmp_path):
    older = shutil.copytree(shards["train"], tmp_path / "older")
    for path in older.glob("shard-*.json"):
        path.write_bytes(replace(SideCar.load(path), media="", sources="").to_json())
    new, old = (sample_digests(ShardSet(folder)) for folder in (shards["train"], older))
    assert len(np.unique(new.media)) == len(np.unique(new.sources)) == 18
    np.testing.assert_array_equal(new.media, old.media)
    np.testing.assert_array_equal(new.sources, old.sources)


def test_damaged_digests_are_named(shards, tmp_path):
    copy = shutil.copytree(shards["test"], tmp_path / "copy")
    path = copy / "shard-000000.json"
    good = SideCar.load(path)
    path.write_bytes(replace(good, media="0" * 16 + good.media[16:]).to_json())
    assert "its digest of media is" in str(verify_folder(str(copy)))
    path.write_bytes(replace(good, media=good.media[1:]).to_json())
    with pytest.raises(ValueError, match=r"shard-000000.json: media .*16 hex digits for each of 6 samples"):
        ShardSet(copy)


def test_a_run_knows_what_the_run_that_it_began_from_was_trained_on(trained, shards, tmp_path):
    second, third = tmp_path / "second", tmp_path / "third"
    overlap.write_training_data(second, ShardSet(shards["test"]), str(trained))
    assert counts(second, "", shards["train"]) == ("known", 0, 18)
    assert counts(second, "", shards["test"]) == ("known", 0, 6)
    overlap.write_training_data(third, ShardSet(shards["test"]), str(tmp_path / "imported"))
    assert counts(third, "", shards["train"]) == ("incomplete", 0, 0)
    assert counts(tmp_path / "imported", "", shards["train"]) == ("unknown", 0, None)


def test_a_damaged_list_of_training_data_is_an_error_that_names_it(trained, shards, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    path = run / overlap.TRAINING_DATA_FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"training_data.safetensors is damaged"):
        overlap.measure_overlap(run, [("", str(shards["test"]))])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["standard", "knn"])
def test_evaluation_refuses_what_was_trained_on_unless_it_is_allowed(task, videos, tiny_run, shards, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(shards["train"], tmp_path / "again")
    inside = tmp_path / "inside"
    subset = tmp_path / "subset"
    subset.mkdir()
    for path in sorted(videos.glob("train_*.mp4"))[:3]:
        shutil.copy(path, subset / path.name)
    labels = subset / "labels.csv"
    labels.write_text(
        "path,visual\n" + "".join(f"{path.name},c{n % 2}\n" for n, path in enumerate(sorted(subset.glob("*.mp4"))))
    )
    manifest = tmp_path / "inside.jsonl"
    build_manifest(subset, manifest, IndexOptions(labels=str(labels)))
    write_shards(manifest, inside, WriteOptions(short_side_px=32))
    command = [
        "recipes/evaluate.py",
        run,
        f"task={task}",
        f"train={shards['train']}",
        f"test={inside}",
        "num_workers=0",
    ]
    command += ["num_neighbors=3", *(["num_positives=3"] if task == "standard" else ["label_field=visual"])]
    refused = run_python(*command, check=False)
    assert refused.returncode == 1
    assert "3 of 3 test samples" in refused.stderr
    assert "the run's training" in refused.stderr
    assert "train_renamed_0" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(run.rglob("*evaluation*.json"))
    allowed = run_python(*command, "allow_overlap=true")
    assert "3 of 3 test samples" in allowed.stderr
    result = json.loads(
        next(
            path for path in run.rglob("*.json") if path.parent.name == "evaluations" or path.name == "evaluation.json"
        ).read_text()
    )
    assert result["overlap"]["tests"][0]["num_in_run"] == result["overlap"]["tests"][0]["num_in_train"] == 3


def test_the_probe_of_a_run_warns_of_shards_that_are_trained_on(trained, shards):
    assert overlap.probe_warnings(trained, "") == overlap.probe_warnings(trained, str(shards["test"])) == []
    (line,) = overlap.probe_warnings(trained, str(shards["train"]))
    assert line.startswith(f"probe.shards: 18 of 18 test samples of {shards['train']} are in the run's training too")
