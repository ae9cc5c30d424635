"""Samples whose media are decoded once and kept in a bounded folder, for corpora that are read many times.

A sample is decoded whole when it is first read. Its pixels and waveform are written to files, which later reads map
into memory and cut from: the same clips, to the bit, as decoding gives. The system holds in memory what it has room
for. The folder is shared by all workers, and by all processes of this machine that read the same shards; the last one
to end removes it. What it has no room for, on the disk or within the bound, is decoded each time, as without it.
Nothing is replaced, because every sample is read equally often.

    FOLDER/lock            held, shared, by each process that reads; the leftovers of killed processes are not locked
    FOLDER/room            the bytes that are taken
    FOLDER/7.json          the json of sample 7
    FOLDER/7.video, 7.audio, 7.image    whole or absent: HEADER, then the arrays
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import re
import shutil
import stat
import struct
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from avssl.data.decoded import DecodedAudio, DecodedVideo, decode_whole_audio, decode_whole_video
from avssl.files.disk_errors import DISK_FULL
from avssl.files.locks import locked
from avssl.files.scratch import LOCK_NAME, remove_leftovers
from avssl.media.images import read_image
from avssl.shards.format import SampleInfo
from avssl.shards.shard_set import Sample, ShardSet
from avssl.types import MediaError

Decoded = DecodedVideo | DecodedAudio | torch.Tensor
T = TypeVar("T", DecodedVideo, DecodedAudio, torch.Tensor)
Load = Callable[[mmap.mmap], T]

logger = logging.getLogger("avssl")
NAME = "avssl_decoded"
ROOM_NAME = "room"
FULL_FRACTION = 0.9  # of the bound: if something does not fit then, nothing more is tried
HEADER = struct.Struct("=4qd24x")  # frames or samples, height, width, rate_hz, seconds of a tick; 64 bytes


class DecodedFolder:
    """The folder of the decoded samples of some shards, held by this object until it is freed or closed.

    Args:
        parent: where to make it; "" is the system's folder for temporary files (TMPDIR).
        fingerprint: of the shards. max_bytes: the bound of the folder.

    Raises ValueError if it cannot be made there.
    """

    def __init__(self, parent: str, fingerprint: str, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        above = Path(parent or tempfile.gettempdir())
        try:
            remove_leftovers(above, re.escape(NAME))
            self.path, descriptor = _held_folder(above, f"{fingerprint} {os.getuid()}")
        except OSError as error:
            raise ValueError(
                f"{above}: decoded samples cannot be kept there ({error.strerror}); set data.cache_decoded_dir to a "
                "folder on a local disk with room for data.cache_decoded bytes"
            ) from error
        self.close = weakref.finalize(self, _leave, self.path, descriptor)


def _held_folder(above: Path, name: str) -> tuple[Path, int]:
    """The folder of this name, which belongs to this user, and a descriptor with a share of its lock."""
    path = above / f".{NAME}.{hashlib.sha256(name.encode()).hexdigest()[:8]}.scratch"
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):  # another process took it for left behind before it was locked
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise PermissionError(errno.EPERM, f"{path.name} there belongs to another user", str(path))
            descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.path.samestat((path / LOCK_NAME).lstat(), os.fstat(descriptor)):
                    return path, descriptor
            os.close(descriptor)


def _leave(path: Path, descriptor: int) -> None:
    """Free the share of the lock, and remove the folder if nobody else has one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # others read it
    finally:
        os.close(descriptor)


class DecodedShards:
    """Shards whose samples are decoded once. Picklable, for workers: a copy does not hold the folder, as this does."""

    def __init__(self, shards: ShardSet, folder: DecodedFolder) -> None:
        self.shards, self.path, self.max_bytes = shards, folder.path, folder.max_bytes
        self._folder: DecodedFolder | None = folder
        self._not_kept: set[str] = set()  # files for which there was no room, or that cannot be cut exactly
        self._is_full = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_folder": None}

    @property
    def num_samples(self) -> int:
        """The number of samples."""
        return self.shards.num_samples

    def read(self, index: int) -> DecodedSample:
        """The sample with this index, whose media are decoded when they are asked for. Raises as ShardSet.read."""
        return DecodedSample(self, index)

    def get(self, sample: DecodedSample, kind: str, load: Load[T], decode: Callable[[int], T | None]) -> T | None:
        """What is kept of a sample's media, or decoded now and kept from now on; None if there is no room for it.

        kind: of the media. load: makes it from its file. decode: gets the most bytes that it may take; None if these
        are too few, or it cannot be cut exactly.
        """
        name = f"{sample.index}.{kind}"
        with suppress(FileNotFoundError), (self.path / name).open("rb") as file:
            return load(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))  # who writes into it, writes into a copy
        if self._is_full or name in self._not_kept:
            return None
        try:
            decoded = decode(self.max_bytes - self._taken())
        except MediaError:  # the seconds that are drawn may be readable: their reader decides
            decoded = None
        if decoded is None or not self._keep_sample(sample, name, decoded):
            self._not_kept.add(name)
            self._is_full |= self._taken() > FULL_FRACTION * self.max_bytes
        return decoded

    def _keep_sample(self, sample: DecodedSample, name: str, decoded: Decoded) -> bool:
        """Keep media, and before them the sample's json, so that the shard need not be read again."""
        json_name = f"{sample.index}.json"
        has_json = (self.path / json_name).exists() or self._keep(json_name, [sample.info.to_json()])
        return has_json and self._keep(name, _content(decoded))

    def _keep(self, name: str, parts: list[bytes]) -> bool:
        """Write a file, whole or not at all; False if there is no room for it. Its room is taken before it is made."""
        num_bytes = sum(len(part) for part in parts)
        temporary = self.path / f".{name}.{os.getpid()}"
        try:
            if not self._take(num_bytes):
                return False
            with temporary.open("wb") as file:
                _allocate(file.fileno(), num_bytes)
                for part in parts:
                    file.write(part)
            temporary.replace(self.path / name)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._is_full = True
            if self.path.exists():  # else the run has just ended
                why = "the disk is full" if error.errno in DISK_FULL else error.strerror
                logger.warning(
                    "%s: no more decoded samples are kept (%s); others are decoded each time", self.path, why
                )
            return False
        return True

    def _taken(self) -> int:
        with suppress(FileNotFoundError, ValueError):
            return int((self.path / ROOM_NAME).read_text("ascii"))
        return 0

    def _take(self, num_bytes: int) -> bool:
        """Take room for so many bytes, if there is any. FileNotFoundError if the folder is gone."""
        with locked(self.path / f"{ROOM_NAME}.lock"):
            taken = self._taken() + num_bytes
            if taken > self.max_bytes:
                return False
            (self.path / ROOM_NAME).write_text(str(taken), encoding="ascii")
        return True


