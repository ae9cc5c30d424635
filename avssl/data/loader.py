"""The loader reads samples in a planned order in worker processes and makes batches of views on the device.

Order and augmentation are pure functions: the main process plans the order (data/order.py) and sends (epoch, index) to
stateless workers, so a run that stopped after batch t resumes by planning from t, without reading earlier samples.
The loader splits by rank itself; it is not passed to `accelerator.prepare`.

A sample that cannot be read is never replaced silently. It is counted by reason and named in the log, and a neighboring
sample of the same batch is repeated in its row, with that sample's index, because every process needs batches of one
shape. If more than `max_failure_rate` of all samples fail, or a whole batch, the run stops with an error.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from avssl.data.batch import Collate, DeviceCopier, RawBatch
from avssl.data.decoded_shards import DecodedFolder, DecodedShards
from avssl.data.loader_config import LoaderConfig
from avssl.data.order import check_lanes, mixed_rank_order, rank_order, steps_per_epoch
from avssl.data.read_views import Shards, raw_views
from avssl.data.workers import start_worker
from avssl.distributed import broadcast_running_statistics, rank, world_size
from avssl.processes.timeouts import all_batches, end_workers, next_batch, start_loader
from avssl.processes.worker_server import worker_context
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import ViewsConfig, check_views
from avssl.transforms.frame_tensors import to_device
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import Batch, MediaError, View

__all__ = ["Loader", "LoaderConfig"]

logger = logging.getLogger("avssl")
MIN_SAMPLES_FOR_RATE = 200  # the failure rate is taken over at least so many: a few failures at the start do not count


class _Samples(Dataset[Any]):
    """A stateless dataset: key (epoch, index) gives (index, raw views or MediaError). epoch -1: deterministic views."""

    def __init__(
        self,
        shards: Shards,
        views: Sequence[View],
        config: ViewsConfig,
        seed: int,
        beside: tuple[View, ViewsConfig] | None = None,
    ) -> None:
        self.shards, self.views, self.config, self.seed, self.beside = shards, views, config, seed, beside

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, dict[str, RawView] | MediaError]:
        epoch, index = key
        try:
            return index, raw_views(self.shards, index, self.views, self.config, self.seed, epoch, self.beside)
        except MediaError as error:
            return index, error


class Targets(Protocol):
    """What a frozen network makes of every sample: rows that a batch has beside its views, under a name of their own.

    beside: the view that the network looks at, and its configuration; None if the rows are known beforehand.
    """

    name: str
    beside: tuple[View, ViewsConfig] | None

    def rows(self, index: torch.Tensor, raw: RawView | None, device: torch.device) -> torch.Tensor:
        """float32 (B, D) on the device. index: int64 (B,) in host memory; raw: the view, its media on the device."""


class _EndlessSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from a batch of an epoch on, without end."""

    def __init__(self, order: Callable[..., NDArray[np.int64]], epoch: int, batch: int) -> None:
        self.order, self.epoch, self.batch = order, epoch, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.epoch, self.batch
        while True:
            for row in self.order(epoch=epoch)[first:]:
                yield [(epoch, int(index)) for index in row]
            epoch, first = epoch + 1, 0


class _SinglePassSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (-1, index) over this rank's part of some indices, once and in order; the last may be smaller."""

    def __init__(self, indices: Sequence[int], batch_size: int) -> None:
        self.indices = indices[rank() :: world_size()]
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [(-1, index) for index in self.indices[first : first + self.batch_size]]


