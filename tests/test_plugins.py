"""Parts of the user's own: plugin files and packages, what a run says about them, and the registries they are in."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import avssl
from avssl import config, losses
from avssl.data.loader import Loader, LoaderConfig
from avssl.eval import registry as tasks
from avssl.eval.outcome import TaskConfig
from avssl.models import ENCODERS, create_encoder, register_encoder
from avssl.plugins import files, required
from avssl.plugins import registry as plugin_registry
from avssl.plugins.files import PluginError
from avssl.plugins.registry import Registry, UnknownNameError
from avssl.processes.worker_server import worker_context
from avssl.shards.shard_set import ShardSet
from avssl.train.run_folder import plugins_of
from avssl.transforms import register_augment
from avssl.transforms.config import ImageViewConfig, ViewsConfig, check_views
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.own import AUGMENTS, apply_augment
from avssl.transforms.view_maker import ViewMaker
from avssl.types import View
from tests.conftest import ROOT, run_python

pytestmark = pytest.mark.usefixtures("own_registries")

LOSS = """
    from dataclasses import dataclass
    from avssl.losses import get, register
    SimCLR = get("simclr")

    @dataclass
    class MineConfig(SimCLR.Config):
        strength: float = 2.0

    @register("mine")
    class Mine(SimCLR):
        Config = MineConfig
"""
AUGMENT = """
    import torch
    from avssl.transforms import register_augment

    @register_augment("dotted", "image")
    def dotted(frames, generator):
        row, column = (int(generator.integers(side)) for side in frames.shape[2:])
        frames[..., row, column] = torch.randint(256, (), dtype=torch.uint8)
        return frames
