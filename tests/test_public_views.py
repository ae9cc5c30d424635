"""Views follow public models: they are what processors and timm make of the same frames; what does not fit is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from avssl import config, losses
from avssl.config import RunConfig
from avssl.models import public
from avssl.public_models import provenance_of, settle
from avssl.transforms.config import ImageViewConfig, VideoViewConfig
from avssl.transforms.crop import center_crop_box, crop_resize
from avssl.transforms.frame_tensors import normalize, to_float
from avssl.transforms.test_view import frames_of_test_view
from tests.public_folders import PROCESSORS, SIDE, VIDEO_CONFIGS, save_network, save_public

OTHERS = sorted({*PROCESSORS} - {"beit", "clip", "dinov2", "siglip", "vjepa2"})


def noisy_frames(height, width, count=2):
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def section_of(name, modality, **options):
    """The views of a modality as a model demands them."""
    schema = VideoViewConfig if modality == "video" else ImageViewConfig
    values = public.requirements(name, modality, options)
    return schema(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def settled(*arguments, loss="simclr"):
    """(the configuration, the lines that are printed)."""
    cfg = config.parse(RunConfig, [f"loss.name={loss}", *arguments])
    return cfg, settle(cfg, losses.get(loss).views(cfg.loss))


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "kind", ["dinov2", "vjepa2", "beit", *sorted({*PROCESSORS} - {"beit", "clip", "dinov2", "siglip", "vjepa2"})]
)
def test_the_test_view_is_what_the_processor_makes_of_the_frames(kind, tmp_path):
    _, processor = save_public(tmp_path, kind)
    modality = "video" if kind in VIDEO_CONFIGS else "image"
    section = section_of(f"hf/{tmp_path}", modality)
    for height, width in ((61, 90), (90, 61), (48, 48), (40, 47)):
        frames = noisy_frames(height, width, 4)
        if kind == "vjepa2":
            theirs = processor(videos=[frames], return_tensors="pt", do_sample_frames=False)["pixel_values_videos"][0]
        elif kind == "vivit":
            theirs = processor(list(frames.movedim(1, -1).numpy()), return_tensors="pt")["pixel_values"][0]
        else:
            theirs = processor(list(frames), return_tensors="pt")["pixel_values"].reshape(4, 3, SIDE, SIDE)
        ours = normalize(to_float(frames_of_test_view(frames, section)), section.mean, section.std)
        # DINOv3 resizes numbers that are no longer rounded to 8 bits; ViViT's images go through Pillow.
        tolerance = 1.01 / 255 / min(section.std) if kind in ("dinov3_vit", "vivit") else 1e-5
        assert (ours - theirs).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "resnet18.a1_in1k", "vit_base_patch16_siglip_224.webli"])
def test_the_test_view_is_what_timm_makes_of_the_image(name):
    section = section_of(f"timm/{name}", "image")
    data = timm.data.resolve_data_config({}, pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**data, is_training=False)
    for height, width in ((250, 333), (333, 251)):
        frame = noisy_frames(height, width, 1)
        ours = normalize(to_float(frames_of_test_view(frame, section)), section.mean, section.std)[0]
        difference = (ours - transform(Image.fromarray(frame[0].movedim(0, -1).numpy()))).abs()
        step = 1 / 255 / min(section.std)  # Pillow rounds some values of 8 bits otherwise
        assert difference.max() <= 1.01 * step
        assert (difference > 1e-5).float().mean() < 0.01


def test_the_default_test_view_is_as_before():
    frames = noisy_frames(61, 90)
    expected = crop_resize(frames, center_crop_box(61, 90), 32)
    assert torch.equal(frames_of_test_view(frames, ImageViewConfig(size_px=32)), expected)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixel = normalize(to_float(frames), ImageViewConfig().mean, ImageViewConfig().std)[0, :, 0, 0].double().numpy()
    np.testing.assert_allclose(pixel, (frames[0, :, 0, 0].numpy() / 255 - mean) / std, atol=1e-6)


@pytest.mark.slow
def test_keys_that_the_recipe_leaves_open_come_from_the_model_and_stand_in_the_configuration(tmp_path):
    save_public(tmp_path, "dinov2")
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: research-only\n---\n")
    cfg, lines = settled(f"encoders.image={{name: hf/{tmp_path}}}")
    views = cfg.views.image
    assert (views.size_px, views.test_resize, views.test_resize_px) == (SIDE, "short_side", SIDE + 5)
    assert views.interpolation == "bicubic"
    assert any(line.startswith(f"views.image.size_px={SIDE} as hf/") for line in lines)
    assert cfg.encoders["image"]["license"] == "research-only"
    facts = provenance_of(cfg, ["image"])
    assert facts["license"] == "research-only"
    assert facts["public_models"]["image"]["sha256"] == cfg.encoders["image"]["sha256"]
    assert facts["public_models"]["image"]["views"]["mean"] == list(views.mean)
    path = tmp_path / "config.yaml"
    config.save(cfg, path)
    assert config.parse(RunConfig, [str(path)]) == cfg


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("views.video.num_frames=8", r"views.video.num_frames is 8, which does not fit hf/.*; leave it out, or set 4"),
        ("views.video.size_px=64", "views.video.size_px is 64, .* or set 32"),
        ("views.video.mean=[0.1,0.2,0.3]", r"views.video.mean is .*0.1.* or set \[0.5, 0.5, 0.5\]"),
        ("views.video.test_resize=crop", "views.video.test_resize is 'crop', .* or set short_side"),
    ],
)
def test_a_key_of_the_recipe_that_does_not_fit_is_refused_with_the_value_that_does(change, message, tmp_path):
    save_public(tmp_path, "videomae")
    arguments = [f"encoders.video={{name: hf/{tmp_path}}}", "loss.modalities=[video,video]"]
    cfg, _ = settled(*arguments)
    assert (cfg.views.video.num_frames, cfg.views.video.size_px) == (4, SIDE)
    with pytest.raises(ValueError, match=message):
        settled(*arguments, change)


def test_wrong_options_and_other_weights_are_refused_before_a_run_begins(tmp_path):
    save_public(tmp_path, "dinov2")
    with pytest.raises(ValueError, match="did you mean 'pool'"):
        settled(f"encoders.image={{name: hf/{tmp_path}, poool: mean}}")
    with pytest.raises(ValueError, match="and not 'abc'"):
        settled(f"encoders.image={{name: hf/{tmp_path}, sha256: abc}}")


@pytest.mark.slow
def test_another_size_is_taken_where_the_network_interpolates(tmp_path):
    save_public(tmp_path, "dinov2")
    name = f"encoders.image={{name: hf/{tmp_path}}}"
    cfg, _ = settled(name, "views.image.size_px=64")
    assert (cfg.views.image.size_px, cfg.views.image.test_resize_px) == (64, round(64 * (SIDE + 5) / SIDE))
    with pytest.raises(ValueError, match="a multiple of 8, such as 32"):
        settled(name, "views.image.size_px=60")
    cfg, _ = settled("encoders.image={name: timm/test_vit}", "views.image.size_px=224")
    assert cfg.views.image.size_px == 224  # the default, but said


def test_small_crops_are_refused_by_a_network_of_one_size(tmp_path):
    save_public(tmp_path, "hiera")
    with pytest.raises(ValueError, match="takes 32 px only"):
        settled(f"encoders.image={{name: hf/{tmp_path}}}", loss="swav")


def test_a_processor_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    save_public(tmp_path / "sizes", "hiera")
    save_public(tmp_path / "other", "vit")
    processor = tmp_path / "sizes" / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("32", "48"))
    with pytest.raises(ValueError, match="makes images of 48 px, and its network takes 32 px only"):
        settled(f"encoders.image={{name: hf/{tmp_path / 'sizes'}}}")
    path = tmp_path / "other" / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"resample": 2', '"resample": 1'))
    with pytest.raises(ValueError, match=r"Pillow's resampling 1; views can do bilinear \(2\) and bicubic \(3\)"):
        settled(f"encoders.image={{name: hf/{tmp_path / 'other'}}}")
    path.unlink()
    with pytest.raises(ValueError, match=r"its processor.*cannot be read: .*preprocessor_config.json"):
        settled(f"encoders.image={{name: hf/{tmp_path / 'other'}}}")
    save_public(tmp_path / "flipping", "vit")
    real = public.preprocess
    monkeypatch.setattr(public, "preprocess", lambda *arguments: real(*arguments).flip(1))  # blue, green, red
    with pytest.raises(ValueError, match="does something to frames of 90 x 131 px that views cannot do"):
        settled(f"encoders.image={{name: hf/{tmp_path / 'flipping'}}}")


def test_without_weights_nothing_but_the_size_is_demanded(tmp_path):
    save_network(tmp_path, "vit")
    cfg, _ = settled(f"encoders.image={{name: hf/{tmp_path}, pretrained: false}}", "views.image.mean=[0.1,0.2,0.3]")
    assert cfg.views.image == dataclasses.replace(ImageViewConfig(), size_px=SIDE, mean=(0.1, 0.2, 0.3))
    assert "sha256" not in cfg.encoders["image"]
