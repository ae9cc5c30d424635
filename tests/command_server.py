"""A process that has imported what the project's commands import, and forks for each command that a test runs.

`python -m tests.command_server` reads requests from its standard input, a line of JSON each, and answers each with the
command's exit status. Every command has a process of its own, as a user's has, without the seconds of imports.
"""

import atexit
import gc
import json
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path

from huggingface_hub import constants
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from avssl import config

IMPORTED = (
    "torch", "torchvision", "torchaudio", "accelerate", "accelerate.utils", "av", "webdataset", "avssl.train.monitor",
    "avssl.train.probe", "avssl.data.loader", "avssl.embedding.folder", "avssl.eval.frozen", "data_prep.write.run",
)  # fmt: skip


def serve() -> list[str]:
    """Answer requests until the input ends; in the fork for a command, that command's arguments."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            answers.close()
            for number, name, flags in (
                (0, os.devnull, os.O_RDONLY),
                (1, "stdout", os.O_RDWR),
                (2, "stderr", os.O_RDWR),
            ):
                os.dup2(os.open(request.get(name, name), flags), number)
            os.environ.clear()
            os.environ.update(request["environment"])
            constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "0") == "1"  # read by its import
            os.chdir(request["folder"])
            return request["arguments"]
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()
    answers.close()
    sys.exit()


def run(arguments: list[str]) -> None:
    """What `python ARGUMENTS` does, for a script, `-m module` or the launcher of torchrun."""
    if arguments[:2] == ["-m", "torch.distributed.run"]:
        launch(arguments[2:])
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def launch(arguments: list[str]) -> None:
    """What torchrun does with `--standalone --nproc_per_node N ARGUMENTS`; the ranks are forks of this process."""
    standalone, option, num_processes, *command = arguments
    assert (standalone, option) == ("--standalone", "--nproc_per_node")
    launcher = LaunchConfig(
        1, 1, int(num_processes), rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="tests", max_restarts=0,
        start_method="fork", monitor_interval=0.05,
    )  # fmt: skip
    elastic_launch(launcher, run_rank)(command)


def run_rank(command: list[str]) -> None:
    """`run`, with an exit status as torchrun expects it of a function: it returns, or raises."""
    try:
        run(command)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"left with {stop.code}") from stop


def leave(arguments: list[str]) -> None:
    """`run` as a whole process, up to its exit status.

    The end of an interpreter would write to every page that it shares with the server, which takes seconds.
    """
    status = 1
    try:
        run(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    config.parse(config.RunConfig, [])  # the schema is built once
    gc.collect()
    gc.freeze()
    leave(serve())
