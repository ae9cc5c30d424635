"""Embeddings of any number of sources as a folder of Parquet files, by any number of processes.

1. Plan (`FolderJob.begin`): the sources are listed once, into OUT/.progress, beside the settings; a shard folder has a
   list of its own.
2. Embed (`FolderJob.run`): `sources_per_block` consecutive sources are a block. Each process embeds the blocks of its
   share and writes their rows and a record that they are done (blocks.py). A block that is done is never embedded
   again, whichever process embedded it.
3. Merge (blocks.py): the process that finds all blocks done merges them, in the order of the sources, into files of
   `rows_per_file` rows, and writes skipped.jsonl and, last, index.json. A folder without it is unfinished; the same
   command goes on.

The processes do not talk to each other, so that they may start, be killed and start again at any time. On a Ray cluster
(`RayTasks`) each block is a task of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from avssl.embedding.blocks import Blocks, merge_blocks
from avssl.embedding.embedder import Embedder
from avssl.embedding.index import (
    INDEX_NAME,
    LISTING_NAME,
    PROGRESS_NAME,
    ROWS_PER_FILE,
    SKIPPED_NAME,
    SOURCES_PER_BLOCK,
    FolderIndex,
    Share,
    differences,
)
from avssl.embedding.parquet import SUFFIX
from avssl.embedding.rows import FinishedSource, RowSpool
from avssl.embedding.sources import (
    Listing,
    Sources,
    is_manifest,
    is_shard_folder,
    list_sources,
    located,
    num_sources,
    write_listing,
)
from avssl.files.disk_errors import clear_errors
from avssl.files.locks import locked
from avssl.files.progress import Bar
from avssl.files.scratch import scratch_folder
from avssl.files.whole import sha256_file, whole_file
from avssl.plugins import required
from avssl.processes.cluster import on_ray
from avssl.processes.limits import Limits
from avssl.shards.shard_set import ShardSet

SETTINGS_NAME, LOCK_NAME = "settings.json", ".lock"
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
            sources: files and folders of files, one manifest, or one shard folder or its URL. out: folder to fill.
            overwrite: remove what an earlier command left in `out`, once all sources are listed; for one process alone.

        Raises:
            FileNotFoundError, ValueError: nothing to read; the folder holds embeddings of other settings.
        """
        metadata = embedder.settings(window_seconds, stride_seconds, modalities)
        shards = ShardSet(sources[0]) if len(sources) == 1 and is_shard_folder(sources[0]) else None
        settings = metadata | {
            "sources": [located(path) for path in sources],
            "shards": shards.fingerprint if shards is not None else None,
            **({"keys": "manifest"} if shards is None else {}),  # earlier versions called files by their paths
            **({"manifest": sha256_file(sources[0])} if len(sources) == 1 and is_manifest(sources[0]) else {}),
            "sources_per_block": _positive("sources_per_block", sources_per_block),
            "rows_per_file": _positive("rows_per_file", rows_per_file),
        }
        folder = Path(out)
        with clear_errors(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK_NAME):
            return cls(folder, settings, plan(folder, settings, shards, overwrite=overwrite))

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
        elsewhere: BlockRunner | None = None,
    ) -> FolderIndex | None:
        """Embed the blocks of this process, then merge if all are done; None while blocks of other processes are not.

        Args:
            share: the blocks of this process; default all. batch_size, num_workers, limits: as Embedder.embed.
            run_folder: where the run lies, for searches. spool_rows: rows in memory that wait for their block.
            elsewhere: embeds the missing blocks on other machines and yields numbers of sources that are finished.
        """
        share = share or Share()
        if self.sources is None:
            return FolderIndex.read(self.out)
        blocks = self.blocks
        try:
            with locked(self.progress / f"part-{share.number}-of-{share.count}.lock", wait_seconds=0):
                missing = [n for n in range(share.number, blocks.count, share.count) if not blocks.is_done(n)]
                spool = RowSpool(self.progress / f"spool-{share.number}-of-{share.count}", spool_rows)
                here = self.embed_blocks(embedder, missing, spool, batch_size, num_workers, limits)
                total = sum(len(blocks.sources_of(block)) for block in missing)
                with Bar("embed", total, "source", shown=progress) as bar:
                    for num_finished in elsewhere(self, missing) if elsewhere is not None else here:
                        bar.update(num_finished)
        except FileNotFoundError:  # if other processes have finished meanwhile, the folder .progress is gone
            if not (self.out / INDEX_NAME).is_file():
                raise
        with locked(self.out / LOCK_NAME):
            if (self.out / INDEX_NAME).is_file():
                return FolderIndex.read(self.out)
            if not all(map(blocks.is_done, range(blocks.count))):
                return None
            return merge_blocks(self.out, blocks, self.settings, embedder.dims(self.settings["modalities"]), run_folder)

    @property
    def blocks(self) -> Blocks:
        """The blocks of a folder that is not finished."""
        assert self.sources is not None
        return Blocks(self.progress, num_sources(self.sources), int(self.settings["sources_per_block"]))

    def embed_blocks(
        self,
        embedder: Embedder,
        numbers: Sequence[int],
        spool: RowSpool,
        batch_size: int,
        num_workers: int,
        limits: Limits | None,
    ) -> Iterator[int]:
        """Embed these blocks, and write each as soon as all its sources are finished; yields 1 for every source.

        spool: its folder lies in .progress and belongs to this process alone.
        """
        if not numbers:
            return
        assert self.sources is not None
        assert spool.folder is not None
        blocks = self.blocks
        shutil.rmtree(spool.folder, ignore_errors=True)  # of a process that was killed
        finished: dict[int, list[FinishedSource]] = {}
        reader = embedder.window_reader(self.sources, self.settings, [blocks.sources_of(block) for block in numbers])
        for source in embedder.embed_windows(reader, batch_size, num_workers, spool, for_folder=True, limits=limits):
            block = source.number // blocks.size
            finished.setdefault(block, []).append(source)
            if len(finished[block]) == len(blocks.sources_of(block)):
                blocks.write(block, finished.pop(block), spool, self._metadata)
            yield 1
        shutil.rmtree(spool.folder, ignore_errors=True)

    @property
    def _metadata(self) -> dict[str, Any]:
        """The metadata of every file: the settings, except where the sources lie and how they are divided."""
        omitted = ("sources", "sources_per_block", "rows_per_file")
        return {name: value for name, value in self.settings.items() if name not in omitted and value is not None}


