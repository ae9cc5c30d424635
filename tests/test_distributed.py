"""Two processes (torchrun, gloo) compute what one process computes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TINY, TINY_CMA, losses_of, run_python, run_ranks

TINY_WITHOUT_BATCH_NORM = [
    *(change for change in TINY if not change.startswith("encoders.")),
    "encoders.video={name: sum_video}",
    "encoders.audio={name: sum_audio}",
    "checkpoint_every_steps=3",
]


@pytest.mark.quick(1)
@pytest.mark.parametrize("claim", ["collectives", "gradient"])
def test_collectives_and_their_gradients_on_two_processes(claim):
    run_ranks(2, claim)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["avid", "avid_cma"])
def test_two_processes_equal_one_process_on_the_double_batch_in_weights_and_state(name, shards, tmp_path):
    """Six optimizer steps over more than one epoch, so that CMA searches its positives twice."""
    arguments = [
        "pretrain",
        str(ROOT / f"recipes/configs/{name}.yaml"),
        *TINY_WITHOUT_BATCH_NORM,
        *(TINY_CMA if name == "avid_cma" else []),
        f"data.shards={shards['train']}",
        "steps=6",
    ]
    for num_processes in (1, 2):
        run_ranks(num_processes, *arguments, f"run={tmp_path}/{num_processes}")
    one, two = (load_file(tmp_path / str(n) / "encoders.safetensors") for n in (1, 2))
    assert json.loads((tmp_path / "2" / "provenance.json").read_text())["world_size"] == 2
    assert one.keys() == two.keys()
    for key, expected in one.items():
        if expected.is_floating_point():
            torch.testing.assert_close(
                two[key], expected, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
        else:
            assert torch.equal(two[key], expected), key
    losses = [losses_of(tmp_path / str(n)) for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 6


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_exactly(shards, tmp_path):
    arguments = [
        "pretrain", str(ROOT / "recipes/configs/avid.yaml"), *TINY_WITHOUT_BATCH_NORM, f"data.shards={shards['train']}",
    ]  # fmt: skip
    run_ranks(2, *arguments, "steps=6", f"run={tmp_path}/straight")
    run_ranks(2, *arguments, "steps=3", f"run={tmp_path}/stopped")
    run_ranks(2, *arguments, "steps=6", f"run={tmp_path}/stopped")
    straight, stopped = (load_file(tmp_path / name / "encoders.safetensors") for name in ("straight", "stopped"))
    for key, expected in straight.items():
        assert torch.equal(stopped[key], expected), key


@pytest.mark.slow
def test_two_processes_that_look_at_all_samples_with_batch_norm_resume_exactly(shards, tmp_path):
    """Each process has running statistics of its own in training; which it looks with must not depend on a stop."""
    keys = [
        *(change for change in TINY if not change.startswith("loss.")),
        "loss.name=xdc", "loss.num_clusters=6", "loss.pca_dim=4",
        f"data.shards={shards['train']}", "checkpoint_every_steps=1", "optim.schedule=constant",
    ]  # fmt: skip
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "recipes/pretrain.py", *keys)
    for run, steps in (("straight", 8), ("stopped", 2), ("stopped", 8)):
        run_python(*start, f"steps={steps}", f"run={tmp_path / run}")
    straight, stopped = (load_file(tmp_path / name / "encoders.safetensors") for name in ("straight", "stopped"))
    assert any("running_mean" in key for key in straight)
    assert [key for key, value in straight.items() if not torch.equal(stopped[key], value)] == []
