"""Installed packages whose entry points register parts."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from avssl import config, losses
from avssl.plugins import registry as plugin_registry
from avssl.plugins.files import PluginError
from avssl.train.run_folder import plugins_of
from avssl.types import View
from recipes import evaluate
from tests.conftest import ROOT, run_python
from tests.made_plugins import LOSS, SMALL, written

pytestmark = pytest.mark.usefixtures("own_registries")


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


def test_a_task_of_an_installed_package_is_evaluated_by_its_name(installed, tiny_run, shards, capsys):
    installed("counting_of_mine", """
        import numpy as np

        from avssl.eval import Metric, Outcome, Repeat, TaskConfig, register_task

        @register_task("counting", TaskConfig)
        def counting(embedder, config):
            mean = {"number": Metric("mean", ("number",))}
            return Outcome([Repeat("", ["one", "two"], {"number": np.ones(2)}, mean)])
    """)  # fmt: skip
    options = [f"test={shards['test']}", "allow_overlap=true"]
    assert evaluate.command([str(tiny_run), "counting", *options]) == 0
    assert "counting" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.command([str(tiny_run), "counted", *options])
    assert "counted" in capsys.readouterr().err
