"""--help: every option has its default, the keys of the chosen loss and encoders are listed, and nothing is loaded."""

import argparse
import ast

import pytest

from avssl import config, models
from avssl.eval import tasks
from avssl.eval.configs import CONFIGURATIONS as TASK_CONFIGURATIONS
from avssl.files.plain_text import PlainParser
from avssl.losses import registry
from avssl.losses.configs import CONFIGURATIONS
from avssl.options.encoders import check_encoders, encoder_options
from data_prep.__main__ import build_parser
from recipes import embed, evaluate, report, search
from tests.conftest import ROOT
from tests.test_start_up import AS_MAIN, HEAVY, loaded_after


class StoppedError(Exception):
    pass


def parsers(monkeypatch):
    """Every parser of a command by its name; those of the recipes are caught when they would read arguments."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    found = {f"prep {name}": parser for name, parser in commands.choices.items()}

    def catch(parser, *_):
        found[caught] = parser
        raise StoppedError

    monkeypatch.setattr(PlainParser, "parse_args", catch)
    calls = {"embed": embed.parse, "search": search.parse, "report": report.command}
    for caught, call in calls.items():  # noqa: B007  (catch reads it)
        with pytest.raises(StoppedError):
            call([])
    return found


def test_every_option_of_every_command_shows_its_default(monkeypatch):
    missing = []
    for name, parser in parsers(monkeypatch).items():
        parser.format_help()
        for action in parser._actions:
            if not action.option_strings or action.required or action.dest == "help":
                continue
            text = str(action.help)
            shown = text % {**vars(action), "prog": ""}
            if "default" not in text and f"({action.default})" not in shown:
                missing.append((name, action.option_strings, shown))
        assert "--json" in parser.format_help()
    assert not missing


def test_help_with_a_recipe_has_its_values_and_the_keys_of_its_loss_and_encoders(capsys):
    with pytest.raises(SystemExit) as left:
        config.load(config.RunConfig, [str(ROOT / "recipes/configs/avid_cma_small.yaml"), "--help", "seed=7"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert "seed: int = 7  # weights, order, augmentation" in lines
    assert "  num_positives: int = 32" in lines  # of the loss
    assert "    depth: int = 10" in lines  # of the recipe's encoder
    assert "    stem_pool: bool = True" in lines  # its own default
    assert "The values are those of" in lines[-1]


@pytest.mark.slow
def test_help_and_errors_in_keys_load_no_heavy_library_with_a_recipe():
    for changes in (["--help"], ["data.shrads=x"], ["loss.num_negs=3"], ["encoders.video.dpth=3"]):
        assert not loaded_after(AS_MAIN, "avssl/__main__.py", "pretrain", "avid", *changes) & {*HEAVY, "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("embed", "no_run", "VIDEOS", "--out", "out"),
        ("evaluate", "no_run", "standard"),
        ("search", "no_folder", "QUERY.mp4"),
        ("explore", "no_folder"),
        ("report", "no_folder"),
    ],
)
def test_what_is_no_run_and_no_folder_of_embeddings_is_said_before_pytorch_is_loaded(command):
    assert "torch" not in loaded_after(AS_MAIN, "avssl/__main__.py", *command)


@pytest.mark.slow
def test_a_task_or_key_that_there_is_not_is_said_before_pytorch_is_loaded(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seed: 1")
    for wrong in (["no_task"], ["knn", "num_nieghbors=3"], ["few_label", "per_class=x"], ["--help", "knn"]):
        assert "torch" not in loaded_after(AS_MAIN, "avssl/__main__.py", "evaluate", tmp_path, *wrong)
    for wrong, words in ((["no_task"], "no such file, recipe of evaluation"), (["knn", "num_neihbors=3"], "neighbors")):
        with pytest.raises(SystemExit):
            evaluate.command([str(tmp_path), *wrong])
        assert words in capsys.readouterr().err


def test_the_keys_of_a_task_are_those_that_stand_without_pytorch():
    own = {name: tasks.get(name).Config for name in tasks.names() if name in TASK_CONFIGURATIONS}
    assert own == TASK_CONFIGURATIONS
    files = {path.stem for path in (ROOT / "avssl/eval/tasks").glob("*.py")} - {"__init__"}
    assert files == own.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_the_keys_of_a_loss_are_those_that_stand_without_pytorch(name):
    assert registry.get(name).Config is CONFIGURATIONS[name]
    assert CONFIGURATIONS[name]().name == name


def test_options_of_encoders_as_the_sources_say_are_those_that_are_registered():
    read = encoder_options()
    registered = {name: models.ENCODERS.find(name) for name in models.ENCODERS.names()}
    own = {name: entry for name, entry in registered.items() if entry.build.__module__.startswith("avssl.")
           or hasattr(entry.build, "func")}  # fmt: skip
    assert read.keys() == own.keys()
    for name, entry in own.items():
        assert tuple(read[name]) == entry.options
    assert ast.literal_eval(read["avid_video"]["depth"][1]) == 18


def test_a_mistyped_option_of_an_encoder_is_named_with_the_nearest():
    with pytest.raises(config.ConfigError, match="no option 'dpth'"):
        config.parse(config.RunConfig, ["encoders.video.dpth=10"])
    check_encoders({"video": {"name": "one_of_a_plugin", "dpth": 10}})  # whose options are not known here
