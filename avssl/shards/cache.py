"""Shards of a remote folder, read through a bounded folder on this machine that any number of processes share.

A shard is fetched whole on its first use, checked against the size and sha256 of index.json, and kept with its side-car
under a name made of that record: an object that changed is another entry, never a mixture. When room is needed, the
entries that were used longest ago are removed before the new one is fetched, so the folder stays below its bound. A
process can read a shard that it has open to the end, even if another one removes it; the room on the disk is free again
when the process opens another shard.

    FOLDER/shards/KEY.tar, KEY.json    entries; *.part is being fetched and already counts
    FOLDER/locks/                      one lock for making room, 4096 for entries by the first digits of their key
    FOLDER/indices/                    the last index.json of each location, not counted
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from avssl.files import storage
from avssl.files.disk_errors import DISK_FULL
from avssl.files.locks import LockedError, locked
from avssl.shards.format import INDEX_NAME, ShardRecord, SideCar, side_car_name
from avssl.types import FailureReason, MediaError

DEFAULT_CACHE_BYTES = 50_000_000_000
LOCK_DIGITS = 3
RESTORE = "Restore it, or write the shards again"
ROOM_POLL_SECONDS, ROOM_WAIT_SECONDS = 0.2, 900.0


def default_cache_dir() -> Path:
    """$AVSSL_CACHE, or the folder avssl in the user's folder for caches."""
    folder = os.environ.get("AVSSL_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avssl"


class _Entry(NamedTuple):
    """The files of one key: when they were last used, their bytes, and whether one is still being fetched."""

    used_ns: int
    num_bytes: int
    key: str
    is_partial: bool


@dataclass(frozen=True)
class ShardCache:
    """The folder of the cache and its bound in bytes. Picklable. ValueError if the folder cannot be made."""

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"data.cache_bytes is {self.max_bytes}; it must be at least the bytes of one shard")
        try:
            for name in ("shards", "locks", "indices"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{self.folder}: the cache of remote shards cannot be made there ({error.strerror}); set "
                "data.cache_dir, or the environment variable AVSSL_CACHE, to a folder on a local disk"
            ) from error

    def fetch_index(self, location: str) -> Path:
        """The local folder of a fresh copy of a shard folder's index.json. Raises what storage.read_bytes raises."""
        try:
            content = storage.read_bytes(storage.join(location, INDEX_NAME))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{storage.redacted(location)}: holds no {INDEX_NAME}, so it is no finished shard folder; check the "
                "name, or run `avssl prep write` (it continues where it stopped)"
            ) from error
        folder = self.folder / "indices" / hashlib.sha256(location.encode()).hexdigest()[:32]
        with self._when_full():
            storage.write_bytes(folder / INDEX_NAME, content)
        return folder

    def open(self, location: str, record: ShardRecord) -> tuple[BinaryIO, SideCar]:
        """A whole and verified shard, open for reading, and its side-car.

        Args:
            location: of the shard folder.

        Raises:
            OSError: as storage.copy_to.
            MediaError: truncated or bad_sample, if the remote file is not the shard of index.json.
            ValueError: there is no room for it.
        """
        key = _key(record)
        entry = self._find(key, record)
        if entry is not None:
            return entry
        with self._lock(key[:LOCK_DIGITS]):
            entry = self._find(key, record)  # another process was faster
            return entry if entry is not None else self._fetch(location, record, key)

    def discard(self, record: ShardRecord) -> None:
        """Remove an entry that is damaged."""
        self._remove(_key(record))

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / "shards" / f"{key}.{suffix}"

    def _find(self, key: str, record: ShardRecord) -> tuple[BinaryIO, SideCar] | None:
        """The entry, marked as used now; None if it is absent or not whole. Another process may remove it meanwhile."""
        try:
            file = self._path(key, "tar").open("rb")
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError, ValueError):
            side_car = SideCar.load(self._path(key, "json"))
            if os.fstat(file.fileno()).st_size == record.bytes and side_car.record == record:
                mark_used(file)
                return file, side_car
        file.close()
        return None

    def _fetch(self, location: str, record: ShardRecord, key: str) -> tuple[BinaryIO, SideCar]:
        """Fetch an entry, while its lock is held. A shard that is not as index.json says is fetched once more."""
        try:
            return self._fetch_once(location, record, key)
        except MediaError:
            return self._fetch_once(location, record, key)

    def _fetch_once(self, location: str, record: ShardRecord, key: str) -> tuple[BinaryIO, SideCar]:
        shard, side_car_location = (storage.join(location, name) for name in (record.name, side_car_name(record.name)))
        content = storage.read_bytes(side_car_location)
        with self._when_full():
            part, part_json = self._reserve(key, record.bytes, len(content)), self._path(key, "json.part")
            file = part.open("r+b")
            try:
                part_json.write_bytes(content)
                side_car = load_side_car(part_json, storage.redacted(side_car_location), record)
                _copy_checked(shard, record, file)
                part_json.replace(self._path(key, "json"))
                part.replace(self._path(key, "tar"))
            except BaseException:
                with suppress(OSError):  # closing a file on a full disk fails again
                    file.close()
                part.unlink(missing_ok=True)
                part_json.unlink(missing_ok=True)
                raise
        return file, side_car

    def _reserve(self, key: str, num_bytes: int, num_side_car_bytes: int) -> Path:
        """A file of the shard's size without content, made as soon as there is room for it, which it then takes."""
        part = self._path(key, "tar.part")
        needed = num_bytes + num_side_car_bytes
        if needed > self.max_bytes:
            raise ValueError(
                f"data.cache_bytes is {self.max_bytes}, less than a shard of {needed} bytes; set it to several shards "
                "per reading process"
            )
        deadline = time.monotonic() + ROOM_WAIT_SECONDS
        while time.monotonic() < deadline:
            with self._lock("room"):
                if self._make_room(needed, key):
                    with part.open("wb") as file:
                        file.truncate(num_bytes)
                    return part
            time.sleep(ROOM_POLL_SECONDS)  # other processes are fetching all shards that are left
        raise ValueError(
            f"data.cache_bytes is {self.max_bytes}, and for {ROOM_WAIT_SECONDS:.0f} s there was no room for {needed} "
            "bytes beside the shards that other processes fetch; set it to several shards per reading process"
        )

    def _make_room(self, num_bytes: int, key: str) -> bool:
        """Remove the entries used longest ago until num_bytes fit; False if unfinished fetches leave no room."""
        entries = sorted(self._entries())
        total = sum(entry.num_bytes for entry in entries)
        for entry in entries:
            if total + num_bytes <= self.max_bytes:
                return True
            if not entry.is_partial or self._is_abandoned(entry.key, key):
                self._remove(entry.key)
                total -= entry.num_bytes
        return total + num_bytes <= self.max_bytes

    def _entries(self) -> Iterator[_Entry]:
        entries: dict[str, _Entry] = {}
        with os.scandir(self.folder / "shards") as files:
            for file in files:
                with suppress(FileNotFoundError):  # another process has just given it its name, or removed it
                    status, key = file.stat(), file.name.partition(".")[0]
                    before = entries.get(key, _Entry(0, 0, key, False))
                    newest, is_partial = max(before.used_ns, status.st_mtime_ns), file.name.endswith(".part")
                    entries[key] = _Entry(
                        newest, before.num_bytes + status.st_size, key, before.is_partial or is_partial
                    )
        yield from entries.values()

    def _is_abandoned(self, key: str, fetched_key: str) -> bool:
        """Whether the process that fetched this entry was killed: nobody holds its lock, or this process does."""
        if key[:LOCK_DIGITS] == fetched_key[:LOCK_DIGITS]:
            return True
        try:
            with locked(self.folder / "locks" / key[:LOCK_DIGITS], wait_seconds=0):
                return True
        except LockedError:
            return False

    def _remove(self, key: str) -> None:
        for suffix in ("tar", "json", "tar.part", "json.part"):
            self._path(key, suffix).unlink(missing_ok=True)

    def _lock(self, name: str) -> AbstractContextManager[None]:
        """A lock that one process of this machine holds at a time."""
        return locked(self.folder / "locks" / name)

    @contextmanager
    def _when_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise ValueError(
                f"{self.folder}: the disk of the cache is full; lower data.cache_bytes (now {self.max_bytes}), free "
                "space, or set data.cache_dir or AVSSL_CACHE to another disk"
            ) from error


