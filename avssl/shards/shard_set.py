"""Shard folders: random access to samples by index, and the tar writer. The only user of webdataset.

The schema is in format.py. The files are plain tar archives that any webdataset reader can stream.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Protocol

from avssl.files.location import is_remote, join, local_path
from avssl.shards.cache import DEFAULT_CACHE_BYTES
from avssl.shards.format import (
    AUDIO_MEMBER,
    IMAGE_MEMBERS,
    JSON_MEMBER,
    VIDEO_MEMBER,
    SampleInfo,
    ShardIndex,
    ShardRecord,
    SideCar,
)
from avssl.shards.remote import MAX_OPEN_SHARDS, RemoteShards
from avssl.shards.tar_members import DAMAGED_TAR, FilePart, member_content, plain_members
from avssl.types import MediaError, Span


@dataclass(frozen=True)
class Sample:
    """A stored sample: its JSON and its encoded media, None for those that it lacks. image: JPEG or PNG."""

    info: SampleInfo
    video: bytes | None
    audio: bytes | None
    image: bytes | None = None


class HasInfo(Protocol):
    """A sample in any form, by its json."""

    @property
    def info(self) -> SampleInfo:
        """What the sample's json says."""


class ShardSet:
    """A finished shard folder, read by sample index. Picklable: workers open their own files.

    A local folder is checked now. Of a remote one, index.json is read now; a shard is fetched on its first use, checked
    against size and sha256, and kept in a cache that processes share (cache.py).

    Args:
        folder: written by `avssl prep write`: a path, or a URL (files/storage.py says which).
        cache_dir: for remote shards; "" is $AVSSL_CACHE or ~/.cache/avssl. cache_bytes: its bound on the disk.

    Attributes:
        location: the argument `folder` as text. folder: the local folder of index.json.

    Raises:
        FileNotFoundError: index.json, a shard or a side-car is missing.
        ValueError: another schema version, a file that does not fit the index, or a protocol that is not allowed;
            MediaError("unreachable") if the server is.
    """

    weights: list[float] | None = None  # of the parts of a mixture (mixture.py)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] = "",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.location = os.fspath(folder)
        self._remote = RemoteShards(self.location, cache_dir, cache_bytes) if is_remote(folder) else None
        self.folder = local_path(folder) if self._remote is None else self._remote.folder
        self.index = ShardIndex.load(self.folder) if self._remote is None else self._remote.index
        local = self.index.shards if self._remote is None else []
        self._side_cars = [self._checked_side_car(record) for record in local]
        self._first_indices = [record.first_index for record in self.index.shards]
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()
        self._close_when_gone()

    @property
    def parts(self) -> list[ShardSet]:
        """The folders that it is made of: itself, or those of a mixture."""
        return [self]

    @property
    def num_samples(self) -> int:
        """The number N of samples, whose index is 0..N-1."""
        return self.index.num_samples

    @property
    def shard_sizes(self) -> list[int]:
        """Number of samples of each shard, in the order of `index`."""
        return [record.num_samples for record in self.index.shards]

    @cached_property
    def keys(self) -> list[str]:
        """The key of every sample, in the order of `index`. Of a remote folder this fetches every side-car."""
        return [key for side_car in self.side_cars() for key in side_car.keys]

    @property
    def is_remote(self) -> bool:
        """Whether the folder lies on a server."""
        return self._remote is not None

    def side_cars(self) -> list[SideCar]:
        """The side-car of every shard, in their order. Those of a remote folder are fetched."""
        return self._side_cars if self._remote is None else self._remote.side_cars()

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the sha256 of all shards: the same for equal contents, wherever the folder lies."""
        return hashlib.sha256("\n".join(record.sha256 for record in self.index.shards).encode()).hexdigest()

    def __len__(self) -> int:
        return self.num_samples

    def read(self, position: int) -> Sample:
        """The sample with this index.

        Raises:
            IndexError: position is not in 0..N-1.
            MediaError: bad_sample, if members are missing or the json does not fit; of a remote folder also
                missing_file, unreachable or truncated, of the shard.
        """
        number = self._shard_of(position)
        try:
            return self._read(position, number)
        except MediaError as error:
            if self._remote is None or error.reason != "bad_sample" or not self._remote.discard_if_damaged(number):
                raise
        return self._read(position, number)

    def read_info(self, position: int) -> SampleInfo:
        """The json of the sample with this index, without reading its media: labels, durations. Raises as `read`."""
        file, begin, end, key, where = self._locate(position, self._shard_of(position))
        try:
            with tarfile.open(fileobj=FilePart(file, begin, end), mode="r:") as archive:
                member = archive.getmember(f"{key}.{JSON_MEMBER}")
                return SampleInfo.from_json(member_content(archive, member, end - begin), where)
        except (KeyError, *DAMAGED_TAR) as error:
            raise MediaError("bad_sample", f"{where}: its json cannot be read ({error})") from error

    def shard_of(self, position: int) -> ShardRecord:
        """The shard that holds the sample with this index. IndexError if there is no such sample."""
        return self.index.shards[self._shard_of(position)]

    def _shard_of(self, position: int) -> int:
        """The number of the shard that holds a sample. IndexError if there is no such sample."""
        if not 0 <= position < self.num_samples:
            raise IndexError(f"{self.location}: there is no sample {position}; there are 0..{self.num_samples - 1}")
        return bisect_right(self._first_indices, position) - 1

    def _locate(self, position: int, number: int) -> tuple[BinaryIO, int, int, str, str]:
        """(file, first byte, end, key, description for messages) of a sample of shard `number`."""
        row = position - self._first_indices[number]
        if self._remote is None:
            file, side_car = self._open(number), self._side_cars[number]
        else:
            file, side_car = self._remote.open(number)
        begin, end = side_car.offsets[row : row + 2]
        key = side_car.keys[row]
        return file, begin, end, key, f"{join(self.location, side_car.record.name)}, sample {position} ({key})"

    def _read(self, position: int, number: int) -> Sample:
        file, begin, end, key, where = self._locate(position, number)
        content = os.pread(file.fileno(), end - begin, begin)  # not seek: forked workers share the file's position
        sample = parse_members(content, where)
        if sample.info.index != position or sample.info.key != key:
            raise MediaError("bad_sample", f"{where}: its json says index {sample.info.index}, key {sample.info.key}")
        return sample

    def close(self) -> None:
        """Close the open shards; reading opens them again."""
        _close(self._files, self._remote)

    def _close_when_gone(self) -> None:
        """Close the files when this object is freed. In a reference cycle __del__ might run after they are freed."""
        weakref.finalize(self, _close, self._files, self._remote).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close_when_gone()

    def _checked_side_car(self, record: ShardRecord) -> SideCar:
        path = self.folder / record.name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the shard is missing, index.json lists it; restore it or write again")
        size = path.stat().st_size
        if size != record.bytes:
            raise ValueError(f"{path}: has {size} bytes; index.json says {record.bytes}. Restore it or write again")
        side_car = SideCar.load(path.with_suffix(".json"))
        if side_car.record != record:
            raise ValueError(f"{path.with_suffix('.json')}: says {side_car.record}; index.json says {record}")
        return side_car

    def _open(self, number: int) -> BinaryIO:
        """The file of a shard; only those used last are kept open."""
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        while len(self._files) >= MAX_OPEN_SHARDS:
            self._files.popitem(last=False)[1].close()
        self._files[number] = (self.folder / self.index.shards[number].name).open("rb")
        return self._files[number]


def _close(files: OrderedDict[int, BinaryIO], remote: RemoteShards | None) -> None:
    while files:
        files.popitem()[1].close()
    if remote is not None:
        remote.close()


def parse_members(content: bytes, where: str) -> Sample:
    """One sample from the bytes of its tar members. MediaError("bad_sample") names `where`."""
    members = plain_members(content)
    samples = _any_members(content, where) if members is None else [members]
    if len(samples) != 1 or JSON_MEMBER not in samples[0]:
        names = [sorted(name for name in sample if not name.startswith("__")) for sample in samples]
        raise MediaError("bad_sample", f"{where}: its members are {names}; there must be one sample with a json")
    sample = samples[0]
    try:
        info = SampleInfo.from_json(sample[JSON_MEMBER], where)
    except ValueError as error:
        raise MediaError("bad_sample", str(error)) from error
    video, audio = sample.get(VIDEO_MEMBER), sample.get(AUDIO_MEMBER)
    images = [sample[name] for name in IMAGE_MEMBERS if name in sample]
    stored = (video is not None, audio is not None, len(images))
    if info.key != sample["__key__"] or stored != (info.has_video, info.has_audio, info.has_image):
        member_names = sorted(name for name in sample if not name.startswith("__"))
        raise MediaError(
            "bad_sample", f"{where}: members {sample['__key__']} {member_names} do not fit the json: {info}"
        )
    return Sample(info, video, audio, images[0] if images else None)


def _any_members(content: bytes, where: str) -> list[dict[str, Any]]:
    """The samples that webdataset finds in the bytes of tar members."""
    from webdataset.tariterators import group_by_keys

    try:
        # Not webdataset's own reader of a stream, which unpacks compressed archives without bound and skips a member of
        # any stated size block by block.
        with tarfile.open(fileobj=io.BytesIO(content + bytes(1024)), mode="r:") as archive:
            members = (
                {"fname": member.name, "data": member_content(archive, member, len(content)), "__url__": where}
                for member in archive
                if member.isreg()
            )
            return list(group_by_keys(members, lcase=False))
    except DAMAGED_TAR as error:
        raise MediaError("bad_sample", f"{where}: its bytes are no tar members ({error})") from error


def image_member(content: bytes) -> str:
    """The member's name for a stored image, by its first bytes. ValueError if it is neither JPEG nor PNG."""
    for name, signature in IMAGE_MEMBERS.items():
        if content.startswith(signature):
            return name
    raise ValueError(f"an image begins with {content[:8]!r}; only {' and '.join(IMAGE_MEMBERS)} are stored")


