"""Names of public models: pinned to the commit that the hub has, read from the cache, or refused."""

from __future__ import annotations

import hashlib

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from avssl import config, losses
from avssl.models import create_encoder, public
from avssl.public_models import provenance_of, settle
from tests.hub import model_hub
from tests.public_folders import SIDE, save_public

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of models; the test fills its repositories."""
    monkeypatch.chdir(tmp_path)
    with model_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def test_a_name_of_the_hub_is_pinned_and_the_weights_are_those_of_its_commit(hub, tmp_path):
    for number, name in enumerate(("new", "old")):
        save_public(tmp_path / name, "dinov2")
        weights = load_file(tmp_path / name / "model.safetensors")
        save_file({key: value + number for key, value in weights.items()}, tmp_path / name / "model.safetensors")
    (tmp_path / "new" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "new" / "pytorch_model.bin").write_bytes(b"not wanted")
    new, old = (COMMIT, tmp_path / "new"), (OLDER, tmp_path / "old")
    hub.repositories["someone/dino"] = {"main": new, COMMIT: new, "v1": old, OLDER: old}
    section = public.resolved_options("hf/someone/dino", {})
    assert (section["name"], section["license"]) == (f"hf/someone/dino@{COMMIT}", "mit")
    digest = hashlib.sha256((tmp_path / "new" / "model.safetensors").read_bytes()).hexdigest()
    assert section["sha256"] == digest
    assert not [path for path in hub.requests if path.endswith(".bin")]
    image = torch.randn(1, 3, SIDE, SIDE)
    ours = create_encoder(modality="image", **section).eval()(image)
    assert torch.equal(ours, create_encoder(f"hf/{tmp_path / 'new'}", "image").eval()(image))
    older = create_encoder("hf/someone/dino@v1", "image").eval()(image)
    assert torch.equal(older, create_encoder(f"hf/{tmp_path / 'old'}", "image").eval()(image))
    with pytest.raises(ValueError, match="as the recipe says"):
        create_encoder(modality="image", **{**section, "name": "hf/someone/dino@v1"})


def test_offline_the_cache_is_read_and_the_hub_is_not_asked(hub, tmp_path, monkeypatch):
    save_public(tmp_path / "new", "dinov2")
    hub.repositories["someone/dino"] = {"main": (COMMIT, tmp_path / "new"), COMMIT: (COMMIT, tmp_path / "new")}
    online = public.resolved_options("hf/someone/dino", {})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert public.resolved_options("hf/someone/dino", {}) == online
    assert create_encoder(modality="image", **online).dim == 32
    assert not hub.requests
    with pytest.raises(FileNotFoundError, match="someone/other is no folder here"):
        create_encoder("hf/someone/other", "image")


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["@v1", "", "@main"])
def test_a_run_that_goes_on_has_the_commit_that_it_began_with_and_asks_no_hub(asked, hub, tmp_path, monkeypatch):
    save_public(tmp_path / "old", "dinov2")
    old = (COMMIT, tmp_path / "old")
    hub.repositories["someone/dino"] = {"main": old, "v1": old, COMMIT: old}
    run = tmp_path / "run"

    def begun(name):
        cfg = config.parse(config.RunConfig, ["loss.name=simclr", f"run={run}", f"encoders.image={{name: {name}}}"])
        settle(cfg, losses.get("simclr").views(cfg.loss))
        return cfg

    first = begun(f"hf/someone/dino{asked}")
    assert first.encoders["image"]["name"] == f"hf/someone/dino@{COMMIT}"
    (run / "step_000001").mkdir(parents=True)
    monkeypatch.setattr("avssl.public_models.checkpoints", lambda folder: [folder / "step_000001"])
    config.save(first, run / "config.yaml")
    save_public(tmp_path / "new", "vit")
    new = (OLDER, tmp_path / "new")
    hub.repositories["someone/dino"] = {"main": new, "v1": new, "v2": new, OLDER: new}  # the branch has moved on
    hub.requests.clear()
    for name in (f"hf/someone/dino{asked}", f"hf/someone/dino@{COMMIT}"):
        again = begun(name)
        assert (again.encoders, again.views) == (first.encoders, first.views)
        config.check_unchanged(again, run)
    assert not hub.requests
    other = begun("hf/someone/dino@v2")  # the hub is asked, for this is another model
    with pytest.raises(ValueError, match=rf"encoders\.image\.name: .*{COMMIT}' then, .*{OLDER}' now"):
        config.check_unchanged(other, run)


@pytest.mark.slow
def test_a_folder_with_an_at_sign_is_no_revision(tmp_path):
    folder = tmp_path / "model@v1"
    save_public(folder, "dinov2")
    cfg = config.parse(
        config.RunConfig, ["loss.name=simclr", f"run={tmp_path}", f"encoders.image={{name: hf/{folder}}}"]
    )
    settle(cfg, losses.get("simclr").views(cfg.loss))
    assert cfg.encoders["image"]["name"] == f"hf/{folder}"
    assert "requested_revision" not in cfg.encoders["image"]
    facts = provenance_of(cfg, ["image"])["public_models"]["image"]
    assert (facts["name"], facts["revision"], len(facts["sha256"])) == (f"hf/{folder}", "", 64)


def test_a_wrong_name_or_revision_is_one_clear_error(hub, tmp_path):
    save_public(tmp_path / "new", "dinov2")
    hub.repositories["someone/dino"] = {"main": (COMMIT, tmp_path / "new")}
    with pytest.raises(FileNotFoundError, match=r"someone/dino is no folder here, .* at revision v9"):
        create_encoder("hf/someone/dino@v9", "image")
    with pytest.raises(FileNotFoundError, match="someone/other is no folder here"):
        create_encoder("hf/someone/other", "image")


def test_published_weights_of_timm_come_from_the_hub_as_safetensors(hub, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    encoder = create_encoder("timm/test_vit", "image")
    import timm

    net = timm.create_model("test_vit.r160_in1k")
    net.load_state_dict({**net.state_dict(), **encoder.net.state_dict()})
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    hub.repositories["timm/test_vit.r160_in1k"] = {"main": (COMMIT, folder), COMMIT: (COMMIT, folder)}
    section = public.resolved_options("timm/test_vit.r160_in1k", {})
    assert (section["name"], section["pretrained"]) == (f"timm/test_vit.r160_in1k@{COMMIT}", True)
    assert section["license"] == "apache-2.0"
    image = torch.randn(1, 3, 160, 160)
    loaded = create_encoder(modality="image", **section).eval()
    assert torch.equal(loaded(image), encoder.eval()(image))
    audio = create_encoder(modality="audio", **section).eval()
    assert audio(torch.randn(1, 1, 200, 129)).shape == (1, 64)
    assert torch.allclose(
        audio.net.patch_embed.proj.weight, net.patch_embed.proj.weight.sum(1, keepdim=True), atol=1e-6
    )
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.repositories["timm/test_vit.r160_in1k"] = {"main": (OLDER, folder), OLDER: (OLDER, folder)}
    with pytest.raises(ValueError, match=r"has no weights; weights must be model.safetensors"):
        create_encoder("timm/test_vit.r160_in1k", "image")
