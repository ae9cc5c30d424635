"""Work on many machines: tasks on the nodes of a Ray cluster, or the shares of a command in a job array of Slurm.

What a task or a share makes lies in one folder that all machines see under the same path, whole or absent; the same
command again does what is missing. The only user of ray and submitit.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

EXECUTORS = ("local", "ray", "slurm")
MAX_TRIES = 4  # attempts at a task on Ray: a node that dies loses the tasks that it had
TASKS_AHEAD = 2  # per task that can run at once, so that no processor waits for its next one
SLURM_HOURS = 24  # time limit of a job; SBATCH_TIMELIMIT and the other variables of sbatch change a job
ANSWER_SECONDS = 20  # for a host to answer
NO_CLUSTER = (
    "cannot join the Ray cluster of RAY_ADDRESS={address} ({reason}). `ray start --address {address}` must have run on "
    "this machine, and if the cluster has a token, RAY_AUTH_MODE=token must be set and the token be known here"
)

logger = logging.getLogger("avssl")


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Add --executor, --slurm-tasks and --slurm-partition to a command that also has --part i/n."""
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        help="local: processes of this machine; ray: the cluster of RAY_ADDRESS, or one started here; slurm: submit job"
        " arrays and leave (default: local)",
    )
    parser.add_argument("--slurm-tasks", type=int, default=8, help="jobs in the array (default: 8)")
    parser.add_argument("--slurm-partition", help="where to submit to (default: the cluster's)")


def on_ray(
    work: Callable[..., Result],
    shared: tuple[Any, ...],
    tasks: Iterable[Task],
    *,
    cpus: int = 1,
    gpus: float = 0.0,
    local_cpus: int | None = None,
) -> Iterator[Result]:
    """work(*shared, task) of every task, as they end, on the cluster of RAY_ADDRESS or on one that is started here.

    Args:
        work: importable by name on every node, such as a function of a module. tasks: taken a few ahead.
        cpus, gpus: processors and GPUs that each task holds, gpus=0.5 for two tasks on one.
        local_cpus: processors of a cluster that is started here; None: all.

    A task whose node dies is done again elsewhere, up to MAX_TRIES times; then ChildProcessError. An error of `work` is
    raised as it is. ValueError without the package or the cluster, or if this machine alone can never do a task.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--executor ray needs the package ray; install it with `pip install 'avssl[ray]'`") from error
    remaining = iter(tasks)
    first = next(remaining, None)
    if first is None:
        return
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        try:
            _expect_answer(address or "")
            ray.init(address=address, num_cpus=None if address else local_cpus, log_to_driver=False)
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:  # it raises each of them
            if not address:
                raise
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(NO_CLUSTER.format(address=address, reason=reason)) from error
    _expect_room(ray.nodes(), cpus, gpus)
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_TRIES - 1)(work)
    references = [ray.put(value) for value in shared]
    limit = TASKS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)
    waiting = [remote.remote(*references, first)]
    while waiting:
        while len(waiting) < limit and (task := next(remaining, None)) is not None:
            waiting.append(remote.remote(*references, task))
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        try:
            result: Result = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ChildProcessError(
                f"a task on Ray was lost {MAX_TRIES} times ({reason}); the same command goes on with what is missing"
            ) from error
        yield result


def _expect_answer(address: str) -> None:
    """OSError if nobody answers at HOST:PORT. Ray itself would try for a minute and then end this process."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()


def _expect_room(nodes: list[dict[str, Any]], cpus: int, gpus: float) -> None:
    """ValueError if the cluster is this machine alone and it is too small for a task; a warning for other clusters,
    which may grow.
    """
    sizes = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
    if any(size[0] >= cpus and size[1] >= gpus for size in sizes):
        return
    there = ", ".join(f"{processors:g} processors and {cards:g} GPUs" for processors, cards in sizes) or "none"
    message = f"each task asks for {cpus} processors and {gpus:g} GPUs; the nodes of the Ray cluster have: {there}"
    if len(sizes) == 1 and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(f"{message}; ask for less, or give the RAY_ADDRESS of a larger cluster")
    logger.warning("%s. Waiting for a node that is large enough", message)


def submit_array(
    name: str,
    command_of: Callable[[str | None], list[str]],
    count: int,
    out: str,
    *,
    last: str,
    cpus: int,
    gpus: int = 0,
    partition: str | None = None,
) -> str:
    """Submit to Slurm an array of `count` jobs, and a job that waits for their end; return a message for the user.

    Args:
        name: of the jobs. command_of: the command of a share "i/n", and of the job that comes last for None.
        out: where the result goes; the logs go to a folder beside it, or to ./slurm if it is a URL.
        last: what the job that comes last does, in words. cpus, gpus: that each job holds.

    ValueError without submitit or sbatch, or for a count below 1.
    """
    try:
        import submitit
        from submitit.helpers import CommandFunction
    except ImportError as error:
        raise ValueError("--executor slurm needs submitit; install it with `pip install 'avssl[slurm]'`") from error
    if count < 1:
        raise ValueError(f"--slurm-tasks is {count}; it must be 1 or more")
    logs = Path(f"{out.rstrip('/')}.slurm" if "://" not in out else "slurm").absolute()
    try:
        executor = submitit.AutoExecutor(logs, cluster="slurm")
    except RuntimeError as error:
        raise ValueError(f"--executor slurm: this machine cannot submit jobs ({error})") from error
    settings: dict[str, Any] = {"cpus_per_task": cpus, "timeout_min": 60 * SLURM_HOURS, "name": name}
    if gpus:
        settings["slurm_gpus_per_task"] = gpus
    if partition:
        settings["slurm_partition"] = partition
    executor.update_parameters(**settings)
    with executor.batch():
        jobs = [executor.submit(CommandFunction(command_of(f"{number}/{count}"))) for number in range(count)]
    array = str(jobs[0].job_id).partition("_")[0]
    executor.update_parameters(slurm_additional_parameters={"dependency": f"afterany:{array}"})
    end = executor.submit(CommandFunction(command_of(None)))
    return (
        f"job array {array} with {count} jobs, then job {end.job_id} that {last}; logs: {logs}. If jobs fail, run the "
        "same command again: what is done is kept"
    )
