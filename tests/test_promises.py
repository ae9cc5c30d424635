"""The long checks of the promises, in their quick form, and that such a check can fail."""

import json
import re

import pytest

from tests.soak import __main__ as soak
from tests.soak import embedding_grid, epoch_grid
from tests.soak.outcome import Outcome


def test_a_check_fails_with_a_case_that_fails_and_goes_on_with_the_others(capsys):
    outcome = Outcome("numbers are even")
    for number in (2, 3, 4):
        with outcome.case(f"number {number}"):
            assert number % 2 == 0
    assert outcome.finish() == 1
    said = json.loads(capsys.readouterr().out)
    assert said["cases"] == 3
    assert [one.split(":")[0] for one in said["failures"]] == ["number 3"]


def test_a_check_without_a_case_fails():
    assert Outcome("nothing").finish() == 1


@pytest.mark.slow
def test_epochs_end_on_a_small_grid():
    assert (
        epoch_grid.main(["--orders", "150", "--ranks", "1", "3", "--num-workers", "0", "--samples-per-shard", "5"]) == 0
    )


def test_an_order_that_repeats_a_sample_is_found():
    with pytest.raises(AssertionError):
        epoch_grid.check_epochs([[[0, 1]], [[1, 2]]], num_samples=4, steps=1, batch=4)


@pytest.mark.slow
def test_embeddings_are_the_same_in_a_few_ways():
    assert embedding_grid.main(["--ways", "2", "--seed", "1"]) == 0


def test_every_long_check_exists_and_stands_in_the_document():
    text = soak.DOCUMENT.read_text(encoding="utf-8")
    for check in soak.CHECKS.values():
        name = check.command.split()[0]
        path = name if name.startswith("tests/") else name.replace(".", "/") + ".py"
        assert (soak.ROOT / path).exists(), path
        assert path.removesuffix(".py").replace("/", ".") in text or path in text, path
    # And what the document names is there.
    assert all((soak.ROOT / path).exists() for path in re.findall(r"tests/[\w/]+\.py", text))