"""


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


# Registries


def test_the_registries_share_one_behavior():
    def of_loss(name):
        return losses.register(name)(type("Own", (losses.Loss,), {"__module__": "mine"}))

    def of_encoder(name):
        return register_encoder(name, modality="image")(type("Own", (torch.nn.Module,), {"__module__": "mine"}))

    def of_task(name):
        return tasks.register_task(name)(lambda embedder, config: None)

    def of_augment(name):
        return register_augment(name, "image")(lambda frames, generator: frames)

    found = {
        "loss": (of_loss, losses.get, "simclr"),
        "encoder": (of_encoder, create_encoder, "resnet18"),
        "task": (of_task, tasks.get, "knn"),
        "augment": (of_augment, AUGMENTS.find, "simclr"),
    }
    for kind, (register, find, taken) in found.items():
        register("of_my_own")
        with pytest.raises(ValueError, match=rf"the {kind} name '{taken}' is taken by"):
            register(taken)
        with pytest.raises(
            UnknownNameError, match=rf"no {kind} is called 'of_my_onw'. Did you mean 'of_my_own'\? .*--plugin"
        ):
            find("of_my_onw")
    with pytest.raises(KeyError):  # as a dictionary says it
        losses.get("nothing")


def test_a_definition_may_be_registered_again_and_another_of_its_name_may_not():
    table: Registry[object] = Registry("part")

    def part(module):
        return type("Part", (), {"__module__": module, "__qualname__": "Part"})

    first, again = part("notebook"), part("notebook")
    table.add("name", first, first)
    table.add("name", again, again)
    assert table["name"] is again
    with pytest.raises(ValueError, match=r"'name' is taken by notebook\.Part"):
        table.add("name", part("another"), part("another"))
    with pytest.raises(TypeError, match="not empty"):
        table.add("", first, first)


def test_encoders_may_be_functions_and_must_say_their_modality():
    @register_encoder("averages", modality="image")
    def averages(*, dim: int = 3):
        """The mean color."""
        net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, dim))
        net.dim = dim
        return net

    assert create_encoder("averages", dim=5)(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert ENCODERS["averages"].options == ("dim",)
    with pytest.raises(ValueError, match="the modality is 'smell'"):
        register_encoder("nose", modality="smell")(averages)
    with pytest.raises(ValueError, match="give a name and a modality of image, video, audio"):
        register_encoder("nothing")(averages)


# Files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n\nfoo()\n", r"broken\.py, line 3: NameError: name 'foo' is not defined"),
        ("x = (\n", r"broken\.py, line 1: SyntaxError"),
        ("import nothing_of_this_name", r"broken\.py, line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)", r"broken\.py, line 2: SystemExit: 3"),
        ("def f():\n    raise OSError('no')\nf()", r"broken\.py, line 2: OSError: no"),
        (
            "from avssl.losses import register\n\n@register('avid')\nclass A: pass",
            r"broken\.py, line 3: ValueError: the loss name 'avid' is taken by avssl\.losses\.avid\.AVID",
        ),
        ("\x00", r"broken\.py: .*null bytes|broken\.py, line"),
    ],
)
def test_a_plugin_that_raises_is_an_error_with_file_and_line(text, words, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(PluginError, match=words):
        required.use([path])
    assert not files.ran()
    assert "avssl_plugin_broken" not in sys.modules


def test_what_is_no_plugin_file_is_refused(tmp_path):
    for name, words in (
        ("https://example.org/loss.py", "is not fetched"),
        ("s3://bucket/loss.py", "is not fetched"),
        ("ftp://example.org/loss.py", "not allowed"),
        (str(tmp_path / "none.py"), "there is no such file"),
        (str(tmp_path), "there is no such file"),
        (str(written(tmp_path, "loss.txt", "")), r"does not end in \.py"),
        (str(written(tmp_path, "large.py", "#" * (1 << 20) + "\n")), "at most 1048576"),
    ):
        with pytest.raises(ValueError, match=words):
            required.use([name])
    first, second = written(tmp_path / "a", "loss.py", "x = 1"), written(tmp_path / "b", "loss.py", "x = 2")
    with pytest.raises(PluginError, match="have the same name"):
        required.use([first, second])
    required.use([first])
    with pytest.raises(PluginError, match="has the same name"):
        required.use([second])


def test_a_file_runs_once_and_a_changed_one_replaces_what_it_registered(tmp_path):
    path = written(tmp_path, "mine.py", LOSS)
    required.use([path, path])
    first = losses.get("mine")
    assert losses.registry.plugin_of("mine") == {"file": "mine.py", "sha256": files.read(path).sha256}
    assert losses.registry.plugin_of("simclr") is None  # though the file was the first to look it up
    required.use([path])
    assert losses.get("mine") is first
    path.write_text(path.read_text().replace("2.0", "3.0"))
    avssl.run_plugins(str(path))
    assert losses.get("mine") is not first
    assert losses.get("mine").Config().strength == 3.0
    assert losses.registry.plugin_of("mine")["sha256"] == files.read(path).sha256


def test_a_plugin_that_fails_half_way_leaves_nothing_and_runs_whole_once_it_is_mended(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    written(tmp_path, "own_helper.py", LOSS.replace('"mine"', '"of_helper"'))
    encoder = """
        import torch
        from avssl.models import register_encoder

        @register_encoder("dots", modality="image")
        class Dots(torch.nn.Module):
            pass
    """
    text = textwrap.dedent("import own_helper\n") + textwrap.dedent(LOSS) + textwrap.dedent(AUGMENT)
    path = written(tmp_path, "mine.py", text + textwrap.dedent(encoder) + "fails()\n")
    for _ in range(2):
        with pytest.raises(PluginError, match="NameError: name 'fails'"):
            required.use([path])
        for table, name in ((losses.registry._REGISTRY, "mine"), (ENCODERS, "dots"), (AUGMENTS, "dotted")):
            assert name not in table
            assert table.plugin_of(name) is None
        assert "of_helper" not in losses.names()
    assert "simclr" in losses.names()  # the program's own parts stay, though the file was the first to look them up
    path.write_text(path.read_text().replace("fails()", ""))
    required.use([path])
    assert {"mine", "of_helper"} <= set(losses.names())
    assert {"dots"} <= ENCODERS.keys()
    first, record = losses.get("mine"), losses.registry.plugin_of("mine")
    path.write_text(path.read_text() + "fails()\n")
    with pytest.raises(PluginError, match="NameError"):
        required.use([path])  # of a newer content nothing stays, and what the older one registered does
    assert losses.get("mine") is first
    assert losses.registry.plugin_of("mine") == record
    assert sys.modules["avssl_plugin_mine"].Mine is first
    sys.modules.pop("own_helper")


def test_classes_of_a_plugin_are_found_by_name(tmp_path):
    required.use([written(tmp_path, "my-loss.v2.py", LOSS)])
    mine = losses.get("mine")
    assert mine.__module__ == "avssl_plugin_my_loss_v2"
    assert pickle.loads(pickle.dumps(mine.Config(strength=4.0))).strength == 4.0


# The configuration and the runs


def test_keys_of_an_own_loss_are_known_and_only_the_command_runs_files(tmp_path):
    path = written(tmp_path, "mine.py", LOSS)
    yaml_file = tmp_path / "recipe.yaml"
    yaml_file.write_text(f"loss: {{name: mine, strength: 5}}\nplugins: ['{path}']\n")
    with pytest.raises(config.ConfigError, match=r"recipe\.yaml needs .*mine\.py.*--plugin"):
        config.parse(config.RunConfig, [str(yaml_file)])  # opening runs nothing
    cfg = config.parse(config.RunConfig, config.run_plugins([str(yaml_file), "loss.temperature=0.3"]))
    assert (cfg.loss.strength, cfg.loss.temperature) == (5.0, 0.3)
    assert cfg.plugins == [files.read(path).record]
    with pytest.raises(config.ConfigError, match=r"strenght.*Did you mean: 'strength'"):
        config.parse(config.RunConfig, [str(yaml_file), "loss.strenght=1"])


def test_options_and_keys_name_plugins_together(tmp_path):
    first, second = written(tmp_path, "first.py", ""), written(tmp_path, "second.py", "")
    arguments = [f"plugins=[{first}]", "--plugin", str(second), "--plugin-changed", "seed=1"]
    argv, given, may_differ = required.take_options(arguments)
    assert (argv, given, may_differ) == ([f"plugins=[{first}]", "seed=1"], [str(second)], True)
    cfg = config.parse(config.RunConfig, config.run_plugins(argv, given))
    assert [record["file"] for record in cfg.plugins] == ["first.py", "second.py"]
    for wrong in ("plugins=first.py", "plugins=[1]", "plugins=[{file: x.py}]", "plugins=[{file: x.py, sha256: 1}]"):
        with pytest.raises(config.ConfigError, match="plugins"):
            config.parse(config.RunConfig, config.run_plugins([wrong]))


@pytest.mark.slow
def test_a_run_says_which_plugins_it_needs_and_refuses_others_of_their_name(tmp_path):
    path, helper = written(tmp_path, "mine.py", LOSS), written(tmp_path, "helper.py", "")
    run = tmp_path / "run"
    run.mkdir()
    config.save(config.parse(config.RunConfig, config.run_plugins(["loss.name=mine"], [str(path), str(helper)])),
                run / "config.yaml")  # fmt: skip
    records = yaml.safe_load((run / "config.yaml").read_text())["plugins"]
    assert records == [files.read(path).record, files.read(helper).record]
    files._files.clear()  # a process that has run none
    with pytest.raises(
        config.ConfigError, match=rf"mine\.py \(sha256 {records[0]['sha256']}\), helper\.py .*--plugin mine"
    ):
        config.load_run(run)
    path.write_text(path.read_text() + "# changed\n")
    required.use([path, helper])
    with pytest.raises(
        config.ConfigError, match=rf"{records[0]['sha256']}\); given is .*{files.read(path).sha256}.*-changed"
    ):
        config.load_run(run)
    required.use([path, helper], may_differ=True)
    assert config.load_run(run).plugins == [files.read(path).record, files.read(helper).record]


def test_that_plugins_may_differ_holds_for_the_calls_that_follow(tmp_path):
    path = written(tmp_path, "mine.py", LOSS)
    avssl.run_plugins(str(path), may_differ=True)
    config.run_plugins(["seed=1", f"plugins=[{path}]"])  # as avssl.pretrain and avssl.evaluate do
    assert required.may_differ()
    with pytest.raises(FileNotFoundError):
        avssl.load_embedder(str(tmp_path / "none"), plugins=[str(path)])
    assert required.may_differ()
    config.run_plugins([], may_differ=False)  # a command says it for itself
    assert not required.may_differ()


@pytest.mark.slow
def test_a_resumed_run_with_other_plugins_is_refused_by_name(tmp_path):
    path, helper = written(tmp_path, "mine.py", LOSS), written(tmp_path, "helper.py", "")
    run = tmp_path / "run"
    run.mkdir()
    before = config.parse(config.RunConfig, config.run_plugins(["loss.name=mine"], [str(path)]))
    config.save(before, run / "config.yaml")
    config.check_unchanged(before, run)
    now = config.parse(config.RunConfig, config.run_plugins(["loss.name=mine"], [str(path), str(helper)]))
    with pytest.raises(ValueError, match=r"plugins: .*mine\.py.* then, .*helper\.py.* now"):
        config.check_unchanged(now, run)
    required.use([], may_differ=True)
    config.check_unchanged(now, run)


def test_a_run_records_a_plugin_that_registered_what_it_uses(tmp_path):
    path = written(tmp_path, "mine.py", LOSS + AUGMENT)
    required.use([path, written(tmp_path, "unused.py", "")])
    cfg = config.parse(config.RunConfig, ["loss.name=simclr"])
    view = View("first", "image", "simclr")
    assert plugins_of(cfg, [view]) == []
    assert plugins_of(cfg, [View("first", "image", "dotted")]) == [files.read(path).record]
    cfg.views.augments["simclr"] = ImageAugment(operation="dotted")
    assert plugins_of(cfg, [view]) == [files.read(path).record]
    assert plugins_of(config.parse(config.RunConfig, ["loss.name=mine"]), [view]) == [files.read(path).record]


# Installed packages


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a package with an entry point in avssl.plugins; it is gone after the test."""

    def install(name, text, version="1.2"):
        written(tmp_path, f"{name}.py", text)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[avssl.plugins]\nparts = {name}\n")
        monkeypatch.setattr(plugin_registry, "_has_imported", False)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return info

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    plugin_registry._has_imported = True


@pytest.mark.slow
def test_an_installed_package_is_imported_when_its_part_is_named(installed, tmp_path):
    info = installed("parts_of_mine", LOSS.replace('"mine"', '"packaged"'))
    assert losses.get("simclr")
    assert "parts_of_mine" not in sys.modules  # nobody needs it yet
    record = {"package": "parts_of_mine", "version": "1.2"}
    cfg = config.parse(config.RunConfig, ["loss.name=packaged", "loss.strength=7"])
    assert cfg.loss.strength == 7
    assert "packaged" in losses.names()
    cfg.plugins = plugins_of(cfg, [View("first", "image", "simclr")])
    assert cfg.plugins == [record]
    run = tmp_path / "run"
    run.mkdir()
    config.save(cfg, run / "config.yaml")
    assert config.load_run(run).plugins == [record]
    # Another version is refused when the run goes on, and a missing one when it is opened.
    cfg.plugins = [{"package": "parts_of_mine", "version": "1.3"}]
    with pytest.raises(ValueError, match=r"plugins: .*1\.2.* then, .*1\.3.* now"):
        config.check_unchanged(cfg, run)
    (info / "METADATA").unlink()
    info.rename(tmp_path / "gone")
    with pytest.raises(config.ConfigError, match=r"needs parts_of_mine 1\.2: install parts_of_mine\. "):
        config.load_run(run)


