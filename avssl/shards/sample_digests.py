"""Digests that tell whether two samples of any shard folders have the same origin: 64 bits of media and of source.

A key is no evidence: "0001" of one corpus has nothing to do with "0001" of another. These are compared:

- media: the bytes of all stored members together (a silent track alone is like any other silent track);
- source: the file that the sample was made from, whatever seconds of it were taken: its size and a digest of parts of
  its content (`source.content`, written by data_prep), or of its path in shards that have none.

Two different samples share 64 bits by chance once in 2**64 pairs: of 100,000 test samples and a billion training
samples, 0.000005 pairs are expected to agree by chance.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.shards.format import SampleInfo, SideCar
from avssl.shards.keys import source_of
from avssl.shards.shard_set import Sample, ShardSet
from avssl.shards.subset import ShardSubset

Digests = NDArray[np.uint64]
MAX_HASHED_BYTES = 20_000_000_000  # shards without digests in their side-cars are read up to this size


@dataclass(frozen=True)
class SampleDigests:
    """The digests of all samples of a folder: uint64 (N,) each, in the order of `index`."""

    media: Digests
    sources: Digests


def source_digest(info: SampleInfo) -> str:
    """16 hex digits of the source file (and of the number of an image inside it), not of the seconds taken from it."""
    source = info.source
    return source_of(source.get("content"), source.get("path"), source.get("bytes"), source.get("item"))


def media_digest(sample: Sample) -> str:
    """16 hex digits of the bytes of the stored members."""
    return members_sha256(sample)[:16]


def members_sha256(sample: Sample) -> str:
    """Hex sha256 of the bytes of the stored members with their kinds."""
    state = hashlib.sha256()
    for name, content in (("video", sample.video), ("audio", sample.audio), ("image", sample.image)):
        if content is not None:
            state.update(f"{name} {len(content)} ".encode())
            state.update(content)
    return state.hexdigest()


def sample_digests(shards: ShardSet) -> SampleDigests | None:
    """The digests of every sample, from the side-cars; local shards of an earlier version of the program are read.

    None where neither is possible: older shards that are remote, or have more than MAX_HASHED_BYTES.
    """
    if isinstance(shards, ShardSubset):
        whole = sample_digests(shards.whole)
        rows = shards.positions
        return None if whole is None else SampleDigests(whole.media[rows], whole.sources[rows])
    if len(shards.parts) > 1:
        digests = [sample_digests(part) for part in shards.parts]
        known = [one for one in digests if one is not None]
        joined = [np.concatenate([getattr(one, kind) for one in known]) for kind in ("media", "sources")]
        return SampleDigests(*joined) if len(known) == len(digests) else None
    side_cars = shards.side_cars()
    if all(side_car.media and side_car.sources for side_car in side_cars):
        texts = ([getattr(side_car, kind) for side_car in side_cars] for kind in ("media", "sources"))
        return SampleDigests(*map(_joined, texts))
    if shards.is_remote or shards.index.total_bytes > MAX_HASHED_BYTES:
        return None
    samples = (shards.read(position) for position in range(shards.num_samples))
    pairs = [(media_digest(sample), source_digest(sample.info)) for sample in samples]
    return SampleDigests(*(_joined([pair[side] for pair in pairs]) for side in (0, 1)))


def with_digests(side_car: SideCar, samples: list[tuple[str, str]]) -> SideCar:
    """The side-car with the (media, source) digests of its samples, in their order."""
    media, sources = ("".join(pair[side] for pair in samples) for side in (0, 1))
    return SideCar(side_car.record, side_car.keys, side_car.offsets, media, sources)


def _joined(texts: list[str]) -> Digests:
    return np.frombuffer(bytes.fromhex("".join(texts)), dtype=">u8").astype(np.uint64)
