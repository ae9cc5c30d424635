"""Public models in runs and as embedders: a run begins with their weights and goes on exactly."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import avssl
from avssl import config
from avssl.embedding.embedder import Embedder
from avssl.embedding.folder import FolderJob
from avssl.embedding.index import FolderIndex
from avssl.embedding.public import public_config, write_public_run
from avssl.embedding.search import EmbeddingIndex, load_embedder_of
from avssl.exchange.folder import export_folder
from avssl.models import public
from data_prep.transcode.encode import write_media
from tests.conftest import losses_of, run_python
from tests.public_folders import SIDE, save_clip, save_public

PRETRAIN = [
    "cpu=true", "loss.name=simclr", "data.global_batch_size=4", "data.num_workers=0", "log_every_steps=1",
    "optim={name: adamw, lr: 0.001, weight_decay: 0.05, layer_decay: 0.7}", "epochs=4",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_from_a_public_model_says_what_it_took_from_it(image_shards, tmp_path):
    save_public(tmp_path / "model", "dinov2")
    encoder = f"encoders.image={{name: hf/{tmp_path / 'model'}, drop_path: 0.2}}"
    run = tmp_path / "run"
    process = run_python(
        "recipes/pretrain.py", *PRETRAIN, f"data.shards={image_shards}", encoder, "steps=2", f"run={run}"
    )
    assert f"views.image.size_px={SIDE} as hf/" in process.stdout
    facts = json.loads((run / "provenance.json").read_text())["public_models"]["image"]
    assert facts["views"]["size_px"] == config.load_run(run).views.image.size_px == SIDE
    assert facts["sha256"] == hashlib.sha256((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()
    folder = export_folder(run, tmp_path / "exported")
    texts = [path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"]
    assert len(texts) == 3
    assert not [text for text in texts if str(tmp_path) in text]
    assert avssl.load_embedder(str(folder)).weights_hash == avssl.load_embedder(str(run)).weights_hash


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf", "timm"])
def test_a_run_from_a_public_model_goes_on_exactly_without_the_models_files(name, image_shards, tmp_path):
    model = tmp_path / "model"
    save_public(model, "dinov2")
    encoder = f"{{name: hf/{model}, drop_path: 0.2, gradient_checkpointing: true}}"
    if name == "timm":
        encoder = "{name: timm/test_vit, drop_path: 0.2, gradient_checkpointing: true}"
    arguments = ["recipes/pretrain.py", *PRETRAIN, f"data.shards={image_shards}", f"encoders.image={encoder}"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    process = run_python(*arguments, "steps=4", f"run={straight}")
    assert f"views.image.size_px={SIDE if name == 'hf' else 160} as {name}/" in process.stdout
    run_python(*arguments, "steps=2", f"run={stopped}")
    shutil.rmtree(model)
    process = run_python(*arguments, "steps=4", f"run={stopped}")
    assert "going on from" in process.stdout
    assert losses_of(stopped) == losses_of(straight)
    first, second = (load_file(run / "encoders.safetensors") for run in (straight, stopped))
    assert all(torch.equal(first[key], second[key]) for key in first)
    facts = json.loads((straight / "provenance.json").read_text())["public_models"]["image"]
    assert facts["views"]["size_px"] == config.load_run(straight).views.image.size_px
    embedder = avssl.load_embedder(str(straight))
    assert embedder.encoders["image"].net is not None


RANKS = """
import hashlib, os, sys
from pathlib import Path
from avssl.optim import build
from avssl.recipes import pretrain

