"""What is selected from: the rows of a manifest, or the samples of a shard folder. The kept ones are listed again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from avssl.files.checked_json import Fields
from avssl.files.location import is_remote
from avssl.files.whole import HashedFile
from avssl.shards.format import INDEX_NAME, dump_json
from avssl.shards.shard_set import ShardSet


class Corpus(Protocol):
    """A list of samples in a fixed order. name: for messages. kind: "manifest" or "shards"."""

    name: str
    kind: str

    def keys(self) -> Iterator[str]:
        """The key of each sample."""

    def write_kept(self, is_kept: Iterable[bool], out: Path, file: HashedFile) -> None:
        """Write a line for each kept sample. RuntimeError if the corpus changed since `keys`."""

    def sha256(self) -> str:
        """Of the manifest's bytes, or the fingerprint of the shards."""


class ManifestCorpus:
    """The rows of a manifest. FileNotFoundError if there is none, ValueError if it lists nothing."""

    kind = "manifest"

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such manifest; make one with `avssl prep index`")
        if not path.stat().st_size:
            raise ValueError(f"{path}: lists no files")
        self.path, self.name = path, str(path)
        self._sha256 = ""

    def keys(self) -> Iterator[str]:
        """As Corpus.keys. ValueError names the line that does not fit."""
        state = hashlib.sha256()
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                state.update(line)
                yield Fields.parse(line, f"{self.path}, line {number}").text("key")
        self._sha256 = state.hexdigest()

    def write_kept(self, is_kept: Iterable[bool], out: Path, file: HashedFile) -> None:
        """The lines themselves; in another folder, relative paths become absolute ones."""
        is_moved = out.absolute().parent.resolve() != self.path.absolute().parent.resolve()
        state = hashlib.sha256()
        with self.path.open("rb") as manifest:
            for line, kept in zip(manifest, is_kept, strict=True):
                state.update(line)
                if kept:
                    file.write(self._moved(line) if is_moved else line if line.endswith(b"\n") else line + b"\n")
        if state.hexdigest() != self._sha256:
            raise RuntimeError(f"{self.path}: changed while it was selected from; run the same command again")

    def _moved(self, line: bytes) -> bytes:
        record = Fields.parse(line, str(self.path)).record
        for place in (record, record.get("sound")):  # sound: of a sample whose audio lies apart
            if isinstance(place, dict) and not is_remote(place["path"]) and not place["path"].startswith("/"):
                place["path"] = os.path.normpath(self.path.absolute().parent / place["path"])
        return dump_json(record)

    def sha256(self) -> str:
        """Of the bytes that `keys` read."""
        return self._sha256


class ShardCorpus:
    """The samples of a finished shard folder. Raises as ShardSet."""

    kind = "shards"

    def __init__(self, folder: str) -> None:
        self.name, self._shards = folder, ShardSet(folder)

    def keys(self) -> Iterator[str]:
        """As Corpus.keys."""
        return iter(self._shards.keys)

    def write_kept(self, is_kept: Iterable[bool], out: Path, file: HashedFile) -> None:  # noqa: ARG002
        """{"index", "key"} of each kept sample: what `data.shards` takes as `keys` of a folder."""
        for index, (key, kept) in enumerate(zip(self._shards.keys, is_kept, strict=True)):
            if kept:
                file.write(dump_json({"index": index, "key": key}))

    def sha256(self) -> str:
        """The fingerprint of the shards."""
        return self._shards.fingerprint


def open_corpus(source: str) -> Corpus:
    """The corpus of a manifest's path, or of a shard folder's path or URL."""
    is_folder = is_remote(source) or Path(source).is_dir()
    if is_folder and not is_remote(source) and not (Path(source) / INDEX_NAME).is_file():
        raise FileNotFoundError(
            f"{source}: is a folder without {INDEX_NAME}; give a manifest of `avssl prep index`, or a folder that "
            "`avssl prep write` has finished"
        )
    return ShardCorpus(source) if is_folder else ManifestCorpus(Path(source))
