"""Slurm as a launcher: `srun` starts one process a GPU, and each learns who it is from Slurm's variables.

This module loads no library, so that commands can call it before their errors and their help.
"""

from __future__ import annotations

import os
import re

FIRST_PORT, NUM_PORTS = 20_000, 10_000  # outside the ports that Linux gives to programs by itself
# What torchrun sets, from what srun sets for each task of a step (man srun, OUTPUT ENVIRONMENT VARIABLES).
VARIABLES = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
}


def take_ranks_of_slurm() -> None:
    """In a step of several tasks set the variables that torchrun sets, unless something has set them.

    Nothing in a batch script itself, in a step of one task, and below torchrun. MASTER_ADDR is the first host of the
    step, MASTER_PORT a function of the job's and the step's number; both can be set by hand.
    """
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    for name, source in VARIABLES.items():
        os.environ[name] = os.environ[source]
    os.environ["LOCAL_WORLD_SIZE"] = str(
        tasks_of_node(os.environ["SLURM_STEP_TASKS_PER_NODE"], int(os.environ["SLURM_NODEID"]))
    )
    os.environ.setdefault("MASTER_ADDR", first_host(os.environ["SLURM_STEP_NODELIST"]))
    number = 8 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ["SLURM_STEP_ID"]) % 8
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + number % NUM_PORTS))


def first_host(hosts: str) -> str:
    """The first of a list of hosts in Slurm's notation: "gpu[03-05,9],login" -> "gpu03"."""
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", hosts).partition(",")[0]


def tasks_of_node(counts: str, node: int) -> int:
    """The number of tasks of a node of a step in Slurm's notation: ("4(x2),3", 2) -> 3."""
    each = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]
    return each[node]
