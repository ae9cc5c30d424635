"""What a laptop of another kind has: no system calls of Linux, and an Apple GPU."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from avssl import config, device, doctor
from recipes import pretrain
from tests.conftest import TINY, run_python

WITHOUT_LINUX = Path(__file__).parent / "without_linux"


@pytest.mark.slow
def test_the_way_from_videos_to_a_search_needs_no_system_call_of_linux(tmp_path):
    def avssl(*arguments):
        search_path = f"{WITHOUT_LINUX}:{Path(__file__).parent.parent}"
        return run_python("-m", "avssl", *arguments, folder=tmp_path, PYTHONPATH=search_path).stdout

    lacking = "import os, multiprocessing as m; print(hasattr(os, 'memfd_create'), m.get_start_method())"
    assert run_python("-c", lacking, PYTHONPATH=str(WITHOUT_LINUX)).stdout == "False spawn\n"

    avssl("prep", "demo-corpus", "videos", "--num-train", "8", "--num-test", "2", "--num-workers", "2")
    avssl("prep", "index", "videos/train", "--out", "corpus.jsonl")
    avssl("prep", "write", "corpus.jsonl", "--out", "shards", "--num-workers", "2")
    small = ["data.global_batch_size=4", "loss.num_negatives=4", "data.num_workers=2", "steps=4", "log_every_steps=1"]
    avssl("pretrain", "demo_avid", "run=run", "data.shards=shards", *small, "data.cache_decoded=500_000_000")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    embed = ["--window", "1", "--stride", "1", "--num-workers", "2"]
    assert "2 of 2 sources embedded" in avssl("embed", "run", "videos/test", "--out", "embeddings", *embed)
    query = next((tmp_path / "videos/test").rglob("*.mp4"))
    assert query.name in avssl("search", "embeddings", query)


def test_trainings_stay_on_the_cpu_where_the_only_other_device_is_an_apple_gpu(shards, tmp_path, monkeypatch, capsys):
    import accelerate

    asked = []

    class Recorded(accelerate.Accelerator):
        def __init__(self, *, cpu, **options):
            asked.append(cpu)
            super().__init__(cpu=cpu, **options)

    monkeypatch.setattr(accelerate, "Accelerator", Recorded)
    monkeypatch.setattr(torch.backends.mps, "is_available", cache(lambda: True))
    arguments = [*TINY, "cpu=false", "loss.name=avid", f"data.shards={shards['train']}", "steps=1"]
    pretrain.main(config.parse(config.RunConfig, [f"run={tmp_path / 'run'}", *arguments]))
    assert asked == [True]
    assert "; cpu, fp32" in capsys.readouterr().out
    assert "an Apple GPU, which has no float64: runs stay on the CPU" in [line for _, line in doctor.accelerators()]
    monkeypatch.setattr(torch.cuda, "is_available", cache(lambda: True))
    assert not device.keeps_off_apple_gpu()
