"""The programs as Python calls: the same results as by command, exceptions for errors, several runs in one process."""

import json
import signal
import subprocess
import sys
import threading
from importlib import import_module

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import equal

import avssl
from avssl import calls, config, losses
from avssl.eval.results import read_evaluation
from avssl.files.locks import locked
from avssl.plugins import registry
from avssl.processes.stopping import STOP_SIGNALS
from avssl.processes.worker_server import main_file_hidden
from avssl.transforms import register_augment
from avssl.types import TooFewSamplesError
from tests.conftest import ROOT, TINY, losses_of


def as_keywords(changes):
    """Changes of a command line as keywords: values as YAML reads them."""
    return {key: config.yaml.safe_load(value) for key, value in (change.split("=", 1) for change in changes)}


SMALL = as_keywords(TINY) | {"optim.lr": 1e-3}


@pytest.fixture(scope="module")
def called(shards, tmp_path_factory):
    """Two runs of three and two steps, one after the other in this process."""
    folder = tmp_path_factory.mktemp("called")
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    first = avssl.pretrain("avid", shards["train"], folder / "first", steps=3, **SMALL)
    second = avssl.pretrain("avid", str(shards["train"]), str(folder / "second"), steps=2, **SMALL)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    return first, second


@pytest.mark.slow
def test_a_call_makes_the_run_of_the_command_bit_for_bit(called, tiny_run):
    first, second = called
    assert (first.steps, second.steps, first.is_finished) == (3, 2, True)
    assert first.metrics == first.run / "metrics.jsonl"
    assert losses_of(first.run) == losses_of(tiny_run)
    weights, expected = (load_file(run / "encoders.safetensors") for run in (first.run, tiny_run))
    assert weights.keys() == expected.keys()
    assert all(equal(weights[name], expected[name]) for name in weights)


@pytest.mark.slow
def test_a_run_is_let_go_and_goes_on_with_the_same_call(called, shards):
    second = called[1]
    with locked(second.run / ".lock", wait_seconds=0):
        pass
    again = avssl.pretrain("avid", shards["train"], second.run, steps=3, **SMALL)
    assert (again.steps, again.is_finished) == (3, True)
    assert losses_of(again.run) == losses_of(called[0].run)


@pytest.mark.slow
def test_evaluate_returns_the_content_of_the_file_that_the_command_writes(called, shards):
    run = called[0].run
    data = {"train": str(shards["train"]), "test": str(shards["test"])}
    result = avssl.evaluate(run, "knn", label_field="visual", modality="video", name="mine", num_workers=0, **data)
    assert result == read_evaluation(run / "evaluations/knn-mine.json")
    assert 0 <= next(iter(result["results"]["trained"].values())) <= 1


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"optim.learning_rate": 1}, config.ConfigError, "Key 'learning_rate' not in"),
        ({"epochs": object()}, config.ConfigError, "values are numbers, texts, paths, lists and mappings"),
        ({"data.global_batch_size": 1024}, TooFewSamplesError, "add data.global_batch_size=auto"),
    ],
)
def test_errors_are_exceptions(keywords, error, message, shards, tmp_path):
    with pytest.raises(error, match=message):
        avssl.pretrain("avid", shards["train"], tmp_path / "run", **SMALL | {"steps": 1} | keywords)


@pytest.mark.slow
def test_an_unknown_recipe_task_or_key_of_a_task_is_an_exception(called, shards):
    with pytest.raises(config.ConfigError, match="no such file or recipe"):
        avssl.pretrain("avidd", shards["train"])
    with pytest.raises(config.ConfigError, match="no such file or recipe"):
        avssl.evaluate(called[0].run, "knnn", train=str(shards["train"]))
    with pytest.raises(config.ConfigError, match="'neighbours' not in"):
        avssl.evaluate(called[0].run, "knn", neighbours=3)


def test_a_call_runs_in_a_thread_that_is_not_the_main_one(called, shards, tmp_path):
    """Python sets handlers of signals in the main thread alone."""
    done = []

    def work():
        done.append(avssl.pretrain("avid", shards["train"], tmp_path / "run", steps=1, **SMALL))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [run.steps for run in done] == [1]


SCRIPT = """
import avssl
print("BEGIN", flush=True)
shards = avssl.prepare({videos!r}, {folder!r} + "/shards", short_side_px=32).shards
run = avssl.pretrain("avid", shards, {folder!r} + "/run", steps=2, **{changes!r})
print("END", run.steps, flush=True)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_of_its_main_part_begins_once(corpus, tmp_path):
    """Processes of multiprocessing would import the script, and begin the run once more in each worker."""
    script = tmp_path / "mine.py"
    changes = SMALL | {"data.num_workers": 2}
    script.write_text(SCRIPT.format(videos=str(corpus / "test"), folder=str(tmp_path), changes=changes))
    process = subprocess.run(
        [sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert (process.stdout.count("BEGIN"), process.stdout.count("END 2")) == (1, 1)


SCRIPT_OF_A_LOSS = """
from dataclasses import dataclass
import avssl
from avssl.losses import get, register
print("BEGIN", flush=True)

@register("in_the_script")
class InTheScript(get("simclr")):
    pass

run = avssl.pretrain({recipe!r}, {shards!r}, {run!r}, steps=2, **{changes!r})
print("END", run.steps, flush=True)
"""


@pytest.mark.slow
def test_a_loss_may_be_defined_in_a_script_without_a_guard(image_shards, tmp_path):
    (tmp_path / "recipe.yaml").write_text("loss: {name: in_the_script}\n")
    changes = {
        "cpu": True, "mixed_precision": "fp32", "data.global_batch_size": 4, "data.num_workers": 2,
        "views.image.size_px": 24, "encoders.image": {"name": "resnet10", "width": 4}, "optim.warmup_steps": 0,
    }  # fmt: skip
    script = tmp_path / "mine.py"
    script.write_text(
        SCRIPT_OF_A_LOSS.format(
            recipe=str(tmp_path / "recipe.yaml"), shards=str(image_shards), run=str(tmp_path / "run"), changes=changes
        )
    )
    process = subprocess.run(
        [sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert (process.stdout.count("BEGIN"), process.stdout.count("END 2")) == (1, 1)


def test_workers_need_the_file_of_a_script_for_its_augments_alone(own_registries, monkeypatch):
    monkeypatch.setattr(registry, "_of_script", set())
    losses.register("of_this_script")(type("Mine", (losses.get("simclr"),), {"__module__": "__main__"}))
    assert not registry.has_parts_of_script()
    augment = type("Mine", (), {"__module__": "__main__"})
    register_augment("of_this_script", "image")(augment)
    assert registry.has_parts_of_script()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notebook", "search_and_labels"])
def test_the_notebooks_of_the_examples_run(name, corpus, tiny_run, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / f"examples/{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    setting = next(cell for cell in notebook.cells if cell.cell_type == "code")
    values = {"VIDEOS": str(corpus / "train"), "WORK": str(tmp_path), "RUN": str(tiny_run)}
    names = setting.source.partition(" = ")[0].split(", ")
    setting.source = "\n".join(f"{name} = {values[name]!r}" for name in names)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    text = json.dumps(notebook.cells)
    for said in {"notebook": ("written", "trained"), "search_and_labels": ("chance", "look at these first")}[name]:
        assert said in text


def test_after_a_run_the_callers_timer_and_main_module_are_as_before(monkeypatch):
    outer = signal.setitimer(signal.ITIMER_REAL, 500.0)
    try:
        with calls.own_run():
            signal.alarm(0)  # as the end of a launcher is watched
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # as in a notebook
    with main_file_hidden():
        assert sys.modules["__main__"].__file__ is None
    assert not hasattr(sys.modules["__main__"], "__file__")


def test_after_a_run_accelerate_is_as_the_caller_had_it():
    states = (AcceleratorState, PartialState, GradientState)
    before = [dict(state._shared_state) for state in states]
    try:
        for state in states:
            state._shared_state.clear()
        own = Accelerator(cpu=True, gradient_accumulation_steps=3)
        with calls.own_run():
            assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
        assert (own.mixed_precision, own.gradient_accumulation_steps) == ("no", 3)
        assert AcceleratorState().mixed_precision == "no"
        assert PartialState().num_processes == own.num_processes
    finally:
        for state, values in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)


@pytest.mark.slow
def test_a_run_that_is_stopped_before_its_first_step_has_made_none(shards, tmp_path, monkeypatch):
    program = import_module("avssl.recipes.pretrain")
    real = program.StopSignal

    def stopped(device):
        signals = real(device)
        signals.is_agreed = True
        return signals

    monkeypatch.setattr(program, "StopSignal", stopped)
    run = avssl.pretrain("avid", shards["train"], tmp_path / "run", steps=2, **SMALL)
    assert (run.steps, run.is_finished) == (0, False)
    monkeypatch.undo()
    again = avssl.pretrain("avid", shards["train"], tmp_path / "run", steps=2, **SMALL)
    assert (again.steps, again.is_finished) == (2, True)


def test_a_run_without_a_folder_named_lies_where_its_recipe_is_called(tmp_path, monkeypatch):
    from recipes.pretrain import name_run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    for arguments, expected in ((["a=1", "mine.yaml"], "runs/mine"), (["a=1"], "runs/avid")):
        cfg = config.parse(config.RunConfig, [str(ROOT / "recipes/configs/avid.yaml")])
        name_run(cfg, arguments)
        assert cfg.run == expected
    cfg.run = "elsewhere"
    name_run(cfg, ["mine.yaml"])
    assert cfg.run == "elsewhere"
