"""Embeddings of any number of sources as a folder of Parquet files, by any number of processes.

1. Plan (`FolderJob.begin`): the sources are listed once, into OUT/.progress, beside the settings; a shard folder has a
   list of its own.
2. Embed (`FolderJob.run`): `sources_per_block` consecutive sources are a block. Each process embeds the blocks of its
   share and writes their rows and a record that they are done (blocks.py). A block that is done is never embedded
   again, whichever process embedded it.
3. Merge (blocks.py): the process that finds all blocks done merges them, in the order of the sources, into files of
   `rows_per_file` rows, and writes skipped.jsonl and, last, index.json. A folder without it is unfinished; the same
   command goes on.

The processes do not talk to each other, so that they may start, be killed and start again at any time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tqdm.auto import tqdm

from avssl.embedding.blocks import Blocks, Share, merge_blocks
from avssl.embedding.embedder import Embedder
from avssl.embedding.index import (
    FAISS_NAME,
    INDEX_NAME,
    PROGRESS_NAME,
    ROWS_PER_FILE,
    SKIPPED_NAME,
    SOURCES_PER_BLOCK,
    FolderIndex,
    differences,
)
from avssl.embedding.parquet import SUFFIX
from avssl.embedding.rows import FinishedSource, RowSpool
from avssl.embedding.sources import (
    Listing,
    Sources,
    is_shard_folder,
    list_files,
    num_sources,
    suffixes_of,
    write_listing,
)
from avssl.files.disk_errors import clear_errors
from avssl.files.location import is_remote
from avssl.files.locks import locked
from avssl.files.whole import whole_file
from avssl.processes.limits import Limits
from avssl.shards.shard_set import ShardSet

SETTINGS_NAME, LISTING_NAME, LOCK_NAME = "settings.json", "sources.jsonl", ".lock"
TABLE_SUFFIXES = (SUFFIX, ".npz")  # of tables in the folder; earlier versions wrote both


class FolderJob:
    """The work of filling a folder with embeddings. Build it with `begin`; `run` returns the index when all is done.

    Attributes: out, settings (the rows and their files are a function of them), sources (None if the folder is
    finished).
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
        """List the sources, or go on with what was begun in the folder.

        Args:
            sources: files and folders of files, or one shard folder or its URL. out: folder to fill.
            overwrite: first remove what an earlier command left in `out`; for one process alone.

        Raises:
            FileNotFoundError, ValueError: nothing to read; the folder holds embeddings of other settings.
        """
        metadata = embedder.settings(window_seconds, stride_seconds, modalities)
        shards = ShardSet(sources[0]) if len(sources) == 1 and is_shard_folder(sources[0]) else None
        settings = metadata | {
            "sources": [str(path) if is_remote(path) else str(Path(path).resolve()) for path in sources],
            "shards": shards.fingerprint if shards is not None else None,
            "sources_per_block": _positive("sources_per_block", sources_per_block),
            "rows_per_file": _positive("rows_per_file", rows_per_file),
        }
        folder = Path(out)
        with clear_errors(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK_NAME):
            if overwrite:
                remove_embeddings(folder)
            return cls(folder, settings, plan(folder, settings, shards))

    def run(
        self,
        embedder: Embedder,
        *,
        share: Share | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        run_folder: str | Path = "",
        limits: Limits | None = None,
        spool_rows: int = 16_384,
        progress: bool = False,
    ) -> FolderIndex | None:
        """Embed the blocks of this process, then merge if all are done; None while blocks of other processes are not.

        Args:
            share: the blocks of this process; default all. batch_size, num_workers, limits: as Embedder.embed.
            run_folder: where the run lies, for searches. spool_rows: rows in memory that wait for their block.
        """
        share = share or Share()
        if self.sources is None:
            return FolderIndex.read(self.out)
        blocks = Blocks(self.progress, num_sources(self.sources), int(self.settings["sources_per_block"]))
        try:
            with locked(self.progress / f"part-{share.number}-of-{share.count}.lock", wait_seconds=0):
                self._embed(embedder, blocks, share, batch_size, num_workers, limits, spool_rows, progress)
        except FileNotFoundError:  # if other processes have finished meanwhile, the folder .progress is gone
            if not (self.out / INDEX_NAME).is_file():
                raise
        with locked(self.out / LOCK_NAME):
            if (self.out / INDEX_NAME).is_file():
                return FolderIndex.read(self.out)
            if not all(map(blocks.is_done, range(blocks.count))):
                return None
            return merge_blocks(self.out, blocks, self.settings, embedder.dims(self.settings["modalities"]), run_folder)

    def _embed(
        self,
        embedder: Embedder,
        blocks: Blocks,
        share: Share,
        batch_size: int,
        num_workers: int,
        limits: Limits | None,
        spool_rows: int,
        show: bool,
    ) -> None:
        """Embed the blocks of a share that are not done, and write each as soon as all its sources are finished."""
        numbers = [block for block in range(share.number, blocks.count, share.count) if not blocks.is_done(block)]
        if not numbers:
            return
        assert self.sources is not None
        folder = self.progress / f"spool-{share.number}-of-{share.count}"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        spool = RowSpool(folder, spool_rows)
        finished: dict[int, list[FinishedSource]] = {}
        reader = embedder.window_reader(self.sources, self.settings, [blocks.sources_of(block) for block in numbers])
        with tqdm(total=len(reader), unit="source", desc="embed", disable=not show, mininterval=1.0) as bar:
            for source in embedder.embed_windows(
                reader, batch_size, num_workers, spool, for_folder=True, limits=limits
            ):
                bar.update()
                block = source.number // blocks.size
                finished.setdefault(block, []).append(source)
                if len(finished[block]) == len(blocks.sources_of(block)):
                    blocks.write(block, finished.pop(block), spool, self._metadata)
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def _metadata(self) -> dict[str, Any]:
        """The metadata of every file: the settings, except where the sources lie and how they are divided."""
        omitted = ("sources", "sources_per_block", "rows_per_file")
        return {name: value for name, value in self.settings.items() if name not in omitted and value is not None}