real, built = build.build_optimizer, []
build.build_optimizer = lambda config, groups, loss: built.append(loss) or real(config, groups, loss)
status = pretrain.command(sys.argv[1:])
digest = hashlib.sha256()
for name, value in sorted(built[0].state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
Path(f"rank-{os.environ['RANK']}").write_text(digest.hexdigest())
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf", "hf, in several files", "timm"])
def test_two_processes_train_a_public_model_as_one_does(name, image_shards, tmp_path):
    """Without batch norm and dropout, and of a loss that gathers the batch: then both compute the same."""
    network, _ = save_public(tmp_path / "model", "dinov2")
    if "several" in name:
        (tmp_path / "model" / "model.safetensors").unlink()
        network.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    encoder = "timm/test_vit" if name == "timm" else f"hf/{tmp_path / 'model'}"
    (tmp_path / "ranks.py").write_text(RANKS)
    options = [*PRETRAIN, f"data.shards={image_shards}", f"encoders.image={{name: {encoder}}}", "steps=2"]
    # AdamW divides by the size of a gradient: one of rounding alone would move a weight by lr either way.
    options += ["data.order_lanes=2", "optim.warmup_steps=0", "optim.name=sgd", "optim.lr=0.1"]
    options += ["loss.projector_batch_norm=false"]
    run_python("-m", "avssl.recipes.pretrain", *options, "run=one", folder=tmp_path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run_python(*launcher, tmp_path / "ranks.py", *options, "run=two", folder=tmp_path)
    assert (tmp_path / "rank-0").read_text() == (tmp_path / "rank-1").read_text()
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / run / "encoders.safetensors") for run in ("one", "two"))
    began = public.build(encoder, "image", pretrained=True) if name != "timm" else None
    assert all(torch.allclose(two[key], value, atol=1e-5) for key, value in one.items())
    if began is not None:
        moved = [
            key
            for key, value in began.state_dict().items()
            if not torch.equal(value, one[f"loss.encoders.image.{key}"])
        ]
        assert moved


@pytest.mark.slow
def test_fine_tuning_from_a_public_model(shards, tmp_path):
    save_public(tmp_path / "model", "dinov2")
    out = tmp_path / "results"
    run_python(
        "recipes/evaluate.py", f"hf/{tmp_path / 'model'}", "task=finetune", f"out={out}", f"train={shards['train']}",
        f"test={shards['test']}", "allow_overlap=true", "modality=video", "epochs=1", "label_field=visual",
        "model.views.video.num_frames=2",
        "train_batch_size=6", "test_clips=1", "untrained=false", "num_workers=0", "optim.layer_decay=0.7",
        "encoders={video: {drop_path: 0.1}}",
    )  # fmt: skip
    (path,) = (out / "evaluations").glob("finetune*.json")
    result = json.loads(path.read_text())
    assert result["protocol"]["encoders"] == {"video": {"drop_path": 0.1}}
    assert result["protocol"]["optim"]["layer_decay"] == 0.7
    assert 0 <= result["results"]["trained"]["video_top1_accuracy"] <= 1
    assert result["inputs"]["video"]["size_px"] == SIDE


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(24)]
    write_media(folder / "film.mp4", video=frames, video_fps=8)
    return folder


@pytest.mark.slow
def test_a_public_model_embeds_images_and_video_in_one_space(film, tmp_path):
    network, processor = save_public(tmp_path / "model", "dinov2")
    embedder = avssl.load_embedder(
        f"hf/{tmp_path / 'model'}", changes=["views.video.fps=4", "views.video.num_frames=4"]
    )
    assert embedder.modalities == ("video", "image")
    table, failures = embedder.embed(film / "film.mp4")
    assert not failures
    assert len(table) == 3  # windows of the four frames
    from avssl.media.decode import read_video

    times = [(0.0, 0.25, 0.5, 0.75), (1.0, 1.25, 1.5, 1.75), (2.0, 2.25, 2.5, 2.75)]
    for row, seconds in enumerate(times):
        frames = read_video(film / "film.mp4", list(seconds), name="film")
        with torch.no_grad():
            pixels = processor(list(frames), return_tensors="pt")["pixel_values"]
            expected = network(pixels).pooler_output.mean(dim=0)
        np.testing.assert_allclose(table.video_feature[row], expected.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="only keys of views and encoders"):
        avssl.load_embedder(f"hf/{tmp_path / 'model'}", changes=["seed=1"])


