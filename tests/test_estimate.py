"""What a run says at its begin, and its estimate of the time after some steps."""

from types import SimpleNamespace

import pytest
import torch

from avssl import config
from avssl.train import estimate
from avssl.train.estimate import Pace, describe_run, warm_up_warning
from avssl.types import Progress, View
from tests.conftest import ROOT


def configured(name="avid", *changes):
    return config.parse(config.RunConfig, [str(ROOT / f"recipes/configs/{name}.yaml"), "run=runs/mine", *changes])


def made_loader(num_samples=40, steps_per_epoch=10, modality="video"):
    return SimpleNamespace(
        num_samples=num_samples, steps_per_epoch=steps_per_epoch, waited_seconds=0.0, device=torch.device("cpu"),
        views=(View("audio", "audio"), View("first", modality)),
    )  # fmt: skip


def test_the_first_line_says_what_will_be_done():
    cfg = configured("avid", "data.global_batch_size=4", "data.num_workers=1", "mixed_precision=fp32")
    assert describe_run(cfg, made_loader(), 3000, 1) == (
        "avid: 40 clips, batch 4, 10 steps per epoch, 300 epochs, 3000 steps; cpu, fp32, 1 process with 1 worker; "
        "runs/mine"
    )
    cfg = configured("simclr", "gradient_accumulation_steps=2", "data.global_batch_size=4", "mixed_precision=bf16")
    line = describe_run(cfg, made_loader(modality="image"), 15, 8)
    assert "40 images, batch 4 x 2 accumulated, 5 steps per epoch, 3 epochs, 15 steps" in line
    assert "8 processes with 8 workers" in line


def simulated(cfg, loader, total_steps, seconds, waits=0.0, begin=0, epoch_seconds=0.0):
    """{step: line} of a run on a clock: the first step takes 100 s, every other `seconds`, of which `waits` waiting."""
    now = [0.0]
    pace = Pace(cfg, loader, Progress(step=begin, total_steps=total_steps), lambda: now[0])
    lines = {}
    for step in range(begin + 1, total_steps + 1):
        if (step - 1) % loader.steps_per_epoch == 0:
            now[0] += epoch_seconds
            pace.epoch_starts(epoch_seconds)
        now[0] += 100.0 if step == begin + 1 else seconds
        loader.waited_seconds += 90.0 if step == begin + 1 else waits
        if line := pace.step_done(step):
            lines[step] = line
    return lines


def test_the_first_step_gives_an_estimate_of_what_it_computed():
    """100 s, of which 90 were until the first batch: 2999 steps of 10 s."""
    lines = simulated(configured(), made_loader(), 3000, seconds=2.0)
    assert lines[1].startswith(
        "step 1 of 3000: 2 min, 2 min of it until the first batch was read; 8 h 20 min to go if all"
    )


def test_the_second_estimate_counts_without_the_first_step(monkeypatch):
    monkeypatch.setattr(estimate, "default_num_workers", lambda: 1)
    lines = simulated(configured(), made_loader(), 3000, seconds=2.0)
    assert list(lines) == [1, 20]
    assert lines[20].startswith("step 20 of 3000: 2 s per step, about 1 h 39 min to go; waits for data 0%")  # 5960 s
    assert "computing bounds the run; a GPU would help, or in a new run smaller views" in lines[20]
    assert "views.video.size_px=112" in lines[20]


def test_free_cores_are_offered_for_the_views_of_a_run_on_the_cpu(monkeypatch):
    def line(cores, *changes, waits=0.0):
        monkeypatch.setattr(estimate, "default_num_workers", lambda: cores)
        return simulated(configured("avid", *changes), made_loader(), 100, seconds=2.0, waits=waits)[20]

    threads = torch.get_num_threads()
    offered = "data.views_in_workers=true gives a part of it to the workers; a GPU would help"
    assert offered in line(threads + 1, "data.num_workers=1")
    assert "views_in_workers" not in line(threads, "data.num_workers=1")
    assert "views_in_workers" not in line(threads + 1, "data.num_workers=0")
    assert "views_in_workers" not in line(threads + 1, "data.num_workers=1", "data.views_in_workers=true")
    waiting = line(1, "data.num_workers=1", "data.views_in_workers=true", waits=1.0)
    assert "waits for data 50%: data.views_in_workers=false lets the workers read alone" in waiting


