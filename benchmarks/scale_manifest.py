"""Time and memory of preparing 100 million clips, without the media themselves.

    python benchmarks/scale_manifest.py [--rows 100000000] [--out FOLDER]

Makes a manifest of that many rows (not measured), then does what `write` does besides reading media: the scan that
checks every row and finds where it begins, the shuffle of all rows, the rows of one share of a thousand, and an
index.json with all shards. Prints seconds and peak memory of this process and of its workers for each.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.processes.limits import default_num_workers
from avssl.shards.format import ShardIndex, ShardRecord, dump_json
from benchmarks import learning
from benchmarks.claims import machine
from data_prep.write.job import shuffled_rows
from data_prep.write.rows import scan

ROWS_PER_PART = 1000
NUM_SHARES = 1000


def make_manifest(path: Path, num_rows: int) -> None:
    """Write a manifest with rows as `index` writes them for short clips of a large corpus."""
    template = dump_json(
        {
            "path": "clips/@@@@@@@@@@.mp4", "key": "clips/@@@@@@@@@@", "labels": {"label": ["one of the classes"]},
            "error": None, "bytes": 1_048_576, "segment": [30.0, 40.0], "container": "mov,mp4,m4a,3gp,3g2,mj2",
            "duration_seconds": 180.0, "video": None, "audio": None,
        }
    )  # fmt: skip
    before, between, after = template.split(b"@@@@@@@@@@")
    with path.open("wb", buffering=1 << 22) as file:
        for begin in range(0, num_rows, 10_000):
            numbers = (b"%010d" % number for number in range(begin, min(begin + 10_000, num_rows)))
            file.write(b"".join(b"".join((before, key, between, key, after)) for key in numbers))


@contextmanager
def measured(what: str, rows: list[list[str]], count: int) -> Iterator[None]:
    """Adds a row to the table: seconds, seconds per million rows, peak memory so far."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    peak, workers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    rows.append([what, f"{seconds:.1f}", f"{seconds / count * 1e6:.2f}", f"{peak:.0f}", f"{workers:.0f}"])
    print(" | ".join(rows[-1]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--out", type=Path, default=Path(".cache/scale_manifest"))
    parser.add_argument("--num-workers", type=int, default=default_num_workers())
    arguments = parser.parse_args()
    folder, count = arguments.out.resolve(), arguments.rows
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "corpus.jsonl"
    make_manifest(manifest, count)
    table = [["step", "seconds", "seconds per million rows", "peak MiB of this process", "peak MiB of a worker"]]
    with measured("nothing yet", table, count):
        pass
    with measured("scan", table, count):
        rows = scan(manifest, folder / "work", arguments.num_workers)
    num_parts = -(-count // ROWS_PER_PART)
    with measured("shuffle of all rows", table, count):
        total = sum(
            int(shuffled_rows(part * ROWS_PER_PART, min(count, (part + 1) * ROWS_PER_PART), count, 0).sum())
            for part in range(num_parts)
        )
    if total != count * (count - 1) // 2:
        raise RuntimeError("the shuffle is no permutation")
    share = range(7 % num_parts, num_parts, min(NUM_SHARES, num_parts))
    with measured(f"rows of a share of {NUM_SHARES}", table, len(share) * ROWS_PER_PART):
        for part in share:
            rows.read(shuffled_rows(part * ROWS_PER_PART, min(count, (part + 1) * ROWS_PER_PART), count, 0))
    with measured("index.json written and read", table, count):
        sizes = [min(ROWS_PER_PART, count - part * ROWS_PER_PART) for part in range(num_parts)]
        records = [
            ShardRecord(f"shard-{part:06d}.tar", size, 1 << 30, "0" * 64, part * ROWS_PER_PART)
            for part, size in enumerate(sizes)
        ]
        index = ShardIndex(records, count, count, 0, {}, {"label": ["one of the classes"]}, {}, rows.sha256)
        (folder / "index.json").write_bytes(index.to_json())
        ShardIndex.load(folder)
    size = manifest.stat().st_size / 1e9
    print(f"\n{machine()}; {count} rows, {size:.1f} GB of manifest, {arguments.num_workers} workers\n")
    print(learning.markdown(table))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
