"""Encoders for others: torchvision's networks take them, and graphs compute what eager does, or no file is kept."""

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import avssl
from avssl import checkpoint, losses
from avssl.exchange import graphs
from avssl.exchange.__main__ import main
from avssl.models import create_encoder
from tests.made_runs import SMALL_AVID, made_run
from tests.tiny import loss_options

SUFFIX = {"torch_export": "pt2", "onnx": "onnx"}


@pytest.fixture(scope="module")
def avid(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "avid", "loss.name=avid", *SMALL_AVID)


@pytest.fixture(scope="module")
def byol(tmp_path_factory):
    """Across modalities with predictors: its embedding is projection and prediction side by side."""
    options = ["loss.modalities=[video,audio]", "loss.projector_hidden_dims=[16]", "loss.predictor_hidden_dims=[16]"]
    encoders = ["encoders.video.depth=10", "encoders.video.width=4", "encoders.audio.width=4"]
    return made_run(
        tmp_path_factory.mktemp("runs") / "byol", "loss.name=byol", "loss.embedding_dim=8", *options, *encoders
    )


def video_run(folder, name):
    return made_run(folder, "loss.name=simclr", "loss.modalities=[video,video]", f"encoders.video.name={name}")


def image_run(folder, name, *changes):
    return made_run(folder, "loss.name=simclr", f"encoders.image.name={name}", *changes)


def run_file(kind, path, batch):
    """Feature and embedding by the file alone, in the way its own users would."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(["feature", "embedding"], {"view": batch.numpy()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself: deprecations that differ from version to version
        loaded = torch.export.load(str(path)).module()
    with torch.no_grad():
        return [value.numpy() for value in loaded(batch)]


@pytest.mark.grid(3)
@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", list(SUFFIX))
@pytest.mark.parametrize(
    ("run_name", "modality"),
    [pytest.param("avid", "video", marks=pytest.mark.slow), ("avid", "audio"), ("byol", "audio")],
)
def test_a_graph_gives_eagers_feature_and_embedding_at_any_batch_size(
    kind, run_name, modality, request, tmp_path, capsys
):
    run = request.getfixturevalue(run_name)
    path = tmp_path / f"graph.{SUFFIX[kind]}"
    main(["export", str(run), "--to", kind, "--modality", modality, "--out", str(path)])
    assert "largest difference to eager" in capsys.readouterr().out
    embedder = avssl.load_embedder(str(run))
    for size in (1, 3, 8):
        batch = torch.randn(size, *((3, 4, 32, 32) if modality == "video" else (1, 40, 257)))
        with torch.no_grad():
            feature = embedder.encoders[modality](batch)
            embedding = embedder.loss.embedding(modality, feature)
        found = run_file(kind, path, batch)
        for ours, theirs in zip((feature, embedding), found, strict=True):
            assert theirs.shape == tuple(ours.shape)
            assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * ours.abs().max().item()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # one file, nothing temporary


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SUFFIX))
def test_images_too(kind, tmp_path):
    run = image_run(tmp_path / "run", "resnet10", "encoders.image.width=4", "encoders.image.small_stem=true")
    path = tmp_path / f"graph.{SUFFIX[kind]}"
    differences = graphs.export_graph(run, kind, "image", path)
    assert set(differences) == {"feature", "embedding"}
    assert max(differences.values()) <= 1e-4


@pytest.mark.grid(4)
@pytest.mark.slow
@pytest.mark.parametrize("name", losses.names())
def test_the_embedding_of_every_loss_becomes_a_graph(name, tmp_path):
    pairs = losses.get(name).pairs
    pair = ("video", "audio") if ("video", "audio") in pairs else ("audio", "audio")
    options = [f"loss.{key}={value}".replace("'", "") for key, value in loss_options(name, pair).items()]
    encoders = ["encoders.video.depth=10", "encoders.video.width=4", "encoders.audio.width=4"]
    run = made_run(tmp_path / "run", f"loss.name={name}", *options, *encoders)
    assert max(graphs.export_graph(run, "torch_export", "audio", tmp_path / "graph.pt2").values()) <= 1e-4


@pytest.mark.slow
def test_a_graph_says_how_its_input_is_made(avid, tmp_path):
    import onnx

    main(["export", str(avid), "--to", "onnx", "--modality", "audio", "--out", str(tmp_path / "graph.onnx")])
    model = onnx.load(str(tmp_path / "graph.onnx"))
    facts = json.loads({item.key: item.value for item in model.metadata_props}["avssl"])
    assert facts["input_shape"] == [-1, 1, 40, 257]
    assert (facts["rate_hz"], facts["hop_samples"], facts["mean"][0], facts["std"][256]) == (24_000, 240, -40.0, 20.0)
    main(["export", str(avid), "--to", "torch_export", "--modality", "video", "--out", str(tmp_path / "graph.pt2")])
    extra = {"avssl.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.load(str(tmp_path / "graph.pt2"), extra_files=extra)
    facts = json.loads(extra["avssl.json"])
    assert facts["input_shape"] == [-1, 3, 4, 32, 32]
    assert facts["pixels"]["mean"] == [0.485, 0.456, 0.406]
    assert facts["weights"] == avssl.load_embedder(str(avid)).weights_hash


@pytest.mark.slow
def test_a_graph_holds_no_bank(avid, tmp_path):
    """A bank has a row for every sample of the training data; two encoders' worth of others would be as useless."""
    main(["export", str(avid), "--to", "torch_export", "--modality", "video", "--out", str(tmp_path / "graph.pt2")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = torch.export.load(str(tmp_path / "graph.pt2")).state_dict
    assert names
    assert all(name.startswith(("loss.encoders.video.", "loss.projectors.video.")) for name in names)


@pytest.mark.slow
def test_a_graph_that_differs_is_not_kept(avid, tmp_path, monkeypatch):
    def wrong(graph, example, path, facts):
        path.write_bytes(b"a graph")
        return lambda view: [value + 1e-2 for value in graph(view)]

    monkeypatch.setattr(graphs, "_write_torch_export", wrong)
    with pytest.raises(SystemExit, match=r"differs from eager by .* no file was kept"):
        main(["export", str(avid), "--to", "torch_export", "--modality", "video", "--out", str(tmp_path / "graph.pt2")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_graph_that_gives_no_number_or_another_shape_differs(broken):
    graph = nn.Identity()
    batch = torch.ones(2, 3)
    as_pair = lambda value: (value, value)  # noqa: E731
    module = nn.Module()
    module.forward = lambda view: as_pair(graph(view))
    found = graphs.largest_differences(module, lambda view: [view * broken, view[:1]], [batch])
    assert found == {"feature": float("inf"), "embedding": float("inf")}


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "onnx", "--modality", "image", "--out", "a.onnx"], "has no image encoder; it has video, audio"),
        (["--to", "onnx", "--out", "a.onnx"], "choose it with --modality"),
        (["--to", "onnx", "--modality", "video", "--out", "a.pt"], r"ends with \.onnx"),
        (
            ["--to", "torchvision", "--modality", "video", "--out", "a.pth"],
            "avid_video .* no counterpart in torchvision",
        ),
        (["--modality", "video", "--out", "a"], "a folder holds the whole run"),
        (["--to", "onnx", "--modality", "video", "--license", "mit", "--out", "a.onnx"], "are for folders"),
    ],
)
def test_wrong_orders_are_explained(options, words, avid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=words):
        main(["export", str(avid), *options])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "suffix"), [("r3d_18", ".safetensors"), ("s3d", ".pth")])
