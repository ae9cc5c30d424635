"""Published AVID-CMA checkpoints: everything is accounted for and computes what the authors' networks compute."""

import shutil
import zipfile

import numpy as np
import pytest
import torch

import avssl
from avssl import checkpoint, config, losses
from avssl.checkpoint.weights import read_provenance, read_weights, write_weights
from avssl.config import load_run
from avssl.exchange.__main__ import main
from avssl.exchange.avid_release import LICENSE_NOTE
from avssl.exchange.statistics import statistics_from
from avssl.models import create_encoder
from avssl.models.heads import mlp
from avssl.transforms.raw_view import RawView
from tests.conftest import run_python
from tests.test_models import GOLDEN, golden_fill, golden_input, published_entries
from tests.test_security import Malicious

NUM_SAMPLES = 50


def unit_rows(seed, rows=NUM_SAMPLES, dim=128):
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def narrow_networks():
    """Networks of a published file in all but their widths: errors can be tried on small files."""
    torch.manual_seed(0)
    parts = {"video_model": create_encoder("avid_video", width=8), "audio_model": create_encoder("avid_audio", width=4)}
    networks = {f"{part}.{key}": value for part, net in parts.items() for key, value in net.state_dict().items()}
    for part, width in (("video_proj", 64), ("audio_proj", 32)):
        networks |= {f"{part}.projection.{key}": value for key, value in mlp((width, 48, 128)).state_dict().items()}
    return networks


def published_content(networks, **criterion):
    """The dict of a published file, with banks whose names are those of views; criterion changes its buffers."""
    buffers = {
        "nce_average.view1_mem": unit_rows(1),
        "nce_average.view2_mem": unit_rows(2),
        "criterion.avg_exp_score": torch.tensor([2.2]),  # shape (1,), as one process leaves it
    }
    return {
        "epoch": 30,
        "model": {f"module.{name}": value for name, value in networks.items()},
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "train_criterion": {**buffers, **criterion},
    }


@pytest.fixture(scope="module")
def content():
    return published_content(narrow_networks())


@pytest.fixture(scope="module")
def golden():
    return published_content(golden_fill())


