"""Where the media of embedded rows lie: by key, from the sources that a folder of embeddings was made of.

A key that the sources do not have, a file that has gone and a shard folder that cannot be opened are a `MediaError` of
that key; the pages show it in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avssl.embedding.media import Media, media_of_sample, open_file
from avssl.embedding.sources import sources_of_folder
from avssl.shards.keys import plain_key
from avssl.shards.manifest import FileSource
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError


@dataclass(frozen=True)
class Origins:
    """The media of a folder of embeddings; nothing is opened until it is asked for.

    Args:
        folder: of the embeddings. settings: those of its index.json.
        keys: whose media will be asked for; the list of a large folder is read once for all.
    """

    folder: Path
    settings: Mapping[str, Any]
    keys: Collection[str]

    def media(self, key: str, number: int) -> Media:
        """The open media of a key, on the clock of its rows; `number` is the row's sample in a shard folder, or -1.

        MediaError: there are none, or they cannot be opened. The caller closes them.
        """
        if self.settings["shards"] is not None:
            return self._sample(key, number)
        source = self.files.get(key)
        if source is None:
            raise MediaError("missing_file", f"{key}: is in none of the sources of {self.folder} any more")
        modalities = ["image"] if self.settings["modalities"] == ["image"] else ["video", "audio", "image"]
        return open_file(source, modalities)

    def place(self, key: str) -> str:
        """The file or shard folder that holds a key, as text; "" if it is not known."""
        if self.settings["shards"] is not None:
            return str(self.settings["sources"][0])
        return str(self.files[key].place) if key in self.files else ""

    def name(self, key: str) -> str:
        """What a reader calls a key: the end of its file's path that the key was made of; the key itself where there is
        none, as of shards. What follows the path in the key, seconds or digits of a hash, stays.
        """
        file = self.files.get(key) if self.settings["shards"] is None else None
        if file is None:
            return key
        name = "/".join(file.path.split("/")[-1 - key.count("/") :])
        made = plain_key(name)
        return name + key.removeprefix(made) if key.startswith(made) else key

    @cached_property
    def files(self) -> dict[str, FileSource]:
        """{key: its file} of the keys that were asked for; {} for a shard folder."""
        wanted = set(self.keys)
        try:
            return {file.key: file for file in sources_of_folder(self.folder, self.settings) if file.key in wanted}
        except OSError:  # an earlier version kept no list, and the sources have gone: each key says so
            return {}

    @cached_property
    def _shards(self) -> ShardSet | MediaError:
        location = self.settings["sources"][0]
        try:
            shards = ShardSet(location)
        except (OSError, ValueError) as error:
            return MediaError("missing_file", f"{location}: {error}")
        if shards.fingerprint != self.settings["shards"]:
            return MediaError("changed_file", f"{location}: holds other shards than those that were embedded")
        return shards

    def _sample(self, key: str, number: int) -> Media:
        if isinstance(self._shards, MediaError):
            raise self._shards
        sample = self._shards.read(number)
        if sample.info.key != key:
            raise MediaError("changed_file", f"{key}: the shard folder holds {sample.info.key} in its place")
        return media_of_sample(sample)