def test_a_package_that_fails_is_named_with_file_and_line(installed, caplog):
    installed("parts_that_fail", "\nx = 1 / 0\n")
    assert losses.get("simclr")
    with pytest.raises(PluginError, match=r"parts_that_fail 1\.2 .*parts_that_fail\.py, line 2: ZeroDivisionError"):
        losses.get("simclr_of_mine")
    with caplog.at_level(logging.WARNING):
        assert "simclr" in losses.names()  # a list is shown all the same, with a warning
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.slow
def test_a_package_that_pip_has_installed_registers_its_parts(image_shards, tmp_path):
    """Offline, by uv: pip itself is in no environment of this project."""
    package = tmp_path / "package"
    written(package, "loss_of_mine.py", LOSS.replace('"mine"', '"installed_loss"'))
    written(package, "pyproject.toml", """
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"

        [project]
        name = "loss-of-mine"
        version = "0.3"

        [project.entry-points."avssl.plugins"]
        losses = "loss_of_mine"

        [tool.setuptools]
        py-modules = ["loss_of_mine"]
    """)  # fmt: skip
    pip = ["pip", "install", "--offline", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    target = tmp_path / "site"
    subprocess.run(
        [uv, *pip, "--python", sys.executable, "--target", str(target), str(package)], check=True, cwd=tmp_path
    )
    options = ["loss.name=installed_loss", "loss.strength=4", f"data.shards={image_shards}", *SMALL]
    pretrain = ["-m", "avssl", "pretrain", *options, "run=run", "data.num_workers=1"]
    with_package = {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])}
    run_python(*pretrain, "steps=1", folder=tmp_path, **with_package)
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["plugins"] == [{"package": "loss-of-mine", "version": "0.3"}]
    run_python("-m", "avssl", "embed", "run", image_shards, "--out=rows", "--num-workers=0", folder=tmp_path,
               **with_package)  # fmt: skip
    refused = run_python("-m", "avssl", "embed", "run", image_shards, "--out=other", folder=tmp_path, check=False)
    assert refused.returncode == 1
    assert "needs loss-of-mine 0.3: install loss-of-mine" in refused.stderr


