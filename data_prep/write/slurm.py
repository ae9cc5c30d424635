"""`write --executor slurm`: a job array of shares and, when all of them have ended, a job that packs and finishes.

Every job runs the very command that a user of any other scheduler would write by hand: `write ... --part i/n`, and at
last the same without --part. All nodes must see input and output under the same path or URL.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from data_prep.transcode.options import WriteOptions

MAX_HOURS = 24


def write_command(arguments: argparse.Namespace, options: WriteOptions, part: str | None) -> list[str]:
    """The command of one share, or of the finish for None."""
    command = [sys.executable, "-m", "data_prep", "write", _absolute(arguments.manifest)]
    command += ["--out", _absolute(arguments.out), "--workers", str(arguments.workers)]
    command += ["--file-seconds", f"{arguments.file_seconds:g}", "--file-memory-mib", str(arguments.file_memory_mib)]
    defaults = WriteOptions()
    for option in fields(WriteOptions):
        value = getattr(options, option.name)
        if value != getattr(defaults, option.name):
            command += [f"--{option.name.replace('_', '-')}", str(value)]
    return command if part is None else [*command, "--part", part]


def submit(arguments: argparse.Namespace, options: WriteOptions) -> str:
    """Submit everything; returns what to tell the user. ValueError without submitit or sbatch, or for other options."""
    try:
        import submitit
        from submitit.helpers import CommandFunction
    except ImportError as error:
        raise ValueError("--executor slurm needs submitit; install it with `pip install 'avssl[slurm]'`") from error
    if arguments.part is not None or arguments.retry_failed or arguments.slurm_tasks < 1:
        raise ValueError("--executor slurm makes the parts itself: give --slurm-tasks of 1 or more, not --part or "
                         "--retry-failed")  # fmt: skip
    logs = Path(f"{arguments.out}.slurm" if "://" not in arguments.out else "slurm").absolute()
    try:
        executor = submitit.AutoExecutor(logs, cluster="slurm")
    except RuntimeError as error:
        raise ValueError(f"--executor slurm: this machine cannot submit jobs ({error})") from error
    settings = {"cpus_per_task": arguments.workers, "timeout_min": 60 * MAX_HOURS, "name": "avssl-write"}
    if arguments.slurm_partition:
        settings["slurm_partition"] = arguments.slurm_partition
    executor.update_parameters(**settings)
    count = arguments.slurm_tasks
    with executor.batch():
        jobs = [
            executor.submit(CommandFunction(write_command(arguments, options, f"{number}/{count}")))
            for number in range(count)
        ]
    array = str(jobs[0].job_id).partition("_")[0]
    executor.update_parameters(slurm_additional_parameters={"dependency": f"afterany:{array}"})
    last = executor.submit(CommandFunction(write_command(arguments, options, None)))
    return (
        f"job array {array} with {count} jobs, then job {last.job_id} that packs and finishes; logs: {logs}. If jobs "
        "fail, run the same command again: what is done is kept"
    )


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())
