"""Full fine-tuning: stages, schedule, resume to the bit, clips averaged, every sample once, all kinds of labels."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avssl.config import ConfigError, parse
from avssl.data.every_sample import ClipSets, clip_set
from avssl.eval import tasks
from avssl.eval.finetune.data import ShardFold, changed, few_labels, shard_folds
from avssl.eval.finetune.scores import score
from avssl.eval.finetune.state import read_step, save_state
from avssl.eval.finetune.task import run_repeat, scheduled
from avssl.eval.finetune.training import Classifier, Criterion, Stage, TrainingOptions, train
from avssl.eval.labels import label_targets
from avssl.optim.config import OptimConfig
from avssl.plugins import required
from avssl.shards.shard_set import ShardSet
from avssl.shards.subset import ShardSubset
from tests.conftest import ROOT, run_python
from tests.finetune_ranks import train_and_test
from tests.labeled_runs import (
    MemoryLoader,
    NormEncoder,
    assert_equal_states,
    image_embedder,
    stage,
    state_of,
    tiny_embedder,
    vectors,
)

DEVICE = torch.device("cpu")
OPTIONS = TrainingOptions(seed=5, log_every_steps=1, checkpoint_every_steps=4)
TASK = tasks.get("finetune")


def classifier(**options):
    torch.manual_seed(0)
    return Classifier({"video": NormEncoder(**options)}, 3, dropout=0.5, head="video")


def train_in(folder, model, stages, *, stop_at=None, facts=None, options=OPTIONS):
    x, targets = vectors()
    loader = MemoryLoader(x, 6, stop_at)
    criterion = Criterion(targets)
    train(model, loader, stages, criterion, options, folder=folder, facts=facts or {"data": "a"}, device=DEVICE)
    return model


def configured(shards, folder, *changes):
    given = [
        "task=finetune", f"train={shards['train']}", f"test={shards['test']}", "label_field=visual", "num_workers=0",
        "train_batch_size=6", "epochs=1", "test_clips=2", f"folder={folder}", "order_lanes=2",
    ]  # fmt: skip
    return parse(TASK.Config, [*given, *changes])


def test_the_head_alone_leaves_the_encoder_bit_equal(tmp_path):
    model = classifier()
    before, head = state_of(model.encoders), model.head.weight.clone()
    train_in(tmp_path, model, [stage(12, encoders=False, batch_norm="frozen")])
    assert_equal_states(before, state_of(model.encoders))
    assert not torch.equal(head, model.head.weight)


def test_batch_norm_in_training_mode_moves_statistics_but_no_weight_of_a_frozen_encoder(tmp_path):
    model = classifier()
    before = state_of(model.encoders)
    train_in(tmp_path, model, [stage(12, encoders=False, batch_norm="train")])
    after = state_of(model.encoders)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"video.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_after_the_head_the_whole_network_learns_and_frozen_statistics_stay(tmp_path):
    model = classifier()
    before = state_of(model.encoders)
    train_in(tmp_path, model, [stage(4, False, "frozen"), stage(4, True, "frozen")])
    after = state_of(model.encoders)
    assert not torch.equal(before["video.layer.weight"], after["video.layer.weight"])
    assert torch.equal(before["video.norm.running_mean"], after["video.norm.running_mean"])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.quick(2)
@pytest.mark.parametrize("stop_at", [2, 5, 8, 9, 15])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, stop_at):
    """Within the first stage, before its first checkpoint, at its end, and in the second; with dropout."""
    stages = [stage(8, False), stage(12, True, optim=OptimConfig(name="adam", lr=1e-2, schedule="cosine"))]
    straight = train_in(tmp_path / "straight", classifier(), stages)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train_in(folder, classifier(), stages, stop_at=stop_at)
    torch.manual_seed(999)  # the state of the global generator must not matter
    model = classifier()
    with torch.no_grad():
        model.head.weight.zero_()  # what is in the checkpoint must come from there
    if stop_at < OPTIONS.checkpoint_every_steps:
        model = classifier()
    assert_equal_states(state_of(straight), state_of(train_in(folder, model, stages)))
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "straight" / "metrics.jsonl").read_text()


def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_in(tmp_path, classifier(), [stage(12, True)], stop_at=6)
    with pytest.raises(ValueError, match="data: 'a' then, 'b' now"):
        train_in(tmp_path, classifier(), [stage(12, True)], facts={"data": "b"})


def test_a_stored_classifier_is_taken_with_changed_plugins_if_the_user_says_so(tmp_path, own_registries):
    records = [[{"file": "mine.py", "sha256": digit * 64}] for digit in "ab"]
    path = tmp_path / "classifier.safetensors"
    save_state(path, classifier(), None, 7, {"data": "a", "plugins": records[0]})
    with pytest.raises(ValueError, match=r"plugins: .*aaaa.* then, .*bbbb.* now"):
        read_step(path, {"data": "a", "plugins": records[1]})
    required.use([], may_differ=True)
    assert read_step(path, {"data": "a", "plugins": records[1]}) == 7
    with pytest.raises(ValueError, match="data: 'a' then, 'b' now"):
        read_step(path, {"data": "b", "plugins": records[1]})


def test_learning_rates_fall_at_the_milestones_of_the_stage(tmp_path):
    cfg = parse(
        TASK.Config, ["epochs=4", "clips_per_sample=2", "milestone_epochs=[1,3]", "optim.gamma=0.3", "optim.lr=0.1"]
    )
    whole = scheduled(cfg, steps_per_pass=4)
    assert whole.milestone_steps == [8, 24]
    train_in(tmp_path, classifier(), [stage(3, False, optim=OptimConfig(lr=0.5)), stage(32, True, optim=whole)])
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [0.5] * 3 + [0.1] * 8 + [0.1 * 0.3] * 16 + [0.1 * 0.3**2] * 8
    assert rates == pytest.approx(expected)


def test_the_encoder_may_learn_at_another_rate(tmp_path):
    """With a scale of 0 it does not move, in spite of momentum."""
    model = classifier(norm=False)
    before = state_of(model.encoders)
    train_in(tmp_path, model, [stage(8, True, encoder_lr_scale=0.0)])
    assert_equal_states(before, state_of(model.encoders))


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    with pytest.raises(FloatingPointError, match=r"lower optim\.lr"):
        train_in(tmp_path, classifier(norm=False), [stage(12, True, optim=OptimConfig(name="sgd", lr=float("inf")))])
    assert "avssl progress" not in [thread.name for thread in threading.enumerate()], "its lines would go on"


@pytest.mark.parametrize("last", [4, 6])  # a checkpoint between, and the end of the stage
def test_weights_that_are_not_numbers_are_not_saved_although_their_loss_was_one(tmp_path, monkeypatch, last):
    def broken(self, logits, index):
        calls.append(whole(self, logits, index))
        calls[-1].register_hook(lambda gradient: gradient * (torch.nan if len(calls) == last else 1))
        return calls[-1]

    calls, whole = [], Criterion.__call__
    monkeypatch.setattr(Criterion, "__call__", broken)
    with pytest.raises(FloatingPointError, match=rf"a weight .* after step {last} .*lower optim\.lr"):
        train_in(tmp_path, classifier(), [stage(6, True)])
    assert read_step(tmp_path / "training.safetensors", {"data": "a"}) == (0 if last == 4 else 4)


def test_losses_are_the_textbook_ones():
    generator = np.random.default_rng(0)
    logits = {name: torch.tensor(generator.normal(size=(4, 3))) for name in ("a", "b")}
    index, numbers = torch.tensor([3, 0, 2, 2]), torch.tensor([1, 2, 0, 1])
    smoothed, binary = 0.0, 0.0
    table = torch.tensor(generator.integers(0, 2, size=(4, 3)), dtype=torch.float32)
    for values in logits.values():
        x = values.numpy()
        logarithm = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        wanted = 0.9 * np.eye(3)[numbers[index]] + 0.1 / 3
        smoothed += -(wanted * logarithm).sum(axis=1).mean()
        probability, truth = 1 / (1 + np.exp(-x)), table[index].numpy()
        binary += -(truth * np.log(probability) + (1 - truth) * np.log(1 - probability)).mean()
    assert float(Criterion(numbers, 0.1)(logits, index)) == pytest.approx(smoothed, abs=1e-5)
    assert float(Criterion(table)(logits, index)) == pytest.approx(binary, abs=1e-5)


@pytest.mark.quick(1)
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_scores_are_the_mean_over_clips_whatever_the_batch(shards, multi_label, num_crops):
    """Against a loop that decodes, encodes and averages one clip at a time."""
    embedder, test = tiny_embedder(), ShardSet(shards["test"])
    views = embedder.config.views
    model = Classifier({"video": embedder.encoders["video"]}, 4, dropout=0.5, head="video").eval()
    options = {"multi_label": multi_label, "num_workers": 0, "device": DEVICE}
    sets = ClipSets(test, views, ["video"], 10, num_crops)
    found, other = (score(model, sets, embedder.views, batch_size=size, **options)["video"] for size in (7, 64))
    assert found.clips.shape == (6, 10 * num_crops, 4)
    np.testing.assert_allclose(found.mean, other.mean, atol=1e-5)  # probabilities of float32 networks
    for index in range(6):
        clips = clip_set(test.read(index), views, ["video"], 10, num_crops)["video"]
        total = np.zeros(4)
        for number in range(10 * num_crops):
            one = replace(clips, media=clips.media[number : number + 1])
            with torch.no_grad():
                logits = model(embedder.views({"video": one}, DEVICE))["video"][0].double().numpy()
            total += 1 / (1 + np.exp(-logits)) if multi_label else np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(found.mean[index], total / (10 * num_crops), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["video", "audio", "both"])
def test_every_modality_is_finetuned_over_seeds(shards, tmp_path, modality):
    embedder = tiny_embedder()
    before = state_of(embedder.loss)
    config = configured(shards, tmp_path, f"modality={modality}", "seeds=[0,1]", "head_epochs=1")
    outcome = TASK.run(embedder, config)
    assert [repeat.name for repeat in outcome.repeats] == ["seed 0", "seed 1"]
    for repeat in outcome.repeats:
        assert repeat.keys == ShardSet(shards["test"]).keys
        assert {f"{modality}_top1_accuracy", f"{modality}_clip_accuracy"} <= repeat.values().keys()
    first, second = (repeat.columns[f"{modality}_scores"] for repeat in outcome.repeats)
    assert not np.array_equal(first, second)
    assert_equal_states(before, state_of(embedder.loss))  # it belongs to the caller
    again = TASK.run(tiny_embedder(), config)  # from the stored classifiers
    np.testing.assert_array_equal(first, again.repeats[0].columns[f"{modality}_scores"])


def test_a_class_without_a_training_sample_counts_as_wrong(image_shards, tmp_path):
    """The folds are the classes, so that the test class has no training sample."""
    config = replace(configured({"train": image_shards, "test": "other"}, tmp_path, "modality=image"), test="")
    config = replace(config, label_field="label", fold_field="label", epochs=10, optim=OptimConfig(lr=0.1))
    outcome = TASK.run(image_embedder(), config)
    assert [repeat.name for repeat in outcome.repeats] == ["fold dark", "fold light"]
    assert [repeat.values()["image_top1_accuracy"] for repeat in outcome.repeats] == [0.0, 0.0]


@pytest.mark.slow
def test_images_that_differ_in_brightness_are_told_apart(image_shards, tmp_path):
    whole = ShardSet(image_shards)
    halves = [np.arange(12)[np.arange(12) % 4 < 2], np.arange(12)[np.arange(12) % 4 >= 2]]
    train_half, test_half = (ShardSubset(whole, half) for half in halves)
    labels = [
        torch.tensor([["dark", "light"].index(half.read_info(n).labels["label"][0]) for n in range(6)])
        for half in (train_half, test_half)
    ]
    fold = ShardFold("", train_half, test_half, *labels, ["dark", "light"], {})
    shards = {"train": image_shards, "test": "other"}
    config = configured(shards, tmp_path, "modality=image", "train_batch_size=6", "test_clips=1")
    embedder = image_embedder()
    done = run_repeat(
        embedder, config, "", 0, fold,
        lambda fold, maker, views: Classifier(embedder.encoders, 2, dropout=0.0, head="image"),
        lambda steps: [Stage(20 * steps, OptimConfig(lr=1e-2, weight_decay=0.0), True, "train")],
    )  # fmt: skip
    assert done.scores["image"].clips.shape == (6, 1, 2)
    assert done.facts == {"unreadable_training_clips": {}}
    assert done.repeat.values()["image_top1_accuracy"] == 1.0


def test_several_labels_per_sample_give_mean_average_precision(shards, tmp_path):
    outcome = TASK.run(tiny_embedder(), configured(shards, tmp_path, "multi_label=true"))
    assert {"video_mean_average_precision", "video_d_prime"} <= outcome.repeats[0].values().keys()
    with pytest.raises(ValueError, match="several labels"):
        label_targets(["x", "y"], [["a"], ["a", "b"]], ["a", "b"], multi_label=False)
    assert label_targets(["x", "y"], [["b"], []], ["a", "b"], multi_label=True).tolist() == [[0, 1], [0, 0]]


def test_folds_of_a_field_test_every_sample_once(shards, tmp_path):
    config = replace(configured(shards, tmp_path), test="", fold_field="sound")
    folds = list(shard_folds(config, ["video"]))
    tested = [key for fold in folds for key in fold.test.keys]
    whole = ShardSet(shards["train"])
    assert sorted(tested) == sorted(whole.keys)
    assert len(folds) > 1
    for fold in folds:
        assert not set(fold.train.keys) & set(fold.test.keys)
        labels = [whole.read_info(whole.keys.index(key)).labels["visual"][0] for key in fold.test.keys]
        assert [fold.classes[number] for number in fold.test_targets] == labels


def test_few_labels_are_a_share_of_every_class(shards, tmp_path):
    (fold,) = shard_folds(configured(shards, tmp_path), ["video"])
    few = few_labels(fold, 0.5, seed=3)
    counts, all_counts = (torch.bincount(split.train_targets, minlength=len(fold.classes)) for split in (few, fold))
    assert counts.tolist() == [-(-int(count) // 2) for count in all_counts]
    assert few.train.keys == few_labels(fold, 0.5, seed=3).train.keys
    assert set(few.train.keys) <= set(fold.train.keys)
    with pytest.raises(ValueError, match="label_share"):
        few_labels(fold, 0.0, seed=3)


@pytest.mark.parametrize(("share", "count", "expected"), [(0.07, 100, 7), (0.14, 50, 7), (0.071, 100, 8)])
def test_a_share_is_the_decimal_that_is_written(share, count, expected):  # 0.07 * 100 is above 7 in floats
    stub = SimpleNamespace(num_samples=count, location="", folder="", index=None, _remote=None)
    fold = ShardFold("", stub, stub, *2 * [torch.zeros(count)], ["a"], {})
    assert few_labels(fold, share, seed=0).train.num_samples == expected


def test_views_are_changed_by_known_keys_of_the_right_type(shards, tmp_path):
    views = tiny_embedder().config.views
    new = changed(views, {"video": {"num_frames": 6, "fps": 8}, "augments": {"mine": {"hue": 0, "crop_scale": [1, 1]}}})
    assert (new.video.num_frames, new.video.fps, new.video.size_px, views.video.num_frames) == (6, 8.0, 32, 4)
    assert (new.augments["mine"].hue, new.augments["mine"].crop_scale) == (0.0, (1.0, 1.0))
    with pytest.raises(ValueError, match=r"views\.video has no key 'num_frame'.*'num_frames'"):
        changed(views, {"video": {"num_frame": 6}})
    with pytest.raises(ValueError, match="must be of type int"):
        changed(views, {"video": {"num_frames": 6.5}})


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seeds=[]", "seeds"),
        ("test_clips=0", "test_clips"),
        ("label_smoothing=1.5", "label_smoothing"),
        ("mixed_precision=fp16", "fp32 and bf16"),
        ("dropout=1", "dropout"),
        ("modality=image", "this run has encoders for"),
        ("augment=simcl", "Did you mean 'simclr'"),
        ("test_crops=2", "num_crops must be 1 or 3"),
        ("folder=", "folder"),
        ("head_batch_norm=batch", "batch"),
    ],
)
def test_bad_settings_are_errors_that_say_what_is_allowed(shards, tmp_path, change, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        TASK.run(tiny_embedder(), configured(shards, tmp_path, change))


@pytest.mark.slow
def test_two_processes_train_and_test_as_one(shards, tmp_path):
    """Without batch norm and dropout the classifier is the same; its scores are of every sample, each once."""
    train_and_test(shards["train"], shards["test"], tmp_path / "1")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run_python(*launcher, "-m", "tests.finetune_ranks", shards["train"], shards["test"], tmp_path / "2")
    first, second = (np.load(tmp_path / str(number) / "scores.npz") for number in (1, 2))
    assert first["keys"].tolist() == second["keys"].tolist() == ShardSet(shards["test"]).keys
    np.testing.assert_allclose(first["untrained"], second["untrained"], atol=1e-5)
    np.testing.assert_allclose(first["trained"], second["trained"], atol=1e-5)
    assert np.abs(first["trained"] - first["untrained"]).max() > 1e-3


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("finetune_ucf101", (8, 10, 64, 16, [6, 10, 14], 0.4)),
        ("finetune_ucf101_32frames", (32, 5, 32, 16, [6, 10, 14], 0.4)),
        ("finetune_hmdb51", (8, 25, 64, 10, [3, 6, 8], 1.0)),
        ("finetune_hmdb51_32frames", (32, 10, 32, 10, [3, 6, 8], 1.0)),
    ],
)
def test_the_published_settings_are_what_the_protocol_says(name, published):
    """Of AVID's code: frames, clips per epoch, batch size, epochs, milestones, strength of the jitter."""
    config = parse(TASK.Config, [str(ROOT / f"recipes/configs/evaluate/{name}.yaml")])
    views = changed(tiny_embedder().config.views, config.views)
    found = (
        views.video.num_frames, config.clips_per_sample, config.train_batch_size, config.epochs,
        config.milestone_epochs, views.augments[config.augment].brightness,
    )  # fmt: skip
    assert found == published
    assert views.augments[config.augment].crop_scale == (0.08, 1.0)
    assert (config.optim.name, config.optim.lr, config.optim.gamma, config.optim.weight_decay) == ("adam", 1e-4, 0.3, 0)
    assert (config.head_epochs, config.head_batch_norm, config.dropout, config.test_clips) == (5, "train", 0.5, 10)
    assert config.folds == [1, 2, 3]


@pytest.mark.slow
def test_the_command_that_was_killed_twice_gives_the_result_of_one_that_was_not(tiny_run, shards, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    settings = [
        "task=finetune", f"train={shards['train']}", f"test={shards['test']}", "label_field=visual", "num_workers=0",
        "train_batch_size=6", "epochs=8", "head_epochs=4", "checkpoint_every_steps=7", "log_every_steps=1",
        "untrained=false", "test_clips=2",
    ]  # fmt: skip
    run_python("recipes/evaluate.py", run, *settings, "name=straight")
    arguments = ["recipes/evaluate.py", str(run), *settings, "name=killed"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for after in (8, 20):
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            logs = list((run / "evaluations/finetune-killed").glob("*/metrics.jsonl"))
            if logs and len(logs[0].read_text().splitlines()) >= after:
                process.kill()
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL
    run_python(*arguments)
    straight, killed = (
        np.load(next((run / "evaluations").glob(f"finetune-{name}.*.npz"))) for name in ("straight", "killed")
    )
    assert straight.files == killed.files
    for name in straight.files:
        np.testing.assert_array_equal(straight[name], killed[name])