@pytest.mark.quick(1)
@pytest.mark.parametrize(("total", "due"), [(1, 1), (2, 1), (8, 2), (40, 10), (80, 20), (100, 20)])
def test_a_short_run_says_it_after_a_quarter(total, due):
    assert list(simulated(configured(), made_loader(), total, seconds=2.0)) == sorted({1, due})


def test_a_run_that_goes_on_measures_its_own_steps():
    lines = simulated(configured(), made_loader(), 1000, seconds=2.0, begin=500)
    assert list(lines) == [501, 520]
    assert "about 16 min to go" in lines[520]  # 480 steps


def test_work_before_epochs_counts_for_every_epoch_that_is_left():
    """10 steps of 2 s and 30 s before each epoch: 980 steps left are 98 epochs."""
    lines = simulated(configured(), made_loader(), 1000, seconds=2.0, epoch_seconds=30.0)
    assert lines[20].startswith("step 20 of 1000: 2 s per step, about 82 min to go")  # 1960 + 2940 s


def test_waiting_for_data_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(estimate, "default_num_workers", lambda: 8)
    lines = simulated(configured("avid", "data.num_workers=2"), made_loader(), 100, seconds=2.0, waits=1.0)
    assert "waits for data 50%: raise data.num_workers (2 now, 8 cores here)" in lines[20]
    lines = simulated(configured("avid", "data.num_workers=8"), made_loader(), 100, seconds=2.0, waits=1.0)
    assert "waits for data 50%, and all cores read already: shards of smaller frames" in lines[20]


def test_waiting_while_the_first_epoch_fills_the_cache_is_no_reason_for_more_workers(monkeypatch):
    monkeypatch.setattr(estimate, "default_num_workers", lambda: 8)
    cfg, loader = configured("avid", "data.num_workers=2", "data.cache_decoded=1000"), made_loader(steps_per_epoch=50)
    cfg.log_every_steps = 10
    pace = Pace(cfg, loader, Progress(step=100, total_steps=200), lambda: loader.waited_seconds * 2)
    pace.step_done(101)
    loader.waited_seconds += 10
    assert pace.step_done(120).endswith(
        "waits for data 50% while one epoch fills data.cache_decoded; later ones take less time"
    )
    assert [pace.stretch_done(step, 0.5) for step in (130, 150, 159)] == ["", "", ""]
    assert pace.stretch_done(160, 0.5).endswith("waits for data 50%: raise data.num_workers (2 now, 8 cores here)")
    assert pace.stretch_done(170, 0.5) == ""
    lines = simulated(cfg, made_loader(steps_per_epoch=100), 100, seconds=2.0, waits=1.0)
    assert lines[20].endswith("raise data.num_workers (2 now, 8 cores here)")  # one epoch: no later one


@pytest.mark.slow
def test_a_run_that_waits_later_says_so_once(monkeypatch):
    monkeypatch.setattr(estimate, "default_num_workers", lambda: 8)
    pace = Pace(configured(), made_loader(), Progress(step=0, total_steps=100), lambda: 0.0)
    assert pace.stretch_done(20, 0.9) == ""  # the second estimate says it
    assert pace.stretch_done(30, 0.1) == ""
    assert pace.stretch_done(40, 0.47) == (
        "step 40 of 100: waits for data 47%, and all cores read already: shards of smaller frames (--short-side-px) "
        "are read faster"
    )
    assert pace.stretch_done(50, 0.47) == ""


@pytest.mark.slow
def test_a_warm_up_that_outlasts_the_run_is_warned_of():
    assert warm_up_warning(configured("simclr"), 3121) == ""
    assert "the run has only 300; add optim.warmup_steps=30" in warm_up_warning(configured("simclr"), 300)
    assert warm_up_warning(configured("avid"), 1) == ""
