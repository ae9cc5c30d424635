"""Public models of transformers as encoders of images and video: the features are transformers' own."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from avssl.embedding import Embedder
from avssl.models import create_encoder, public
from avssl.models.public import vision
from tests.public_folders import IMAGE_CONFIGS, SIDE, VIDEO_CONFIGS, save_clip, save_network, save_public

POOLER, TOKEN = "pooler", "token"


def expected_features(network, pixels, pool):
    """The features by transformers' own forward pass."""
    with torch.no_grad():
        if network.config.model_type == "vjepa2":
            return network.get_vision_features(pixels).mean(dim=1)
        output = network(pixels)
    if pool == POOLER:
        return output.pooler_output.flatten(1)
    if output.last_hidden_state.ndim == 4:
        return output.last_hidden_state.mean(dim=(2, 3))
    return output.last_hidden_state[:, 0] if pool == TOKEN else output.last_hidden_state.mean(dim=1)


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "kind",
    ["dinov2", "videomae", "vjepa2", *sorted({*IMAGE_CONFIGS, *VIDEO_CONFIGS} - {"dinov2", "videomae", "vjepa2"})],
)
def test_features_are_those_of_transformers_and_train_every_parameter(kind, tmp_path):
    network, _ = save_public(tmp_path, kind)
    modality = "video" if kind in VIDEO_CONFIGS else "image"
    encoder = create_encoder(f"hf/{tmp_path}", modality).eval()
    media = torch.randn(2, 3, 4, SIDE, SIDE) if modality == "video" else torch.randn(2, 3, SIDE, SIDE)
    if kind == "vit_mae":  # the network drops patches at random
        network.config.mask_ratio = network.embeddings.config.mask_ratio = 0.0
    features = encoder(media)
    assert features.shape == (2, encoder.dim)
    pixels = media.transpose(1, 2) if modality == "video" else media
    assert torch.allclose(features, expected_features(network, pixels, encoder.pool), atol=1e-5)
    features.square().sum().backward()
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert not [name for name, parameter in trained.items() if parameter.grad is None]


def test_a_network_of_images_reads_video_as_the_mean_over_frames(tmp_path):
    network, _ = save_public(tmp_path, "dinov2")
    video = torch.randn(2, 3, 4, SIDE, SIDE)
    expected = torch.stack([expected_features(network, frame, POOLER) for frame in video.unbind(2)]).mean(dim=0)
    assert torch.allclose(create_encoder(f"hf/{tmp_path}", "video").eval()(video), expected, atol=1e-5)


def test_clip_is_taken_without_its_text_and_with_its_projection_if_asked(tmp_path):
    network = save_clip(tmp_path)
    image = torch.randn(2, 3, SIDE, SIDE)
    plain = create_encoder(f"hf/{tmp_path}", "image").eval()
    projecting = create_encoder(f"hf/{tmp_path}", "image", projection=True).eval()
    with torch.no_grad():
        assert torch.allclose(plain(image), network.vision_model(image).pooler_output, atol=1e-5)
        projected = network.visual_projection(network.vision_model(image).pooler_output)
        assert torch.allclose(projecting(image), projected, atol=1e-5)
    assert (plain.dim, projecting.dim) == (32, 16)