@pytest.fixture(scope="module")
def run(golden, tmp_path_factory):
    """A run that the command has made from a file of the published size."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(golden, folder / "AVID.pth.tar")
    np.savez(folder / "statistics.npz", mean=np.linspace(-54, -0.1, 257), std=np.full(257, 19.0))
    statistics = str(folder / "statistics.npz")
    main(["import", str(folder / "AVID.pth.tar"), "--out", str(folder / "run"), "--statistics", statistics])
    return folder / "run"


def refused(content, folder, *options):
    """The error of importing this content; nothing may be written."""
    file = folder / "file.pth.tar"
    torch.save(content, file)
    with pytest.raises(SystemExit) as error:
        main(["import", str(file), "--out", str(folder / "out"), *options])
    assert not (folder / "out").exists()
    return str(error.value)


@pytest.mark.quick(1)
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_imported_networks_give_the_golden_outputs(run, modality):
    stored = np.load(GOLDEN / "avid_cma_network.npz")
    embedder = avssl.load_embedder(str(run))
    with torch.no_grad():
        pooled = embedder.encoders[modality](golden_input(modality))
        projected = embedder.projectors[modality](pooled)
        unit = embedder.loss.embedding(modality, pooled)
    for found, name in ((pooled, "pool"), (projected, "projection")):
        expected = stored[f"{modality}_{name}"]
        assert np.abs(found.numpy() - expected).max() <= 1e-4 * np.abs(expected).max(), name
    projection = stored[f"{modality}_projection"]
    expected = projection / np.linalg.norm(projection, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.numpy(), expected, atol=1e-4)


def test_every_tensor_of_the_file_is_in_the_run(run, golden):
    weights = checkpoint.read_weights(run)
    criterion = golden["train_criterion"]
    assert torch.equal(weights["loss.banks.video.rows"], criterion["nce_average.view1_mem"])
    assert torch.equal(weights["loss.banks.audio.rows"], criterion["nce_average.view2_mem"])
    assert weights["loss.partition"].shape == ()
    assert weights["loss.partition"].item() == pytest.approx(2.2)
    networks = [name for name in weights if name.startswith(("loss.encoders.", "loss.projectors."))]
    assert len(networks) == len(published_entries()) == len(golden["model"])
    assert len(weights) == len(networks) + 3 + 2  # banks and partition; statistics


@pytest.mark.slow
def test_the_license_is_printed_and_kept(run, content, tmp_path, capsys):
    torch.save(content, tmp_path / "file.pth.tar")
    main(["import", str(tmp_path / "file.pth.tar"), "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert LICENSE_NOTE in printed
    assert f"loaded: {len(content['model']) + 3} tensors" in printed
    assert "missing: 0" in printed
    assert checkpoint.read_provenance(run)["license"] == "CC-BY-NC-4.0"
    card = (run / "README.md").read_text()
    assert LICENSE_NOTE in card
    assert "license: cc-by-nc-4.0" in card


@pytest.mark.slow
def test_a_run_that_starts_from_it_takes_the_networks_and_keeps_the_license(run, tmp_path, golden):
    cfg = config.parse(config.RunConfig, ["loss.name=avid_cma", "loss.num_positives=4"])
    encoders = {name: create_encoder(f"avid_{name}") for name in ("video", "audio")}
    loss = losses.get("avid_cma")(cfg.loss, encoders, NUM_SAMPLES)
    own_bank = loss.banks["video"].rows.clone()
    report = checkpoint.inherit(loss, run, fingerprint="mine")
    stem = golden["model"]["module.video_model.conv1.0.weight"]
    assert torch.equal(loss.encoders["video"].conv1[0].weight, stem)
    assert loss.partition.item() == pytest.approx(2.2)
    assert torch.equal(loss.banks["video"].rows, own_bank)  # the authors' rows are of other videos
    assert sum("rows of other samples" in line for line in report["not taken"]) == 2
    tmp_path.joinpath("next").mkdir()
    facts = {"data": {"fingerprint": "mine", "num_samples": NUM_SAMPLES}, "init_from": str(run)}
    checkpoint.export(tmp_path / "next", {"loss": loss}, facts)
    assert checkpoint.read_provenance(tmp_path / "next")["license"] == "CC-BY-NC-4.0"


@pytest.mark.slow
def test_without_statistics_video_is_embedded_and_audio_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "file.pth.tar")
    run = tmp_path / "run"
    main(["import", str(tmp_path / "file.pth.tar"), "--out", str(run)])
    embedder = avssl.load_embedder(str(run))
    frames = torch.zeros(1, 8, 3, 224, 224, dtype=torch.uint8)
    feature, embedding = embedder.encode("video", RawView("video", frames))
    assert feature.shape == (1, 64)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    sound = RawView("audio", 0.1 * torch.sin(torch.arange(48_000.0))[None, None])
    with pytest.raises(ValueError, match=r"no statistics .* avssl exchange statistics"):
        embedder.encode("audio", sound)
    np.savez(tmp_path / "statistics.npz", mean=np.full(257, -40.0), std=np.full(257, 20.0))
    main(["statistics", str(run), str(tmp_path / "statistics.npz")])
    with_statistics = avssl.load_embedder(str(run))
    assert with_statistics.encode("audio", sound)[0].shape == (1, 32)
    assert with_statistics.views.normalize_audio.mean.unique().tolist() == [-40.0]


@pytest.mark.slow
def test_cma_positive_sets_are_taken(content, tmp_path):
    positives = torch.arange(NUM_SAMPLES * 3, dtype=torch.int32).reshape(NUM_SAMPLES, 3) % NUM_SAMPLES
    torch.save(published_content(narrow_networks(), positive_set=positives), tmp_path / "CMA.pth.tar")
    main(["import", str(tmp_path / "CMA.pth.tar"), "--out", str(tmp_path / "run")])
    assert torch.equal(checkpoint.read_weights(tmp_path / "run")["loss.positives"], positives.long())
    cfg = config.load_run(tmp_path / "run")
    assert (cfg.loss.name, cfg.loss.num_positives) == ("avid_cma", 3)


@pytest.mark.slow
def test_networks_alone_make_a_run_without_banks(content, tmp_path):
    torch.save({"model": content["model"]}, tmp_path / "file.pth.tar")
    main(["import", str(tmp_path / "file.pth.tar"), "--out", str(tmp_path / "run")])
    assert "loss.banks.video.rows" not in checkpoint.read_weights(tmp_path / "run")
    assert "none in the file" in (tmp_path / "run" / "README.md").read_text()
    assert avssl.load_embedder(str(tmp_path / "run")).modalities == ("video", "audio")


@pytest.mark.slow
def test_files_of_the_old_format_are_read(content, tmp_path):
    """As PyTorch wrote them before 1.6: a pickle, no archive; a state dict is an OrderedDict with versions."""
    encoder = create_encoder("avid_audio", width=4)
    with_versions = encoder.state_dict()
    with_versions.clear()
    with_versions.update(content["model"])
    file = tmp_path / "old.pth.tar"
    torch.save({**content, "model": with_versions}, file, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(file)
    main(["import", str(file), "--out", str(tmp_path / "run")])
    weights = checkpoint.read_weights(tmp_path / "run")
    for name in ("conv1.0.weight", "block4.bn2.running_var"):
        assert torch.equal(weights[f"loss.encoders.audio.{name}"], content["model"][f"module.audio_model.{name}"])


def changed_model(content, **entries):
    return {**content, "model": {**content["model"], **entries}}


def test_a_missing_tensor_is_named(content, tmp_path):
    model = {name: value for name, value in content["model"].items() if name != "module.audio_model.block3.bn2.bias"}
    message = refused({**content, "model": model}, tmp_path)
    assert "missing: 1: audio_model.block3.bn2.bias" in message


@pytest.mark.slow
def test_a_tensor_too_many_is_named_and_may_be_ignored(content, tmp_path):
    extra = changed_model(content, **{"module.video_model.head.weight": torch.zeros(3)})
    assert "unexpected: 1: video_model.head.weight" in refused(extra, tmp_path)
    main(["import", str(tmp_path / "file.pth.tar"), "--out", str(tmp_path / "out"), "--ignore", "video_model.head.*"])
    assert checkpoint.read_provenance(tmp_path / "out")["imported"]["ignored"] == ["video_model.head.weight"]


def test_a_tensor_of_another_shape_is_named_with_both_shapes(content, tmp_path):
    name = "module.video_model.conv4x.1.out_bn.weight"
    message = refused(changed_model(content, **{name: torch.zeros(7)}), tmp_path)
    assert "wrong shape: 1: video_model.conv4x.1.out_bn.weight ((7,) in place of (32,))" in message


@pytest.mark.slow
def test_names_with_and_without_their_prefix_are_not_mixed_up(content, tmp_path):
    name = "video_proj.projection.0.bias"
    assert "are stored twice" in refused(changed_model(content, **{name: torch.zeros(48)}), tmp_path)
    plain = {key.removeprefix("module."): value for key, value in content["model"].items()}
    torch.save({**content, "model": plain}, tmp_path / "plain.pth.tar")
    main(["import", str(tmp_path / "plain.pth.tar"), "--out", str(tmp_path / "plain")])
    stored = checkpoint.read_weights(tmp_path / "plain")["loss.projectors.video.0.bias"]
    assert torch.equal(stored, content["model"][f"module.{name}"])


@pytest.mark.slow
def test_banks_are_told_apart_by_name_or_by_the_user(content, tmp_path):
    criterion = {"a": unit_rows(1), "b": unit_rows(2), "avg_exp_score": torch.tensor(2.2)}
    message = refused({**content, "train_criterion": criterion}, tmp_path)
    assert "a bank whose name says video" in message
    assert "train_criterion.b" in message
    file, out = str(tmp_path / "file.pth.tar"), tmp_path / "out"
    main(["import", file, "--out", str(out), "--video-bank", "train_criterion.b", "--audio-bank", "train_criterion.a"])
    assert torch.equal(checkpoint.read_weights(out)["loss.banks.video.rows"], criterion["b"])


def test_banks_of_unequal_length_are_refused(content, tmp_path):
    criterion = {"view1_mem": unit_rows(1), "view2_mem": unit_rows(2, rows=7)}
    assert "banks, of 7 and 50 rows" in refused({**content, "train_criterion": criterion}, tmp_path)


def test_values_that_are_not_finite_are_refused(content, tmp_path):
    broken = changed_model(content, **{"module.audio_proj.projection.2.bias": torch.full((128,), torch.nan)})
    assert "projectors.audio.2.bias" in refused(broken, tmp_path)


def test_a_pickled_object_is_refused_and_not_run(content, tmp_path):
    message = refused({**content, "args": Malicious(tmp_path / "was-run")}, tmp_path)
    assert "was not opened" in message
    assert "could run code" in message
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1, 2], "must be a dict with a state dict called 'model', and is list"),
        ({"state_dict": {"conv.weight": torch.zeros(1)}}, "and is state_dict"),
        ({"model": {"epochs": 3}}, "holds no tensors"),
    ],
)
def test_a_file_of_something_else_is_refused(given, words, tmp_path):
    assert words in refused(given, tmp_path)


def test_files_that_torch_did_not_write_are_refused(tmp_path):
    (tmp_path / "text.pth.tar").write_text("not weights")
    with zipfile.ZipFile(tmp_path / "zip.pth.tar", "w") as archive:
        archive.writestr("a", "b")
    for name in ("text.pth.tar", "zip.pth.tar"):
        with pytest.raises(SystemExit, match="was not opened"):
            main(["import", str(tmp_path / name), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no such file"):
        main(["import", str(tmp_path / "none.pth.tar"), "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_the_small_networks_are_recognized(tmp_path):
    """Depth and widths follow from the shapes; that there is no pooling must be said."""
    torch.manual_seed(0)
    parts = {
        "video_model": create_encoder("avid_video", depth=10, width=8, stem_pool=False),
        "audio_model": create_encoder("avid_audio", width=4, first_stride=1),
    }
    model = {f"module.{part}.{key}": v for part, net in parts.items() for key, v in net.state_dict().items()}
    for part, width in (("video_proj", 64), ("audio_proj", 32)):
        linear = torch.nn.Linear(width, 16)
        model |= {f"module.{part}.projection.0.{key}": value for key, value in linear.state_dict().items()}
    torch.save({"model": model}, tmp_path / "small.pth.tar")
    main(["import", str(tmp_path / "small.pth.tar"), "--out", str(tmp_path / "run"), "--small"])
    embedder = avssl.load_embedder(str(tmp_path / "run"))
    clip = torch.randn(1, 3, 8, 112, 112, dtype=torch.float64)
    with torch.no_grad():
        found, expected = (
            network.double().eval()(clip) for network in (embedder.encoders["video"], parts["video_model"])
        )
    torch.testing.assert_close(found, expected)
    assert embedder.views.spectrogram.num_bins == 129
    assert embedder.config.views.audio.num_frames == 100


def test_an_output_folder_in_use_is_left_alone(run):
    before = (run / "config.yaml").read_text()
    with pytest.raises(SystemExit, match="not empty"):
        main(["import", str(run.parent / "AVID.pth.tar"), "--out", str(run)])
    assert (run / "config.yaml").read_text() == before


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mean": np.zeros(257)}, "has no std"),
        ({"mean": np.zeros(129), "std": np.ones(129)}, "must hold 257 finite values"),
        ({"mean": np.zeros(257), "std": np.zeros(257)}, "must be positive"),
    ],
)
def test_wrong_statistics_are_refused(arrays, words, run, tmp_path):
    np.savez(tmp_path / "statistics.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        statistics_from(tmp_path / "statistics.npz", load_run(run))


def test_statistics_that_a_run_embeds_with_are_not_replaced(run, tmp_path):
    np.savez(tmp_path / "statistics.npz", mean=np.zeros(257), std=np.ones(257))
    has_them = shutil.copytree(run, tmp_path / "run")
    weights = read_weights(has_them)
    weights |= {f"views.normalize_audio.{name}": torch.ones(257) for name in ("mean", "std")}
    write_weights(has_them, weights, read_provenance(has_them))
    before = (has_them / "encoders.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="has statistics of the spectrograms already"):
        main(["statistics", str(has_them), str(tmp_path / "statistics.npz")])
    assert (has_them / "encoders.safetensors").read_bytes() == before


@pytest.mark.slow
def test_the_command_runs_as_a_module(tmp_path):
    done = run_python("-m", "avssl.exchange", "import", tmp_path / "no.pth.tar", "--out", tmp_path, check=False)
    assert done.returncode == 1
    assert "no such file" in done.stderr
    assert done.stderr.startswith("error: ")
