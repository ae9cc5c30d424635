"""The shards of a remote folder as ShardSet reads them: fetched on first use, a few of them open at a time."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from avssl.files import storage
from avssl.files.retry import as_media_error
from avssl.files.scratch import temporary_folder
from avssl.shards.cache import ShardCache, default_cache_dir, load_side_car, mark_used, sha256_of
from avssl.shards.format import ShardIndex, ShardRecord, SideCar, side_car_name
from avssl.types import MediaError

MAX_OPEN_SHARDS = 16
SIDE_CAR_THREADS = 16
REMEMBER_FAILURE_SECONDS = 60.0


class RemoteShards:
    """The shards of a remote folder. index.json is read now, the rest when needed.

    Picklable: workers open their own files.

    Args:
        location: of the shard folder.
        cache_dir: folder of the fetched shards; "" is default_cache_dir(). cache_bytes: its bound.

    Raises:
        FileNotFoundError: there is no index.json. MediaError("unreachable"): it could not be fetched.
        ValueError: it does not fit, or the cache cannot hold the largest shard.
    """

    def __init__(self, location: str, cache_dir: str | os.PathLike[str], cache_bytes: int) -> None:
        self.location = location
        self.cache = ShardCache(Path(cache_dir) if os.fspath(cache_dir) else default_cache_dir(), cache_bytes)
        try:
            with _store_errors():
                self.folder = self.cache.fetch_index(location)
        except FileNotFoundError as error:
            hint = "tars or tables of another program become shards by `avssl prep index` and `avssl prep write`"
            raise FileNotFoundError(f"{error}; {hint}") from error
        try:
            self.index = ShardIndex.load(self.folder)
        except ValueError as error:
            raise ValueError(str(error).replace(str(self.folder), storage.redacted(location))) from error
        if self.index.shards and (largest := max(record.bytes for record in self.index.shards)) > cache_bytes:
            raise ValueError(
                f"data.cache_bytes is {cache_bytes}; {storage.redacted(location)} has a shard of {largest} bytes. Set "
                "it to several shards per reading process"
            )
        self._open: OrderedDict[int, tuple[BinaryIO, SideCar]] = OrderedDict()
        self._failed: dict[int, tuple[float, MediaError]] = {}

    def open(self, number: int) -> tuple[BinaryIO, SideCar]:
        """A shard and its side-car, fetched if needed.

        MediaError if it is missing, unreachable or not that of index.json. A failure is remembered for a while, because
        each sample of a batch would otherwise try as long again.
        """
        self._close_removed(number)
        if number in self._open:
            self._open.move_to_end(number)
            mark_used(self._open[number][0])
            return self._open[number]
        failed_at, failure = self._failed.get(number, (0.0, None))
        if failure is not None and time.monotonic() - failed_at < REMEMBER_FAILURE_SECONDS:
            raise MediaError(failure.reason, failure.message)
        while len(self._open) >= MAX_OPEN_SHARDS:
            self._open.popitem(last=False)[1][0].close()
        try:
            self._open[number] = self.cache.open(self.location, self.index.shards[number])
        except (OSError, MediaError) as error:
            failure = error if isinstance(error, MediaError) else as_media_error(error)
            self._failed[number] = time.monotonic(), failure
            raise failure from error
        self._failed.pop(number, None)
        return self._open[number]

    def discard_if_damaged(self, number: int) -> bool:
        """Whether the local copy has changed since it was fetched; then it is removed, to be fetched again."""
        file, _ = self.open(number)
        if sha256_of(file) == self.index.shards[number].sha256:
            return False
        self._open.pop(number)[0].close()
        self.cache.discard(self.index.shards[number])
        return True

    def side_cars(self) -> list[SideCar]:
        """All side-cars, several read at a time. Raises as the constructor does."""
        with _store_errors(), ThreadPoolExecutor(SIDE_CAR_THREADS) as threads:
            return list(threads.map(self._side_car, self.index.shards))

    def close(self) -> None:
        """Close the open shards; reading opens them again."""
        while self._open:
            self._open.popitem()[1][0].close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_failed": {}}

    def _side_car(self, record: ShardRecord) -> SideCar:
        location = storage.join(self.location, side_car_name(record.name))
        with temporary_folder() as folder:
            path = folder / "side-car.json"
            path.write_bytes(storage.read_bytes(location))
            return load_side_car(path, storage.redacted(location), record)

    def _close_removed(self, needed: int) -> None:
        """Close the files that another process has removed from the cache, so that their room on the disk is free."""
        removed = [k for k, (file, _) in self._open.items() if k != needed and not os.fstat(file.fileno()).st_nlink]
        for number in removed:
            self._open.pop(number)[0].close()


@contextmanager
def _store_errors() -> Iterator[None]:
    """A context in which errors of a store become those that a recipe reports in one line."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise as_media_error(error) from error