@dataclass
class DecodedSample:
    """A sample whose media are decoded whole, or those of the shard if they are not kept; None for those it lacks."""

    source: DecodedShards
    index: int

    @cached_property
    def _stored(self) -> Sample:
        return self.source.shards.read(self.index)

    @cached_property
    def info(self) -> SampleInfo:
        """The json of the sample."""
        path = self.source.path / f"{self.index}.json"
        with suppress(FileNotFoundError):
            return SampleInfo.from_json(path.read_bytes(), str(path))
        return self._stored.info

    @cached_property
    def video(self) -> DecodedVideo | bytes | None:
        """The frames, or the encoded bytes."""
        return self._media("video", self.info.has_video, _load_video, self._decode_video)

    @cached_property
    def audio(self) -> DecodedAudio | bytes | None:
        """The waveform, or the encoded bytes."""
        return self._media("audio", self.info.has_audio, _load_audio, self._decode_audio)

    @cached_property
    def image(self) -> torch.Tensor | bytes | None:
        """The image, uint8 (3, H, W), channels last; or the encoded bytes."""
        return self._media("image", self.info.has_image, _load_image, self._decode_image)

    def _media(self, kind: str, is_there: bool, load: Load[T], decode: Callable[[int], T | None]) -> T | bytes | None:
        if not is_there:
            return None
        found = self.source.get(self, kind, load, decode)
        stored: bytes | None = getattr(self._stored, kind) if found is None else None
        return stored if found is None else found

    def _decode_video(self, room: int) -> DecodedVideo | None:
        stored, info = self._stored.video, self.info
        return None if stored is None else decode_whole_video(stored, info.num_frames, room, name=info.key)

    def _decode_audio(self, room: int) -> DecodedAudio | None:
        stored, info = self._stored.audio, self.info
        return None if stored is None else decode_whole_audio(stored, info.num_audio_samples, room, name=info.key)

    def _decode_image(self, room: int) -> torch.Tensor | None:
        stored, info = self._stored.image, self.info
        if stored is None or 3 * info.image_height_px * info.image_width_px > room:
            return None
        return read_image(stored, name=info.key)


def _allocate(descriptor: int, num_bytes: int) -> None:
    """Have the system give a file its room on the disk now, where it can: a full disk is known before writing."""
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except AttributeError:  # not on macOS
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def _content(decoded: Decoded) -> list[bytes]:
    """The content of the file of decoded media, in parts."""
    if isinstance(decoded, DecodedVideo):
        num_frames, height, width, _ = decoded.frames.shape
        header = HEADER.pack(num_frames, height, width, 0, decoded.tick_seconds)
        return [header, decoded.ticks.tobytes(), decoded.frames.tobytes()]
    if isinstance(decoded, DecodedAudio):
        return [HEADER.pack(len(decoded.samples), 0, 0, decoded.rate_hz, 0.0), decoded.samples.tobytes()]
    pixels = decoded.permute(1, 2, 0).contiguous().numpy()
    return [HEADER.pack(1, pixels.shape[0], pixels.shape[1], 0, 0.0), pixels.tobytes()]


def _load_video(content: mmap.mmap) -> DecodedVideo:
    num_frames, height, width, _, tick_seconds = HEADER.unpack_from(content)
    ticks = np.frombuffer(content, np.int64, num_frames, HEADER.size)
    frames = np.frombuffer(content, np.uint8, offset=HEADER.size + ticks.nbytes)
    return DecodedVideo(frames.reshape(num_frames, height, width, 3), ticks, tick_seconds)


def _load_audio(content: mmap.mmap) -> DecodedAudio:
    num_samples, _, _, rate_hz, _ = HEADER.unpack_from(content)
    return DecodedAudio(np.frombuffer(content, np.float32, num_samples, HEADER.size), rate_hz)


def _load_image(content: mmap.mmap) -> torch.Tensor:
    _, height, width, _, _ = HEADER.unpack_from(content)
    pixels = np.frombuffer(content, np.uint8, offset=HEADER.size).reshape(height, width, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)
