"""One folder to pass on: it embeds bit for bit as the run does, says what it is, and goes to a hub and back."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import avssl
from avssl import checkpoint, config, losses
from avssl.checkpoint.hub import FILES, locate
from avssl.exchange import folder as folders
from avssl.exchange.__main__ import main, parse
from avssl.exchange.card import card
from avssl.losses.configs import CONFIGURATIONS, CaptionConfig
from avssl.models import create_encoder
from avssl.train.monitor import data_facts
from avssl.transforms.raw_view import RawView
from tests.conftest import run_python
from tests.hub import model_hub
from tests.made_runs import NUM_SAMPLES, SMALL_AVID, made_run

NAMES = {"config.json", "provenance.json", "model.safetensors", "README.md"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "avid", "loss.name=avid", *SMALL_AVID)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exchange") / "avid-small"
    main(["export", str(run), "--out", str(out)])
    return out


def raw_views():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return {
        "video": RawView("video", frames),
        "audio": RawView("audio", torch.randn(3, 1, 12_000, generator=generator)),
    }


def assert_same_embeddings(embedder, expected):
    """Bit for bit, features and embeddings."""
    assert embedder.modalities == expected.modalities
    for modality, raw in raw_views().items():
        for ours, theirs in zip(embedder.encode(modality, raw), expected.encode(modality, raw), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_folder_embeds_bit_for_bit_as_the_run(run, folder):
    assert {path.name for path in folder.iterdir()} == NAMES == set(FILES)
    ours, theirs = avssl.load_embedder(str(run)), avssl.load_embedder(str(folder))
    assert_same_embeddings(ours, theirs)
    assert ours.weights_hash == theirs.weights_hash


@pytest.mark.slow
def test_a_trained_run_embeds_files_the_same_from_its_folder(tiny_run, shards, tmp_path):
    main(["export", str(tiny_run), "--out", str(tmp_path / "folder")])
    tables = [avssl.load_embedder(str(place)).embed(shards["test"])[0] for place in (tiny_run, tmp_path / "folder")]
    for name in ("video_embedding", "audio_embedding", "video_feature", "audio_feature"):
        np.testing.assert_array_equal(getattr(tables[0], name), getattr(tables[1], name))
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "steps: 3" in card


@pytest.mark.slow
def test_the_configuration_is_the_runs_but_for_the_paths_of_its_machine(run, folder):
    ours, theirs = config.load_run(run), config.load_run(folder)
    assert (theirs.run, theirs.data.shards) == ("", "")
    theirs.run, theirs.data.shards = ours.run, ours.data.shards
    assert ours == theirs
    assert "somewhere" not in "".join((folder / name).read_text() for name in NAMES - {"model.safetensors"})


HERE = "/home/alice/private/last"
SIGNED = "https://alice:password@alice.example/alice/last?X-Amz-Signature=alice,alice"


def filled(kind, value, text):
    """A value of a configuration with `text` in place of every text that it may hold."""
    if dataclasses.is_dataclass(value):
        copied, kinds = copy.copy(value), get_type_hints(type(value))
        for item in dataclasses.fields(value):
            vars(copied)[item.name] = filled(kinds[item.name], getattr(value, item.name), text)
        return copied
    options = {"name": f"hf/{text}", "weights": text, "deeper": {"list": [text]}}
    kinds = {str: text, Any: [{"path": text, "keys": text}], dict[str, Any]: options}
    kinds |= {list[str]: [text], tuple[str, ...]: [text], list[Any]: [{"file": text}]}
    return kinds.get(kind, {"video": options} if kind == dict[str, dict[str, Any]] else value)


@pytest.mark.parametrize("text", [HERE, SIGNED])
@pytest.mark.parametrize("loss", [*CONFIGURATIONS, "made"])
def test_no_key_of_a_configuration_lets_a_path_out(loss, text):
    @dataclasses.dataclass
    class MadeConfig(CaptionConfig):
        file_of_a_plugin: str = ""

    cfg = config.RunConfig(loss=CONFIGURATIONS.get(loss, MadeConfig)())
    given = filled(config.RunConfig, cfg, text)
    assert json.dumps(dataclasses.asdict(given)).count("alice") > 12
    assert "alice" not in json.dumps(folders._shared_config(given))


def test_paths_and_secrets_of_addresses_leave_neither_in_the_provenance_nor_on_the_card(tmp_path):
    facts = {
        "data": {
            "shards": [{"shards": text, "num_samples": 1, "fingerprint": "f"} for text in (HERE, SIGNED)],
            "fingerprint": "f",
            "num_samples": 2,
        },
        "public_models": {"video": {"name": f"hf/{HERE}"}, "text": {"name": "hf/org/clip@0123"}},
        "init_from": SIGNED,
        "anything else": {"of": [HERE, SIGNED]},
        "license_note": "see https://example.org/terms",
    }
    changes = [f"data.cache_decoded_dir={HERE}", f"probe.shards={HERE}"]
    run = made_run(tmp_path / "run", "loss.name=avid", *SMALL_AVID, *changes, provenance=facts)
    (run / "evaluation.json").write_text(
        json.dumps({"results": {"trained": {"top1": 0.5}}, "data": {"train": SIGNED, "test": HERE}})
    )
    folder = folders.export_folder(run, tmp_path / "folder")
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}
    assert not [name for name, text in texts.items() if "alice" in text]
    assert "`last` (1) and `last` (1)" in texts["README.md"]
    content = json.loads(texts["config.json"])
    assert content["probe"]["shards"] == content["data"]["cache_decoded_dir"] == ""
    provenance = json.loads(texts["provenance.json"])
    assert provenance["public_models"] == {"video": {"name": "hf/last"}, "text": {"name": "hf/org/clip@0123"}}
    assert provenance["license_note"].startswith("see https://example.org/terms; the license of last, from which")


def test_the_card_names_a_folder_of_a_public_model_by_its_last_part(run):
    cfg, provenance = config.load_run(run), checkpoint.read_provenance(run)
    cfg.encoders["video"] |= {"name": f"hf/{HERE}", "architecture": {"from": HERE}}
    text = card(cfg, provenance | {"data": {**provenance["data"], "shards": SIGNED}, "init_from": ""}, {}, "title")
    assert "alice" not in text
    assert "encoder `hf/last`" in text


def test_the_provenance_of_a_run_has_no_secret_of_an_address():
    shards = SimpleNamespace(location=SIGNED, parts=[None], fingerprint="f", num_samples=1, index=mock.Mock())
    assert data_facts(shards)["shards"].startswith("https://alice.example/alice/last")
    assert "Signature" not in data_facts(shards)["shards"]


def test_everyone_who_may_read_new_files_may_read_the_weights(folder):
    rights = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(set(rights.values())) == 1, rights


@pytest.mark.slow
def test_a_folder_of_a_folder_is_equal(folder, tmp_path):
    main(["export", str(folder), "--out", str(tmp_path / "avid-small")])
    for name in NAMES:
        assert (tmp_path / "avid-small" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.slow
def test_state_of_the_samples_stays_behind_unless_asked_for(run, folder, tmp_path):
    kept = load_file(folder / "model.safetensors")
    assert all(name.startswith(("loss.encoders.", "loss.projectors.", "views.")) for name in kept)
    main(["export", str(run), "--out", str(tmp_path / "whole"), "--with-state"])
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert whole.keys() - kept.keys() == {"loss.banks.video.rows", "loss.banks.audio.rows", "loss.partition"}
    assert whole.keys() == checkpoint.read_weights(run).keys()


@pytest.mark.slow
def test_a_run_starts_from_a_folder(run, folder, tmp_path):
    main(["export", str(run), "--out", str(tmp_path / "whole"), "--with-state"])
    weights = checkpoint.read_weights(run)
    for source, banks in ((folder, False), (tmp_path / "whole", True)):
        cfg = config.load_run(run)
        loss = losses.get("avid")(
            cfg.loss, {m: create_encoder(**cfg.encoders[m]) for m in ("video", "audio")}, NUM_SAMPLES
        )
        loss.banks["video"].rows.zero_()
        report = checkpoint.inherit(loss, source, fingerprint="abc")
        assert ("banks.video.rows" in report["loaded"]) == banks
        assert torch.equal(loss.banks["video"].rows, weights["loss.banks.video.rows"]) == banks
        assert torch.equal(loss.encoders["audio"].conv1[0].weight, weights["loss.encoders.audio.conv1.0.weight"])


@pytest.mark.slow
def test_the_recipe_embeds_with_a_folder(folder, shards, tmp_path):
    run_python("recipes/embed.py", str(folder), shards["test"], "--out", str(tmp_path), "--num-workers", "0")
    assert list(tmp_path.glob("*.parquet"))


def test_the_card_says_what_the_run_knows(tmp_path):
    run = made_run(tmp_path / "run", "loss.name=avid", *SMALL_AVID, "optim.lr=0.003")
    evaluation = {
        "chance": {"video_knn_label": 0.1},
        "results": {"trained": {"video_knn_label": 0.625}, "untrained": {"video_knn_label": 0.25}},
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    by_task = {
        "results": {"trained": {"top1_accuracy": 0.5}, "untrained": {"top1_accuracy": 0.0}},
        "deviation": {"trained": {"top1_accuracy": 0.03}},
        "data": {"train": "/home/me/ucf/train", "test": "/home/me/ucf/test"},
    }
    (run / "evaluations").mkdir()
    (run / "evaluations" / "knn-ucf.json").write_text(json.dumps(by_task))
    main(["export", str(run), "--out", str(tmp_path / "nice-name"), "--license", "apache-2.0"])
    card = (tmp_path / "nice-name" / "README.md").read_text()
    for words in (
        "license: apache-2.0",
        "# nice-name",
        "**apache-2.0**",
        "`avid` (Morgado et al. 2021, arXiv 2004.12943)",
        f"{NUM_SAMPLES} samples, `shards` (fingerprint `abc`)",
        "steps: 7, samples seen: 56",
        "learning rate 0.003",
        "| video_knn_label | 0.6250 | 0.2500 | 0.1000 |",
        "knn-ucf, train `train`, test `test`:",
        "| top1_accuracy | 0.5000 ± 0.0300 | 0.0000 |  |",
        "started from: audio from random weights, video from random weights",
        'avssl.load_embedder("nice-name")',
        "4 frames at 16 per second, 32 px, encoder `avid_video`, depth 10, width 4",
    ):
        assert words in card, words


def test_the_header_of_the_card_is_yaml_of_the_license_itself(folder, run):
    facts = checkpoint.read_provenance(folder)
    for text, read in (("Mine \U0001f3ac", "mine \U0001f3ac"), ("\u2028\x9f\ud800", "\\u2028\\x9f\\ud800")):
        written = card(config.load_run(run), {**facts, "license": text}, {}, "title")
        assert yaml.safe_load(written.split("---\n")[1].encode())["license"] == read


@pytest.mark.parametrize("text", ["No", "null", "1.0", "apache-2.0"])
def test_a_license_of_the_card_is_read_as_the_word_that_it_is(text, folder, run):
    written = card(config.load_run(run), {**checkpoint.read_provenance(folder), "license": text}, {}, "title")
    assert yaml.safe_load(written.split("---\n")[1])["license"] == text.lower()


def test_the_card_says_what_is_not_known(folder):
    card = (folder / "README.md").read_text()
    assert "license: unknown" in card
    assert "Not stated by whoever trained these weights." in card
    assert "None are stored with this run." in card


@pytest.mark.slow
def test_a_license_of_the_weights_cannot_be_changed(tmp_path):
    facts = {"license": "CC-BY-NC-4.0", "license_note": "no commercial use"}
    run = made_run(tmp_path / "run", "loss.name=avid", *SMALL_AVID, provenance=facts)
    with pytest.raises(SystemExit, match=r"licensed CC-BY-NC-4\.0"):
        main(["export", str(run), "--out", str(tmp_path / "out"), "--license", "mit"])
    assert not (tmp_path / "out").exists()
    main(["export", str(run), "--out", str(tmp_path / "out"), "--license", "cc-by-nc-4.0"])  # as hubs write it
    assert "**CC-BY-NC-4.0**: no commercial use" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_in_use_is_left_alone(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not empty"):
        main(["export", str(run), "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub of one model, beside whose files lies one that nobody wants."""
    shutil.copytree(folder, tmp_path / "avid-small")
    (tmp_path / "avid-small" / "huge-and-not-wanted.bin").write_bytes(b"huge")
    with model_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["someone/avid-small"] = dict.fromkeys(("main", COMMIT), (COMMIT, tmp_path / "avid-small"))
        yield hub


