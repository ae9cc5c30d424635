"""Embeddings are a function of the input, and evaluation sees every sample exactly once: a grid of ways to run both.

    python -m tests.soak.embedding_grid --seed 0

Batch sizes, workers, parts, blocks, the order and grouping of the shards: the same rows to 1e-5, and twice the same
bits. Features for evaluation hold every sample's own row, once, in order, on any number of processes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

import avssl
from avssl.data.every_sample import ClipPlan
from avssl.embedding.embedder import Embedder
from avssl.embedding.folder import FolderJob
from avssl.embedding.index import Share
from avssl.embedding.table import EmbeddingTable
from avssl.eval.features import extract
from avssl.shards.shard_set import ShardSet
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.clips import make_clip
from tests.made_runs import SMALL_AVID, made_run
from tests.soak.outcome import Outcome

NUM_CLIPS = 11
GRID = {"window_seconds": 0.5, "stride_seconds": 0.25}
TOLERANCE = 1e-5


def table_of(embedder: Embedder, source: Path, out: Path, ways: dict[str, int]) -> EmbeddingTable:
    """The rows of a folder of files or shards, embedded in a given number of parts."""
    parts = ways["parts"]
    for number in range(parts):
        job = FolderJob.begin(embedder, [source], out, **GRID, sources_per_block=ways["sources_per_block"])
        job.run(embedder, share=Share(number, parts), batch_size=ways["batch_size"], num_workers=ways["num_workers"])
    return EmbeddingTable.read(out)


def check_same(found: EmbeddingTable, wanted: EmbeddingTable, tolerance: float) -> None:
    """The same rows in the same order."""
    assert list(found.keys) == list(wanted.keys)
    np.testing.assert_array_equal(found.start_seconds, wanted.start_seconds)
    for name in ("video_embedding", "audio_embedding", "video_feature", "audio_feature"):
        left, right = getattr(found, name), getattr(wanted, name)
        assert left is not None, f"no {name}"
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * max(1.0, float(np.nanmax(np.abs(right)))))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=int, default=12, help="of running each of files and shards")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    draw = random.Random(given.seed)
    outcome = Outcome("embeddings are a function of the input; evaluation sees every sample exactly once")
    with tempfile.TemporaryDirectory(prefix="avssl-soak-") as temporary:
        folder = Path(temporary)
        for number in range(NUM_CLIPS):
            make_clip(folder / "clips" / f"{number}.mp4", number, seconds=0.8 + 0.1 * (number % 5))
        build_manifest(folder / "clips", folder / "corpus.jsonl", IndexOptions())
        for count in (1, 3, NUM_CLIPS):
            write_shards(folder / "corpus.jsonl", folder / f"shards-{count}",
                         WriteOptions(short_side_px=48, samples_per_shard=count))  # fmt: skip
        embedder = avssl.load_embedder(str(made_run(folder / "run", "loss.name=avid", *SMALL_AVID)))
        plain = {"parts": 1, "sources_per_block": 64, "batch_size": 64, "num_workers": 0}
        sources = {"files": [folder / "clips"], "shards": [folder / f"shards-{count}" for count in (3, 1, NUM_CLIPS)]}
        for name, places in sources.items():
            wanted = table_of(embedder, places[0], folder / "tables" / name, plain)
            with outcome.case(f"{name}, the same way again"):
                check_same(table_of(embedder, places[0], folder / "tables" / f"{name}-again", plain), wanted, 0.0)
            for number in range(given.ways):
                ways = {"parts": draw.choice([1, 2, 3]), "sources_per_block": draw.choice([1, 2, 5, 64]),
                        "batch_size": draw.choice([1, 2, 3, 7, 64]), "num_workers": draw.choice([0, 1, 2])}  # fmt: skip
                place = draw.choice(places)
                with outcome.case(f"{name}, {place.name}, {ways}"):
                    found = table_of(embedder, place, folder / "tables" / f"{name}-{number}", ways)
                    check_same(found, wanted, TOLERANCE)
        keys = ShardSet(folder / "shards-3").keys
        plan = ClipPlan(num_clips=2)
        features = extract(embedder, str(folder / "shards-3"), ["video", "audio"], ["feature"], plan)
        for count, batch_size, workers in [(1, 1, 0), (1, 5, 2), (3, 2, 1), (NUM_CLIPS, 64, 0), (NUM_CLIPS, 3, 2)]:
            with outcome.case(f"features of {count} samples a shard, batches of {batch_size}, {workers} workers"):
                place = folder / f"shards-{count}"
                again = extract(embedder, str(place), ["video", "audio"], ["feature"], plan,
                                batch_size=batch_size, num_workers=workers)  # fmt: skip
                assert ShardSet(place).keys == keys
                assert len(again) == len(set(keys)) == NUM_CLIPS
                for modality in ("video", "audio"):
                    np.testing.assert_allclose(again.rows[modality]["feature"], features.rows[modality]["feature"],
                                               rtol=TOLERANCE, atol=TOLERANCE)  # fmt: skip
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