def _key(record: ShardRecord) -> str:
    return hashlib.sha256(repr(record).encode()).hexdigest()


def mark_used(file: BinaryIO) -> None:
    """Set the time of use of an open entry to now: entries that were used before are removed before it."""
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))


def load_side_car(path: Path, where: str, record: ShardRecord) -> SideCar:
    """Read and check a fetched side-car. MediaError("bad_sample") names where it came from."""
    try:
        side_car = SideCar.load(path)
    except ValueError as error:
        raise MediaError("bad_sample", str(error).replace(str(path), where)) from error
    if side_car.record != record:
        raise MediaError("bad_sample", f"{where}: says {side_car.record}; {INDEX_NAME} says {record}. {RESTORE}")
    return side_car


def _copy_checked(location: str, record: ShardRecord, file: BinaryIO) -> None:
    """Fetch a shard into an open file. MediaError if it is not the one of index.json."""
    try:
        storage.copy_to(location, file, num_bytes=record.bytes)
    except storage.WrongSize as error:
        reason: FailureReason = "truncated" if error.num_bytes < record.bytes else "bad_sample"
        raise MediaError(reason, f"{error}, by {INDEX_NAME}. {RESTORE}") from error
    if (sha256 := sha256_of(file)) != record.sha256:
        where = storage.redacted(location)
        raise MediaError("bad_sample", f"{where}: has sha256 {sha256}; {INDEX_NAME} says {record.sha256}. {RESTORE}")


def sha256_of(file: BinaryIO) -> str:
    """Hex sha256 of all bytes of an open file, whatever its position."""
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto
