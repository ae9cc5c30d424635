"""The tasks of recipes/evaluate.py on a tiny run: their files, and their metrics against scikit-learn."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from avssl import config
from avssl.data.every_sample import ClipPlan
from avssl.embedding.embedder import Embedder
from avssl.eval import results, tasks
from avssl.eval.features import extract
from avssl.eval.finetune.data import ShardFold
from avssl.eval.finetune.task import label_digests
from avssl.eval.labels import FeatureSet, usable
from avssl.eval.outcome import Outcome, classified
from avssl.eval.results import read_evaluation, read_rows
from avssl.shards.shard_set import ShardSet
from recipes import evaluate as recipe
from tests.conftest import run_python

LAYERS = ["conv2x", "conv5x", "feature"]


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests use the run as it was."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("tasks") / "avid"))


@pytest.fixture(scope="module")
def embedder(run: Path) -> Embedder:
    return Embedder.from_run(run)


def evaluate(run: Path, shards: Any, task: str, *changes: str) -> dict[str, Any]:
    """The result of a task on the tiny shards, with its train and test unless changed; "train=" leaves it out."""
    given = [f"task={task}", f"train={shards['train']}", f"test={shards['test']}", "num_workers=0", *changes]
    gone = [change for change in changes if change.endswith("=")]
    given = [option for option in given if not option.startswith(tuple(gone))] if gone else given
    return read_evaluation(recipe.evaluate(run, recipe.load_task(given)))


def rows_of(features: FeatureSet, modality: str, layer: str) -> np.ndarray:
    return features.rows[modality][layer].astype(np.float64)


def labels_of(features: FeatureSet, field: str) -> np.ndarray:
    return np.array([labels[field][0] for labels in features.labels])


def splits(embedder: Embedder, shards: Any, modality: str, layer: str, num_clips: int = 1) -> tuple[Any, ...]:
    """(train rows (n, K, D), labels, test rows, labels), by `extract`, which has its own test."""
    found = [extract(embedder, str(shards[split]), [modality], [layer], ClipPlan(num_clips)) for split in shards]
    return tuple(
        part for features in found for part in (rows_of(features, modality, layer), labels_of(features, "visual"))
    )


def test_features_are_those_of_the_encoder_and_embed(embedder: Embedder, shards: Any) -> None:
    found = extract(embedder, str(shards["test"]), ["video", "audio"], ["feature", "embedding"], ClipPlan(1))
    clip = {"window_seconds": 0.5, "stride_seconds": 0.5}
    table, _ = embedder.embed(shards["test"], **clip)
    assert found.keys == list(dict.fromkeys(table.keys))
    np.testing.assert_allclose(np.linalg.norm(found.rows["audio"]["embedding"], axis=2), 1, atol=1e-5)
    # The middle of 1.5 s is the middle of the second of three windows.
    middle = np.flatnonzero(np.isclose(table.start_seconds, 0.5))
    np.testing.assert_allclose(found.rows["audio"]["embedding"][:, 0], table.audio_embedding[middle], atol=1e-2)
    again = extract(embedder, str(shards["test"]), ["video"], ["feature"], ClipPlan(1), batch_size=2)
    np.testing.assert_allclose(again.rows["video"]["feature"], found.rows["video"]["feature"], atol=1e-5)


def test_encoders_stay_frozen_with_batch_norm_in_eval_mode(embedder: Embedder, shards: Any) -> None:
    before = {name: value.clone() for name, value in embedder.loss.state_dict().items()}
    extract(embedder, str(shards["test"]), ["video"], ["conv2x"], ClipPlan(2))
    assert all((before[name] == value).all() for name, value in embedder.loss.state_dict().items())
    assert not any(module.training for module in embedder.loss.modules())


def test_knn_equals_scikit_learn(run: Path, embedder: Embedder, shards: Any) -> None:
    found = evaluate(run, shards, "knn", "label_field=visual", "num_neighbors=5", "test_clips=2", "train_clips=2")
    train, labels, test, truth = splits(embedder, shards, "video", "feature", 2)
    train, test = ((rows / np.linalg.norm(rows, axis=2, keepdims=True)).mean(axis=1) for rows in (train, test))
    oracle = KNeighborsClassifier(
        5, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train, labels)
    expected = oracle.score(test, truth)
    assert found["results"]["trained"]["video_feature_top1_accuracy"] == pytest.approx(expected)
    assert found["results"].keys() == {"trained", "untrained"}
    assert found["weights"]["trained"] == embedder.weights_hash


@pytest.mark.slow
def test_linear_equals_scikit_learn_on_every_layer(run: Path, embedder: Embedder, shards: Any) -> None:
    layers = f"layers=[{','.join(LAYERS)}]"
    found = evaluate(run, shards, "linear", "label_field=visual", "costs=[0.5]", layers, "untrained=false")
    for layer in LAYERS:
        train, labels, test, truth = splits(embedder, shards, "video", layer)
        scale = StandardScaler().fit(train[:, 0])
        oracle = LogisticRegression(C=0.5, max_iter=1000).fit(scale.transform(train[:, 0]), labels)
        expected = oracle.score(scale.transform(test[:, 0]), truth)
        assert found["results"]["trained"][f"video_{layer}_top1_accuracy"] == pytest.approx(expected)
        assert found["facts"]["trained"]["feature_dims"][layer] == [train.shape[2]]
    rows = read_rows(run / "evaluations" / "linear.json", found, "trained")[0]
    known = sorted(set(labels))
    np.testing.assert_allclose(
        rows.columns["video_feature_scores"][:, [sorted({*labels, *truth}).index(name) for name in known]],
        oracle.predict_proba(scale.transform(test[:, 0])),
        atol=1e-3,
    )
    assert found["protocol"]["frozen"] == "encoders, projectors, statistics of the views"
    assert found["protocol"]["batch_norm"].startswith("eval")


@pytest.mark.slow
def test_svm_averages_decisions_over_crops_as_scikit_learn_does(run: Path, embedder: Embedder, shards: Any) -> None:
    options = ("cost=0.001", "max_iterations=5000", "modality=audio", "layers=[conv4x]", "untrained=false")
    found = evaluate(run, shards, "svm", "label_field=visual", "train_clips=3", "test_clips=3", *options)
    train, labels, test, truth = splits(embedder, shards, "audio", "conv4x", 3)
    clips = train.reshape(-1, train.shape[2])
    mean, deviation = clips.mean(axis=0), clips.std(axis=0) + 0.01
    oracle = LinearSVC(C=0.001, loss="hinge", max_iter=5000, random_state=0)
    oracle.fit((clips - mean) / deviation, np.repeat(labels, 3))
    decisions = oracle.decision_function((test.reshape(-1, test.shape[2]) - mean) / deviation)
    averaged = decisions.reshape(len(test), 3, -1).mean(axis=1)
    expected = (oracle.classes_[averaged.argmax(axis=1)] == truth).mean()
    assert found["results"]["trained"]["audio_conv4x_top1_accuracy"] == pytest.approx(expected)


def test_random_clips_are_the_same_every_time_and_differ_with_the_seed(embedder: Embedder, shards: Any) -> None:
    def audio(seed: int) -> np.ndarray:
        plan = ClipPlan(2, random=True, speed=(0.75, 4 / 3), volume=(0.9, 1.1), seed=seed)
        return extract(embedder, str(shards["test"]), ["audio"], ["feature"], plan).rows["audio"]["feature"]

    first = audio(0)
    assert np.array_equal(first, audio(0))
    assert (np.abs(first - audio(1)).max(axis=(1, 2)) > 1e-6).all()
    assert np.abs(first[:, 0] - first[:, 1]).max() > 1e-6, "the clips of a sample are drawn one by one"


@pytest.mark.slow
@pytest.mark.parametrize("fuse", ["concatenate", "average"])
def test_both_modalities_together(run: Path, shards: Any, fuse: str) -> None:
    found = evaluate(run, shards, "linear", "label_field=visual", "modality=both", f"fuse={fuse}", "untrained=false")
    dims = found["facts"]["trained"]["feature_dims"]["feature"]
    assert dims == ([32] if fuse == "concatenate" else [16, 16])
    assert 0 <= found["results"]["trained"]["both_feature_top1_accuracy"] <= 1


@pytest.mark.slow
def test_few_labels_are_stratified_and_repeated_over_seeds(run: Path, shards: Any) -> None:
    found = evaluate(
        run, shards, "few_label", "label_field=visual", "fractions=[0.5]", "per_class=[1]", "seeds=[0,1,2]"
    )
    assert [repeat["name"] for repeat in found["repeats"]["trained"]] == ["seed 0", "seed 1", "seed 2"]
    name = "1_per_class_video_feature_top1_accuracy"
    values = [repeat[name] for repeat in found["repeats"]["trained"]]
    assert found["results"]["trained"][name] == pytest.approx(np.mean(values))
    assert found["deviation"]["trained"][name] == pytest.approx(np.std(values, ddof=1))
    from avssl.eval.tasks.few_label import stratified

    targets = np.repeat([0, 1, 2], [100, 50, 3])
    chosen = stratified(targets, 0.1, 0, 0)
    assert np.bincount(targets[chosen]).tolist() == [10, 5, 1]
    assert set(stratified(targets, 0.01, 0, 0)) <= set(chosen), "the smaller draw is part of the larger"
    assert not np.array_equal(chosen, stratified(targets, 0.1, 0, 1))
    assert np.bincount(targets[stratified(targets, 0.0, 5, 0)]).tolist() == [5, 5, 3]


@pytest.mark.slow
def test_clustering_is_scored_against_labels_and_shuffled_clusters(run: Path, shards: Any) -> None:
    found = evaluate(run, shards, "clustering", "train=", "label_field=visual", "seeds=[0,1]", "num_clusters=3")
    values = found["results"]["trained"]
    assert set(values) == {
        f"video_feature_{name}" for name in ("normalized_mutual_information", "adjusted_rand_index", "purity")
    }
    assert found["chance"]["video_feature_purity"] > 1 / 6, "of small clusters chance is far from 0"
    assert len(found["repeats"]["trained"]) == 2


@pytest.mark.slow
def test_retrieval_across_and_within(run: Path, embedder: Embedder, shards: Any) -> None:
    found = evaluate(run, shards, "retrieval", "label_field=visual", "recall_at=[1,5]")
    names = set(found["results"]["trained"])
    assert {"video_to_audio_recall_at_1", "audio_to_video_median_rank"} <= names
    assert {"video_to_video_embedding_mean_average_precision", "audio_to_audio_embedding_recall_at_5"} <= names
    assert len(set(found["protocol"]["targets"])) == 2, "of the training and of the test samples"
    across = evaluate(run, shards, "retrieval", "train=", "recall_at=[1]", "name=across", "untrained=false")
    assert set(across["results"]["trained"]) == {
        f"{direction}_{name}"
        for direction in ("video_to_audio", "audio_to_video")
        for name in ("recall_at_1", "median_rank")
    }


@pytest.mark.slow
def test_synchronization_counts_samples_that_it_leaves_out(run: Path, shards: Any, embedder: Embedder) -> None:
    found = evaluate(run, shards, "synchronization", "test_clips=2")
    values = found["results"]["trained"]
    rows = read_rows(run / "evaluations" / "synchronization.json", found, "trained")[0].columns
    assert values["synchronization_pair_accuracy"] == pytest.approx((rows["aligned"] > rows["shifted"]).mean())
    assert {"synchronization_auc", "synchronization_accuracy"} <= values.keys()
    assert found["protocol"]["shift"] == 0.5
    assert (found["protocol"]["num_test"], found["protocol"]["left_out"]["test"]) == (6, {})
    with pytest.raises(ValueError, match="too short"):
        evaluate(run, shards, "synchronization", "shift_seconds=1.2")
    with pytest.raises(ValueError, match="silent"):
        evaluate(run, shards, "synchronization", "silence_dbfs=60")


def test_all_tasks_of_the_registry_have_a_configuration_that_parses() -> None:
    for name in tasks.names():
        kind = tasks.get(name)
        parsed = config.parse(kind.Config, [f"task={name}", "train=a", "test=b"])
        assert (parsed.train, parsed.test) == ("a", "b")
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        tasks.get("linaer")


@pytest.mark.slow
def test_bad_input_is_refused_with_what_to_do(run: Path, shards: Any) -> None:
    for changes, message in (
        (
            ["label_field=nothing"],
            "has no label field 'nothing'; its samples have sound, visual: set label_field",
        ),
        (["label_field=visual", "modality=image"], "this run has encoders for"),
        (["label_field=visual", "layers=[conv9x]"], "has no layer conv9x; it has conv2x"),
        (["label_field=visual", "test="], "test is not set"),
        (["label_field=visual", f"test={shards['train']}"], "the test set was trained on"),
        (["label_field=visual", f"test={shards['train']}", "allow_overlap=true"], "hold the same clips"),
        (["label_field=visual", "folds=[1]"], "must stand in them"),
        (["label_field=visual", "speed=[1]"], "two ends of a range"),
        (["label_field=visual", "name=a/b"], "no slash"),
        (["label_field=visual", "test=", "fold_field=nothing", "allow_overlap=true"], "no label field 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(run, shards, "linear", *changes)


def test_a_missing_shard_is_an_error_and_not_a_smaller_test_set(run: Path, shards: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(shards["test"], tmp_path / "test")
    (copy / "shard-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match="the shard is missing"):
        evaluate(run, shards, "knn", f"test={copy}", "label_field=visual")


@pytest.mark.slow
def test_a_sample_that_cannot_be_read_is_an_error_by_name(run: Path, shards: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(shards["test"], tmp_path / "test")
    shard = copy / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    place = content.index(b"ftyp")  # of the first sample's mp4
    content[place : place + 400] = bytes(400)
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 samples of .* could not be read, the first is sample 0: not_media"):
        evaluate(run, shards, "knn", f"test={copy}", "label_field=visual")


def test_samples_without_the_modality_are_left_out_and_counted(embedder: Embedder, shards: Any) -> None:
    found = extract(embedder, str(shards["test"]), ["video", "audio"], ["feature"], ClipPlan(1))
    found.present["audio"][1] = False
    found.labels[2].pop("visual")
    kept, left_out = usable(found, "visual", ["video", "audio"])
    assert left_out == {"no label": 1, "no video": 0, "no audio": 1}
    assert kept.keys == [key for row, key in enumerate(found.keys) if row not in (1, 2)]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_with_every_sample_once(run: Path, shards: Any) -> None:
    options = [
        "task=knn", f"train={shards['train']}", f"test={shards['test']}", "label_field=visual", "num_workers=0",
        "modality=both", "layers=[conv5x,embedding]", "test_clips=2",
    ]  # fmt: skip
    recipe.evaluate(run, recipe.load_task([*options, "name=one"]))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run_python(*launcher, "recipes/evaluate.py", run, *options, "name=two")
    stored = {name: read_evaluation(run / "evaluations" / f"knn-{name}.json") for name in ("one", "two")}
    assert stored["one"]["protocol"] == stored["two"]["protocol"]
    for weights in ("trained", "untrained"):
        first, second = (
            read_rows(run / "evaluations" / f"knn-{name}.json", evaluation, weights)[0]
            for name, evaluation in stored.items()
        )
        assert first.keys == second.keys
        assert len(second.keys) == 6
        for column in first.columns:
            np.testing.assert_allclose(first.columns[column], second.columns[column], atol=1e-4)


def test_help_lists_the_tasks_and_their_keys() -> None:
    text = recipe.usage(["--help", "svm"])
    assert "few_label" in text
    assert "cost: float = 1.0  # C" in text


def test_a_result_of_another_test_set_or_other_settings_replaces_none(tmp_path):
    outcome = Outcome([classified(["a", "b"], np.eye(2), np.array([0, 1]), ["x", "y"])])

    def written(test, seed=0, value=1.0):
        weights = {"trained": "w"}
        found = {
            "format_version": 1, "task": "knn", "name": "", "data": {"test": test}, "protocol": {"seed": seed},
            "weights": weights, "results": {"trained": {"top1_accuracy": value}},
        }  # fmt: skip
        return results.write(tmp_path, {"trained": outcome}, found, "evaluation")

    for test, seed in (("one", 0), ("two", 0), ("two", 1), ("two", 1), ("one", 0)):
        path = written(test, seed)
    written("one", value=0.5)  # measured again: it replaces its own
    found = [results.read_evaluation(evaluation) for evaluation in results.standard_results(tmp_path)]
    kept = sorted((evaluation["data"]["test"], evaluation["protocol"]["seed"]) for evaluation in found)
    assert kept == [
        ("one", 0),
        ("two", 0),
        ("two", 1),
    ]
    assert found[0]["results"]["trained"]["top1_accuracy"] == 0.5
    for evaluation, kept_path in zip(found, results.standard_results(tmp_path), strict=True):
        assert results.read_rows(kept_path, evaluation, "trained")[0].keys == ["a", "b"]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        written("three")
    assert path.read_text() == "{"


def test_other_labels_of_the_same_samples_have_other_digests() -> None:
    train, test = (cast("ShardSet", SimpleNamespace(keys=keys)) for keys in (["b", "a"], ["c"]))
    made = [
        ShardFold("", train, test, torch.tensor(numbers), torch.tensor([0]), classes, {})
        for numbers, classes in (
            ([0, 1], ["x", "y"]),
            ([1, 0], ["x", "y"]),
            ([0, 1], ["x", "z"]),
            ([0, 2], ["x", "w", "y"]),
        )
    ]
    first, swapped, renamed, one_class_more = map(label_digests, made)
    assert first[0] not in (swapped[0], renamed[0])
    assert first[1] == swapped[1] == renamed[1]
    assert first == one_class_more, "of the names of labels, not of their numbers"
    several = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert label_digests(ShardFold("", train, test, several, several[:1], ["x", "y"], {})) == first