# Augments and worker processes


DOTTED_AND_PLAIN = (View("first", "image", "dotted"), View("second", "image", "test"))


def loader_of(shards, num_workers, views=DOTTED_AND_PLAIN):
    sizes = ViewsConfig(image=ImageViewConfig(size_px=24))
    options = LoaderConfig(global_batch_size=4, num_workers=num_workers, order_lanes=1)
    maker = ViewMaker(sizes, ["image"])
    return Loader(ShardSet(shards), options, views, maker, seed=3, device=torch.device("cpu"))


def test_workers_know_an_augment_even_if_their_server_runs_longer(image_shards, tmp_path):
    worker_context()  # the server of this process is there before the plugin
    path = written(tmp_path, "dots.py", AUGMENT)
    required.use([path])
    here = [batch.views for batch in loader_of(image_shards, 0).epoch(0)]
    path.unlink()  # they have the content that ran
    loader = loader_of(image_shards, 1)
    there = [batch.views for batch in loader.epoch(0)]
    loader.close()
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not torch.equal(one["first"], one["second"])
        # The views are of the same frames, and the augmented ones have a dot, which the crop may cut off.
        assert ((one["first"] - one["second"]).abs() > 1e-6).flatten(1).any(dim=1).sum() >= 2


def test_an_augment_that_fails_in_a_worker_is_one_line_with_its_place(image_shards, tmp_path):
    path = written(tmp_path, "dots.py", AUGMENT.replace("frames[..., row, column] =", "frames[..., 1000, column] ="))
    required.use([path])
    for num_workers in (0, 1):
        loader = loader_of(image_shards, num_workers)
        with pytest.raises(PluginError) as error:
            next(iter(loader.epoch(0)))
        loader.close()
        assert re.match(rf"the augment 'dotted' on the image .*{path}, line 8: IndexError: ", str(error.value))
        assert "\n" not in str(error.value)


def test_draws_of_an_augment_depend_on_its_generator_alone_and_disturb_no_other():
    drawn = []

    @register_augment("drawing", "image")
    def drawing(frames, generator):
        drawn.append((random.random(), np.random.rand(), float(torch.rand(())), float(generator.random())))
        return frames

    frames = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    for seed in (0, 0, 1):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        apply_augment("drawing", "image", frames, np.random.default_rng(seed), "key")
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_an_operation_leaves_the_other_draws_of_its_set_as_they_are(image_shards):
    @register_augment("nothing", "image")
    def nothing(frames, generator):
        generator.random(100), torch.rand(100)
        return frames

    view = (View("first", "image", "simclr"),)
    plain, changed = loader_of(image_shards, 0, view), loader_of(image_shards, 0, view)
    changed.view_maker.config.augments["simclr"] = ImageAugment(
        **{**vars(plain.view_maker.config.augments["simclr"]), "operation": "nothing"}
    )
    one, other = (next(iter(loader.epoch(1))).views["first"] for loader in (plain, changed))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("function", "modality", "words"),
    [
        (lambda media, generator: None, "image", r"gave NoneType; it must give torch.uint8 \(1, 3, height, width\)"),
        (lambda media, generator: media.float(), "image", r"gave torch.float32 \(1, 3, 4, 5\)"),
        (lambda media, generator: media[0], "image", r"gave torch.uint8 \(3, 4, 5\)"),
        (lambda media, generator: media[..., :0], "image", r"\(1, 3, 4, 0\)"),
        (lambda media, generator: media[:, :4], "audio", r"must give torch.float32 \(1, 7\)"),
        (lambda media, generator: media / 0, "audio", "not finite"),
        (lambda media: media, "audio", "TypeError"),
    ],
)
def test_a_wrong_result_of_an_augment_is_explained(function, modality, words):
    register_augment("wrong", "image", "audio")(function)
    media = torch.zeros(1, 3, 4, 5, dtype=torch.uint8) if modality == "image" else torch.zeros(1, 7)
    with pytest.raises(PluginError, match=words):
        apply_augment("wrong", modality, media, np.random.default_rng(0), "key")