class Loader:
    """Batches of a set of shards, ready on the device; see the module's docstring.

    Args:
        shards: the samples.
        config: batch size, workers, order.
        views: the views of the loss.
        view_maker: makes model-ready tensors on the device from raw views.
        seed: of order and augmentation.
        device: on which batches are made.
        targets: rows that batches of epochs have, too; see Targets.

    Raises ValueError for a batch size that does not suit the samples, lanes or processes, or an unknown augmentation
    set.

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
        targets: Targets | None = None,
    ) -> None:
        self.shards, self.config, self.view_maker, self.device = shards, config, view_maker, device
        self.targets = targets
        self.num_lanes = config.order_lanes or world_size()
        check_views(views, view_maker.config)
        check_lanes(config.global_batch_size, self.num_lanes, world_size())
        self.num_samples = shards.num_samples
        self.steps_per_epoch = steps_per_epoch(self.num_samples, config.global_batch_size)
        self.per_device_batch_size = config.global_batch_size // world_size()
        self.least_batches = self.num_samples // world_size() // self.per_device_batch_size  # of every_sample_once
        self.seed = seed
        self.views = tuple(views)
        beside = None if targets is None else targets.beside
        self._reader: Shards = shards
        if config.cache_decoded:
            self._decoded = DecodedFolder(config.cache_decoded_dir, shards.fingerprint, config.cache_decoded)
            self._reader = DecodedShards(shards, self._decoded)
        self._samples = _Samples(self._reader, views, view_maker.config, seed, beside)
        # The stream refers to this function and not to the loader: with a cycle of references, it would not be defined
        # when the workers end.
        order = partial(rank_order, shards.shard_sizes)
        if shards.weights is not None:
            order = partial(mixed_rank_order, [part.shard_sizes for part in shards.parts], shards.weights)
        self._order = partial(
            order,
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
        self.waited_seconds = 0.0  # for batches of epochs, since the loader was made
        self._copier = DeviceCopier(device)
        self.samples_read = 0
        self.failures: Counter[str] = Counter()

    def order_facts(self) -> dict[str, object]:
        """The settings on which the order depends besides the data; they must be the same for an exact resume."""
        return {
            "seed": self.seed,
            "global_batch_size": self.config.global_batch_size,
            "num_lanes": self.num_lanes,
            "shuffle_block": self.config.shuffle_block,
            "weights": self.shards.weights,
        }

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from `first_batch` on, equally many on every rank. Workers go on into the next epoch."""
        if first_batch == self.steps_per_epoch:  # of a run that goes on at the end of an epoch
            return
        if self._stream is None or self._stream_at != (epoch, first_batch):
            sampler = _EndlessSampler(self._order, epoch, first_batch)
            loader = self._data_loader(self._samples, sampler, self._collate_of_epochs())
            self._stream = start_loader(loader, self.config.worker_timeout_seconds)
        for batch in range(first_batch, self.steps_per_epoch):
            start = time.perf_counter()
            raw = next_batch(self._stream, self.config.worker_timeout_seconds)
            waited = time.perf_counter() - start
            self._wait_seconds += waited
            self.waited_seconds += waited
            is_last = batch + 1 == self.steps_per_epoch
            self._stream_at = (epoch + 1, 0) if is_last else (epoch, batch + 1)
            ready = self._finish(raw)
            del raw  # so that the worker can reuse its memory during a step
            yield ready

    def every_sample_once(self, view_names: Sequence[str] = ()) -> Iterator[Batch]:
        """Deterministic center clips of every sample, each once over all ranks, in all views or those of `view_names`.

        Ranks may differ by one in their number of batches, so make no collective calls between batches.
        """
        views = [view for view in self.views if not view_names or view.name in view_names]
        for raw in self._single_pass(range(self.num_samples), views):
            yield self._finish(raw, deterministic=True)

    def raw_subset(self, count: int, views: Sequence[View]) -> Iterator[dict[str, RawView]]:
        """Deterministic raw views of this rank's part of at most `count` evenly spaced samples."""
        indices = np.linspace(0, self.num_samples - 1, min(count, self.num_samples)).astype(int).tolist()
        for raw in self._single_pass(indices, views):
            self._count(raw, deterministic=False)
            yield raw.views

    def _single_pass(self, indices: Sequence[int], views: Sequence[View]) -> Iterator[RawBatch]:
        samples = _Samples(self._reader, views, self.view_maker.config, self.seed)
        sampler = _SinglePassSampler(indices, self.per_device_batch_size)
        return all_batches(self._data_loader(samples, sampler, Collate()), self.config.worker_timeout_seconds)

    @torch.no_grad()
    def embed_all(
        self, model: torch.nn.Module, view_names: Sequence[str] = ()
    ) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """(index, outputs) of the model in eval mode over `every_sample_once`; restores the model's mode at the end.

        All ranks first get the running statistics of rank 0, and keep them.
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
        """The seconds spent waiting for workers since the last call."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited

    def close(self) -> None:
        """Kill the workers."""
        end_workers(self._stream)
        self._stream = None

    def _collate_of_epochs(self) -> Collate:
        """On a GPU the views are made there, whatever the configuration says."""
        if not self.config.views_in_workers or self.device.type != "cpu":
            return Collate()
        return Collate(self.view_maker, "" if self.targets is None else self.targets.name)

    def _data_loader(
        self, samples: _Samples, sampler: Sampler[list[tuple[int, int]]], collate: Collate
    ) -> DataLoader[RawBatch]:
        num_workers = self.config.num_workers
        return DataLoader(
            samples,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context=worker_context() if num_workers else None,
            prefetch_factor=self.config.prefetch_batches if num_workers else None,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(0),  # so that the global one, used by the networks, is unchanged
        )

    def _finish(self, raw: RawBatch, *, deterministic: bool = False) -> Batch:
        self._count(raw, deterministic=deterministic)
        raw_views = dict(self._copier.copy(raw.views))
        targets = {}
        if self.targets is not None and not deterministic:
            beside = raw_views.pop(self.targets.name, None)
            targets[self.targets.name] = self.targets.rows(raw.index, beside, self.device)
        made = {name: raw_views.pop(name).media for name in raw.made}
        views = made | self.view_maker(raw_views, self.device) | targets
        index = to_device(raw.index, self.device)
        return Batch(views, index, dict(Counter(reason for _, reason, _ in raw.failures)))

    def _count(self, raw: RawBatch, *, deterministic: bool) -> None:
        """Count and log the failures of a batch. Raises MediaError if there are too many."""
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
                + f"; the first of this batch is sample {index}: {reason}: {message}. Run `avssl prep verify`",
            )
