"""Plugins by the command: runs that need them, and the files of docs/plugins.md."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch

import avssl
from avssl import losses
from avssl.eval import registry as tasks
from avssl.eval.configs import TaskConfig
from avssl.models import create_encoder
from avssl.plugins import files, required
from avssl.transforms.own import AUGMENTS
from tests.conftest import ROOT, losses_of, run_python
from tests.made_plugins import AUGMENT, LOSS, SMALL, written

pytestmark = pytest.mark.usefixtures("own_registries")


@pytest.mark.slow
def test_a_run_with_plugins_is_opened_with_them_alone(image_shards, tmp_path):
    path = written(tmp_path, "mine.py", LOSS)
    pretrain = ["-m", "avssl", "pretrain", "loss.name=mine", "run=run", f"data.shards={image_shards}", *SMALL]
    run_python(*pretrain, "data.num_workers=0", "steps=1", "--plugin=mine.py", folder=tmp_path)
    assert (tmp_path / "run/plugins/mine.py").read_bytes() == path.read_bytes()
    embed = ["-m", "avssl", "embed", "run", image_shards, "--out=rows", "--num-workers=0"]
    refused = run_python(*embed, folder=tmp_path, check=False)
    assert refused.returncode == 1
    assert f"mine.py (sha256 {files.read(path).sha256})" in refused.stderr
    run_python(*embed, "--plugin=mine.py", folder=tmp_path)
    embedder = avssl.load_embedder(str(tmp_path / "run"), plugins=[str(path)])
    assert type(embedder.loss).__name__ == "Mine"


@pytest.mark.slow
def test_a_run_with_plugins_resumes_exactly_and_not_with_changed_ones(image_shards, tmp_path):
    written(tmp_path, "mine.py", LOSS)
    written(tmp_path, "dots.py", AUGMENT)
    plugins = ["--plugin=mine.py", "plugins=[dots.py]"]
    data = ["loss.name=mine", f"data.shards={image_shards}", "loss.augments=[dotted, simclr]", "data.num_workers=1"]
    pretrain = ["-m", "avssl", "pretrain", *plugins, *data, *SMALL, "checkpoint_every_steps=1"]
    probe = [f"probe.shards={image_shards}", "probe.every_steps=100"]
    for run, steps, options in (("whole", 5, probe), ("stopped", 2, []), ("stopped", 5, [])):
        run_python(*pretrain, f"run={run}", f"steps={steps}", *options, folder=tmp_path)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")
    probed = (tmp_path / "whole/probe.jsonl").read_text()  # the process beside the run has the plugins, too
    assert probed.count("image_knn_label") == 2, probed
    written(tmp_path, "dots.py", AUGMENT + "    # changed\n")
    refused = run_python(*pretrain, "run=whole", "steps=6", folder=tmp_path, check=False)
    assert refused.returncode == 1
    assert "dots.py" in refused.stderr
    run_python(*pretrain, "run=whole", "steps=6", "--plugin-changed", folder=tmp_path)
    assert len(losses_of(tmp_path / "whole")) == 6


@pytest.mark.slow
def test_two_processes_with_plugins_compute_what_one_computes(image_shards, tmp_path):
    """Loss, encoder and augment of docs/plugins.md and this file; without batch norm, which knows only its process."""
    written_examples(tmp_path)
    written(tmp_path, "dots.py", AUGMENT)
    encoder = "encoders.image={name: vit_tiny, depth: 1, image_size_px: 24, patch_size_px: 8}"
    data = ["loss.name=pull_together", f"data.shards={image_shards}", "loss.augments=[dotted, simclr]"]
    small = [option for option in SMALL if not option.startswith("encoders.")]
    options = ["--plugin=my_loss.py", "plugins=[dots.py]", *data, *small, encoder, "steps=3", "data.num_workers=1"]
    run_python("-m", "avssl.recipes.pretrain", *options, "run=one", folder=tmp_path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "avssl.recipes.pretrain"]
    run_python(*launcher, *options, "run=two", folder=tmp_path)
    # With --cpu it would start one process; the key cpu=true says the same to each of two.
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    accelerate += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    process = run_python(*accelerate, "-m", "avssl.recipes.pretrain", *options, "run=launched", folder=tmp_path)
    assert "2 processes with" in process.stdout
    for run in ("two", "launched"):
        assert losses_of(tmp_path / run) == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
        kept = sorted(path.name for path in (tmp_path / run / "plugins").iterdir())
        assert kept == ["dots.py", "my_loss.py"]
    # Every rank compares its plugins with those of the others.
    other = written(tmp_path / "other", "my_loss.py", (tmp_path / "my_loss.py").read_text() + "# changed\n")
    script = written(tmp_path, "ranks.py", f"""
        import os, sys
        from avssl.recipes import pretrain
        file = "my_loss.py" if os.environ["RANK"] == "0" else {str(other)!r}
        sys.exit(pretrain.command([f"--plugin={{file}}", *sys.argv[1:]]))
    """)  # fmt: skip
    refused = run_python(*launcher[:-2], script, *options[1:], "run=three", folder=tmp_path, check=False)
    assert refused.returncode
    assert "the processes of this run have different plugins: " in refused.stderr


# The page about plugins


def blocks(language):
    text = (ROOT / "docs/plugins.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def written_examples(folder):
    """Write the Python files of docs/plugins.md, each called as its first line says, into a folder; their names."""
    names = []
    for block in blocks("python"):
        if not block.startswith("# "):  # the one that follows a run
            continue
        names.append(block.split()[1])
        (folder / names[-1]).write_text(block)
    return names


def test_the_files_of_the_page_about_plugins_register_what_they_say(tmp_path):
    names = written_examples(tmp_path)
    assert names == ["my_loss.py", "my_encoder.py", "my_augment.py", "my_task.py", "my_list.py"]
    required.use([tmp_path / name for name in names])
    assert losses.get("pull_together").Config().strength == 1.0
    assert create_encoder("two_layers", dim=4)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert AUGMENTS.find("warped").modalities == ("image", "video")
    assert tasks.get("spread").Config is TaskConfig


@pytest.mark.slow
def test_the_commands_of_the_page_about_plugins_run_in_an_empty_folder(image_shards, tmp_path):
    written_examples(tmp_path)
    (tmp_path / "shards").symlink_to(image_shards)
    (tmp_path / "IMAGES").symlink_to(image_shards)
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    commands = [words for words in commands if words[0] == "avssl" and "my_list.py" not in words]  # tests/test_docs.py
    first_two, others = commands[:2], commands[2:]
    assert len(others) == 5
    for command in others:
        small = [option for option in SMALL if "encoders" not in option or "my_encoder.py" not in command]
        small = [*small, "data.num_workers=1", "steps=1"] if command[1] == "pretrain" else []
        run_python("-m", *command, *small, folder=tmp_path)
    assert first_two == others[:2]  # of the section on losses
    assert json.loads((tmp_path / "runs/mine/evaluations/spread.json").read_text())["results"]["trained"]["spread"] > 0
    assert (tmp_path / "rows").is_dir()
    (code,) = (block for block in blocks("python") if not block.startswith("# "))
    run_python("-c", code, folder=tmp_path)