def test_an_augment_of_audio_sees_silence_where_a_stream_has_ended_and_the_mark_stays():
    seen = []

    @register_augment("louder", "audio")
    def louder(waveform, generator):
        seen.append(waveform.clone())
        return waveform + 1

    waveform = torch.tensor([[0.5, -0.5, torch.nan, torch.nan]])
    result = apply_augment("louder", "audio", waveform, np.random.default_rng(0), "key")
    assert seen[0].tolist() == [[0.5, -0.5, 0.0, 0.0]]
    assert result[0, :2].tolist() == [1.5, 0.5]
    assert result[0, 2:].isnan().all()


def test_views_that_name_no_augment_of_their_modality_are_refused():
    register_augment("for_images", "image")(lambda frames, generator: frames)
    views = ViewsConfig()
    check_views([View("v", "image", "for_images")], views)
    for view, words in (
        (View("v", "audio", "for_images"), "is for image, not for audio"),
        (View("v", "video", "for_imagse"), "Did you mean 'for_images'"),
        (View("v", "audio", "hizz"), "Allowed: train, test, jigsaw, for_images"),
    ):
        with pytest.raises(ValueError, match=words):
            check_views([view], views)
    views.augments["for_images"] = ImageAugment()
    with pytest.raises(ValueError, match=r"both a set of views\.augments and an augment of your own"):
        check_views([View("v", "image", "for_images")], views)
    with pytest.raises(ValueError, match="for no modality"):
        register_augment("for_nothing")
    with pytest.raises(ValueError, match="for smell"):
        register_augment("for_noses", "smell")


def test_a_task_needs_a_configuration_of_tasks():
    with pytest.raises(ValueError, match="no subclass of TaskConfig"):
        tasks.register_task("mine", dict)
    assert tasks.register_task("mine")(lambda embedder, config: None)
    assert tasks.get("mine").Config is TaskConfig


# By the command


SMALL = [
    "cpu=true", "mixed_precision=fp32", "log_every_steps=1", "data.global_batch_size=4", "views.image.size_px=24",
    "encoders.image={name: resnet10, width: 4}", "optim.warmup_steps=0", "data.order_lanes=2",
]  # fmt: skip


