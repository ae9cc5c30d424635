"""Makes parts in processes of this machine, on the nodes of a Ray cluster, or in a Slurm job array.

A runner makes the missing parts and yields the summary of each as it is done. On Slurm each job of an array does one
share; when all of them have ended, another job packs and finishes. Every job runs the command that a user of any other
scheduler would write by hand: `write ... --part i/n`, and at the end the same without --part. All nodes must see input
and output under the same path or URL.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from avssl.processes.pool import Sandbox
from data_prep.transcode.options import WriteOptions
from data_prep.write.folder import OutputFolder
from data_prep.write.parts import PartSummary, PartTask, make_parts
from data_prep.write.progress import WriteProgress
from data_prep.write.reading import FileOptions

MAX_TRIES = 4  # attempts to make a part on Ray: a node that dies loses the parts that it was making
PARTS_AHEAD = 2  # tasks per processor of Ray, so that none waits for its next part


@dataclass(frozen=True)
class MissingParts:
    """The parts that are still to be made. task_of: makes the task of a part from its number, when it is needed."""

    folder: OutputFolder
    file_options: FileOptions
    numbers: list[int]
    task_of: Callable[[int], PartTask]


def run_local(parts: MissingParts, num_workers: int, progress: WriteProgress) -> Iterator[PartSummary]:
    """Make all parts with one sandbox of num_workers processes."""
    if not parts.numbers:
        return
    tasks = map(parts.task_of, parts.numbers)
    with Sandbox(num_workers, parts.file_options.limits) as sandbox:
        yield from make_parts(parts.folder, parts.file_options, tasks, sandbox, progress.file_done)


def run_ray(parts: MissingParts, num_workers: int, progress: WriteProgress) -> Iterator[PartSummary]:
    """Make each part in a task of Ray, on the cluster of RAY_ADDRESS or on one that is started here.

    Each task holds one processor and reads its files in a sandbox of one process. A part whose node dies is made again
    elsewhere.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--executor ray needs the package ray; install it with `pip install 'avssl[ray]'`") from error
    if not parts.numbers:
        return
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, num_cpus=None if address else num_workers, log_to_driver=False)
    remote = ray.remote(num_cpus=1, max_retries=MAX_TRIES - 1)(make_part_alone)
    file_options, folder = ray.put(parts.file_options), parts.folder
    limit = PARTS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[Any, int] = {}
    numbers = iter(parts.numbers)
    while True:
        while len(waiting) < limit and (number := next(numbers, None)) is not None:
            waiting[remote.remote(folder, file_options, parts.task_of(number))] = number
        if not waiting:
            return
        ready, _ = ray.wait(list(waiting), num_returns=1)
        summary, reasons, num_files = ray.get(ready[0])
        del waiting[ready[0]]
        progress.files_done(reasons, num_files)
        yield summary


def make_part_alone(
    folder: OutputFolder, file_options: FileOptions, task: PartTask
) -> tuple[PartSummary, Counter[str], int]:
    """Make one part in a sandbox of its own: (its summary, counts of skipped files by reason, number of files)."""
    with Sandbox(1, file_options.limits) as sandbox:
        (summary,) = make_parts(folder, file_options, [task], sandbox)
    return summary, Counter(skip["reason"] for skip in summary.skipped), len(task.entries)


PartRunner = Callable[[MissingParts, int, WriteProgress], Iterator[PartSummary]]
PART_RUNNERS: dict[str, PartRunner] = {"local": run_local, "ray": run_ray}

MAX_HOURS = 24


def write_command(arguments: argparse.Namespace, options: WriteOptions, share: str | None) -> list[str]:
    """The command that does one share, "i/n"; None: the command that packs and finishes."""
    command = [sys.executable, "-m", "data_prep", "write", _absolute(arguments.manifest)]
    command += ["--out", _absolute(arguments.out), "--workers", str(arguments.workers)]
    command += ["--file-seconds", f"{arguments.file_seconds:g}", "--file-memory-mib", str(arguments.file_memory_mib)]
    defaults = WriteOptions()
    for option in fields(WriteOptions):
        value = getattr(options, option.name)
        if value != getattr(defaults, option.name):
            command += [f"--{option.name.replace('_', '-')}", str(value)]
    return command if share is None else [*command, "--part", share]


def submit(arguments: argparse.Namespace, options: WriteOptions) -> str:
    """Submit all jobs to Slurm, and return a message for the user. ValueError without submitit or sbatch, or for
    options that do not go with Slurm.
    """
    try:
        import submitit
        from submitit.helpers import CommandFunction
    except ImportError as error:
        raise ValueError("--executor slurm needs submitit; install it with `pip install 'avssl[slurm]'`") from error
    if arguments.part is not None or arguments.retry_failed or arguments.slurm_tasks < 1:
        raise ValueError("--executor slurm makes the shares itself: give --slurm-tasks of 1 or more, not --part or "
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
