"""What each package offers: every name has an example in its docstring, and the example is true."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avssl.embedding.table import EmbeddingTable
from avssl.exports import _Package
from avssl.media.decode import probe
from avssl.models import create_encoder
from avssl.types import LossConfig, Progress, View
from tests.clips import make_clip
from tests.conftest import ROOT, run_python
from tests.written_before import GOLDEN, written_run

PACKAGES = [
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in sorted(ROOT.glob("avssl/**/__init__.py"))
    if "offer(" in path.read_text()
]
OFFERED = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]
# What an example may use beside the names of the module that it stands in.
COMMON = {
    "torch": torch,
    "np": np,
    "create_encoder": create_encoder,
    "Progress": Progress,
    "View": View,
    "LossConfig": LossConfig,
    "EmbeddingTable": EmbeddingTable,
    "probe": probe,
}


@pytest.fixture(scope="session")
def media(shards, tmp_path_factory):
    """What an example reads: `shards`, a folder of 18 samples; `clip`, a film of a second; `image`, a PNG; `run`, a
    finished run; `embeddings`, a folder of embeddings of six clips."""
    folder = tmp_path_factory.mktemp("media")
    make_clip(folder / "clip.mp4")
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(folder / "image.png")
    return {
        "shards": str(shards["train"]),
        "clip": str(folder / "clip.mp4"),
        "image": str(folder / "image.png"),
        "run": str(written_run(folder / "run")),
        "embeddings": str(GOLDEN / "embeddings"),
    }


@pytest.mark.parametrize(("package", "name"), OFFERED, ids=[f"{package}.{name}" for package, name in OFFERED])
def test_an_offered_name_has_an_example_that_is_true(package, name, media, own_registries):
    offered = getattr(importlib.import_module(package), name)
    module = importlib.import_module(offered.__module__)
    examples = doctest.DocTestFinder(recurse=False).find(offered, name, module, {**COMMON, **media, **vars(module)})
    assert examples, f"{package}.{name} has no docstring"
    assert examples[0].examples, f"the docstring of {package}.{name} has no example"
    torch.manual_seed(0)
    report: list[str] = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples[0], out=report.append).failed
    assert not failed, "".join(report)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_what_is_offered(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {None} == set(module.__all__)


def test_a_name_is_the_offered_object_even_where_a_module_has_that_name():
    import avssl.losses.vicreg
    from avssl.losses import barlow_twins, vicreg

    importlib.import_module("avssl.losses.barlow_twins")
    assert callable(vicreg)
    assert callable(barlow_twins)
    assert callable(avssl.losses.barlow_twins)


def test_a_name_that_is_not_offered_is_an_attribute_error():
    package = _Package("avssl.nothing")
    package.__dict__["_offered"] = {}
    with pytest.raises(AttributeError, match="has no attribute 'something'"):
        package.something  # noqa: B018


def test_packages_are_imported_without_what_they_offer():
    code = f"import sys; [__import__(name) for name in {PACKAGES}]; print('torch' in sys.modules)"
    assert run_python("-c", code).stdout.strip() == "False"
