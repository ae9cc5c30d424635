"""Blocks: runs of equal length of the sources of a folder of embeddings, with files in OUT/.progress; and their merge.

block-N.parquet holds the rows of a block; block-N.json, written after it, says that the block is done and which of its
sources were skipped. When all blocks are done they are merged into the files of the folder, and index.json comes last.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.embedding.index import LISTING_NAME, SKIPPED_NAME, FileRecord, FolderIndex
from avssl.embedding.parquet import merge_parquet
from avssl.embedding.rows import FinishedSource, RowSpool
from avssl.embedding.table import MODALITIES, EmbeddingTable, write_tables
from avssl.files.location import is_remote
from avssl.files.scratch import remove_leftovers
from avssl.files.whole import whole_file, whole_path

OUTPUT_NAMES = r"index\.json|skipped\.jsonl|sources\.jsonl|embeddings.*\.parquet"


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


def merge_blocks(
    out: Path, blocks: Blocks, settings: dict[str, Any], dims: dict[str, tuple[int, int]], run_folder: str | Path
) -> FolderIndex:
    """Merge blocks that are all done, in the order of the sources, into the files of `out`, and remove the blocks.

    Files that an interrupted merge left are written again, with the same bytes.

    Args:
        settings: of the folder. dims: {modality: (dim of its features, dim of its embeddings)}.
        run_folder: where the run lies, for searches.
    """
    remove_leftovers(out, OUTPUT_NAMES)  # of a merge that was killed
    totals: Counter[str] = Counter()
    rows_with, reasons = Counter[str](), Counter[str]()
    with whole_file(out / SKIPPED_NAME) as stream:
        for block in range(blocks.count):
            record = blocks.record(block)
            totals.update({name: record[name] for name in ("num_listed", "num_rows")})
            rows_with.update(record["rows_with"])
            for skipped in record["skipped"]:
                reasons[skipped["reason"]] += 1
                stream.write(json.dumps(skipped, ensure_ascii=False).encode() + b"\n")
    if totals["num_listed"] != blocks.num_sources:
        raise RuntimeError(f"{out}: {blocks.num_sources} sources are listed, the blocks hold {totals}")
    targets = _targets(out, totals["num_rows"], int(settings["rows_per_file"]))
    merge_parquet((path for path in map(blocks.rows_path, range(blocks.count)) if path.is_file()), targets)
    index = FolderIndex(
        settings=settings,
        widths={
            f"{modality}_{kind}": dim
            for modality, pair in dims.items()
            for kind, dim in zip(("feature", "embedding"), pair, strict=True)
        },
        num_listed=totals["num_listed"],
        num_embedded=totals["num_listed"] - reasons.total(),
        num_skipped=reasons.total(),
        skipped_by_reason=dict(sorted(reasons.items())),
        num_rows=totals["num_rows"],
        rows_with={name: rows_with[name] for name in settings["modalities"]},
        run_folder=str(Path(run_folder).resolve()) if run_folder and not is_remote(run_folder) else str(run_folder),
        files=[FileRecord.of_file(path, num_rows) for path, num_rows in targets],
    )
    if (blocks.folder / LISTING_NAME).is_file():
        with whole_path(out / LISTING_NAME) as temporary:
            shutil.copyfile(blocks.folder / LISTING_NAME, temporary)
    index.write(out)
    shutil.rmtree(blocks.folder)
    return index


def _targets(out: Path, num_rows: int, rows_per_file: int) -> list[tuple[Path, int]]:
    """(file, number of its rows): embeddings.parquet alone if all rows fit into one file."""
    count = -(-num_rows // rows_per_file)
    if count == 1:
        return [(out / "embeddings.parquet", num_rows)]
    names = [f"embeddings-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    return [(out / name, min(rows_per_file, num_rows - n * rows_per_file)) for n, name in enumerate(names)]
