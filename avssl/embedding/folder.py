"""Embeddings of any number of files as a folder of Parquet files, by any number of processes, through any interruption.

1. The sources are listed once, into OUT/.progress; shards have their own list. Their settings lie beside it.
2. A run of `sources_per_block` sources is a block. Each process embeds the blocks whose number leaves its own when
   divided by the number of processes, and writes block-N.parquet, then block-N.json: what was skipped, and that it is
   done. A block that is done is never redone, whoever did it.
3. Whoever finds all blocks done merges them, in the order of the sources, into files of `rows_per_file` rows, and
   writes skipped.jsonl and, last, index.json. A folder without it is unfinished; the same command goes on.

No process talks to another one, so they may start, be killed and start again when they like.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from avssl.embedding.embedder import Embedder
from avssl.embedding.index import INDEX_NAME, PROGRESS_NAME, SKIPPED_NAME, FolderIndex
from avssl.embedding.parquet import merge_parquet
from avssl.embedding.rows import Finished, RowSpool, in_order
from avssl.embedding.sources import Listing, Sources, media_in, num_sources, suffixes_of, write_listing
from avssl.embedding.state import (
    Part,
    file_record,
    positive,
    refuse_foreign,
    refuse_other_settings,
    remove_embeddings,
)
from avssl.embedding.table import MODALITIES, EmbeddingTable, write_tables
from avssl.files.disk_errors import clear_errors
from avssl.files.location import is_remote
from avssl.files.locks import locked
from avssl.files.scratch import remove_leftovers
from avssl.files.whole import whole_file
from avssl.processes.limits import Limits
from avssl.shards.shard_set import ShardSet

SOURCES_PER_BLOCK, ROWS_PER_FILE = 128, 200_000
SETTINGS_NAME, LISTING_NAME, LOCK_NAME = "settings.json", "sources.jsonl", ".lock"

OWN_NAMES = r"index\.json|skipped\.jsonl|embeddings.*\.parquet"


@dataclass
class _Block:
    """A block on its way: how many of its sources are not finished, and those that are."""

    missing: int
    finished: list[Finished] = field(default_factory=list)


class FolderJob:
    """What a folder of embeddings is made of. Build it with `begin`; `run` returns the index once all is done.

    Attributes: out, settings (what the rows and their files are a function of), sources (None once all is done).
    """

    def __init__(self, out: Path, settings: dict[str, Any], sources: Sources | None) -> None:
        self.out, self.settings, self.sources = out, settings, sources
        self.progress = out / PROGRESS_NAME

    @classmethod
    def begin(
        cls,
        embedder: Embedder,
        sources: Sequence[str | Path],
        out: str | Path,
        *,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        modalities: Sequence[str] | None = None,
        sources_per_block: int = SOURCES_PER_BLOCK,
        rows_per_file: int = ROWS_PER_FILE,
        overwrite: bool = False,
    ) -> Self:
        """List the sources, or go on with what the folder has begun.

        Args:
            sources: files and folders of files, or one shard folder or its URL. out: folder to fill.
            overwrite: first remove what an earlier command left in `out`; for one process alone.

        Raises:
            FileNotFoundError, ValueError: nothing to read; the folder holds embeddings of other settings.
        """
        wanted, metadata = embedder.settings(window_seconds, stride_seconds, modalities)
        given, shards = list(sources), None
        if len(given) == 1 and (is_remote(given[0]) or (Path(given[0]) / INDEX_NAME).is_file()):
            shards = ShardSet(given[0])
        where = [str(one) if is_remote(one) else str(Path(one).resolve()) for one in given]
        settings = metadata | {
            "sources": where,
            "shards": shards.fingerprint if shards is not None else None,
            "sources_per_block": positive("sources_per_block", sources_per_block),
            "rows_per_file": positive("rows_per_file", rows_per_file),
        }
        folder = Path(out)
        with clear_errors(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        roots = [Path(one) for one in where]
        listed = (lambda: iter(())) if shards is not None else (lambda: media_in(roots, suffixes_of(wanted)))
        with locked(folder / LOCK_NAME):
            if overwrite:
                remove_embeddings(folder)
            progress = folder / PROGRESS_NAME
            if (folder / INDEX_NAME).is_file():
                index = FolderIndex.read(folder)
                refuse_other_settings(folder, index.settings, settings)
                now = shards.num_samples if shards is not None else sum(1 for _ in listed())
                if now != index.num_listed:
                    raise ValueError(
                        f"{folder} is finished with {index.num_listed} sources, and now there are {now}; choose "
                        "another --out, or --overwrite"
                    )
                shutil.rmtree(progress, ignore_errors=True)  # a finish that was killed after its last step
                return cls(folder, settings, None)
            if (progress / SETTINGS_NAME).is_file():
                refuse_other_settings(folder, json.loads((progress / SETTINGS_NAME).read_text("utf-8")), settings)
            else:
                refuse_foreign(folder)
                with clear_errors(progress, "made"):
                    progress.mkdir(exist_ok=True)
                if shards is None:
                    write_listing(progress / LISTING_NAME, listed())
                with whole_file(progress / SETTINGS_NAME) as stream:
                    stream.write(json.dumps(settings, indent=1).encode())
        return cls(folder, settings, shards if shards is not None else Listing(progress / LISTING_NAME, roots))

    def run(
        self,
        embedder: Embedder,
        *,
        part: Part | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        run_folder: str | Path = "",
        limits: Limits | None = None,
        spool_rows: int = 16_384,
        progress: bool = False,
    ) -> FolderIndex | None:
        """Do this process's blocks, then finish if all are done. None while other processes' blocks are not.

        Args:
            part: which blocks are ours; default all. batch_size, num_workers, limits: as Embedder.embed.
            run_folder: where the run lies, for searches. spool_rows: rows in memory that wait for their block.
        """
        part = part or Part()
        if self.sources is None:
            return FolderIndex.read(self.out)
        try:
            with locked(self.progress / f"part-{part.number}-of-{part.count}.lock", wait_seconds=0):
                self._embed(embedder, part, batch_size, num_workers, limits, spool_rows, progress)
        except FileNotFoundError:  # nothing was left to us, and others have finished meanwhile
            if not (self.out / INDEX_NAME).is_file():
                raise
        with locked(self.out / LOCK_NAME):
            if (self.out / INDEX_NAME).is_file():
                return FolderIndex.read(self.out)
            blocks = range(self.num_blocks)
            if not all((self.progress / f"{_name(block)}.json").is_file() for block in blocks):
                return None
            return self._finish(embedder, run_folder)

    @property
    def num_blocks(self) -> int:
        """Also those that are done."""
        return -(-self._num_sources // int(self.settings["sources_per_block"]))

    @property
    def _num_sources(self) -> int:
        assert self.sources is not None  # callers have asked
        return num_sources(self.sources)

    def _block(self, number: int) -> range:
        size = int(self.settings["sources_per_block"])
        return range(number * size, min((number + 1) * size, self._num_sources))

    def _embed(
        self,
        embedder: Embedder,
        part: Part,
        batch_size: int,
        num_workers: int,
        limits: Limits | None,
        spool_rows: int,
        show: bool,
    ) -> None:
        done = {path.stem for path in self.progress.glob("block-*.json")}
        ours = [number for number in range(part.number, self.num_blocks, part.count) if _name(number) not in done]
        if not ours:
            return
        assert self.sources is not None
        folder = self.progress / f"spool-{part.number}-of-{part.count}"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        spool, size = RowSpool(folder, spool_rows), int(self.settings["sources_per_block"])
        open_blocks: dict[int, _Block] = {}
        stream = embedder.stream(self.sources, self.settings, [self._block(number) for number in ours])
        with tqdm(total=len(stream), unit="source", desc="embed", disable=not show, mininterval=1.0) as bar:
            for source in embedder.rows(stream, batch_size, num_workers, spool, for_folder=True, limits=limits):
                bar.update()
                number = source.number // size
                block = open_blocks.setdefault(number, _Block(len(self._block(number))))
                block.finished.append(source)
                block.missing -= 1
                if not block.missing:
                    self._commit(number, open_blocks.pop(number).finished, spool)
        shutil.rmtree(folder, ignore_errors=True)

    def _commit(self, number: int, finished: list[Finished], spool: RowSpool) -> None:
        """Write a block that is complete; block-N.json comes last."""
        rows_with: Counter[str] = Counter()

        def counted() -> Iterator[EmbeddingTable]:
            for table in in_order(spool, finished):
                rows_with.update({name: int(table.has(name).sum()) for name in MODALITIES})
                yield table

        failed = sorted((one for one in finished if one.error is not None), key=lambda one: one.number)
        num_rows, path = 0, self.progress / f"{_name(number)}.parquet"
        if len(failed) < len(finished):
            num_rows = write_tables(path, counted(), self._metadata)
        else:
            path.unlink(missing_ok=True)  # of a try that was killed, and in which a source could still be read
        content = {
            "num_listed": len(finished),
            "num_rows": num_rows,
            "rows_with": dict(rows_with),
            "skipped": [
                {"key": one.key, "reason": one.error.reason, "message": one.error.message}
                for one in failed
                if one.error is not None
            ],
        }
        with whole_file(self.progress / f"{_name(number)}.json") as stream:
            stream.write(json.dumps(content).encode())

    @property
    def _metadata(self) -> dict[str, Any]:
        """What every file says of itself: the settings, but where sources lay and how they were divided."""
        left_out = ("sources", "sources_per_block", "rows_per_file")
        return {name: value for name, value in self.settings.items() if name not in left_out and value is not None}

    def _finish(self, embedder: Embedder, run_folder: str | Path) -> FolderIndex:
        """Merge the blocks; index.json comes last. What an earlier try left is written anew, with the same bytes."""
        remove_leftovers(self.out, OWN_NAMES)  # of a finish that was killed
        totals: Counter[str] = Counter()
        rows_with, reasons = Counter[str](), Counter[str]()
        with whole_file(self.out / SKIPPED_NAME) as stream:
            for number in range(self.num_blocks):
                block = json.loads((self.progress / f"{_name(number)}.json").read_text(encoding="utf-8"))
                totals.update({name: block[name] for name in ("num_listed", "num_rows")})
                rows_with.update(block["rows_with"])
                for skipped in block["skipped"]:
                    reasons[skipped["reason"]] += 1
                    stream.write(json.dumps(skipped, ensure_ascii=False).encode() + b"\n")
        if totals["num_listed"] != self._num_sources:
            raise RuntimeError(f"{self.out}: {self._num_sources} sources are listed, the blocks hold {totals}")
        targets = self._targets(totals["num_rows"])
        blocks = (self.progress / f"{_name(number)}.parquet" for number in range(self.num_blocks))
        merge_parquet((path for path in blocks if path.is_file()), targets)
        widths = embedder.widths(self.settings["modalities"])
        index = FolderIndex(
            settings=self.settings,
            widths={
                f"{m}_{kind}": pair[n] for m, pair in widths.items() for n, kind in enumerate(("feature", "embedding"))
            },
            num_listed=totals["num_listed"],
            num_embedded=totals["num_listed"] - reasons.total(),
            num_skipped=reasons.total(),
            skipped_by_reason=dict(sorted(reasons.items())),
            num_rows=totals["num_rows"],
            rows_with={name: rows_with[name] for name in self.settings["modalities"]},
            run_folder=str(Path(run_folder).resolve()) if run_folder and not is_remote(run_folder) else str(run_folder),
            files=[file_record(path, num_rows) for path, num_rows in targets],
        )
        index.write(self.out)
        shutil.rmtree(self.progress)
        return index

    def _targets(self, num_rows: int) -> list[tuple[Path, int]]:
        """(file, its rows): embeddings.parquet if one is enough."""
        most = int(self.settings["rows_per_file"])
        count = -(-num_rows // most)
        if count == 1:
            return [(self.out / "embeddings.parquet", num_rows)]
        names = [f"embeddings-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
        return [(self.out / name, min(most, num_rows - n * most)) for n, name in enumerate(names)]


def _name(block: int) -> str:
    return f"block-{block:08d}"
