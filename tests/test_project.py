"""What stands beside the program: citation, workflow, hooks, container."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from avssl.version import __version__

ROOT = Path(__file__).parents[1]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_names_this_version_and_license() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == project()["version"] == __version__
    assert citation["license"] == project()["license"]


def test_the_workflow_runs_what_must_pass_with_every_python_that_is_declared() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == [".ci/run"]
    declared = re.findall(r"Python :: (3\.\d+)", " ".join(project()["classifiers"]))
    assert jobs["test"]["strategy"]["matrix"]["python"] == declared
    assert project()["requires-python"] == f">={declared[0]}"


def test_hooks_are_the_tools_of_the_checkout() -> None:
    """Hooks with versions of their own would differ from `make check`."""
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repository["hooks"])


def test_issue_forms_ask_for_something() -> None:
    for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form), path
        assert any(part.get("validations", {}).get("required") for part in form["body"]), path


def test_the_dockerfile_has_no_finding_of_hadolint() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    run = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_container_gets_every_file_that_the_package_is_built_from() -> None:
    """A file that setuptools needs and .dockerignore leaves out would fail in the middle of a long build."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {
        "avssl",
        "data_prep",
        "recipes",
        "pyproject.toml",
        "setup.py",
        project()["readme"],
        *(name.partition("/")[0] for name in project()["license-files"]),
    }


@pytest.mark.parametrize(
    "target", re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text())
)
def test_a_target_that_is_written_about_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
