"""The embeddings of a shard folder as a table in memory, each process embedding its share: what evaluation looks at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from avssl import distributed
from avssl.embedding.embedder import Embedder
from avssl.embedding.rows import RowSpool, in_order
from avssl.embedding.table import SCALAR_COLUMNS, VECTOR_COLUMNS, EmbeddingTable, concatenate
from avssl.shards.shard_set import ShardSet


def embed_split(
    embedder: Embedder,
    shards: str | ShardSet,
    *,
    window_seconds: float | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> EmbeddingTable:
    """The rows that `embedder.embed` gives, on every process, with each sample embedded by one of them.

    Under torchrun a collective: all must call it alike. Batches are then others than in one process, so that the last
    bits of a row may differ.

    Raises:
        ValueError: a sample cannot be embedded (a smaller set would be another set), or none has what the run reads.
    """
    library = shards if isinstance(shards, ShardSet) else ShardSet(shards)
    wanted, metadata = embedder.settings(window_seconds, None, None)
    share = range(library.num_samples)[distributed.rank() :: distributed.world_size()]
    stream = embedder.stream(library, metadata, [share])
    spool, failures, finished = RowSpool(), [], []
    bar = tqdm(total=len(share), unit="clip", desc="embed", disable=distributed.rank() > 0, mininterval=1.0)
    with bar:
        for source in embedder.rows(stream, batch_size, num_workers, spool):
            bar.update()
            if source.error is not None:
                failures.append((source.number, f"{source.key}: {source.error}"))
            else:
                finished.append(source)
    # Every process must know of a failure in any: one that raised alone would leave the others waiting.
    everywhere = sorted(one for part in distributed.gather_objects(failures) for one in part)
    if everywhere:
        raise ValueError(
            f"{len(everywhere)} samples of {library.location} could not be embedded, the first is {everywhere[0][1]}"
        )
    pieces = list(in_order(spool, finished))
    table = _gathered(concatenate(pieces) if pieces else None, embedder, wanted)
    numbers = table.index[np.append(True, np.diff(table.index) != 0)] if len(table) else table.index
    if not np.array_equal(numbers, np.arange(library.num_samples)):
        raise RuntimeError(f"{library.location}: {len(numbers)} of {library.num_samples} samples came, not each once")
    if not any(table.has(name).any() for name in wanted):
        raise ValueError(
            f"nothing could be embedded: none of the {library.num_samples} sources that could be opened has "
            f"{' or '.join(wanted)}, which this run reads"
        )
    absent: dict[str, Any] = {name: None for name in VECTOR_COLUMNS if name.split("_")[0] not in table.modalities()}
    return replace(table, metadata=metadata, **absent)


def _gathered(own: EmbeddingTable | None, embedder: Embedder, modalities: tuple[str, ...]) -> EmbeddingTable:
    """The rows of all processes in the order of the samples."""
    if not distributed.is_active():
        assert own is not None  # a folder without samples has no index.json
        return own
    words = distributed.gather_objects(([], []) if own is None else (own.keys, own.labels))
    keys, labels = ([one for part in words for one in part[kind]] for kind in (0, 1))
    columns: dict[str, Any] = {}
    for name, kind in SCALAR_COLUMNS.items():
        columns[name] = _all_rows(np.zeros(0, kind) if own is None else getattr(own, name), embedder.device)
    for modality, sizes in embedder.widths(modalities).items():
        for part, width in zip(("feature", "embedding"), sizes, strict=True):
            name = f"{modality}_{part}"
            mine = np.zeros((0, width), np.float32) if own is None else getattr(own, name)
            columns[name] = _all_rows(mine, embedder.device)
    order = np.argsort(columns["index"], kind="stable")  # a sample's windows came in order, from one process
    return EmbeddingTable(keys=keys, labels=labels, **columns).select(order)


def _all_rows(mine: np.ndarray, device: torch.device) -> np.ndarray:
    # Truth values as bytes: not every backend sends them.
    sent = torch.from_numpy(mine.astype(np.uint8) if mine.dtype == np.bool_ else mine)
    found: np.ndarray = distributed.gather_uneven(sent.to(device)).cpu().numpy()
    return found
