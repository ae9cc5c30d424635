"""The loader: it reads samples in a planned order in worker processes and makes batches of views on the device.

Order, augmentation and resume are pure functions: the main process plans (data/order.py) and sends (epoch, index) to
stateless workers, so a run that stops after batch t goes on by planning from t, without reading what came before.
The loader splits by rank itself; it is not given to `accelerator.prepare`.

A sample that cannot be read is never replaced in silence. It is counted by reason and named in the log, and a
neighboring sample of the same batch is repeated in its row, with its index, because every process needs batches of one
shape. When more than `max_failure_rate` of all samples fail, or a whole batch, the run stops with an error.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from avssl.data.batch import Collate, Copies, RawBatch
from avssl.data.loader_config import LoaderConfig
from avssl.data.order import check_lanes, rank_order, steps_per_epoch
from avssl.data.read_views import raw_views
from avssl.data.workers import start_worker
from avssl.distributed import broadcast_running_statistics, rank, world_size
from avssl.processes.timeouts import all_batches, end_workers, next_batch, start_loader
from avssl.processes.worker_server import worker_context
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import ViewsConfig, check_views
from avssl.transforms.geometry import to_device
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import Batch, MediaError, View

__all__ = ["Loader", "LoaderConfig"]

logger = logging.getLogger("avssl")
MIN_SAMPLES_FOR_RATE = 200  # with fewer samples, a single failure says little about the rate


class _Samples(Dataset[Any]):
    """Stateless: key (epoch, index) gives (index, raw views or MediaError). epoch -1: deterministic views."""

    def __init__(self, shards: ShardSet, views: Sequence[View], config: ViewsConfig, seed: int) -> None:
        self.shards, self.views, self.config, self.seed = shards, views, config, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, dict[str, RawView] | MediaError]:
        epoch, index = key
        try:
            return index, raw_views(self.shards, index, self.views, self.config, self.seed, epoch)
        except MediaError as error:
            return index, error


class _Plan(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from one batch of the run onwards, without end."""

    def __init__(self, order: Callable[..., NDArray[np.int64]], epoch: int, batch: int) -> None:
        self.order, self.epoch, self.batch = order, epoch, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.epoch, self.batch
        while True:
            for row in self.order(epoch=epoch)[first:]:
                yield [(epoch, int(index)) for index in row]
            epoch, first = epoch + 1, 0


class _Once(Sampler[list[tuple[int, int]]]):
    """This rank's share of some indices, once, in order, in batches; the last batch may be smaller."""

    def __init__(self, indices: Sequence[int], batch_size: int) -> None:
        self.mine = indices[rank() :: world_size()]
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.mine), self.batch_size):
            yield [(-1, index) for index in self.mine[first : first + self.batch_size]]