@pytest.mark.slow
@pytest.mark.parametrize("name", ["someone/avid-small", "hf://someone/avid-small", "hf://someone/avid-small@main"])
def test_a_model_of_a_hub_embeds_bit_for_bit_as_the_run(name, hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_same_embeddings(avssl.load_embedder(str(run)), avssl.load_embedder(name))
    fetched = {path.rsplit("/", 1)[1] for path in hub.requests if "/resolve/" in path}
    assert fetched == NAMES


def test_a_model_of_something_else_is_refused(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    hub.repositories["someone/avid-small"] = dict.fromkeys(("main", COMMIT), (COMMIT, tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"no model of avssl: it has no provenance.json, model.safetensors"):
        avssl.load_embedder("someone/avid-small")


def test_what_neither_is_here_nor_at_the_hub_is_one_clear_error(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="runs/avid_cma is no folder here, and the hub did not give it"):
        avssl.load_embedder("runs/avid_cma")


def test_only_names_of_a_hub_are_asked_for_there(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", mock.Mock(side_effect=AssertionError("asked")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "avid").mkdir(parents=True)
    assert locate("runs/avid") == Path("runs/avid")
    with pytest.raises(SystemExit, match="runs/none"):
        main(["export", "runs/none", "--out", "out"])
    for name in ("avid", "./runs/none", "/runs/none", "a/b/c", "../runs/none"):
        assert locate(name) == Path(name)
    with pytest.raises(ValueError, match="write hf://owner/name"):
        locate("hf://avid")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'avssl\[hub\]'"):
        avssl.load_embedder("someone/avid-small")


def test_push_makes_the_repository_and_uploads_the_four_files(folder, monkeypatch, capsys):
    """Against an object with the real client's signatures: a call that it would not take fails."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.upload_folder.return_value = "the commit"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    (folder / "secret.txt").write_text("not to be uploaded")
    main(["push", str(folder), "someone/avid-small", "--private"])
    (folder / "secret.txt").unlink()
    api.create_repo.assert_called_once_with("someone/avid-small", private=True, exist_ok=True, repo_type="model")
    sent = api.upload_folder.call_args.kwargs
    assert (sent["repo_id"], Path(sent["folder_path"])) == ("someone/avid-small", folder)
    assert set(sent["allow_patterns"]) == NAMES
    assert "the commit" in capsys.readouterr().out


def test_push_without_a_hub_ends_with_one_line(folder, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.side_effect = RuntimeError("[Errno -2] Name\nnot known")  # as of its transport's own class
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(SystemExit, match=r"the hub did not take .* as someone/avid: \[Errno -2\] Name not known"):
        main(["push", str(folder), "someone/avid"])


def test_push_refuses_what_is_no_exchange_folder(run, tmp_path):
    with pytest.raises(SystemExit, match=r"has no config.json, model.safetensors, README.md; write it first"):
        main(["push", str(run), "someone/avid"])


def test_the_commands_of_the_page_are_accepted():
    page = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text()
    commands = [line.split()[2:] for line in page.splitlines() if line.startswith("avssl exchange ")]
    assert {command[0] for command in commands} == {"import", "export", "push"}
    for command in commands:
        parse([*command])  # leaves with status 2 for an option that is not there
