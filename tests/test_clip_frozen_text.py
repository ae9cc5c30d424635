"""CLIP with a frozen text encoder: the loss against the textbook, and whole runs on shards with captions."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, CLIPModel

from avssl import config
from avssl.data.every_sample import ClipPlan
from avssl.embedding.embedder import Embedder
from avssl.embedding.search import search
from avssl.eval import tasks
from avssl.eval.features import extract
from avssl.losses.clip_frozen_text import CLIPFrozenText, CLIPFrozenTextConfig, caption_contrast
from avssl.losses.simclr import two_way_cross_entropy
from avssl.optim.build import build_optimizer
from avssl.optim.config import OptimConfig
from avssl.shards.shard_set import ShardSet
from avssl.train.captions import ROWS_FILE, captions_of
from avssl.types import CaptionRows, Progress
from recipes import pretrain
from tests.captioned import caption_of, make_text_model, with_captions
from tests.conftest import ROOT
from tests.fixtures import fresh_accelerate  # noqa: F401
from tests.small_encoders import Identity
from tests.textbook import clip_frozen_text as textbook
from tests.textbook.gradients import gradient

VIDEO, AUDIO, TEXT = np.random.default_rng(0).normal(size=(3, 7, 4))
NAMES = ["a", "b", "a", None, "c", "b", "a"]
NUMBERS = torch.tensor([0, 1, 0, -1, 2, 1, 0])
TEXTS = np.stack([TEXT[0], TEXT[1], TEXT[0], TEXT[3], TEXT[4], TEXT[1], TEXT[0]])  # one row for each caption
CAPTIONS = CaptionRows(torch.tensor(TEXT[[0, 1, 4]], dtype=torch.float32), NUMBERS)
PROGRESS = Progress()


def make(modalities=("video", "audio"), captions=CAPTIONS, **options):
    torch.manual_seed(0)
    settings = CLIPFrozenTextConfig(modalities=modalities, text_encoder={"name": "hf/made", "dim": 4}, **options)
    loss = CLIPFrozenText(settings, {name: Identity() for name in modalities}, num_samples=7)
    for name in modalities:
        loss.projectors[name] = nn.Identity()
    if captions is not None:
        loss.take_captions(captions)
    return loss


def inputs(*arrays):
    return [torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in arrays]


def test_value_and_gradients_of_the_contrast_equal_the_textbook_with_equal_and_missing_captions():
    z, text, scale = *inputs(VIDEO, TEXTS), torch.tensor(3.0, requires_grad=True)
    value = caption_contrast(z, text, NUMBERS, scale)
    value.backward()

    def expected(a, t, s):
        return textbook.caption_contrast(a, t, NAMES, float(s))

    arrays = VIDEO, TEXTS, np.array(3.0)
    assert value.item() == pytest.approx(expected(*arrays), rel=1e-5)
    for mine, theirs in zip((z, text, scale), gradient(expected, *arrays), strict=True):
        np.testing.assert_allclose(mine.grad, theirs, atol=1e-5 * np.abs(theirs).max())


def test_without_equal_captions_it_is_the_published_two_way_cross_entropy():
    z, text = inputs(VIDEO, TEXT)
    ours = caption_contrast(z, text, torch.arange(7), 10.0)
    assert torch.allclose(ours, two_way_cross_entropy(z, text, 0.1), rtol=1e-6)
    assert not torch.allclose(ours, caption_contrast(z, text, NUMBERS.clamp(min=0), 10.0))


@pytest.mark.parametrize("across_weight", [0.0, 0.5])
def test_the_whole_loss_and_its_gradients_equal_the_textbook(across_weight):
    loss = make(across_weight=across_weight, temperature=0.2)
    first, second = inputs(VIDEO, AUDIO)
    result = loss.loss(loss({"first": first, "second": second}), torch.arange(7), PROGRESS)
    result.total.backward()

    def expected(video, audio, log_scale):
        return textbook.clip_frozen_text(video, audio, TEXTS, NAMES, log_scale, across_weight)

    arrays = VIDEO, AUDIO, np.array(math.log(5.0))
    assert result.total.item() == pytest.approx(expected(*arrays), rel=1e-5)
    for mine, theirs in zip((first, second, loss.log_scale), gradient(expected, *arrays), strict=True):
        np.testing.assert_allclose(mine.grad, theirs, atol=2e-5 * np.abs(theirs).max())
    of_text = textbook.caption_contrast(AUDIO, TEXTS, NAMES, 5.0)
    assert result.terms["audio_text"].item() == pytest.approx(of_text, rel=1e-5)
    assert result.terms["temperature"].item() == pytest.approx(0.2)
    assert result.terms["captioned_share"].item() == pytest.approx(6 / 7)
    assert ("video_audio" in result.terms) == (across_weight > 0)


def test_the_captions_of_a_batch_are_those_of_its_samples_in_any_order():
    loss, order = make(), torch.tensor([4, 3, 0, 6])
    outputs = loss({"first": inputs(VIDEO)[0][order], "second": inputs(AUDIO)[0][order]})
    names, rows = [NAMES[row] for row in order], order.tolist()
    expected = textbook.clip_frozen_text(
        VIDEO[rows], AUDIO[rows], TEXTS[rows], names, math.log(1 / 0.07), across_weight=1.0
    )
    assert loss.loss(outputs, order, PROGRESS).total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("modalities", [("video",), ("video", "audio")])
def test_a_batch_without_captions_has_finite_gradients_everywhere(modalities):
    loss = make(modalities, CaptionRows(torch.eye(4), torch.full((7,), -1)), across_weight=0.0)
    views = dict(zip(("first", "second"), inputs(VIDEO, AUDIO), strict=True))
    views = {name: views[name] for name in loss.modality_of}
    result = loss.loss(loss(views), torch.arange(7), PROGRESS)
    result.total.backward()
    assert result.total == 0
    for tensor in (*views.values(), loss.log_scale):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_the_scale_is_learned_up_to_100_without_decay_or_is_fixed():
    loss = make()
    loss.projectors["video"], loss.projectors["audio"] = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = build_optimizer(OptimConfig(name="adamw", lr=0.1, weight_decay=0.5), loss.param_groups())
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert decays.pop(id(loss.log_scale)) == 0
    assert set(decays.values()) == {0.5}
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    loss.after_step(PROGRESS)
    assert loss.log_scale.exp().item() == pytest.approx(100)
    fixed = make(learn_temperature=False)
    assert not fixed.log_scale.requires_grad
    assert not any(one is fixed.log_scale for group in fixed.param_groups() for one in group["params"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_float32_values(dtype):
    z = (300 * torch.ones(4, 8)).to(dtype).requires_grad_()
    value = caption_contrast(z, torch.ones(4, 8), torch.tensor([0, 1, 1, 2]), 100.0)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_wrong_options_and_missing_captions_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"loss\.text_encoder has no dim.*add loss\.text_encoder\.name=hf/ORG/NAME"):
        CLIPFrozenText(CLIPFrozenTextConfig(modalities=("video",)), {"video": Identity()}, 7)
    with pytest.raises(ValueError, match=r"temperature is 0\.001; it must be at least 0\.01"):
        make(temperature=0.001)
    with pytest.raises(ValueError, match=r"across_weight is -1; it must be at least 0"):
        make(across_weight=-1)
    with pytest.raises(ValueError, match=r"rows of the captions have 3 dims; loss\.text_encoder says 4"):
        make(captions=CaptionRows(torch.eye(3), NUMBERS))
    with pytest.raises(ValueError, match=r"is \[video, video\]; loss clip_frozen_text runs on \[image"):
        make(("video", "video"))
    loss = make(captions=None)
    with pytest.raises(RuntimeError, match="no captions yet"):
        loss.loss(loss(dict(zip(("first", "second"), inputs(VIDEO, AUDIO), strict=True))), torch.arange(7), PROGRESS)


TINY_RUN = [
    "cpu=true", "mixed_precision=fp32", "sync_batch_norm=false", "log_every_steps=1", "checkpoint_every_steps=2",
    "data.global_batch_size=6", "data.num_workers=0", "views.video.num_frames=2", "views.video.size_px=32",
    "views.audio.seconds=0.5", "views.audio.rate_hz=16000", "views.audio.transform=log_mel", "views.audio.num_mels=32",
    "views.audio.window_samples=512", "views.audio.hop_samples=160", "views.audio.num_frames=48",
    "encoders.video={name: avid_video, depth: 10, width: 2}", "encoders.audio={name: avid_audio, width: 2}",
    "optim.warmup_steps=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def captioned(shards, tmp_path_factory):
    """{"model": folder of a tiny CLIP, "train", "test": shards with captions, "gaps": three samples have none}."""
    folder = tmp_path_factory.mktemp("captioned")
    return {
        "model": make_text_model(folder / "model"),
        "train": with_captions(shards["train"], folder / "train"),
        "test": with_captions(shards["test"], folder / "test"),
        "gaps": with_captions(shards["test"], folder / "gaps", without=(0, 2, 5)),
    }


def settings(captioned, run, *changes, shards="train"):
    yaml = str(ROOT / "recipes/configs/clip_frozen_text.yaml")
    own = [f"run={run}", f"data.shards={captioned[shards]}", f"loss.text_encoder.name=hf/{captioned['model']}"]
    return config.parse(config.RunConfig, [yaml, *TINY_RUN, *own, *changes])


@pytest.fixture(scope="module")
def trained(captioned, tmp_path_factory):
    """A finished run of four steps."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert pretrain.main(settings(captioned, run, "steps=4")) == 0
    return run