BlockRunner = Callable[[FolderJob, Sequence[int]], Iterator[int]]


@dataclass(frozen=True)
class RayTasks:
    """Embeds blocks on the nodes of a Ray cluster; give it to FolderJob.run as `elsewhere`.

    Args:
        run: a run or public model as Embedder.from_run, seen by all nodes; loading: its other options.
        plugins: files to run first. may_differ: whether they may stand for others of the same name.
        batch_size, num_workers, limits: as Embedder.embed; a task holds a processor for each decoding process.
        gpus: that each task holds; 0.5 for two tasks on one. folder: that relative paths refer to.
    """

    run: str
    loading: Mapping[str, Any] = field(default_factory=dict)
    plugins: Sequence[str] = ()
    may_differ: bool = False
    batch_size: int = 64
    num_workers: int = 2
    limits: Limits | None = None
    gpus: float = 0.0
    folder: Path = field(default_factory=Path.cwd)

    def __call__(self, job: FolderJob, blocks: Sequence[int]) -> Iterator[int]:
        """Embed each block in a task; yields the number of its sources when it is done."""
        return on_ray(embed_block, (self, job), blocks, cpus=max(1, self.num_workers), gpus=self.gpus)

    def embedder(self) -> Embedder:
        """The embedder of all tasks in this process."""
        if not _loaded or _loaded[0][0] != self:
            required.use(self.plugins, may_differ=self.may_differ)
            _loaded[:] = [(self, Embedder.from_run(self.run, **self.loading))]
        return _loaded[0][1]


_loaded: list[tuple[RayTasks, Embedder]] = []  # of the last task in this process: a node does many of one kind


def embed_block(tasks: RayTasks, job: FolderJob, block: int) -> int:
    """Embed one block of a job; the number of its sources. ValueError if the run has other weights on this node."""
    with contextlib.chdir(tasks.folder):
        embedder, expected = tasks.embedder(), job.settings["weights"]
        if embedder.weights_hash != expected:
            raise ValueError(
                f"{tasks.run} has the weights {embedder.weights_hash} on {os.uname().nodename}, and {expected} where "
                "the command was given; all nodes must see the same run, and nothing may change it meanwhile"
            )
        spool = RowSpool(job.progress / f"spool-{block}-{uuid4().hex}")  # a node taken for dead may still write its own
        return sum(job.embed_blocks(embedder, [block], spool, tasks.batch_size, tasks.num_workers, tasks.limits))


