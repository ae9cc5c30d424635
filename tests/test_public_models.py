"""Public models of timm as encoders: the features are timm's own, and names and options are checked."""

from __future__ import annotations

import pytest
import timm
import torch

from avssl.models import create_encoder, public


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


def test_requirements_come_from_the_data_configuration_of_timm():
    required = public.requirements("timm/test_vit", "image", {})
    data = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert (required["size_px"], required["mean"]) == (data["input_size"][1], list(data["mean"]))
