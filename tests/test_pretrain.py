"""The recipe end to end: stop and resume bit for bit, hand-over from AVID to AVID+CMA, bad input."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import avssl
from avssl.data.loader import Loader
from tests.conftest import ROOT, TINY, TINY_CMA, losses_of, run_python

PICTURES = [
    "cpu=true",
    "encoders.image={name: resnet10, width: 8}",
    "views.image.size_px=24",
    "data.global_batch_size=4",
    "data.num_workers=0",
    "optim={name: sgd, lr: 0.003, momentum: 0.9, schedule: constant, warmup_steps: 0}",
    "log_every_steps=1",
    "epochs=4",
]
CONFIGS = {"avid": "recipes/configs/avid.yaml", "avid_cma": "recipes/configs/avid_cma.yaml"}


def arguments_for(name, shards, run, *more):
    extra = TINY_CMA if name == "avid_cma" else []
    return ["recipes/pretrain.py", CONFIGS[name], *TINY, *extra, f"data.shards={shards['train']}", f"run={run}", *more]


def start_and_stop(arguments, run, after_step, number):
    """Start the recipe, wait until it has logged `after_step`, send the signal; the exit status."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= after_step:
            process.send_signal(number)
            break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output.decode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avid", "avid_cma"])
def test_a_run_that_is_stopped_and_killed_goes_on_bit_for_bit(name, shards, tmp_path):
    """SIGTERM saves and leaves with 0; SIGKILL loses what came after the last checkpoint and nothing else."""
    num_steps = 160
    more = [f"steps={num_steps}", "checkpoint_every_steps=7"]
    run_python(*arguments_for(name, shards, tmp_path / "straight", *more))
    run = tmp_path / "stopped"
    status, output = start_and_stop(arguments_for(name, shards, run, *more), run, 3, signal.SIGTERM)
    assert status == 0, output
    assert "stopped by signal at step" in output
    stopped_at = len(losses_of(run))
    assert 3 <= stopped_at < num_steps
    status, output = start_and_stop(arguments_for(name, shards, run, *more), run, stopped_at + 9, signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    process = run_python(*arguments_for(name, shards, run, *more))
    assert "going on from" in process.stdout
    assert losses_of(run) == losses_of(tmp_path / "straight")
    straight, stopped = (load_file(path / "encoders.safetensors") for path in (tmp_path / "straight", run))
    for key, expected in straight.items():
        assert torch.equal(stopped[key], expected), key


@pytest.mark.slow
def test_accumulated_micro_batches_step_as_often_as_asked_and_resume_exactly(shards, tmp_path):
    more = ["gradient_accumulation_steps=2", "checkpoint_every_steps=2"]
    run_python(*arguments_for("avid", shards, tmp_path / "straight", "steps=5", *more))
    run_python(*arguments_for("avid", shards, tmp_path / "resumed", "steps=2", *more))
    run_python(*arguments_for("avid", shards, tmp_path / "resumed", "steps=5", *more))
    assert len(losses_of(tmp_path / "straight")) == 5
    assert losses_of(tmp_path / "straight") == losses_of(tmp_path / "resumed")
    provenance = json.loads((tmp_path / "straight" / "provenance.json").read_text())
    assert provenance["samples_seen"] == 5 * 2 * 4


@pytest.mark.slow
def test_a_stop_before_an_epoch_loses_no_gradient_that_waits_for_its_step(image_shards, tmp_path, monkeypatch):
    """Three micro-batches an epoch, two a step: the first of step 2 belongs to epoch 0, the second to epoch 1."""
    changes = {
        "cpu": True, "encoders.image": {"name": "resnet10", "width": 8}, "views.image.size_px": 24,
        "data.global_batch_size": 4, "data.num_workers": 0, "log_every_steps": 1, "epochs": 4, "steps": 4,
        "gradient_accumulation_steps": 2, "loss.num_clusters": 2, "loss.pca_dim": 4, "loss.projector_dims": [16],
        "optim.lr": 0.03,
    }  # fmt: skip
    straight = avssl.pretrain("deepcluster", image_shards, tmp_path / "straight", **changes)
    original = Loader.embed_all
    passes = []

    def embed_all(loader, model, names=()):
        passes.append(names)
        if len(passes) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(loader, model, names)

    monkeypatch.setattr(Loader, "embed_all", embed_all)
    stopped = avssl.pretrain("deepcluster", image_shards, tmp_path / "stopped", **changes)
    assert not stopped.is_finished
    stopped = avssl.pretrain("deepcluster", image_shards, tmp_path / "stopped", **changes)
    assert stopped.is_finished
    assert losses_of(stopped.run) == losses_of(straight.run)


def train_on_pictures(shards, run, *keys):
    run_python(
        "recipes/pretrain.py", "recipes/configs/simclr.yaml", *PICTURES, f"data.shards={shards}", f"run={run}", *keys
    )
    return losses_of(run)


@pytest.mark.slow
def test_a_run_on_images_resumes_exactly(image_shards, tmp_path):
    """It has no statistics of sound to keep."""
    straight = train_on_pictures(image_shards, tmp_path / "straight", "steps=4")
    train_on_pictures(image_shards, tmp_path / "resumed", "steps=2")
    assert train_on_pictures(image_shards, tmp_path / "resumed", "steps=4") == straight


@pytest.mark.slow
def test_moments_follow_weights_into_another_memory_order(image_shards, tmp_path):
    """Fused steps walk through raw memory, the others do not; both must go on alike."""
    ends = []
    # Where a CPU cannot have it, both ends are alike.
    other = "true" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "false"
    for fused in ("true", "false"):
        run = tmp_path / fused
        train_on_pictures(image_shards, run, "steps=2", f"optim.fused={fused}", "channels_last=false")
        ends.append(train_on_pictures(image_shards, run, "steps=4", f"optim.fused={fused}", f"channels_last={other}"))
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


@pytest.mark.slow
def test_avid_cma_starts_from_the_encoders_banks_and_constant_of_an_avid_run(tiny_run, shards, tmp_path):
    process = run_python(
        *arguments_for("avid_cma", shards, tmp_path / "cma", f"init_from={tiny_run}", "steps=1", "optim.lr=0")
    )
    assert f"starting from {tiny_run}" in process.stdout
    assert "not in the source: 1 tensors: positives" in process.stdout
    assert "not taken: 0 tensors" in process.stdout
    before, after = load_file(tiny_run / "encoders.safetensors"), load_file(tmp_path / "cma" / "encoders.safetensors")
    assert after["loss.partition"] == before["loss.partition"]
    for key in before:
        if key.startswith("loss.encoders") and key.endswith("weight"):
            assert torch.equal(after[key], before[key]), key
    moved = (after["loss.banks.video.rows"] != before["loss.banks.video.rows"]).any(dim=1)
    assert moved.sum() <= 4  # one batch's rows
    assert after["loss.positives"].shape == (18, 2)


@pytest.mark.slow
def test_the_license_of_the_start_is_kept_although_its_folder_is_gone_when_the_run_ends(tiny_run, shards, tmp_path):
    start, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(tiny_run, start)
    provenance = json.loads((start / "provenance.json").read_text())
    (start / "provenance.json").write_text(json.dumps(provenance | {"license": "cc-by-nc-4.0"}))
    arguments = arguments_for("avid", shards, run, f"init_from={start}")
    run_python(*arguments, "steps=1")
    shutil.rmtree(start)
    run_python(*arguments, "steps=2")
    facts = json.loads((run / "provenance.json").read_text())
    assert (facts["steps"], facts["license"]) == (2, "cc-by-nc-4.0")


@pytest.mark.slow
def test_banks_are_not_inherited_from_a_run_on_other_shards(tiny_run, shards, tmp_path):
    """The fingerprint of the source is changed, as if other clips had given the same number of samples."""
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    provenance = json.loads((other / "provenance.json").read_text())
    provenance["data"]["fingerprint"] = "0" * 64
    (other / "provenance.json").write_text(json.dumps(provenance))
    process = run_python(
        *arguments_for("avid", shards, tmp_path / "run", f"init_from={other}", "steps=1", "optim.lr=0")
    )
    assert "not taken: 2 tensors" in process.stdout
    assert "banks.video.rows (rows of other samples)" in process.stdout
    before, after = load_file(tiny_run / "encoders.safetensors"), load_file(tmp_path / "run" / "encoders.safetensors")
    assert not torch.equal(before["loss.banks.video.rows"], after["loss.banks.video.rows"])
    assert before["loss.partition"] == after["loss.partition"]


def test_metrics_say_what_a_run_does(tiny_run):
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["samples_seen"] for line in lines] == [4, 8, 12]
    wanted = {"loss", "lr", "data_wait_share", "samples_per_second", "video_embedding_spread", "audio_embedding_spread"}
    wanted |= {"video_to_audio", "video_to_audio_positive_score", "video_to_audio_negative_score"}
    wanted |= {"video_effective_rank", "audio_uniformity", "video_audio_alignment"}
    assert wanted <= lines[0].keys()


@pytest.mark.slow
def test_a_run_that_has_collapsed_says_so_while_it_trains(tiny_run, shards, tmp_path):
    """It starts from projectors that give the same embedding for everything, and does not learn."""
    dead = tmp_path / "dead"
    shutil.copytree(tiny_run, dead)
    weights = load_file(dead / "encoders.safetensors")
    for name, value in weights.items():
        if name.startswith("loss.projectors.video"):
            value.zero_() if name.endswith("weight") else value.fill_(1.0)
    save_file(weights, dead / "encoders.safetensors")
    options = ["steps=4", "optim.lr=0", "log_every_steps=1", f"init_from={dead}"]
    process = run_python(*arguments_for("avid", shards, tmp_path / "run", *options))
    told = [line for line in process.stderr.splitlines() if "warning: collapse:" in line]
    assert len(told) == 2  # once each, at the third look
    assert any("video_embedding_spread is 0 at step 3" in line for line in told)
    assert any("video_effective_rank is 1 at step 3" in line for line in told)


@pytest.mark.slow
def test_tensorboard_is_one_key_away(shards, tmp_path):
    run_python(*arguments_for("avid", shards, tmp_path / "run", "steps=2", "trackers=[tensorboard]"))
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [["mixed_precision=bf16"], ["optim.name=lars", "optim.clip_norm=1.0", "optim.schedule=cosine"]]
)
def test_precisions_and_optimizers_train(change, shards, tmp_path):
    run_python(*arguments_for("avid", shards, tmp_path / "run", "steps=2", *change))
    assert all(math.isfinite(loss) for loss in losses_of(tmp_path / "run"))