@pytest.mark.slow
def test_rows_of_other_settings_are_not_searched_and_only_what_differs_is_named(film, tmp_path):
    model = tmp_path / "model"
    save_public(model, "dinov2")
    mean = ["encoders.image.pool=mean", "encoders.video.pool=mean"]
    changes = ["views.video.fps=4", "views.video.num_frames=2", *mean]
    embedder = Embedder.from_run(f"hf/{model}", changes=changes)
    kept = write_public_run(embedder.config, tmp_path / "kept")
    FolderJob.begin(embedder, [film], tmp_path / "rows").run(embedder, run_folder=kept)
    index = EmbeddingIndex(tmp_path / "rows")
    assert load_embedder_of(index).config.views == embedder.config.views
    with pytest.raises(ValueError, match=r"makes other rows .*encoders\.image\.pool: 'mean' there, None now"):
        load_embedder_of(index, f"hf/{model}")
    other = write_public_run(public_config(f"hf/{model}", ["views.video.fps=2", *changes[1:]]), tmp_path / "other")
    with pytest.raises(ValueError, match=r"\(inputs\.video\.fps: 4\.0 there, 2\.0 now\); leave out --run"):
        load_embedder_of(index, other)
    with pytest.raises(
        ValueError, match=r"other settings \((?!.*architecture).*inputs\.video\.fps: 4\.0 there, 2\.0 now"
    ):
        FolderJob.begin(Embedder.from_run(other), [film], tmp_path / "rows")
    shutil.copytree(model, tmp_path / "moved")  # the same files in another place are the same model
    moved = write_public_run(public_config(f"hf/{tmp_path / 'moved'}", changes), tmp_path / "again")
    assert load_embedder_of(index, moved).weights_hash == embedder.weights_hash
    # What the model's folder says about media is part of it, though its weights are the same.
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"note": "changed"}))
    with pytest.raises(ValueError, match=r"'preprocessor_config\.json' is not as when this model was used first"):
        load_embedder_of(index)


def test_clip_embeds_in_the_space_of_its_texts(tmp_path):
    network = save_clip(tmp_path)
    embedder = Embedder.from_run(f"hf/{tmp_path}")
    assert embedder.dims(["image"]) == {"image": (32, 16)}  # pooled features, projected embeddings
    assert torch.equal(embedder.projectors["image"].weight, network.visual_projection.weight)


@pytest.mark.slow
def test_the_command_embeds_goes_on_and_searches_with_the_same_settings(film, tmp_path):
    save_public(tmp_path / "model", "videomae")
    arguments = [
        "recipes/embed.py",
        f"hf/{tmp_path / 'model'}",
        str(film),
        "--out",
        str(tmp_path / "e"),
        "--device",
        "cpu",
    ]
    changes = ["--set", "views.video.fps=4", "--num-workers", "1"]
    run_python(*arguments, *changes)
    index = FolderIndex.read(tmp_path / "e")
    assert (index.num_rows, index.num_embedded) == (3, 1)
    assert "embedded" in run_python(*arguments, *changes).stdout
    process = run_python(*arguments, "--num-workers", "1", check=False)
    assert process.returncode != 0
    assert "holds embeddings of other settings" in process.stderr
    found = run_python("recipes/search.py", str(tmp_path / "e"), str(film / "film.mp4"), "--json").stdout
    assert json.loads(found)["answers"][0]["hits"]["video"][0]["score"] > 0.9


@pytest.mark.slow
def test_a_public_model_is_evaluated_against_random_weights(shards, tmp_path):
    save_public(tmp_path / "model", "resnet")
    common = [f"train={shards['train']}", f"test={shards['test']}", "allow_overlap=true", "num_workers=0"]
    process = run_python("recipes/evaluate.py", f"hf/{tmp_path / 'model'}", *common, check=False)
    assert "add out=FOLDER" in process.stderr
    run_python("recipes/evaluate.py", f"hf/{tmp_path / 'model'}", *common, f"out={tmp_path / 'out'}")
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(result["results"]) == {"trained", "untrained"}
    assert (tmp_path / "out" / "config.yaml").is_file()


@pytest.mark.slow
def test_random_weights_are_another_space(tmp_path):
    save_public(tmp_path, "resnet")
    trained, untrained = (Embedder.from_run(f"hf/{tmp_path}", untrained=one) for one in (False, True))
    assert untrained.weights_hash == "untrained" != trained.weights_hash
    assert public_config(f"hf/{tmp_path}").run == f"hf/{tmp_path}"
