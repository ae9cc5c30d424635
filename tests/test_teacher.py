"""Frozen teachers: what they see, what they give, and what becomes of a run that learns from one."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avssl import checkpoint, config
from avssl.data.loader import Loader
from avssl.data.read_views import raw_views, read_clip
from avssl.embedding.embedder import Embedder
from avssl.embedding.folder import FolderJob
from avssl.exchange.folder import export_folder
from avssl.media.decode import read_video
from avssl.models import create_encoder
from avssl.shards.shard_set import ShardSet, spans
from avssl.train import teacher as teachers
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View
from tests.conftest import TINY, losses_of, run_python
from tests.made_runs import made_run

CPU = torch.device("cpu")
STUDENT = ViewsConfig(
    video=VideoViewConfig(num_frames=4, fps=16.0, size_px=24),
    audio=AudioViewConfig(seconds=0.3),
    max_offset_seconds=0.1,
)
OWN = ViewsConfig(video=VideoViewConfig(num_frames=6, fps=8.0, size_px=16), audio=AudioViewConfig(seconds=0.5))
TINY_DISTIL = [
    "recipes/configs/distil.yaml",
    *(change for change in TINY if not change.startswith("loss.")),
    "sync_batch_norm=false",
    "loss.projector_hidden_dims=[16]",
    "loss.queue_size=8",
    "optim.warmup_steps=0",
    "optim.schedule=constant",
]


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    """A run with random weights that reads images of 24 px."""
    encoder = "encoders.image={name: resnet10, width: 4, small_stem: true}"
    head = ["loss.projector_hidden_dims=[16]", "loss.embedding_dim=8"]
    return made_run(tmp_path_factory.mktemp("teachers") / "images", "loss.name=simclr", encoder, *head)


@pytest.fixture(scope="module")
def image_rows(image_run, image_shards, tmp_path_factory):
    """What `avssl embed` writes of the images with that run."""
    return embedded(image_run, image_shards, tmp_path_factory.mktemp("rows") / "images")


def embedded(run, shards, out, **options):
    embedder = Embedder.from_run(run)
    FolderJob.begin(embedder, [str(shards)], out, **options).run(embedder, run_folder=run)
    return out


def parsed(*changes):
    return config.parse(config.RunConfig, ["loss.name=distil", *changes])


def opened(shards, *changes):
    """(configuration, teacher) after it was opened."""
    cfg = parsed(*changes)
    found, _ = teachers.open_teacher(cfg, ShardSet(shards), CPU, nullcontext)
    return cfg, found


def batches(shards, teacher, view, views=STUDENT, **options):
    """{index: row of the teacher} of an epoch."""
    maker = ViewMaker(views, [view.modality])
    reading = config.DataConfig(**{"global_batch_size": 4, "num_workers": 0} | options)
    loader = Loader(ShardSet(shards), reading, [view], maker, seed=0, device=CPU, targets=teacher)
    return {
        int(i): row for batch in loader.epoch(0) for i, row in zip(batch.index, batch.views["teacher"], strict=True)
    }


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_teacher_sees_the_seconds_of_the_student_with_its_own_size_and_rate(modality, shards):
    shard_set = ShardSet(shards["train"])
    view = View("first", modality)
    for index in (0, 5, 11):
        sample = shard_set.read(index)
        video, _ = spans(sample)
        raw = raw_views(shard_set, index, [view], STUDENT, 0, 3, (View("teacher", "video", "test"), OWN))
        alone = raw_views(shard_set, index, [view], STUDENT, 0, 3)
        assert torch.equal(raw["first"].media, alone["first"].media)  # what the student sees is as without a teacher
        clip = read_clip(sample, STUDENT, {modality}, np.random.default_rng((0, 3, index)))
        if modality == "video":
            middle = clip.video_start_seconds + 4 / 16 / 2
        else:
            middle = clip.audio_start_seconds + 0.3 / 2
        start = min(max(middle - 6 / 8 / 2, video.start_seconds), video.end_seconds - 6 / 8)
        first_frame = np.floor((start - video.start_seconds) * sample.info.video_fps + 1e-6) / sample.info.video_fps
        times = first_frame + np.arange(6) / 8
        frames = read_video(sample.video, times.tolist(), name="")
        own = raw["teacher"]
        assert own.media.shape == (6, 3, 16, 16)
        assert own.color_params is None
        # The test view is the central square of 0.875 of the frame, 28 of 32 px, at half the size or so.
        expected = torch.nn.functional.interpolate(
            frames[..., 2:30, 2:30].float(), size=16, mode="bilinear", antialias=True, align_corners=False
        )
        assert (own.media.float() - expected).abs().max() <= 1.01


def test_a_sample_without_what_the_teacher_looks_at_is_a_failure_with_a_reason(image_shards):
    views = [View("first", "image", "deepcluster")]
    with pytest.raises(ValueError, match="no_video"):
        raw_views(ShardSet(image_shards), 0, views, STUDENT, 0, 0, (View("teacher", "video", "test"), OWN))


@pytest.mark.quick(1)
@pytest.mark.parametrize("output", ["feature", "embedding"])
def test_rows_of_a_folder_and_of_the_network_are_those_that_it_embeds(output, image_run, image_rows, image_shards):
    table, _ = Embedder.from_run(image_run).embed(str(image_shards))
    expected = getattr(table, f"image_{output}")
    view = View("first", "image", "deepcluster")
    for source in (f"loss.teacher.run={image_run}", f"loss.teacher.embeddings={image_rows}"):
        cfg, found = opened(image_shards, source, f"loss.teacher.output={output}")
        rows = batches(image_shards, found, view)
        assert (cfg.loss.teacher.modality, cfg.loss.teacher.dim) == ("image", expected.shape[1])
        assert len(rows) == 12
        for index, row in rows.items():
            # Batches of 4 and of 12 sum in other orders; features of some ten layers of some 300 terms.
            np.testing.assert_allclose(row, expected[index], rtol=1e-4, atol=1e-5)


def test_what_a_network_looks_at_stays_raw_when_workers_make_the_views(image_run, image_shards):
    _, found = opened(image_shards, f"loss.teacher.run={image_run}")
    view = View("first", "image", "deepcluster")
    here = batches(image_shards, found, view)
    there = batches(image_shards, found, view, num_workers=1, views_in_workers=True)
    assert {index: row.tolist() for index, row in here.items()} == {index: row.tolist() for index, row in there.items()}


def test_rows_are_found_by_key_and_are_the_mean_over_windows(tiny_run, shards, tmp_path):
    folder = embedded(tiny_run, shards["train"], tmp_path / "rows", window_seconds=0.5)
    _, found = opened(shards["train"], f"loss.teacher.embeddings={folder}", "loss.modalities=[audio]")
    table, _ = Embedder.from_run(tiny_run).embed(str(shards["train"]), window_seconds=0.5)
    keys = ShardSet(shards["train"]).keys
    assert len(table) > len(keys)
    for index, key in enumerate(keys):
        own = table.select([row for row, name in enumerate(table.keys) if name == key])
        np.testing.assert_allclose(found.table[index], own.audio_feature.mean(axis=0), rtol=1e-5, atol=1e-6)
    # Another modality than the students': the video rows, for an audio student.
    changes = ["loss.modalities=[audio]", "loss.teacher.modality=video"]
    _, other = opened(shards["train"], f"loss.teacher.embeddings={folder}", *changes)
    assert other.table.shape != found.table.shape or not torch.equal(other.table, found.table)
    assert other.fingerprint != found.fingerprint


def test_keys_without_rows_are_named_with_what_to_do(tiny_run, shards, tmp_path):
    folder = embedded(tiny_run, shards["test"], tmp_path / "rows")
    keys = ShardSet(shards["train"]).keys
    with pytest.raises(ValueError, match=r"no audio feature for 18 of 18 samples") as error:
        opened(shards["train"], f"loss.teacher.embeddings={folder}", "loss.modalities=[audio]")
    text = str(error.value)
    assert all(key in text for key in keys[:5])
    assert keys[5] not in text
    assert f"avssl embed RUN {shards['train']} --out FOLDER" in text


@pytest.mark.slow
def test_an_encoder_with_weights_is_a_teacher(image_shards, tmp_path):
    torch.manual_seed(5)
    encoder = create_encoder("resnet10", width=4, small_stem=True).eval()
    save_file(encoder.state_dict(), tmp_path / "weights.safetensors")
    section = f"{{name: resnet10, width: 4, small_stem: true, weights: {tmp_path}/weights.safetensors}}"
    cfg, found = opened(
        image_shards, f"loss.teacher.encoder={section}", "loss.teacher.views={size_px: 20, interpolation: bicubic}"
    )
    assert cfg.loss.teacher.dim == encoder.dim
    assert found.beside[1].image.size_px == 20
    rows = batches(image_shards, found, View("first", "image", "deepcluster"))
    raw = raw_views(ShardSet(image_shards), 3, [View("v", "image", "test")], found.beside[1], 0, -1)["v"]
    raw.media = raw.media[None]
    with torch.no_grad():
        expected = encoder(ViewMaker(found.beside[1], ["image"])({"v": raw}, CPU)["v"])[0]
    np.testing.assert_allclose(rows[3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.quick(4)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "no source; give one of"),
        (["loss.teacher.run=a", "loss.teacher.embeddings=b"], "run and embeddings; give one of"),
        (["loss.teacher.encoder={name: resnet10}"], "random weights; add weights: FILE"),
        (["loss.teacher.encoder={name: avid_video}"], "takes no weights by itself, or name a run"),
        (["loss.teacher.encoder={width: 4}"], "has no name; write"),
        (["loss.teacher.embeddings=ROWS", "loss.teacher.views={size_px: 8}"], "embed with other views"),
        (["loss.teacher.embeddings=ROWS", "loss.teacher.modality=video"], "modality is 'video'; .* has image"),
        (["loss.teacher.run=RUN", "loss.teacher.modality=audio"], "modality is 'audio'; .* has image"),
        (["loss.teacher.run=RUN", "loss.teacher.views={size_px: 8}"], "which embeds as it was trained"),
        (["loss.teacher.embeddings=RUN"], "not a folder that `avssl embed` has finished"),
        (["loss.teacher.run=ROWS"], "config.yaml is missing"),
        (["loss.teacher.run=RUN", "loss.teacher.dim=7"], "dim is 7, and the teacher has 32"),
        (["loss.teacher.run=RUN", "loss.teacher.fingerprint=abc"], "it is another teacher"),
    ],
)
def test_what_is_no_teacher_is_refused_with_what_is_allowed(changes, message, image_run, image_rows, image_shards):
    changes = [change.replace("ROWS", str(image_rows)).replace("RUN", str(image_run)) for change in changes]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened(image_shards, *changes)


def test_a_loss_without_a_teacher_opens_none(image_shards):
    assert teachers.open_teacher(
        config.parse(config.RunConfig, ["loss.name=simclr"]), ShardSet(image_shards), CPU, nullcontext
    ) == (None, "")


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"run": "/home/me/runs/large"}, "taught by: `large`, its image feature"),
        ({"run": "hf/facebook/dinov2-base@abc", "license": "apache-2.0"}, "taught by: `hf/facebook/dinov2-base@abc`"),
        ({"encoder": {"name": "resnet50", "weights": "/home/me/w.pt"}}, "taught by: `resnet50`"),
    ],
)
def test_an_exported_student_names_its_teacher_and_no_path_of_its_machine(source, shown, tmp_path):
    given = {"modality": "image", "output": "feature", "dim": 8, "fingerprint": "abc", **source}
    changes = [f"loss.teacher.{key}={json.dumps(value)}" for key, value in given.items()]
    small = ["loss.queue_size=8", "encoders.image={name: resnet10, width: 2, small_stem: true}"]
    run = made_run(tmp_path / "run", "loss.name=distil", *changes, *small, provenance={"teacher": given}.items())
    folder = export_folder(run, tmp_path / "folder")
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}
    assert not [name for name, text in texts.items() if "/home/me" in text]
    assert shown in texts["README.md"]
    assert Embedder.from_run(folder).weights_hash == Embedder.from_run(run).weights_hash


def trained(run, *changes, check=True):
    return run_python("recipes/pretrain.py", *TINY_DISTIL, f"run={run}", *changes, check=check)


@pytest.mark.slow
def test_a_run_goes_on_exactly_and_keeps_nothing_of_its_teacher(tiny_run, shards, tmp_path):
    """A video teacher of an audio student; the teacher's folder is as it was, and another teacher is refused."""
    common = [f"data.shards={shards['train']}", "loss.modalities=[audio]", "loss.teacher.modality=video"]
    teacher = shutil.copytree(tiny_run, tmp_path / "teacher")
    before = {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()}
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    trained(straight, *common, f"loss.teacher.run={teacher}", "steps=6")
    trained(halves, *common, f"loss.teacher.run={teacher}", "steps=3")
    trained(halves, *common, f"loss.teacher.run={teacher}", "steps=6")
    first, second = (load_file(run / "encoders.safetensors") for run in (straight, halves))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name.split(".")[1] for name in first if name.startswith("loss.")} == {"encoders", "projectors", "queue"}
    assert not [name for name in first if "video" in name]
    assert before == {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()}
    facts = checkpoint.read_provenance(straight)["teacher"]
    assert (facts["run"], facts["modality"], facts["output"]) == (str(teacher), "video", "feature")
    assert facts["fingerprint"] == Embedder.from_run(teacher).weights_hash
    # The student embeds without its teacher.
    shutil.move(teacher, tmp_path / "moved")
    table, _ = Embedder.from_run(straight).embed(str(shards["test"]))
    assert table.audio_embedding.shape[1] == facts["dim"]
    trained(halves, *common, f"loss.teacher.run={tmp_path}/moved", "steps=8")  # a teacher may move
    other = made_run(tmp_path / "other", *(change for change in TINY if "=" in change), "loss.name=avid")
    refused = trained(halves, *common, f"loss.teacher.run={other}", "steps=9", check=False)
    assert refused.returncode
    assert "loss.teacher.fingerprint" in refused.stderr


