"""Start-up: what a command loads before it has to. Names of modules, not seconds; benchmarks/start_up.py has those."""

import subprocess
import sys

import pytest

from avssl.command import PROGRAMS
from tests.conftest import ROOT

HEAVY = (
    "torch",
    "torchvision",
    "torchaudio",
    "accelerate",
    "av",
    "pyarrow",
    "sklearn",
    "lance",
    "webdataset",
    "fsspec",
)

# What a user starts by `python -m` or as a script, beside the programs of `avssl`.
STARTED = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("avssl/**/__main__.py"), ROOT / "data_prep/__main__.py", *ROOT.glob("recipes/[!_]*.py"))
)

# Runs a script, or with `-m` a module, as __main__ and prints what it has loaded, whatever its exit status.
AS_MAIN = """
import runpy, sys
is_module = sys.argv[1] == "-m"
target, sys.argv = sys.argv[1 + is_module], sys.argv[1 + is_module:]
try:
    (runpy.run_module if is_module else runpy.run_path)(target, run_name="__main__")
except SystemExit:
    pass
print("\\nLOADED", *sorted(name for name in sys.modules if "." not in name))
"""


def loaded_after(code, *arguments):
    """Names of the top-level modules of a fresh interpreter after `code`."""
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(process.stdout.rsplit("LOADED", 1)[1].split())


def test_importing_the_package_loads_no_library():
    loaded = loaded_after("import sys, avssl; print('LOADED', *sys.modules)")
    assert not loaded & {*HEAVY, "numpy", "omegaconf"}


SERVED = """
import sys
from avssl.processes.worker_server import start_worker_server, worker_context
start_worker_server()
here = {name.split(".")[0] for name in sys.modules}
context = worker_context()
queue = context.SimpleQueue()
if __name__ == "__main__":
    from tests.started_worker import tell
    worker = context.Process(target=tell, args=(queue,))
    worker.start()
    print("\\nLOADED", *sorted(here), *(f"worker:{name}" for name in queue.get()))
    worker.join()
"""


@pytest.mark.slow
def test_the_server_of_workers_imports_for_them_and_nothing_here():
    loaded = loaded_after(SERVED)
    assert not loaded & set(HEAVY)
    assert {"worker:torch", "worker:av", "worker:avssl.data.loader", "worker:avssl.data.every_sample"} <= loaded


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_no_heavy_library(program):
    assert not loaded_after(AS_MAIN, "avssl/__main__.py", program, "--help") & set(HEAVY)


@pytest.mark.parametrize("path", STARTED)
def test_help_of_whatever_can_be_started_loads_no_heavy_library(path):
    package = path.removesuffix("/__main__.py")
    started = [path] if package == path else ["-m", package.replace("/", ".")]
    assert not loaded_after(AS_MAIN, *started, "--help") & set(HEAVY)


def test_the_options_of_every_command_of_prep_need_no_pytorch():
    parsers = "import sys; from data_prep.__main__ import build_parser; build_parser(); print('LOADED', *sys.modules)"
    assert not loaded_after(parsers) & {"torch", "torchvision", "torchaudio", "accelerate", "pyarrow", "sklearn"}


@pytest.mark.parametrize("program", ["pretrain", "evaluate"])
def test_help_that_reads_the_schema_of_the_configuration_loads_no_numpy(program):
    assert "numpy" not in loaded_after(AS_MAIN, "avssl/__main__.py", program, "--help")


def test_the_demo_refuses_an_argument_instead_of_starting():
    process = subprocess.run(
        [sys.executable, "recipes/demo.py", "--fast"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "takes no arguments" in process.stderr


def test_a_mistyped_key_is_refused_without_loading_a_heavy_library():
    assert not loaded_after(AS_MAIN, "recipes/pretrain.py", "optim.learning_rate=1") & set(HEAVY)


def test_the_main_module_of_training_is_light_for_the_workers_that_import_it():
    """A forkserver imports the script that started it in every worker."""
    loaded = loaded_after("import sys, recipes.pretrain; print('LOADED', *sys.modules)")
    assert not loaded & set(HEAVY)
