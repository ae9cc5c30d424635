"""Makes parts in processes of this machine, on the nodes of a Ray cluster, or in a Slurm job array.

A runner makes the missing parts and yields the summary of each as it is done. On Slurm each job of an array does one
share; when all of them have ended, another job packs and finishes. Every job runs the command that a user of any other
scheduler would write by hand: `write ... --part i/n`, and at the end the same without --part. All nodes must see input
and output under the same path or URL.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from avssl.processes.cluster import on_ray, submit_array
from avssl.processes.pool import Sandbox
from data_prep.transcode.options import WriteOptions
from data_prep.write.folder import OutputFolder
from data_prep.write.parts import PartSummary, PartTask, make_parts
from data_prep.write.progress import WriteProgress
from data_prep.write.reading import FileOptions


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
    """Make each part in a task of Ray that holds one processor and reads its files in a sandbox of one process."""
    shared, tasks = (parts.folder, parts.file_options), map(parts.task_of, parts.numbers)
    for summary, reasons, num_files in on_ray(make_part_alone, shared, tasks, local_cpus=num_workers):
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


def write_command(arguments: argparse.Namespace, options: WriteOptions, share: str | None) -> list[str]:
    """The command that does one share, "i/n"; None: the command that packs and finishes."""
    command = [sys.executable, "-m", "data_prep"]
    for host in arguments.redirect_host:
        command += ["--redirect-host", host]
    command += ["write", _absolute(arguments.manifest), "--out", _absolute(arguments.out)]
    command += ["--num-workers", str(arguments.num_workers)]
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
    if arguments.part is not None or arguments.retry_failed:
        raise ValueError("--executor slurm makes the shares itself: leave out --part and --retry-failed")
    return submit_array(
        "avssl-write",
        lambda share: write_command(arguments, options, share),
        arguments.slurm_tasks,
        arguments.out,
        last="packs and finishes",
        cpus=arguments.num_workers,
        partition=arguments.slurm_partition,
    )


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())
