"""The benchmarks that want a GPU run to their end on a CPU, at sizes of no use: what is new on a GPU is the GPU."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import gpu_training, learning
from tests.conftest import ROOT

TINY = {
    "gpu_training": ["--device", "cpu", "--tiny", "--rounds", "1"],
    "training_step": ["--rounds", "1", "--batch-size", "2", "--rows", "2000", "--encoder-rows", "1"],
    "avid_loss": ["--rounds", "1"],
    "cma_search": ["--rows", "300", "--queries", "64", "--plain-queries", "32", "--rounds", "1", "--all"],
}
ELSEWHERE = {"image_losses"}  # wants lightly beside it


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def memory_order_that_this_cpu_can_have(monkeypatch):
    """What is tried is the script; its settings are a GPU's, and channels last is refused on some CPUs."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        for name, chosen in gpu_training.SETTINGS.items():
            monkeypatch.setitem(gpu_training.SETTINGS, name, chosen | {"channels_last": False})


def rows_of(name, options, folder, monkeypatch):
    script = importlib.import_module(f"benchmarks.{name}")
    if name == "avid_loss":
        monkeypatch.setattr(script, "NUM_SAMPLES", 2000)
    out = folder / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", [name, *options, "--json", str(out)])
    script.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_of_the_gpu_ends_with_rows(name, tmp_path, monkeypatch):
    """All but compilation, whose turn is below."""
    monkeypatch.delitem(gpu_training.SETTINGS, "channels last, compiled")
    rows = rows_of(name, TINY[name], tmp_path, monkeypatch)
    assert rows
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_the_gpu_trains_compiled_networks_too(tmp_path, monkeypatch):
    rows = rows_of("gpu_training", TINY["gpu_training"], tmp_path, monkeypatch)
    assert [row["name"].rsplit(", ", 1)[1] for row in rows] == ["plain", "channels last", "compiled"]


def test_each_benchmark_of_the_gpu_is_tried_here_and_its_options_are_those_of_the_script(monkeypatch, capsys):
    assert set(bench.GPU) == set(TINY) | ELSEWHERE
    for name, options in bench.GPU.items():
        monkeypatch.setattr(sys, "argv", [name, *options, "--help"])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"benchmarks.{name}").main()
        assert ended.value.code == 0
        known = capsys.readouterr().out
        assert all(option in known for option in options if option.startswith("--"))


def test_a_run_of_the_recipe_is_kept_on_the_cpu_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for on_cpu in (True, False):
        log = Path(tmp_path / f"{on_cpu}.log")
        learning.run_command(
            [sys.executable, "-c", "import os; print(os.environ.get('ACCELERATE_USE_CPU'))"], log, on_cpu=on_cpu
        )
        assert log.read_text().split() == [str("true" if on_cpu else None)]


def names_of(module: str) -> set[str]:
    """The names that a module of the program defines or imports, and the modules that a package holds."""
    path, names = ROOT / module.replace(".", "/"), set()
    if path.is_dir():
        names |= {child.stem for child in path.iterdir()}
        path /= "__init__"
    for node in ast.walk(ast.parse(path.with_suffix(".py").read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_every_benchmark_imports_names_that_exist():
    own = re.compile(r"(avssl|data_prep|recipes|benchmarks|tests)\b")
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and own.match(node.module or ""):
                missing = {alias.name for alias in node.names} - names_of(node.module)
                assert not missing, f"{path.name}: {node.module} has no {missing}"


def test_the_page_of_a_gpu_is_written_after_each_script_and_says_how_each_ended(tmp_path, monkeypatch, capsys):
    """With scripts that take no time: one that ends well, one that fails after a row, one that hangs, one too late."""
    (tmp_path / "benchmarks").mkdir()
    row = '{"name": "work", "ours": 2.0, "other": 1.0, "unit": "s", "against": "less work", "ratio": 2.0}'
    scripts = {
        "good": "open(sys.argv[-1], 'w').write(row)",
        "bad": "open(sys.argv[-1], 'w').write(row); sys.exit(3)",
        "slow": "time.sleep(60)",
        "late": "pass",
    }
    for name, text in scripts.items():
        code = f"import sys, time\nrow = {row!r} + chr(10)\n{text}\n"
        (tmp_path / "benchmarks" / f"{name}.py").write_text(code)
    pages = []
    monkeypatch.setattr(bench, "write_whole", lambda path, text: pages.append((path, text)) or path)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "GPU", {"good": [], "bad": ["--size", "1"], "slow": [], "late": []})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--gpu", "--limit-seconds", "1.5"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1
    assert [path for path, _ in pages] == [bench.GPU_PAGE] * 4
    assert bench.GPU_PAGE == ROOT / "docs" / "results_gpu.md"
    first, last = pages[0][1], pages[-1][1]
    assert "| bad | | | waits |" in first
    assert first.count("| work |") == 1
    assert last.count("| work | 2 s | 1 s | less work | 2 |") == 2
    assert "| bad | `--size 1` | 0 | failed with status 3 |" in last
    assert re.search(r"\| slow \|  \| \d \| ended after \d s: the time was up \|", last)
    assert "| late |  | 0 | not begun: the time was up |" in last
    assert "3 scripts failed: bad, slow, late" in capsys.readouterr().out


def test_by_default_only_the_gpu_scripts_write_a_page_and_have_a_limit(monkeypatch):
    monkeypatch.setattr(bench, "run_all", lambda scripts, limit: iter([bench.Outcome(str(limit), [], [], 0.0, "done")]))
    written = []
    monkeypatch.setattr(bench, "write_whole", lambda path, text: written.append(path))
    for options, pages in ((["--only", "loader"], []), (["--gpu"], [bench.GPU_PAGE])):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        assert ended.value.code == 0
        assert written == pages
    assert bench.GPU_SECONDS == 600