def write_tar(file: Any, samples: Iterable[Sample]) -> Iterator[int]:
    """Write samples as tar members with fixed headers; yields the file offset after each sample.

    file: has write(bytes). The same samples give the same bytes. The archive is complete when the iterator ends.
    """
    from webdataset.writer import TarWriter

    with TarWriter(file, encoder=False, user="", group="", mode=0o644, mtime=0, format="PAX_FORMAT") as writer:
        writer.tarstream.format = tarfile.PAX_FORMAT  # long keys; webdataset's own argument does not reach tarfile
        for sample in samples:
            members: dict[str, Any] = {"__key__": sample.info.key, JSON_MEMBER: sample.info.to_json()}
            if sample.video is not None:
                members[VIDEO_MEMBER] = sample.video
            if sample.audio is not None:
                members[AUDIO_MEMBER] = sample.audio
            if sample.image is not None:
                members[image_member(sample.image)] = sample.image
            writer.write(members)
            yield int(writer.tarstream.offset)


def spans(sample: HasInfo) -> tuple[Span | None, Span | None]:
    """The spans of the video and of the audio of a sample on its clock; None for a stream that it lacks."""
    info = sample.info
    video = audio = None
    if info.has_video:
        start = info.video_start_seconds
        video = Span(start, start + info.num_frames / info.video_fps)
    if info.has_audio:
        start = info.audio_start_seconds
        audio = Span(start, start + info.num_audio_samples / info.audio_rate_hz)
    return video, audio
