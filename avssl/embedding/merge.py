"""A folder of embeddings is finished: its blocks are merged into files, and index.json is written last."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from avssl.embedding.blocks import Blocks
from avssl.embedding.index import SKIPPED_NAME, FileRecord, FolderIndex
from avssl.embedding.parquet import merge_parquet
from avssl.files.location import is_remote
from avssl.files.scratch import remove_leftovers
from avssl.files.whole import whole_file

OUTPUT_NAMES = r"index\.json|skipped\.jsonl|embeddings.*\.parquet"


def merge_blocks(
    out: Path, blocks: Blocks, settings: dict[str, Any], dims: dict[str, tuple[int, int]], run_folder: str | Path
) -> FolderIndex:
    """Merge blocks that are all done, in the order of the sources, and remove them.

    Files that an interrupted merge left are written again, with the same bytes.

    Args:
        settings: of the folder; dims: {modality: (dim of its features, dim of its embeddings)}.
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