def plan(folder: Path, settings: dict[str, Any], shards: ShardSet | None) -> Sources | None:
    """The sources of a folder: listed now, or listed by an earlier command; None if the folder is finished.

    Raises ValueError if the folder holds embeddings of other settings, or tables that no settings explain.
    """
    progress, roots = folder / PROGRESS_NAME, [Path(path) for path in settings["sources"]]

    def files() -> Iterator[tuple[int, str]]:
        return list_files(roots, suffixes_of(settings["modalities"]))

    if (folder / INDEX_NAME).is_file():
        index = FolderIndex.read(folder)
        refuse_other_settings(folder, index.settings, settings)
        num_listed = shards.num_samples if shards is not None else sum(1 for _ in files())
        if num_listed != index.num_listed:
            raise ValueError(
                f"{folder} is finished with {index.num_listed} sources, and now there are {num_listed}; choose "
                "another --out, or --overwrite"
            )
        shutil.rmtree(progress, ignore_errors=True)  # of a merge that was killed after its last step
        return None
    if (progress / SETTINGS_NAME).is_file():
        refuse_other_settings(folder, json.loads((progress / SETTINGS_NAME).read_text("utf-8")), settings)
    else:
        refuse_foreign(folder)
        with clear_errors(progress, "made"):
            progress.mkdir(exist_ok=True)
        if shards is None:
            write_listing(progress / LISTING_NAME, files())
        with whole_file(progress / SETTINGS_NAME) as stream:
            stream.write(json.dumps(settings, indent=1).encode())
    return shards if shards is not None else Listing(progress / LISTING_NAME, roots)


def refuse_other_settings(folder: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """ValueError that names every setting that differs."""
    if changed := differences(stored, settings):
        shown = "; ".join(f"{key}: {values}" for key, values in changed.items())
        raise ValueError(
            f"{folder} holds embeddings of other settings ({shown}); put them back, choose another --out, or "
            "--overwrite"
        )


def refuse_foreign(folder: Path) -> None:
    """ValueError if the folder, which has neither index.json nor settings, holds tables."""
    names = sorted(
        path.name for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES and not path.name.startswith(".")
    )
    if names:
        raise ValueError(
            f"{folder} holds {', '.join(names[:3])}, of another program or version; choose another --out, or "
            "--overwrite"
        )


def remove_embeddings(folder: Path) -> None:
    """Remove what an embedding command left in a folder, finished or not; index.json goes first."""
    for path in (folder / INDEX_NAME, folder / SKIPPED_NAME):
        path.unlink(missing_ok=True)
    for path in folder.glob("embeddings*"):
        if path.suffix in TABLE_SUFFIXES:
            path.unlink()
    for name in (PROGRESS_NAME, FAISS_NAME):
        shutil.rmtree(folder / name, ignore_errors=True)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return value
