"""`avssl quickstart`: what a newcomer sees first."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from avssl.recipe_files import config_files
from recipes import quickstart
from tests.conftest import run_python


def test_what_it_says_to_do_next_are_commands_with_recipes_that_exist() -> None:
    commands = [shlex.split(line) for line in quickstart.NEXT.splitlines() if line.startswith("  avssl ")]
    assert [words[1] for words in commands] == [
        "prep",
        "prep",
        "prep",
        "pretrain",
        "evaluate",
        "embed",
        "search",
        "report",
    ]
    assert commands[3][2] in config_files()
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(" ".join(words) in readme for words in commands), "the README shows the same commands"


@pytest.mark.slow
def test_it_learns_shows_an_answer_that_plays_and_goes_on_when_started_again(tmp_path: Path) -> None:
    first = run_python("-m", "avssl", "quickstart", "--no-open", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    found = re.search(r"Of 60 videos that it never saw, (\d+) have their own sound among the 5 nearest", first.stdout)
    assert found
    assert int(found[1]) >= 13  # by chance 5; 13 and more come by chance once in 800 times
    assert (tmp_path / "quickstart" / "search.html").is_file()
    shown = re.search(r"search\.html: .* one file, (\d+) clips that play", first.stdout)
    assert shown
    assert int(shown[1]) >= 6
    again = run_python("-m", "avssl", "quickstart", "--no-open", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert re.search(r"Of 60 .*", again.stdout)[0] == re.search(r"Of 60 .*", first.stdout)[0]
