"""The built wheel, without the checkout: one command from media files to search and report."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY

SOURCES = ("avssl", "data_prep", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def ran(command, folder):
    """The output of a command in a folder, with nothing of the checkout in its environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("built")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / "source").mkdir(exist_ok=True)
        copy(ROOT / name, folder / "source" / name)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    ran([sys.executable, "-W", "ignore", "-c", build], folder / "source")
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    (unpacked,) = folder.glob("avssl-*/")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    ran([sys.executable, "-W", "ignore", "-c", build], unpacked)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of programs of an environment with the wheel and the libraries of this one, without the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (wheel,) = built.glob("*.whl")
    # The path alone: the links to checkouts that lie there are not followed.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_recipes_and_the_command_and_no_tests(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    folder = ROOT / "recipes"
    ours = {str(path.relative_to(folder)) for suffix in ("py", "yaml") for path in folder.rglob(f"*.{suffix}")}
    assert {f"avssl/recipes/{name}" for name in ours} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"avssl", "data_prep"}
    assert "avssl = avssl.command:main" in entry_points


@pytest.mark.slow
def test_media_become_shards_a_run_embeddings_results_answers_and_a_page_by_one_command(installed, corpus, tmp_path):
    avssl = [installed / "python", "-m", "avssl"]
    where = ran(
        [installed / "python", "-c", "import avssl, data_prep; print(avssl.__path__, data_prep.__path__)"], tmp_path
    )
    assert str(ROOT) not in where
    for split in ("train", "test"):
        labels = ["--labels", corpus / split / "labels.csv"]
        ran([*avssl, "prep", "index", corpus / split, "--out", f"{split}.jsonl", *labels], tmp_path)
        ran([*avssl, "prep", "write", f"{split}.jsonl", "--out", split, "--short-side-px", "32"], tmp_path)
    ran([*avssl, "pretrain", "avid", *TINY, "run=run", "data.shards=train", "steps=2"], tmp_path)
    launch = [installed / "python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    ran([*launch, "-m", "avssl.recipes.pretrain", "avid", *TINY, "run=run", "data.shards=train", "steps=3"], tmp_path)
    ran([*avssl, "embed", "run", corpus / "test", "--out", "embeddings", "--num-workers", "0"], tmp_path)
    options = ["train=train", "test=test", "num_positives=2", "num_workers=0"]
    assert "chance" in ran([*avssl, "evaluate", "run", "standard", *options], tmp_path)
    query = next(path for path in sorted((corpus / "test").rglob("*")) if path.suffix in (".mp4", ".avi", ".mov"))
    assert "1.0" in ran([*avssl, "search", "embeddings", query, "--top", "3"], tmp_path)
    page = Path(ran([*avssl, "report", "run", "--shards", "test"], tmp_path).strip())
    assert (tmp_path / page).stat().st_size > 10_000
