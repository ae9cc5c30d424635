"""What `auto` becomes, and what a corpus that is too small for a recipe is told."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import avssl
from avssl import config, losses
from avssl.models import create_encoder
from avssl.train import fitting
from avssl.types import TooFewSamplesError
from tests.conftest import ROOT, TINY, TINY_CMA, run_python
from tests.test_calls import as_keywords
from tests.test_recipes import RECIPES

NETWORKS = {
    "image": {"name": "resnet10", "width": 8},
    "video": {"name": "avid_video", "depth": 10, "width": 4},
    "audio": {"name": "avid_audio", "width": 4},
}


def recipe(name, *changes):
    return config.parse(config.RunConfig, [str(ROOT / f"recipes/configs/{name}.yaml"), *changes])


def any_size(size):
    return True


@pytest.mark.parametrize("num_samples", [4, 7, 8, 40, 600, 2_000, 8_191, 8_192, 1_000_000])
@pytest.mark.parametrize(("published", "lanes"), [(1024, 1), (1024, 2), (96, 3), (4, 1), (3, 1)])
def test_the_batch_is_the_published_one_or_the_largest_power_of_two_with_eight_steps_in_an_epoch(
    num_samples, published, lanes
):
    least = 6 if lanes == 3 else 4
    if num_samples < least:
        with pytest.raises(TooFewSamplesError, match=f"{num_samples} samples; training needs at least a batch of 6"):
            fitting.fitted_batch_size(published, num_samples, least, lanes, any_size)
        return
    allowed = [size for size in range(1, published + 1) if num_samples // size >= 8 and size > least]
    powers = [size for size in allowed if size % lanes == 0 and (size // lanes).bit_count() == 1]
    expected = published if published in allowed else max(powers, default=min(least, published))
    assert fitting.fitted_batch_size(published, num_samples, least, lanes, any_size) == expected


def test_memory_makes_the_batch_smaller_but_never_less_than_the_least():
    assert fitting.fitted_batch_size(1024, 10**6, 4, 1, lambda size: size <= 100) == 64
    assert fitting.fitted_batch_size(1024, 10**6, 4, 1, lambda size: False) == 4
    assert fitting.fitted_batch_size(1024, 10**6, 6, 3, lambda size: True) == 768  # a batch is split into the lanes


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_keeps_its_numbers_on_a_corpus_of_the_published_size(name):
    cfg = recipe(name)
    num_samples = 1_281_167 if losses.get(cfg.loss.name).modalities(cfg.loss) == ["image"] else 232_067  # Kinetics-400
    num_samples = 600 if name.startswith("demo") else num_samples
    changes = fitting.recipe_changes(cfg, losses.get(cfg.loss.name), num_samples, cfg.data.global_batch_size)
    assert changes == {"data.global_batch_size": cfg.data.global_batch_size}


@pytest.mark.quick(3)
@pytest.mark.parametrize("num_samples", [40, 12, 600])
@pytest.mark.parametrize("name", RECIPES)
def test_a_fitted_recipe_suits_a_small_corpus(name, num_samples):
    """The loss takes the options, the batch and the number of samples; it would refuse those that are impossible."""
    cfg = recipe(name)
    loss_class = losses.get(cfg.loss.name)
    least = fitting._smallest_batch(cfg, loss_class)
    batch = fitting.fitted_batch_size(cfg.data.global_batch_size, num_samples, least, 1, any_size)
    changes = fitting.recipe_changes(cfg, loss_class, num_samples, batch)
    for key, value in changes.items():
        config.set_value(cfg, key, value)
    assert (num_samples // batch >= 8) or batch == least
    for key in ("projector_hidden_dims", "predictor_hidden_dims", "projector_dims"):  # only to be quick
        if getattr(cfg.loss, key, None):
            setattr(cfg.loss, key, [32])
    for key in ("pca_dim", "embedding_dim"):  # the networks are narrow
        if hasattr(cfg.loss, key):
            setattr(cfg.loss, key, min(getattr(cfg.loss, key), 32))
    if hasattr(cfg.loss, "teacher"):  # filled in when a run begins
        cfg.loss.teacher.dim = 16
    if hasattr(cfg.loss, "text_encoder"):
        cfg.loss.text_encoder["dim"] = 16
    encoders = {modality: create_encoder(**NETWORKS[modality]) for modality in loss_class.modalities(cfg.loss)}
    loss = loss_class(cfg.loss, encoders, num_samples)
    loss.check_batch_size(batch)
    steps = cfg.epochs * (num_samples // batch)
    assert cfg.optim.warmup_steps <= steps / 4
    assert cfg.optim.schedule != "multistep" or cfg.optim.milestone_steps[-1] < steps


@pytest.mark.slow
def test_the_rate_of_lars_and_sgd_follows_the_batch_and_that_of_adam_stays():
    simclr = fitting.recipe_changes(recipe("simclr"), losses.get("simclr"), 600, 64)
    assert simclr["optim.lr"] == pytest.approx(0.3 * 64 / 256)  # the paper's rule
    barlow = fitting.recipe_changes(recipe("barlow_twins"), losses.get("barlow_twins"), 600, 64)
    assert barlow["optim.final_lr"] == pytest.approx(1e-3 * barlow["optim.lr"])
    assert "optim.lr" not in fitting.recipe_changes(recipe("avid"), losses.get("avid"), 600, 64)


def test_the_schedule_of_a_small_corpus_ends_with_the_run():
    npid = fitting.recipe_changes(recipe("npid"), losses.get("npid"), 600, 64)
    steps = 200 * (600 // 64)
    first, last = npid["optim.milestone_steps"]
    assert last == round(0.8 * steps)
    assert first / last == pytest.approx(120 / 160, rel=1e-3)  # the published epochs
    simclr = fitting.recipe_changes(recipe("simclr", "epochs=100"), losses.get("simclr"), 600, 64)
    assert simclr["optim.warmup_steps"] == 10 * (600 // 64)


def test_workers_follow_the_cores_of_a_process():
    assert fitting.fitted_num_workers("cuda", 64, 1) == 16
    assert fitting.fitted_num_workers("cuda", 1, 1) == 1
    assert [fitting.fitted_num_workers("cpu", cores, 1) for cores in (1, 2, 4, 8, 16)] == [1, 1, 1, 2, 4]


def test_what_a_forward_pass_keeps_is_counted_once_and_without_weights():
    network = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10))
    module = nn.ModuleDict({"network": network})
    module.forward = lambda views: {"first": network(views["first"])}
    views = {"first": torch.rand(7, 30)}
    kept = fitting.saved_bytes(module, views, torch.autocast("cpu", enabled=False))
    assert kept == 4 * 7 * (30 + 20)  # both layers keep their input; tanh keeps its output, which is one of them


def small_corpus_error(name, num_samples, *changes):
    cfg = recipe(name, *changes)
    loss_class = losses.get(cfg.loss.name)
    encoders = {modality: create_encoder(**NETWORKS[modality]) for modality in loss_class.modalities(cfg.loss)}
    with (
        pytest.raises(TooFewSamplesError) as raised,
        fitting.few_samples_advised(cfg, loss_class, num_samples),
    ):
        loss_class(cfg.loss, encoders, num_samples)
    return str(raised.value)


def test_a_corpus_that_is_too_small_is_told_the_pairs_to_add():
    message = small_corpus_error("avid_cma", 20, "data.global_batch_size=4")
    assert "loss.num_positives is 32 with 20 samples" in message
    assert "add data.global_batch_size=auto, which fits it to this one, or loss.num_positives=2. " in message
    assert "20 clips are few for this recipe: `avssl pretrain avid_cma_small` has smaller networks" in message
    message = small_corpus_error("deepcluster", 40)
    assert message.endswith("data.global_batch_size=4 optim.lr=0.00078125 loss.num_clusters=4 loss.pca_dim=20")
    with pytest.raises(TooFewSamplesError, match="at least a batch of 4"):
        fitting.fitted_batch_size(1024, 3, 4, 1, any_size)


def test_another_error_of_a_loss_gets_no_advice():
    cfg, loss_class = recipe("avid"), losses.get("avid")
    with (
        pytest.raises(ValueError, match="loss avid needs encoders") as raised,
        fitting.few_samples_advised(cfg, loss_class, 40),
    ):
        loss_class(cfg.loss, {}, 40)
    assert "auto" not in str(raised.value)


@pytest.mark.slow
def test_auto_is_resolved_in_config_yaml_and_stays_when_the_run_goes_on(shards, tmp_path, capsys):
    run = tmp_path / "run"
    changes = as_keywords([*TINY, *TINY_CMA]) | {"data.global_batch_size": "auto", "loss.num_positives": 32}
    changes |= {"data.order_lanes": 0, "optim.lr": 1e-3}
    avssl.pretrain("avid_cma", shards["train"], run, steps=2, **changes)
    said = capsys.readouterr().out
    assert "auto, for 18 samples: data.global_batch_size 1024 -> 4, loss.num_positives 32 -> 2" in said
    assert "avid_cma: 18 clips, batch 4, 4 steps per epoch, 0.5 epochs, 2 steps; cpu, fp32" in said
    begun = config.load_run(run)
    assert (begun.auto, begun.data.global_batch_size, begun.loss.num_positives) == ([], 4, 2)
    avssl.pretrain("avid_cma", shards["train"], run, steps=3, **changes)
    said = capsys.readouterr().out
    assert f"auto, as {run} began: " in said
    assert "going on from" in said
    later = config.load_run(run)
    assert (later.data, later.loss, later.optim) == (begun.data, begun.loss, begun.optim)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.slow
def test_the_precision_of_a_run_that_goes_on_is_the_one_that_it_began_with(tmp_path):
    run = tmp_path / "run"
    (run / "step_000003").mkdir(parents=True)
    cfg = recipe("avid", f"run={run}")
    assert cfg.mixed_precision == "auto"
    config.save(recipe("avid", f"run={run}", "mixed_precision=bf16"), run / "config.yaml")
    fitting.keep_precision(cfg)
    assert cfg.mixed_precision == "bf16"


def test_nothing_is_measured_or_said_without_auto():
    assert fitting.fit(SimpleNamespace(auto=[]), None, None, None) == []


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["avid", "avid_cma"])
def test_a_small_corpus_is_told_of_the_small_recipe_and_that_one_of_none(name):
    assert f"avssl pretrain {name}_small" in fitting.advice(recipe(name), 1000)
    assert fitting.advice(recipe(name), 1001) == ""
    assert fitting.advice(recipe(f"{name}_small"), 200) == ""
    assert fitting.advice(recipe("simclr"), 200) == ""


def test_very_few_samples_are_told_of_networks_that_others_trained_but_for_runs_that_begin_with_one():
    assert fitting.advice(recipe("avid_small"), 199).startswith("199 samples show the way, but")
    assert len(fitting.advice(recipe("avid"), 39).splitlines()) == 2
    assert fitting.advice(recipe("avid_small", "init_from=runs/x"), 39) == ""
    assert fitting.advice(recipe("simclr", "encoders.image={name: timm/resnet18}"), 39) == ""


def test_a_recipe_can_ask_for_auto_and_a_number_on_the_command_line_replaces_it():
    assert recipe("avid_small").auto == ["data.global_batch_size", "data.num_workers"]
    assert recipe("avid_small").data.global_batch_size == 32  # the largest that is fitted
    changed = recipe("avid_small", "data.global_batch_size=8")
    assert (changed.auto, changed.data.global_batch_size) == (["data.num_workers"], 8)


@pytest.mark.grid(4)
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_on_a_small_corpus_with_auto(name, shards, image_shards, tmp_path):
    cfg = recipe(name)
    modalities = losses.get(cfg.loss.name).modalities(cfg.loss)
    data = image_shards if modalities == ["image"] else shards["train"]
    small = [change for change in TINY if change.startswith(("views", "encoders.", "cpu", "mixed", "log_every"))]
    images = ["encoders.image={name: resnet10, width: 4, small_stem: true}", "views.image.size_px=32"]
    small += [*images, "views.image.small_size_px=24", "views.video.small_size_px=24", "sync_batch_norm=false"]
    small += ["views.audio.rate_hz=24000", "views.audio.num_mels=40"]  # those of recipes for small corpora are others
    auto = ["data.global_batch_size=auto", "data.num_workers=auto", "steps=2"]
    if "audio" in name and "video" not in name:  # their spectrograms are of other sizes
        small = [change for change in small if not change.startswith("views.audio")]
    process = run_python(
        "recipes/pretrain.py", f"recipes/configs/{name}.yaml", *small, *auto, f"run={tmp_path}", f"data.shards={data}"
    )
    assert "auto, for" in process.stdout
    assert (tmp_path / "encoders.safetensors").is_file()