@pytest.mark.slow
def test_compiled_encoders_train_to_the_same_losses(shards, tmp_path):
    """torch.compile needs a C++ compiler and most of a minute, hence slow."""
    run_python(*arguments_for("avid", shards, tmp_path / "eager", "steps=2"))
    run_python(*arguments_for("avid", shards, tmp_path / "compiled", "steps=2", "compile=true"))
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "eager"), rel=1e-4)


def failed(*arguments):
    process = run_python(*arguments, check=False)
    assert process.returncode != 0
    return process.stderr


def test_a_missing_shard_is_named_before_training_begins(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards["train"], copy)
    (copy / "shard-000001.tar").unlink()
    error = failed(*arguments_for("avid", {"train": copy}, tmp_path / "run", "steps=1"))
    assert "shard-000001.tar: the shard is missing" in error


def test_shards_of_another_schema_version_are_refused(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards["train"], copy)
    index = json.loads((copy / "index.json").read_text()) | {"schema_version": 99}
    (copy / "index.json").write_text(json.dumps(index))
    error = failed(*arguments_for("avid", {"train": copy}, tmp_path / "run", "steps=1"))
    assert "has schema version 99; this program reads version 1" in error


@pytest.mark.slow
def test_a_checkpoint_of_other_data_or_batch_is_not_resumed_in_silence(shards, tmp_path):
    run_python(*arguments_for("avid", shards, tmp_path / "run", "steps=2"))
    error = failed(*arguments_for("avid", shards, tmp_path / "run", "steps=4", "data.global_batch_size=2"))
    assert "cannot be resumed exactly" in error
    assert "global_batch_size: 4 then, 2 now" in error


@pytest.mark.slow
def test_fewer_steps_than_a_run_has_done_are_refused(shards, tmp_path):
    run = tmp_path / "run"
    run_python(*arguments_for("avid", shards, run, "steps=3"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    error = failed(*arguments_for("avid", shards, run, "steps=2"))
    assert f"steps=2 and epochs=300 end the run at step 2, but {run} has done 3 already; raise them to go on" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run_and_says_so(shards, tmp_path):
    error = failed(*arguments_for("avid", shards, tmp_path / "run", "steps=9", "optim.lr=1e30", "optim.name=sgd"))
    assert "the loss is nan at step" in error or "the loss is inf at step" in error


BROKEN_GRADIENT = """
from avssl.losses.avid import AVID
from avssl.losses.registry import register

@register("broken")
class Broken(AVID):
    def loss(self, outputs, index, progress):
        result = super().loss(outputs, index, progress)
        if progress.step == 1:
            result.total.register_hook(lambda gradient: gradient * float("nan"))
        return result
"""


@pytest.mark.slow
def test_weights_that_are_not_numbers_are_not_saved_although_their_loss_was_one(shards, tmp_path):
    """Otherwise each start would go on from them, and end at its next loss."""
    plugin, run = tmp_path / "broken.py", tmp_path / "run"
    plugin.write_text(BROKEN_GRADIENT)
    options = [f"--plugin={plugin}", "loss.name=broken", "steps=2", "checkpoint_every_steps=1"]
    error = failed(*arguments_for("avid", shards, run, *options))
    assert all(map(math.isfinite, losses_of(run)))
    assert "a weight is not finite after step 2, samples [" in error
    assert "lower optim.lr" in error
    assert [path.name for path in run.glob("step_*")] == ["step_000001"]


def test_a_run_without_shards_named_says_which_key_is_missing(tmp_path):
    assert "data.shards is not set" in failed("recipes/pretrain.py", CONFIGS["avid"], f"run={tmp_path}")
