"""Parts of the user's own: plugin files, what a run says about them, and the registries they are in."""

from __future__ import annotations

import pickle
import sys
import textwrap

import pytest
import torch
import yaml

import avssl
from avssl import config, losses
from avssl.eval import registry as tasks
from avssl.eval.configs import TaskConfig
from avssl.models import ENCODERS, create_encoder, register_encoder
from avssl.plugins import files, required
from avssl.plugins.files import PluginError
from avssl.plugins.registry import Registry, UnknownNameError
from avssl.train.run_folder import plugins_of
from avssl.transforms import register_augment
from avssl.transforms.image_augment import ImageAugment
from avssl.transforms.own import AUGMENTS
from avssl.types import View
from tests.made_plugins import AUGMENT, LOSS, written

pytestmark = pytest.mark.usefixtures("own_registries")


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


def test_a_task_needs_a_configuration_of_tasks():
    with pytest.raises(ValueError, match="no subclass of TaskConfig"):
        tasks.register_task("mine", dict)
    assert tasks.register_task("mine")(lambda embedder, config: None)
    assert tasks.get("mine").Config is TaskConfig