@pytest.mark.slow
def test_a_run_learns_the_rows_of_a_folder_and_its_training_data_has_its_teachers(tiny_run, shards, tmp_path):
    from avssl.eval import overlap

    rows = embedded(tiny_run, shards["test"], tmp_path / "rows")
    run = tmp_path / "run"
    changes = ["loss.modalities=[video,audio]", "loss.teacher.modality=audio", f"loss.teacher.embeddings={rows}"]
    changes += ["loss.queue_size=4", "steps=30", "optim.lr=0.05"]
    process = trained(run, f"data.shards={shards['test']}", *changes)
    assert f"teacher: rows of 6 samples in {rows}" in process.stdout
    losses = losses_of(run)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    data = overlap.read_training_data(run)
    assert set(overlap.read_training_data(tiny_run).media) <= set(data.media)
    cfg = config.load_run(run)
    assert dataclasses.asdict(cfg.loss.teacher)["dim"] == cfg.loss.teacher.dim > 0


@pytest.mark.slow
def test_missing_rows_end_the_command_before_training_with_one_line(tiny_run, shards, tmp_path):
    rows = embedded(tiny_run, shards["test"], tmp_path / "rows")
    changes = [f"data.shards={shards['train']}", "loss.modalities=[audio]", f"loss.teacher.embeddings={rows}"]
    process = trained(tmp_path / "run", *changes, "steps=2", check=False)
    assert process.returncode
    assert "samples of" in process.stderr
    assert "Traceback" not in process.stderr
    assert not Path(tmp_path / "run" / "metrics.jsonl").exists()
