"""Blocks: the sources of a folder of embeddings in runs of equal length, and the files of each in OUT/.progress.

block-N.parquet holds the rows of a block; block-N.json, written after it, says that the block is done and which of its
sources were skipped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from avssl.embedding.rows import FinishedSource, RowSpool
from avssl.embedding.table import MODALITIES, EmbeddingTable, write_tables
from avssl.files.whole import whole_file


@dataclass(frozen=True)
class Part:
    """The blocks that a process embeds: those whose number leaves the remainder `number` when divided by `count`."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str = "0/1") -> Self:
        """From "i/n", 0 <= i < n; under torchrun or accelerate launch, the part of it that belongs to this process."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise ValueError(f"--part is {text!r}; it must be i/n with 0 <= i < n, e.g. 0/8 to 7/8")
        rank, world_size = (
            int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))
        )
        return cls(int(number) * world_size + rank, int(count) * world_size)


@dataclass(frozen=True)
class Blocks:
    """Blocks of `size` sources, the last one shorter, and their files in `folder`."""

    folder: Path
    num_sources: int
    size: int

    @property
    def count(self) -> int:
        """Number of blocks, done or not."""
        return -(-self.num_sources // self.size)

    def sources_of(self, block: int) -> range:
        """Numbers of the sources of a block."""
        return range(block * self.size, min((block + 1) * self.size, self.num_sources))

    def rows_path(self, block: int) -> Path:
        """File of the rows of a block; a block without rows has none."""
        return self.folder / f"block-{block:08d}.parquet"

    def is_done(self, block: int) -> bool:
        """Whether a block was embedded, by this process or another one."""
        return self._record_path(block).is_file()

    def record(self, block: int) -> dict[str, Any]:
        """num_listed, num_rows, rows_with (by modality) and skipped (key, reason, message) of a block that is done."""
        record: dict[str, Any] = json.loads(self._record_path(block).read_text(encoding="utf-8"))
        return record

    def write(self, block: int, finished: list[FinishedSource], spool: RowSpool, metadata: dict[str, Any]) -> None:
        """Write the rows of a block whose sources are all finished, then its record."""
        rows_with: Counter[str] = Counter()

        def counted() -> Iterator[EmbeddingTable]:
            for table in spool.take_all(finished):
                rows_with.update({name: int(table.has(name).sum()) for name in MODALITIES})
                yield table

        failed = sorted((source for source in finished if source.error), key=lambda source: source.number)
        num_rows, path = 0, self.rows_path(block)
        if len(failed) < len(finished):
            num_rows = write_tables(path, counted(), metadata)
        else:
            path.unlink(missing_ok=True)  # of an earlier try that was killed, when a source could still be read
        record = {
            "num_listed": len(finished),
            "num_rows": num_rows,
            "rows_with": dict(rows_with),
            "skipped": [
                {"key": source.key, "reason": source.error.reason, "message": source.error.message}
                for source in failed
                if source.error is not None
            ],
        }
        with whole_file(self._record_path(block)) as stream:
            stream.write(json.dumps(record).encode())

    def _record_path(self, block: int) -> Path:
        return self.folder / f"block-{block:08d}.json"
