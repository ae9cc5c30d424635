"""Public models of timm as encoders: the features are timm's own, and names and options are checked."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from avssl.models import create_encoder, public, without_weights


def timm_pair(name: str, modality: str, **options):
    """Our encoder, and timm's network of the same weights, both in eval mode."""
    torch.manual_seed(0)
    encoder = create_encoder(f"timm/{name}", modality, **options).eval()
    channels = 1 if modality == "audio" else 3
    theirs = timm.create_model(name, num_classes=0, in_chans=channels).eval()
    theirs.load_state_dict(encoder.net.state_dict())
    return encoder, theirs


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_features_of_timm_are_those_of_timm(name):
    encoder, theirs = timm_pair(name, "image")
    images = torch.randn(2, 3, 160, 160)
    features = encoder(images)
    assert features.shape == (2, encoder.dim)
    assert torch.allclose(features, theirs(images), atol=1e-5)


def test_video_is_the_mean_over_frames():
    encoder, theirs = timm_pair("test_vit", "video")
    video = torch.randn(2, 3, 4, 160, 160)
    expected = torch.stack([theirs(frame) for frame in video.unbind(2)]).mean(dim=0)
    assert torch.allclose(encoder(video), expected, atol=1e-5)


def test_unknown_names_and_options_are_refused_with_those_that_are_allowed():
    with pytest.raises(ValueError, match="similar names: vit_small_patch16_224"):
        create_encoder("timm/vit_smal_patch16_224", "image")
    with pytest.raises(ValueError, match=r"no published weights 'nope'; it has: .*augreg_in21k"):
        create_encoder("timm/vit_small_patch16_224.nope", "image")
    with pytest.raises(ValueError, match="did you mean 'drop_path'"):
        create_encoder("timm/test_vit", "image", drop_paths=0.1)
    with pytest.raises(ValueError, match="no modality is given; it encodes image or video or audio"):
        create_encoder("timm/test_vit")


@pytest.mark.parametrize(
    "arguments",
    [
        {"no_such": 1}, {"embed_dim": "x"}, {"num_heads": 0}, {"depth": -1}, {"img_size": [8]}, {"norm_layer": 3},
        {"act_layer": "none"},
    ],
)  # fmt: skip
def test_arguments_that_a_network_of_timm_does_not_take_are_one_error(arguments):
    with pytest.raises(ValueError, match="timm/test_vit: "):
        create_encoder("timm/test_vit", "image", arguments=arguments)


def test_drop_path_must_be_a_number():
    for given in ("much", [0.1], {"rate": 0.1}):
        with pytest.raises(ValueError, match=r"drop_path is .* it must be a number"):
            create_encoder("timm/test_vit", "image", drop_path=given)


@pytest.fixture
def folder(tmp_path):
    """A folder of a network of timm with its weights, as timm saves it."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit")
    path = tmp_path / "of_timm"
    path.mkdir()
    save_file(net.state_dict(), path / "model.safetensors")
    write_config(path)
    return path


def write_config(path, **entries):
    cfg = timm.models.get_pretrained_cfg("test_vit").to_dict()
    (path / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "pretrained_cfg": cfg, "num_classes": 1000, **entries}, default=str)
    )


def test_a_folder_of_timm_chooses_no_other_weights_and_no_other_strictness(folder, tmp_path):
    images = torch.randn(1, 3, 160, 160)
    expected = create_encoder(f"timm/{folder}", "image").eval()(images)
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    chosen = {"checkpoint_path": str(tmp_path / "other.pth"), "pretrained_strict": False, "features_only": True}
    write_config(folder, model_args={**chosen, "cache_dir": "elsewhere", "pretrained_cfg_overlay": {"url": "x"}})
    assert torch.equal(create_encoder(f"timm/{folder}", "image").eval()(images), expected)
    for name, value in chosen.items():
        with pytest.raises(ValueError, match=f"arguments has '{name}'; it takes"):
            create_encoder("timm/test_vit", "image", arguments={name: value})
    with pytest.raises(ValueError, match="arguments has 'depth=1'"):
        create_encoder("timm/test_vit", "image", arguments="depth=1")
    weights = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in weights.items() if key != "norm.weight"}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"its weights are not this network's: .*Missing key"):
        create_encoder(f"timm/{folder}", "image")


def test_a_folder_of_timm_may_be_named_without_a_slash(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    images = torch.randn(1, 3, 160, 160)
    expected = create_encoder(f"timm/{folder}", "image").eval()(images)
    section = public.resolved_options("timm/of_timm", {})
    assert (section["name"], section["pretrained"], len(section["sha256"])) == ("timm/of_timm", True, 64)
    assert torch.equal(create_encoder(modality="image", **section).eval()(images), expected)
    folder.rename(folder.parent / "gone")  # a run that goes on builds it from its configuration
    assert create_encoder(modality="image", **without_weights(section)).dim == 64
    (folder.parent / "gone").rename(folder.parent / "test_resnet")
    assert create_encoder("timm/test_resnet", "image").net.default_cfg["architecture"] == "test_resnet"  # timm's own


def test_weights_of_timm_in_several_files_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:])):
        save_file({name: weights[name] for name in part}, folder / f"part-{number}.safetensors")
    listed = {name: f"part-{int(name not in names[:9])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(ValueError, match="its weights are 2 files; timm reads them from one"):
        create_encoder(f"timm/{folder}", "image")


def test_a_network_whose_patch_is_given_as_one_number_says_its_size():
    size = public.demands("timm/efficientvit_m0", "image", {})["size_px"]
    assert (size.value, size.multiple_of) == (224, 16)


def test_requirements_come_from_the_data_configuration_of_timm():
    required = public.requirements("timm/test_vit", "image", {})
    data = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert (required["size_px"], required["mean"]) == (data["input_size"][1], list(data["mean"]))