def plan(folder: Path, settings: dict[str, Any], shards: ShardSet | None, *, overwrite: bool = False) -> Sources | None:
    """The sources of a folder: listed now, or listed by an earlier command; None if the folder is finished.

    overwrite: list them now and then remove what an earlier command left; if a source is not there, nothing is removed.

    Raises ValueError if the folder holds embeddings of other settings, or tables that no settings explain.
    """
    progress = folder / PROGRESS_NAME
    if overwrite:
        begin_anew(folder, settings, shards, overwrite=True)
    elif (folder / INDEX_NAME).is_file():
        index = FolderIndex.read(folder)
        refuse_other_settings(folder, index.settings, settings)
        num_listed = shards.num_samples if shards is not None else _num_listed(folder, settings)
        if num_listed != index.num_listed:
            raise ValueError(
                f"{folder} is finished with {index.num_listed} sources, and now there are {num_listed}; choose "
                "another --out, or --overwrite"
            )
        shutil.rmtree(progress, ignore_errors=True)  # of a merge that was killed after its last step
        return None
    elif (progress / SETTINGS_NAME).is_file():
        refuse_other_settings(folder, json.loads((progress / SETTINGS_NAME).read_text("utf-8")), settings)
    else:
        begin_anew(folder, settings, shards, overwrite=False)
    return shards if shards is not None else Listing(progress / LISTING_NAME)


def begin_anew(folder: Path, settings: dict[str, Any], shards: ShardSet | None, *, overwrite: bool) -> None:
    """List the sources, then write .progress, in place of what an earlier command left if overwrite."""
    refuse_foreign(folder, overwrite=overwrite)
    progress = folder / PROGRESS_NAME
    with scratch_folder(folder, "listing") as scratch:
        if shards is None:
            sources = list_sources(settings["sources"], settings["modalities"], scratch)
            write_listing(scratch / LISTING_NAME, sources)
        if overwrite:
            remove_embeddings(folder)
        with clear_errors(progress, "made"):
            progress.mkdir(exist_ok=True)
        for path in scratch.glob(f"{Path(LISTING_NAME).stem}.*"):
            path.replace(progress / path.name)
    with whole_file(progress / SETTINGS_NAME) as stream:
        stream.write(json.dumps(settings, indent=1).encode())


def _num_listed(folder: Path, settings: dict[str, Any]) -> int:
    """The number of files that lie in the sources now."""
    with scratch_folder(folder, "listing") as scratch:
        return sum(1 for _ in list_sources(settings["sources"], settings["modalities"], scratch))


def refuse_other_settings(folder: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """ValueError that names every setting that differs."""
    if changed := differences(stored, settings):
        shown = "; ".join(f"{key}: {values}" for key, values in changed.items())
        raise ValueError(
            f"{folder} holds embeddings of other settings ({shown}); put them back, choose another --out, or "
            "--overwrite"
        )


def refuse_foreign(folder: Path, *, overwrite: bool) -> None:
    """ValueError if the folder holds tables that no index.json or settings explain; overwrite: that will not go."""
    going = set(_tables(folder)) if overwrite else set()
    paths = {path for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES and not path.name.startswith(".")}
    if names := sorted(path.name for path in paths - going):
        raise ValueError(
            f"{folder} holds {', '.join(names[:3])}, of another program or version; choose another --out"
            + (", or --overwrite" if not overwrite else "")
        )


def remove_embeddings(folder: Path) -> None:
    """Remove what an embedding command left in a folder, finished or not; index.json goes first."""
    for path in (folder / INDEX_NAME, folder / SKIPPED_NAME, folder / LISTING_NAME):
        path.unlink(missing_ok=True)
    for path in _tables(folder):
        path.unlink()
    for name in (PROGRESS_NAME, "faiss"):  # earlier versions kept indices of FAISS
        shutil.rmtree(folder / name, ignore_errors=True)


def _tables(folder: Path) -> list[Path]:
    """Files of tables by the names that embedding commands give."""
    return [path for path in folder.glob("embeddings*") if path.suffix in TABLE_SUFFIXES]


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return value
