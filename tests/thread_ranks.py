"""Ranks as threads of one process: what two ranks compute, without starting processes.

Only for losses that gather without gradient; the real collectives are tested in tests/test_distributed.py.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def run_as_ranks(monkeypatch, module, num_ranks, function):
    """[function(rank) for every rank], all at once, with `gather`, `rank` and `world_size` of `module` replaced."""
    local, barrier, slots = threading.local(), threading.Barrier(num_ranks, timeout=30), [None] * num_ranks

    def gather(tensor):
        slots[local.rank] = tensor.detach()
        barrier.wait()
        result = torch.cat(slots)
        barrier.wait()
        return result

    def start(rank):
        local.rank = rank
        return function(rank)

    replacements = {"gather": gather, "rank": lambda: local.rank, "world_size": lambda: num_ranks}
    for name, replacement in replacements.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, replacement)
    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(start, range(num_ranks)))