def explicit_text(model, texts):
    """Unit text embeddings by transformers alone."""
    tokens = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        rows = CLIPModel.from_pretrained(model).eval().get_text_features(**tokens).pooler_output
    return nn.functional.normalize(rows, dim=1)


@pytest.mark.slow
def test_a_run_keeps_the_rows_of_its_captions_and_the_text_encoder_it_began_with(captioned, trained):
    stored, shards = load_file(trained / ROWS_FILE), ShardSet(captioned["train"])
    captions = [shards.read_info(number).caption for number in range(shards.num_samples)]
    assert len(stored["rows"]) == len(set(captions)) < len(captions)
    rows = stored["rows"][stored["numbers"]]
    assert torch.allclose(rows, explicit_text(captioned["model"], captions), atol=1e-6)
    section = config.load_run(trained).loss.text_encoder
    assert section["dim"] == 8
    assert section["modality"] == "video"
    assert len(section["sha256"]) == 64
    assert json.loads((trained / "provenance.json").read_text())["public_models"]["text"]["sha256"] == section["sha256"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {"video_text", "audio_text", "video_audio", "temperature", "captioned_share"} <= lines[-1].keys()
    assert lines[0]["captioned_share"] == 1
    assert not any("text" in key for key in load_file(trained / "encoders.safetensors"))


@pytest.mark.slow
def test_text_finds_what_the_cosines_of_an_explicit_computation_find(captioned, trained):
    embedder = Embedder.from_run(trained)
    assert embedder.text_modalities() == ("video", "audio")
    texts = [caption_of({"visual": ["ring"], "sound": ["bell"]}), "the sound of hiss"]
    expected = explicit_text(captioned["model"], texts)
    table, failures = embedder.embed(captioned["test"])
    assert not failures
    for modality in ("video", "audio"):
        np.testing.assert_allclose(embedder.embed_text(texts, modality), expected, atol=1e-6)
        cosines = table.embedding(modality) @ expected.numpy().T
        for number, hits in enumerate(search(table, texts, modality, top=3)):
            assert [hit.row for hit in hits] == np.argsort(-cosines[:, number], kind="stable")[:3].tolist()
    with pytest.raises(ValueError, match="compares text with video and audio, and not with image"):
        embedder.embed_text(texts, "image")
    random = Embedder.from_run(trained, untrained=True)
    assert random.text_modalities() == ()
    with pytest.raises(ValueError, match="is random, or a training without captions, and reads no text"):
        random.embed_text(texts, "video")


@pytest.mark.slow
def test_zero_shot_names_the_class_whose_description_is_closest(captioned, trained):
    task, embedder = tasks.get("zero_shot"), Embedder.from_run(trained)
    options = [f"test={captioned['test']}", "modality=audio", "label_field=sound", "num_workers=0"]
    outcome = task.run(embedder, config.parse(task.Config, [*options, "templates=['sound of {}']"]))
    (repeat,) = outcome.repeats
    described = explicit_text(captioned["model"], [f"sound of {name.replace('_', ' ')}" for name in repeat.classes])
    features = extract(embedder, ShardSet(captioned["test"]), ["audio"], ["embedding"], ClipPlan(1), num_workers=0)
    rows = features.rows["audio"]["embedding"][:, 0]
    assert features.keys == repeat.keys
    np.testing.assert_allclose(repeat.columns["audio_scores"], rows @ described.numpy().T, atol=1e-6)
    assert repeat.metrics["audio_top1_accuracy"].chance == pytest.approx(1 / len(described))


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit_without_the_files_of_the_model(captioned, trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "step_000004")
    (run / "encoders.safetensors").unlink()
    for name in ("text_tower", "text_options"):
        monkeypatch.setattr(f"avssl.models.public.{name}", lambda *arguments: pytest.fail("the model was opened"))
    assert pretrain.main(settings(captioned, run, "steps=4")) == 0
    straight, resumed = (load_file(folder / "encoders.safetensors") for folder in (trained, run))
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.slow
def test_a_run_goes_on_with_no_other_text_encoder_and_keeps_its_rows(captioned, trained, tmp_path):
    other, before = make_text_model(tmp_path / "other", projection_dim=12), (trained / ROWS_FILE).read_bytes()
    cfg = settings({**captioned, "model": other}, trained, "steps=4")
    with pytest.raises(ValueError, match=r"of another text encoder, than this run is given now; .*begin another run"):
        pretrain.main(cfg)
    assert (trained / ROWS_FILE).read_bytes() == before


def test_samples_without_a_caption_are_refused_by_number_and_key_or_left_out_of_the_text(captioned, tmp_path):
    cfg = settings(captioned, tmp_path / "run", shards="gaps")
    shards = ShardSet(captioned["gaps"])
    with pytest.raises(ValueError, match=r"3 of 6 samples of .* have no caption, the first is .*without_caption=skip"):
        captions_of(cfg, shards, torch.device("cpu"))
    assert not (tmp_path / "run" / ROWS_FILE).exists()
    cfg = settings(captioned, tmp_path / "run", "loss.without_caption=skip", shards="gaps")
    captions = captions_of(cfg, shards, torch.device("cpu"))
    for number, row in enumerate(captions.numbers.tolist()):
        assert (row == -1) == (shards.read_info(number).caption == "")


def test_shards_without_captions_are_refused_with_what_to_do(captioned, shards, tmp_path):
    with pytest.raises(ValueError, match=r"no sample of .* has a caption.*write shards of a list with a column"):
        captions_of(settings(captioned, tmp_path), ShardSet(shards["test"]), torch.device("cpu"))


@pytest.mark.slow
def test_rows_are_shared_by_runs_computed_once_and_those_of_others_refused(captioned, tmp_path, monkeypatch):
    shared, cpu = tmp_path / "rows.safetensors", torch.device("cpu")
    shards = ShardSet(captioned["test"])
    options = (f"loss.text_rows={shared}",)
    first = captions_of(settings(captioned, tmp_path / "a", *options, shards="test"), shards, cpu)
    with monkeypatch.context() as patched:
        patched.setattr("avssl.models.public.text_tower", lambda *arguments: pytest.fail("computed again"))
        for run in ("a", "b"):
            again = captions_of(settings(captioned, tmp_path / run, *options, shards="test"), shards, cpu)
            assert torch.equal(again.rows, first.rows)
            assert (tmp_path / run / ROWS_FILE).read_bytes() == shared.read_bytes()
    with pytest.raises(ValueError, match=r"rows\.safetensors holds rows of other captions or of another text encoder"):
        captions_of(settings(captioned, tmp_path / "c", *options), ShardSet(captioned["train"]), cpu)
    (tmp_path / "a" / ROWS_FILE).write_bytes(shared.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"is damaged .*delete it, and it is computed again"):
        captions_of(settings(captioned, tmp_path / "a", shards="test"), shards, cpu)
    other = make_text_model(tmp_path / "wide", projection_dim=12)
    cfg = settings({**captioned, "model": other}, tmp_path / "b", *options, shards="test")
    with pytest.raises(ValueError, match="holds rows of other captions or of another text encoder"):
        captions_of(cfg, shards, cpu)


def test_captions_that_are_too_long_are_refused_before_anything_is_computed_or_cut(captioned, tmp_path, monkeypatch):
    shards = ShardSet(captioned["test"])
    cfg = settings(captioned, tmp_path / "run", shards="test")
    long = "the sound of rain and " * 9
    monkeypatch.setattr("avssl.train.captions._caption", lambda shards, number: long if number == 2 else "a dog")
    with pytest.raises(ValueError, match=r"caption 'the sound .* has 47 tokens; .* at most 16\..*cut_long_captions"):
        captions_of(cfg, shards, torch.device("cpu"))
    cfg.loss.cut_long_captions = True
    captions = captions_of(cfg, shards, torch.device("cpu"))
    words = AutoTokenizer.from_pretrained(captioned["model"])
    beginning = words.decode(words(long, truncation=True, max_length=16)["input_ids"], skip_special_tokens=True)
    assert captions.numbers.tolist() == [0, 0, 1, 0, 0, 0]
    assert torch.allclose(captions.rows, explicit_text(captioned["model"], ["a dog", beginning]), atol=1e-6)


def test_a_text_encoder_must_be_named_and_read_text(captioned, tmp_path):
    with pytest.raises(ValueError, match=r"loss\.text_encoder\.name is not set; add loss\.text_encoder\.name=hf/"):
        captions_of(config.parse(config.RunConfig, ["loss.name=clip_frozen_text"]), None, None)
    wrong = {"timm/resnet10t": "reads no text; models of transformers", "hf/a/b/c": "neither a folder"}
    for name, message in wrong.items():
        cfg = settings(captioned, tmp_path / "run", f"loss.text_encoder.name={name}")
        with pytest.raises(ValueError, match=message):
            captions_of(cfg, ShardSet(captioned["test"]), torch.device("cpu"))
    cfg = settings(captioned, tmp_path / "run", "loss.text_encoder.pool=mean")
    with pytest.raises(ValueError, match="has no option 'pool'"):
        captions_of(cfg, ShardSet(captioned["test"]), torch.device("cpu"))
