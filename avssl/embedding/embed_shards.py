"""The embeddings of a shard folder as a table in memory, for evaluation; each process embeds some of the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from avssl import distributed
from avssl.embedding.embedder import Embedder, nothing_embedded, with_settings
from avssl.embedding.rows import RowSpool
from avssl.embedding.table import SCALAR_COLUMNS, EmbeddingTable, concatenate
from avssl.files.progress import Bar
from avssl.shards.shard_set import ShardSet


def embed_split(
    embedder: Embedder,
    shards: str | ShardSet,
    *,
    window_seconds: float | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> EmbeddingTable:
    """The rows that `embedder.embed` gives, on every process; each sample is embedded by one process.

    Under torchrun it is a collective: all processes must call it with the same arguments. Batches differ from those of
    a single process then, so that the last bits of a row may differ.

    Raises:
        ValueError: a sample cannot be embedded (without it the set would be another one), or no sample has a modality
            that the run reads.
    """
    shard_set = shards if isinstance(shards, ShardSet) else ShardSet(shards)
    num_samples = shard_set.num_samples
    settings = embedder.settings(window_seconds, None, None)
    samples = range(num_samples)[distributed.rank() :: distributed.world_size()]
    reader = embedder.window_reader(shard_set, settings, [samples])
    spool, failures, finished = RowSpool(), [], []
    with Bar("embed", len(samples), "clip", shown=distributed.rank() == 0) as bar:
        for source in embedder.embed_windows(reader, batch_size, num_workers, spool):
            bar.update()
            if source.error is not None:
                failures.append((source.number, f"{source.key}: {source.error}"))
            else:
                finished.append(source)
    # Every process must know of a failure in any process: if only one raised, the others would wait for it.
    all_failures = sorted(failure for of_rank in distributed.gather_objects(failures) for failure in of_rank)
    if all_failures:
        raise ValueError(
            f"{len(all_failures)} samples of {shard_set.location} could not be embedded, the first is "
            f"{all_failures[0][1]}"
        )
    tables = list(spool.take_all(finished))
    table = _gathered(concatenate(tables) if tables else None, embedder, settings["modalities"])
    numbers = table.index[np.append(True, np.diff(table.index) != 0)] if len(table) else table.index
    if not np.array_equal(numbers, np.arange(num_samples)):
        raise RuntimeError(
            f"{shard_set.location}: expected the rows of {num_samples} samples, each once, but got {len(numbers)}"
        )
    if not any(table.has(name).any() for name in settings["modalities"]):
        raise nothing_embedded(settings["modalities"], num_samples, {})
    return with_settings(table, settings)


def _gathered(local: EmbeddingTable | None, embedder: Embedder, modalities: list[str]) -> EmbeddingTable:
    """The rows of all processes in the order of the samples. local: those of this process, None if it has no sample."""
    if not distributed.is_active():
        assert local is not None  # a folder without samples has no index.json
        return local
    texts = distributed.gather_objects(([], []) if local is None else (local.keys, local.labels))
    keys, labels = ([text for of_rank in texts for text in of_rank[kind]] for kind in (0, 1))
    columns: dict[str, Any] = {}
    for name, dtype in SCALAR_COLUMNS.items():
        columns[name] = _all_rows(np.zeros(0, dtype) if local is None else getattr(local, name), embedder.device)
    for modality, dims in embedder.dims(modalities).items():
        for kind, dim in zip(("feature", "embedding"), dims, strict=True):
            name = f"{modality}_{kind}"
            values = np.zeros((0, dim), np.float32) if local is None else getattr(local, name)
            columns[name] = _all_rows(values, embedder.device)
    order = np.argsort(columns["index"], kind="stable")  # all windows of a sample come from one process, in order
    return EmbeddingTable(keys=keys, labels=labels, **columns).select(order)


def _all_rows(local: np.ndarray, device: torch.device) -> np.ndarray:
    # Booleans are sent as bytes, because not every backend can send them.
    sent = torch.from_numpy(local.astype(np.uint8) if local.dtype == np.bool_ else local)
    rows: np.ndarray = distributed.gather_uneven(sent.to(device)).cpu().numpy()
    return rows