def test_positions_are_interpolated_as_by_the_library(tmp_path):
    network, _ = save_public(tmp_path, "vit")
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = network(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert torch.allclose(create_encoder(f"hf/{tmp_path}", "image").eval()(images), expected, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    save_public(tmp_path, "dinov2")
    image = torch.randn(2, 3, SIDE, SIDE)
    gradients = []
    for checkpointing in (False, True):
        encoder = create_encoder(f"hf/{tmp_path}", "image", gradient_checkpointing=checkpointing)
        encoder(image).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    assert all(torch.allclose(first, second, atol=1e-6) for first, second in zip(*gradients, strict=True))


def test_drop_path_is_random_in_training_alone(tmp_path):
    save_public(tmp_path, "dinov2")
    encoder, image = create_encoder(f"hf/{tmp_path}", "image", drop_path=0.9), torch.randn(4, 3, SIDE, SIDE)
    assert not torch.equal(encoder(image), encoder(image))
    assert torch.equal(encoder.eval()(image), encoder(image))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_public(tmp_path / "pickle", "dinov2")
    (tmp_path / "pickle" / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pytorch_model.bin, which may run code .* pretrained: false"):
        create_encoder(f"hf/{tmp_path / 'pickle'}", "image")
    assert create_encoder(f"hf/{tmp_path / 'pickle'}", "image", pretrained=False).dim == 32
    save_public(tmp_path / "other", "dinov2")
    save_network(tmp_path / "resnet", "resnet")
    (tmp_path / "resnet" / "model.safetensors").replace(tmp_path / "other" / "model.safetensors")
    with pytest.raises(ValueError, match=r"its weights lack \d+ tensors of Dinov2Model"):
        create_encoder(f"hf/{tmp_path / 'other'}", "image")
    save_public(tmp_path / "changed", "dinov2")
    with pytest.raises(ValueError, match="as the recipe says"):
        create_encoder(f"hf/{tmp_path / 'changed'}", "image", sha256="0" * 64)


def test_a_config_json_chooses_no_other_weights_than_those_that_are_hashed(tmp_path):
    network, _ = save_public(tmp_path, "dinov2")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = expected_features(network, image, POOLER)
        assert torch.allclose(create_encoder(f"hf/{tmp_path}", "image").eval()(image), expected, atol=1e-5)
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="in place of the weights; remove it"):
        create_encoder(f"hf/{tmp_path}", "image")


def test_weights_in_several_files_are_read_and_hashed_together(tmp_path):
    network, _ = save_public(tmp_path / "one", "dinov2")
    save_public(tmp_path / "several", "dinov2")
    (tmp_path / "several" / "model.safetensors").unlink()
    network.save_pretrained(tmp_path / "several", max_shard_size="30KB")
    parts = sorted((tmp_path / "several").glob("*.safetensors"))
    assert len(parts) > 2
    image = torch.randn(2, 3, SIDE, SIDE)
    expected = create_encoder(f"hf/{tmp_path / 'one'}", "image").eval()(image)
    options = public.resolved_options(f"hf/{tmp_path / 'several'}", {})
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in parts]
    assert options["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert torch.equal(create_encoder(modality="image", **options).eval()(image), expected)
    for path in (parts[0], parts[-1]):  # a change of any part is seen
        content = path.read_bytes()
        tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(ValueError, match="as the recipe says"):
            create_encoder(modality="image", **options)
        path.write_bytes(content)
    parts[1].unlink()
    with pytest.raises(ValueError, match=rf"lists '{parts[1].name}', which is not in"):
        create_encoder(f"hf/{tmp_path / 'several'}", "image")


@pytest.mark.parametrize(
    "name", ["../one/model.safetensors", "/tmp/model.safetensors", "weights.bin", "sub/a.safetensors"]
)
def test_an_index_of_weights_leads_to_no_other_folder_and_no_other_kind_of_file(name, tmp_path):
    save_public(tmp_path / "one", "resnet")
    save_public(tmp_path / "several", "resnet")
    (tmp_path / "several" / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"embedder.embedder.convolution.weight": name}}
    (tmp_path / "several" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json lists '{name}', which is not in"):
        create_encoder(f"hf/{tmp_path / 'several'}", "image")


def test_embeddings_with_another_pool_belong_into_another_folder(tmp_path):
    save_public(tmp_path, "dinov2")
    found = []
    for pool in ("token", "mean"):
        embedder = Embedder.from_run(f"hf/{tmp_path}", changes=[f"encoders.image.pool={pool}"])
        found.append(embedder.settings(None, None, ["image"]))
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0] != found[1]


def test_a_cut_file_of_weights_and_a_variable_in_a_config_json_are_refused(tmp_path):
    save_public(tmp_path / "cut", "dinov2")
    (tmp_path / "cut" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        create_encoder(f"hf/{tmp_path / 'cut'}", "image")
    save_public(tmp_path / "asks", "dinov2")
    config = json.loads((tmp_path / "asks" / "config.json").read_text())
    (tmp_path / "asks" / "config.json").write_text(json.dumps(config | {"note": ["${oc.env:HOME}"]}))
    with pytest.raises(ValueError, match="its files hold"):
        public.resolved_options(f"hf/{tmp_path / 'asks'}", {})


def test_a_model_of_another_modality_or_of_code_of_its_own_is_refused(tmp_path):
    save_public(tmp_path / "video", "videomae")
    with pytest.raises(ValueError, match="it is to encode image; it encodes video"):
        create_encoder(f"hf/{tmp_path / 'video'}", "image")
    text = {"model_type": "bert", "hidden_size": 8}
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="'bert'"):
        create_encoder(f"hf/{tmp_path / 'text'}", "image")
    (tmp_path / "text" / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoModel": "mine.Net"}})
    )
    with pytest.raises(ValueError, match="code of its own"):
        create_encoder(f"hf/{tmp_path / 'text'}", "image")
    with pytest.raises(ValueError, match="neither a folder here nor ORG/NAME"):
        create_encoder("hf/nothing", "image")


def test_options_that_a_network_does_not_have_are_refused(tmp_path):
    save_public(tmp_path, "resnet")
    for options, message in (
        ({"drop_path": 0.1}, "no drop path"),
        ({"gradient_checkpointing": True}, "no gradient checkpointing"),
        ({"pool": "token"}, "it may be pooler"),
        ({"projection": True}, "projection is for clip"),
        ({"pol": "mean"}, "did you mean 'pool'"),
    ):
        with pytest.raises(ValueError, match=message):
            create_encoder(f"hf/{tmp_path}", "image", **options)


def test_it_is_built_again_from_its_options_alone(tmp_path):
    network, _ = save_public(tmp_path / "model", "dinov2")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n")
    options = public.resolved_options(f"hf/{tmp_path / 'model'}", {"drop_path": 0.1})
    assert (options["license"], len(options["sha256"])) == ("apache-2.0", 64)
    first = create_encoder(modality="image", **options)
    for path in (tmp_path / "model").iterdir():
        path.unlink()
    (tmp_path / "model").rmdir()
    second = create_encoder(modality="image", **{**options, "pretrained": False})
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(first.eval()(image), second.eval()(image))
    assert torch.allclose(second(image), expected_features(network, image, POOLER), atol=1e-5)


def test_every_supported_type_has_a_test():
    assert set(vision.IMAGE_POOLS) == set(IMAGE_CONFIGS)
    assert set(vision.VIDEO_POOLS) == set(VIDEO_CONFIGS)
    assert set(vision.WITH_TEXT) <= set(transformers.CONFIG_MAPPING)