class Loader:
    """Batches of a shard folder, ready on the device, as the module's docstring says.

    Args:
        shards: what to read.
        config: batch size, workers, order.
        views: those that the loss asks for.
        view_maker: turns raw views into model-ready tensors on the device.
        seed: of order and augmentation.
        device: on which batches are made.

    Raises ValueError for a batch size that does not fit, or a view whose augmentation set does not exist.

    >>> views = (View("audio", "audio"),)
    >>> config = LoaderConfig(global_batch_size=6, num_workers=0)
    >>> maker = ViewMaker(ViewsConfig(), ["audio"])
    >>> loader = Loader(ShardSet(shards), config, views, maker, seed=0, device=torch.device("cpu"))
    >>> [batch.views["audio"].shape[0] for batch in loader.epoch(0)]
    [6, 6, 6]
    """

    def __init__(
        self,
        shards: ShardSet,
        config: LoaderConfig,
        views: Sequence[View],
        view_maker: ViewMaker,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.shards, self.config, self.view_maker, self.device = shards, config, view_maker, device
        self.num_lanes = config.order_lanes or world_size()
        check_views(views, view_maker.config)
        check_lanes(config.global_batch_size, self.num_lanes, world_size())
        self.num_samples = shards.num_samples
        self.steps_per_epoch = steps_per_epoch(self.num_samples, config.global_batch_size)
        self.per_device_batch_size = config.global_batch_size // world_size()
        self.least_batches = self.num_samples // world_size() // self.per_device_batch_size  # of every_sample_once
        self.seed = seed
        self.views = tuple(views)
        self._samples = _Samples(shards, views, view_maker.config, seed)
        # The stream refers to this and not to the loader: a circle of references would leave open when the workers end.
        self._order = partial(
            rank_order,
            shards.shard_sizes,
            seed=seed,
            global_batch_size=config.global_batch_size,
            num_lanes=self.num_lanes,
            shuffle_block=config.shuffle_block,
            rank=rank(),
            world_size=world_size(),
        )
        self._stream: Iterator[RawBatch] | None = None
        self._stream_at = (-1, -1)
        self._wait_seconds = 0.0
        self._copies = Copies(device)
        self.samples_read = 0
        self.failures: Counter[str] = Counter()

    def order_facts(self) -> dict[str, int]:
        """The settings that the order depends on beside the data: an exact resume needs the same ones."""
        return {
            "seed": self.seed,
            "global_batch_size": self.config.global_batch_size,
            "num_lanes": self.num_lanes,
            "shuffle_block": self.config.shuffle_block,
        }

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from `first_batch` on, as many on every rank. The workers go on into the next epoch."""
        if self._stream is None or self._stream_at != (epoch, first_batch):
            plan = _Plan(self._order, epoch, first_batch)
            self._stream = start_loader(self._data_loader(self._samples, plan), self.config.worker_timeout_seconds)
        for batch in range(first_batch, self.steps_per_epoch):
            began = time.perf_counter()
            raw = next_batch(self._stream, self.config.worker_timeout_seconds)
            self._wait_seconds += time.perf_counter() - began
            done = batch + 1 == self.steps_per_epoch
            self._stream_at = (epoch + 1, 0) if done else (epoch, batch + 1)
            ready = self._finish(raw)
            del raw  # so that the worker can use its memory again during a step
            yield ready

    def every_sample_once(self, view_names: Sequence[str] = ()) -> Iterator[Batch]:
        """Deterministic center clips of every sample, each exactly once over all ranks: all views, or those in
        `view_names`.

        Ranks may differ by one in their number of batches: no collective calls between batches.
        """
        plan = _Once(range(self.num_samples), self.per_device_batch_size)
        views = [view for view in self.views if not view_names or view.name in view_names]
        samples = _Samples(self.shards, views, self.view_maker.config, self.seed)
        for raw in all_batches(self._data_loader(samples, plan), self.config.worker_timeout_seconds):
            yield self._finish(raw, deterministic=True)

    def raw_subset(self, count: int, views: Sequence[View]) -> Iterator[dict[str, RawView]]:
        """This rank's share of at most `count` evenly spaced samples, deterministic, as raw views."""
        chosen = np.linspace(0, self.num_samples - 1, min(count, self.num_samples)).astype(int).tolist()
        samples = _Samples(self.shards, views, self.view_maker.config, self.seed)
        plan = _Once(chosen, self.per_device_batch_size)
        for raw in all_batches(self._data_loader(samples, plan), self.config.worker_timeout_seconds):
            self._count(raw, deterministic=False)
            yield raw.views

    @torch.no_grad()
    def embed_all(
        self, model: torch.nn.Module, view_names: Sequence[str] = ()
    ) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """(index, outputs) of the model in eval mode over `every_sample_once`; restores training mode at the end.

        All ranks take over the running statistics of the first one, and keep them.
        """
        broadcast_running_statistics(model)
        was_training = model.training
        model.eval()
        try:
            for batch in self.every_sample_once(view_names):
                yield batch.index, getattr(model, "module", model)(batch.views)
        finally:
            model.train(was_training)

    def take_wait_seconds(self) -> float:
        """Seconds spent waiting for workers since the last call."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited

    def close(self) -> None:
        """Kill the workers, whatever they do."""
        end_workers(self._stream)
        self._stream = None

    def _data_loader(self, samples: _Samples, plan: Sampler[list[tuple[int, int]]]) -> DataLoader[RawBatch]:
        workers = self.config.num_workers
        return DataLoader(
            samples,
            batch_sampler=plan,
            collate_fn=Collate(),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context=worker_context() if workers else None,
            prefetch_factor=self.config.prefetch_batches if workers else None,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(0),  # the global one belongs to the networks
        )

    def _finish(self, raw: RawBatch, *, deterministic: bool = False) -> Batch:
        self._count(raw, deterministic=deterministic)
        views = self.view_maker(self._copies.ahead(raw.views), self.device)
        index = to_device(raw.index, self.device)
        return Batch(views, index, dict(Counter(reason for _, reason, _ in raw.failures)))

    def _count(self, raw: RawBatch, *, deterministic: bool) -> None:
        """Count and log the failures of a batch; MediaError when there are too many."""
        self.samples_read += len(raw.index)
        for index, reason, message in raw.failures:
            self.failures[reason] += 1
            logger.warning("sample %d left out: %s: %s", index, reason, message)
        failed = sum(self.failures.values())
        too_many = failed > self.config.max_failure_rate * max(self.samples_read, MIN_SAMPLES_FOR_RATE)
        if raw.failures and (too_many or not raw.views or deterministic):
            index, reason, message = raw.failures[0]
            raise MediaError(
                "bad_sample",
                f"{failed} of {self.samples_read} samples could not be read ({dict(self.failures)}), more than "
                f"data.max_failure_rate={self.config.max_failure_rate} allows"
                + (" (none may be missing here)" if deterministic else "")
                + f"; the first of this batch is sample {index}: {reason}: {message}. Run `python -m data_prep verify`",
            )
