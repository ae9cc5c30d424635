"""The quick fuzzer: a few hundred damaged files of every kind, and it finds a fault that is put there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avssl.files.checked_json import parse
from tests.soak import fuzz, fuzz_targets
from tests.soak.fuzz_material import make_material
from tests.soak.outcome import Outcome

CASES = {"configurations": 4, "media": 25, "tables": 40, "shards": 30}  # of the others 60


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material") / "material"
    make_material(folder, num_media=6)
    return folder


@pytest.mark.quick(2)
@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_damaged_input_gives_a_result_or_one_error_of_ours_that_names_the_file(
    target: str, material: Path, tmp_path: Path
) -> None:
    for number in range(CASES.get(target, 60)):
        fuzz_targets.try_case(target, 1, number, material, tmp_path)


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        (KeyError("x"), "KeyError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), "UnicodeDecodeError in place of an error of ours"),
        (ValueError("no number"), "does not name the file"),
        (ValueError(f"{fuzz_targets.NAME} {'x' * 30_000}"), "the message has 30007 characters"),
    ],
)
def test_a_planted_fault_is_found_and_told_with_what_reproduces_it(
    planted: Exception, words: str, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(rng: Any, material: Path, folder: Path) -> None:
        if rng.random() < 0.1:
            raise planted

    monkeypatch.setitem(fuzz_targets.TARGETS, "index", faulty)
    cases = fuzz.Cases("index", 0, 0, 50, material, tmp_path)
    found = fuzz.try_cases(cases)
    assert 0 < len(found) < 50
    outcome = Outcome(fuzz.CLAIM)
    fuzz._counted(outcome, cases, found)
    assert outcome.num_cases == 50
    assert len(outcome.failures) == len(found)
    number = min(found)
    assert f"--targets index --seed 0 --number {number}: " in outcome.failures[0]
    assert words in outcome.failures[0]
    assert fuzz.try_cases(cases) == found, "the same cases give the same findings"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(st.binary() | st.text() | JSON.map(repr))
def test_any_text_and_any_bytes_are_json_or_one_error_that_says_where(text: Any) -> None:
    with suppress_ours():
        parse(text, "the file")


@contextmanager
def suppress_ours() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError or not str(error).startswith("the file: "):
            raise
