"""Where parts are made: in processes of this machine, or on the nodes of a Ray cluster. (Slurm: slurm.py.)

A runner reads the parts with the given numbers and yields once for each as it is done.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from avssl.processes.pool import Sandbox
from data_prep.write.folder import OutputFolder
from data_prep.write.parts import PartSummary, PartTask, make_parts
from data_prep.write.reading import Work

if TYPE_CHECKING:
    from data_prep.write.job import Job
    from data_prep.write.progress import Progress

MAX_TRIES = 4  # of a part on Ray: a node that goes takes the parts with it that it was making
PARTS_AHEAD = 2  # for each of Ray's processors, so that none waits for its next part


def run_local(job: Job, missing: list[int], attempt: int, progress: Progress) -> Iterator[PartSummary]:
    """All parts through one sandbox of num_workers processes."""
    if not missing:
        return
    tasks = (job.part_task(number, attempt) for number in missing)
    with Sandbox(job.num_workers, job.work.limits) as sandbox:
        yield from make_parts(job.folder, job.work, tasks, sandbox, progress.file_done)


def run_ray(job: Job, missing: list[int], attempt: int, progress: Progress) -> Iterator[PartSummary]:
    """A task of Ray for each part, on the cluster of RAY_ADDRESS, or on one that is started here.

    Each task holds one processor and reads its files in a sandbox of one process. A part whose node dies is made again
    elsewhere. Input and output must be reachable from every node under the same path or URL.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--executor ray needs the package ray; install it with `pip install 'avssl[ray]'`") from error
    if not missing:
        return
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, num_cpus=None if address else job.num_workers, log_to_driver=False)
    remote = ray.remote(num_cpus=1, max_retries=MAX_TRIES - 1)(make_part_alone)
    work, folder = ray.put(job.work), job.folder
    limit = PARTS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[Any, int] = {}
    coming = iter(missing)
    while True:
        while len(waiting) < limit and (number := next(coming, None)) is not None:
            waiting[remote.remote(folder, work, job.part_task(number, attempt))] = number
        if not waiting:
            return
        ready, _ = ray.wait(list(waiting), num_returns=1)
        summary, reasons, num_files = ray.get(ready[0])
        del waiting[ready[0]]
        progress.files_done(reasons, num_files)
        yield summary


def make_part_alone(folder: OutputFolder, work: Work, task: PartTask) -> tuple[PartSummary, Counter[str], int]:
    """One part in a sandbox of its own: (its summary, skipped by reason, files)."""
    with Sandbox(1, work.limits) as sandbox:
        (summary,) = make_parts(folder, work, [task], sandbox)
    return summary, Counter(skip["reason"] for skip in summary.skipped), len(task.entries)


PART_RUNNERS: dict[str, Callable[[Any, list[int], int, Any], Iterable[PartSummary]]] = {
    "local": run_local,
    "ray": run_ray,
}