def test_torchvision_takes_a_video_encoder_but_for_its_head(name, suffix, tmp_path, capsys):
    run = video_run(tmp_path / "run", name)
    path = tmp_path / f"backbone{suffix}"
    main(["export", str(run), "--to", "torchvision", "--modality", "video", "--out", str(path)])
    assert f"torchvision's {name} without its head" in capsys.readouterr().out
    check_torchvision_takes(name, path, avssl.load_embedder(str(run)).encoders["video"], torch.randn(1, 3, 16, 64, 64))
    again = create_encoder(name, weights=str(path)).state_dict()
    weights = checkpoint.read_weights(run)
    assert all(torch.equal(value, weights[f"loss.encoders.video.{key}"]) for key, value in again.items())


def check_torchvision_takes(name, path, encoder, batch):
    """Strictly: the head's own tensors are added, and nothing else is missing or left over."""
    from safetensors.torch import load_file

    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    network = models.get_model(name, weights=None)
    head = {key: value for key, value in network.state_dict().items() if key.startswith(("fc.", "classifier."))}
    assert not head.keys() & state.keys()
    network.load_state_dict({**state, **head}, strict=True)
    if name == "s3d":  # its classifier's pooling asks for larger clips than its body
        network.avgpool, network.classifier = nn.AdaptiveAvgPool3d(1), nn.Identity()
    else:
        network.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(batch), encoder.eval()(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_torchvision_takes_an_image_encoder(tmp_path):
    run = image_run(tmp_path / "run", "resnet18")
    main(["export", str(run), "--to", "torchvision", "--modality", "image", "--out", str(tmp_path / "backbone.pth")])
    encoder = avssl.load_embedder(str(run)).encoders["image"]
    check_torchvision_takes("resnet18", tmp_path / "backbone.pth", encoder, torch.randn(2, 3, 64, 64))


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("resnet18", ["encoders.image.width=8"], "is not torchvision's: .* tensors have another shape"),
        ("resnet18", ["encoders.image.small_stem=true"], "the first is conv1.weight"),
        ("resnet10", ["encoders.image.width=4"], "no counterpart in torchvision"),
    ],
)
def test_what_torchvision_has_not_is_refused(name, changes, words, tmp_path):
    run = image_run(tmp_path / "run", name, *changes)
    with pytest.raises(SystemExit, match=words):
        main(["export", str(run), "--to", "torchvision", "--modality", "image", "--out", str(tmp_path / "out.pth")])
    assert not (tmp_path / "out.pth").exists()
