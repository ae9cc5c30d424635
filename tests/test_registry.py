"""What belongs to every loss of the registry: its row in the README, its recipe, its textbook and its tests."""

import re
from pathlib import Path

import pytest

from avssl import config, losses
from avssl.losses.__main__ import HEADER, README_MARKERS, describe_pairs, markdown_table, plain_table, rows
from avssl.models import ENCODERS, create_encoder
from avssl.models import __main__ as encoders_table
from tests.conftest import ROOT, run_python

NAMES = losses.names()
TEXTBOOKS = {"xdc": "deepcluster"}  # XDC is DeepCluster with the labels of the other modality
MODALITIES = {"image", "video", "audio"}


def recipes_of(name):
    """Paths of the recipes whose name begins with the loss's and that train it."""
    paths = sorted((ROOT / "recipes/configs").glob(f"{name}*.yaml"))
    return [path for path in paths if config.parse(config.RunConfig, [str(path)]).loss.name == name]


def losses_that_tests_import():
    """Names of losses that test files import from or ask the registry for."""
    text = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py") if path != Path(__file__))
    return set(re.findall(r"from avssl\.losses\.(\w+) import", text))


def test_the_readme_has_the_table_that_the_registry_prints():
    text = (ROOT / "README.md").read_text()
    begin, end = README_MARKERS
    assert text.count(begin) == text.count(end) == 1
    between = text.split(begin)[1].split(end)[0].strip()
    others = text.split("**AVID+CMA** and ")[1].split()[0]
    assert others == {17: "seventeen", 18: "eighteen", 19: "nineteen", 20: "twenty"}[len(NAMES) - 2]
    assert between == markdown_table().strip(), "run `python -m avssl.losses --markdown` and put it into README.md"


@pytest.mark.quick(1)
@pytest.mark.parametrize(("arguments", "table"), [([], plain_table), (["--markdown"], markdown_table)])
def test_the_command_prints_the_table(arguments, table):
    process = run_python("-m", "avssl.losses", *arguments)
    assert process.stdout == table()
    assert process.stderr == ""


def test_every_loss_has_one_row_in_both_tables():
    assert sorted(row[0] for row in rows()) == NAMES
    for name in NAMES:
        assert len(re.findall(rf"^{name} ", plain_table(), re.MULTILINE)) == 1
        assert markdown_table().count(f"| `{name}` |") == 1
    assert all(line.count("|") == len(HEADER) + 1 for line in markdown_table().splitlines())


def test_pairs_are_written_once_each_with_a_plus_across_modalities():
    assert describe_pairs((("video", "video"), ("audio",), ("audio", "audio"), ("video", "audio"))) == (
        "video, audio, video + audio"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_names_its_family_its_paper_its_state_and_its_modalities(name):
    cls = losses.get(name)
    assert cls.family
    assert re.fullmatch(r".+ (19|20)\d\d, arXiv \d{4}\.\d{5}", cls.paper)
    assert cls.state
    assert cls.pairs
    assert all(set(pair) <= MODALITIES and len(pair) in (1, 2) for pair in cls.pairs)
    assert cls.Config().name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_keeps_state_between_steps_does_not_call_it_none(name):
    from tests.tiny import Run

    run = Run(name, losses.get(name).pairs[0])
    heads = {"encoders", "projectors", "predictors"}
    kept = {key for key, _ in run.loss.named_buffers() if key.split(".")[0] not in heads}
    kept |= {key for key, parameter in run.loss.named_parameters() if not parameter.requires_grad}
    assert (losses.get(name).state == "none") == (not kept), sorted(kept)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_a_recipe_that_begins_with_its_name_and_opens_with_its_command(name):
    found = recipes_of(name)
    assert found, f"no recipes/configs/{name}*.yaml trains {name}"
    for path in found:
        first = path.read_text().splitlines()[0]
        assert first.startswith("# ")
        assert f"avssl pretrain {path.stem} " in first


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_a_textbook_and_a_test_that_compares_with_it(name):
    textbook = TEXTBOOKS.get(name, name)
    assert (ROOT / f"tests/textbook/{textbook}.py").is_file()
    assert name in losses_that_tests_import(), f"no tests/test_*.py imports from avssl.losses.{name}"
    importing = rf"from tests\.textbook import {textbook}\b|from tests\.textbook\.{textbook} import"
    assert any(re.search(importing, path.read_text()) for path in (ROOT / "tests").glob("test_*.py"))


@pytest.mark.slow
def test_the_page_of_encoders_has_the_table_that_the_registry_prints():
    text = (ROOT / "docs/encoders.md").read_text()
    begin, end = encoders_table.MARKERS
    assert text.count(begin) == text.count(end) == 1
    table = encoders_table.markdown_table()
    assert text.split(begin)[1].split(end)[0].strip() == table.strip(), "run `python -m avssl.models`, put it there"
    assert {row[0].strip("`") for row in encoders_table.rows()} == set(ENCODERS)
    assert all(row[-1] for row in encoders_table.rows()), "each says where it is from"
    small = next(row for row in encoders_table.rows() if row[0] == "`resnet18`")
    real = create_encoder("resnet18")
    assert small[2:4] == (str(real.dim), f"{sum(p.numel() for p in real.parameters()) / 1e6:.2f} M")