def losses_of(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_with_plugins_is_opened_with_them_alone(image_shards, tmp_path):
    path = written(tmp_path, "mine.py", LOSS)
    pretrain = ["-m", "avssl", "pretrain", "loss.name=mine", "run=run", f"data.shards={image_shards}", *SMALL]
    run_python(*pretrain, "data.num_workers=0", "steps=1", "--plugin=mine.py", folder=tmp_path)
    assert (tmp_path / "run/plugins/mine.py").read_bytes() == path.read_bytes()
    embed = ["-m", "avssl", "embed", "run", image_shards, "--out=rows", "--num-workers=0"]
    refused = run_python(*embed, folder=tmp_path, check=False)
    assert refused.returncode == 1
    assert f"mine.py (sha256 {files.read(path).sha256})" in refused.stderr
    run_python(*embed, "--plugin=mine.py", folder=tmp_path)
    embedder = avssl.load_embedder(str(tmp_path / "run"), plugins=[str(path)])
    assert type(embedder.loss).__name__ == "Mine"


@pytest.mark.slow
def test_a_run_with_plugins_resumes_exactly_and_not_with_changed_ones(image_shards, tmp_path):
    written(tmp_path, "mine.py", LOSS)
    written(tmp_path, "dots.py", AUGMENT)
    plugins = ["--plugin=mine.py", "plugins=[dots.py]"]
    data = ["loss.name=mine", f"data.shards={image_shards}", "loss.augments=[dotted, simclr]", "data.num_workers=1"]
    pretrain = ["-m", "avssl", "pretrain", *plugins, *data, *SMALL, "checkpoint_every_steps=1"]
    probe = [f"probe.shards={image_shards}", "probe.every_steps=100"]
    for run, steps, options in (("whole", 5, probe), ("stopped", 2, []), ("stopped", 5, [])):
        run_python(*pretrain, f"run={run}", f"steps={steps}", *options, folder=tmp_path)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")
    probed = (tmp_path / "whole/probe.jsonl").read_text()  # the process beside the run has the plugins, too
    assert probed.count("image_knn_label") == 2, probed
    written(tmp_path, "dots.py", AUGMENT + "    # changed\n")
    refused = run_python(*pretrain, "run=whole", "steps=6", folder=tmp_path, check=False)
    assert refused.returncode == 1
    assert "dots.py" in refused.stderr
    run_python(*pretrain, "run=whole", "steps=6", "--plugin-changed", folder=tmp_path)
    assert len(losses_of(tmp_path / "whole")) == 6


@pytest.mark.slow
def test_two_processes_with_plugins_compute_what_one_computes(image_shards, tmp_path):
    """Loss, encoder and augment of docs/plugins.md and this file; without batch norm, which knows only its process."""
    written_examples(tmp_path)
    written(tmp_path, "dots.py", AUGMENT)
    encoder = "encoders.image={name: vit_tiny, depth: 1, image_size_px: 24, patch_size_px: 8}"
    data = ["loss.name=pull_together", f"data.shards={image_shards}", "loss.augments=[dotted, simclr]"]
    small = [option for option in SMALL if not option.startswith("encoders.")]
    options = ["--plugin=my_loss.py", "plugins=[dots.py]", *data, *small, encoder, "steps=3", "data.num_workers=1"]
    run_python("-m", "avssl.recipes.pretrain", *options, "run=one", folder=tmp_path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "avssl.recipes.pretrain"]
    run_python(*launcher, *options, "run=two", folder=tmp_path)
    # With --cpu it would start one process; the key cpu=true says the same to each of two.
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    accelerate += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    process = run_python(*accelerate, "-m", "avssl.recipes.pretrain", *options, "run=launched", folder=tmp_path)
    assert "2 processes with" in process.stdout
    for run in ("two", "launched"):
        assert losses_of(tmp_path / run) == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
        kept = sorted(path.name for path in (tmp_path / run / "plugins").iterdir())
        assert kept == ["dots.py", "my_loss.py"]
    # Every rank compares its plugins with those of the others.
    other = written(tmp_path / "other", "my_loss.py", (tmp_path / "my_loss.py").read_text() + "# changed\n")
    script = written(tmp_path, "ranks.py", f"""
        import os, sys
        from avssl.recipes import pretrain
        file = "my_loss.py" if os.environ["RANK"] == "0" else {str(other)!r}
        sys.exit(pretrain.command([f"--plugin={{file}}", *sys.argv[1:]]))
    """)  # fmt: skip
    refused = run_python(*launcher[:-2], script, *options[1:], "run=three", folder=tmp_path, check=False)
    assert refused.returncode
    assert "the processes of this run have different plugins: " in refused.stderr


# The page about plugins


def blocks(language):
    text = (ROOT / "docs/plugins.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def written_examples(folder):
    """Write the Python files of docs/plugins.md, each called as its first line says, into a folder; their names."""
    names = []
    for block in blocks("python"):
        names.append(block.split()[1])
        (folder / names[-1]).write_text(block)
    return names


def test_the_files_of_the_page_about_plugins_register_what_they_say(tmp_path):
    names = written_examples(tmp_path)
    assert names == ["my_loss.py", "my_encoder.py", "my_augment.py", "my_task.py", "my_list.py"]
    required.use([tmp_path / name for name in names])
    assert losses.get("pull_together").Config().strength == 1.0
    assert create_encoder("two_layers", dim=4)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert AUGMENTS.find("warped").modalities == ("image", "video")
    assert tasks.get("spread").Config is TaskConfig


@pytest.mark.slow
def test_the_commands_of_the_page_about_plugins_run_in_an_empty_folder(image_shards, tmp_path):
    written_examples(tmp_path)
    (tmp_path / "shards").symlink_to(image_shards)
    (tmp_path / "IMAGES").symlink_to(image_shards)
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    commands = [words for words in commands if words[0] == "avssl" and "my_list.py" not in words]  # tests/test_docs.py
    first_two, others = commands[:2], commands[2:]
    assert len(others) == 5
    for command in others:
        small = [option for option in SMALL if "encoders" not in option or "my_encoder.py" not in command]
        small = [*small, "data.num_workers=1", "steps=1"] if command[1] == "pretrain" else []
        run_python("-m", *command, *small, folder=tmp_path)
    assert first_two == others[:2]  # of the section on losses
    assert json.loads((tmp_path / "runs/mine/evaluations/spread.json").read_text())["results"]["trained"]["spread"] > 0
    assert (tmp_path / "rows").is_dir()
