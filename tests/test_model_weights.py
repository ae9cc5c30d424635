"""Initial weights: torchvision's from a file or by name, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from avssl.models import create_encoder

VIDEO = ["r2plus1d_18", "r3d_18", "mc3_18", "s3d"]


def torchvision_network(name, seed=0):
    torch.manual_seed(seed)
    return models.get_model(name, weights=None).eval()


def body_and_head(name):
    """Input of torchvision's own classifier on a clip, by a hook on it: what an encoder must return."""
    network = torchvision_network(name)
    seen = []
    last = network.classifier if name == "s3d" else network.fc
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    return network, seen


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_video_file_of_torchvision_gives_torchvisions_feature(name, suffix, tmp_path):
    network, seen = body_and_head(name)
    path = tmp_path / f"weights{suffix}"
    torch.save(network.state_dict(), path) if suffix == ".pth" else save_file(network.state_dict(), path)
    encoder = create_encoder(name, weights=str(path)).eval()
    clip = torch.randn(1, 3, 16, 64, 64) if name != "s3d" else torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        network(clip)
        torch.testing.assert_close(encoder(clip), seen[0].flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_mvit_loads_its_file(tmp_path):
    state = torchvision_network("mvit_v2_s").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    loaded = create_encoder("mvit_v2_s", weights=str(tmp_path / "weights.pth")).net.state_dict()
    assert state.keys() - loaded.keys() == {"head.1.weight", "head.1.bias"}
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), [("r3d_18", "KINETICS400_V1"), ("resnet18", "IMAGENET1K_V1")])
def test_a_name_is_torchvisions_download_and_is_taken_from_its_cache(name, weights, tmp_path, monkeypatch):
    state = torchvision_network(name, seed=3).state_dict()
    cached = tmp_path / "hub" / "checkpoints" / Path(models.get_model_weights(name)[weights].url).name
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    encoder = create_encoder(name, weights=weights)
    loaded = getattr(encoder, "net", encoder).state_dict()
    assert loaded
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_a_download_that_fails_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(ValueError, match="KINETICS400_V1 could not be downloaded: no"):
        create_encoder("mc3_18", weights="KINETICS400_V1")


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("r3d_18", "IMAGENET1K_V1", "it has KINETICS400_V1"),
        ("resnet10", "IMAGENET1K_V1", "torchvision has no such network"),
    ],
)
def test_names_that_torchvision_does_not_have_are_refused_without_a_download(name, weights, words):
    with pytest.raises(ValueError, match=words):
        create_encoder(name, weights=weights)


def test_a_path_is_never_taken_for_a_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        create_encoder("r3d_18", weights="kinetics.pth")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(torchvision_network("mc3_18").state_dict(), tmp_path / "mc3.pth")
    with pytest.raises(ValueError, match="are not this network's"):
        create_encoder("r2plus1d_18", weights=str(tmp_path / "mc3.pth"))
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "trainer.pth")
    with pytest.raises(ValueError, match="no state dict of tensors alone"):
        create_encoder("r3d_18", weights=str(tmp_path / "trainer.pth"))
