"""The options of the loader, in a file of their own, because `--help` shows them without loading libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LoaderConfig:
    """Options of reading. Batch sizes count samples over all processes, so a YAML does not depend on their number.

    >>> LoaderConfig(global_batch_size=64).num_workers
    2
    """

    global_batch_size: int = 256  # samples in a micro-batch, over all processes; or auto
    num_workers: int = 2  # decoding processes per training process, or auto; 0 decodes in the training process
    views_in_workers: bool = False  # on the CPU: workers make the views ready for the networks, too
    prefetch_batches: int = 4  # decoded batches waiting per worker
    order_lanes: int = 0  # reading lanes over all processes; 0: one per process (see data/order.py)
    shuffle_block: int = 4096  # samples shuffled together within a lane
    max_failure_rate: float = 0.01  # fraction of unreadable samples above which a run stops
    cache_decoded: int = 0  # bytes on this machine for samples that are decoded once and kept; 0: decode each time
    cache_decoded_dir: str = ""  # where they are kept, on a local disk; default TMPDIR
    worker_timeout_seconds: float = 300.0  # waiting longer than this for a batch is an error; 0: no limit
