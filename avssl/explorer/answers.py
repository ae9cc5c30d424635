"""The rows that answer a reader of the explorer, who asks by a source of the folder, an upload, or a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.embedder import Embedder
from avssl.embedding.search import EmbeddingIndex, best_of, hits_among, in_one_space
from avssl.embedding.table import EmbeddingRows, Hit, RowFacts
from avssl.explorer.cuts import ClipStore, media_seconds, told_without
from avssl.explorer.question import ALL_WINDOWS, MOST_TEXT, Answer, Asked, Upload, UploadLimits
from avssl.files.checked_json import Fields
from avssl.files.plain_text import brief
from avssl.types import MediaError

MOST_UPLOADS = 8  # that are kept; the oldest one goes first


class Explorer:
    """A folder of embeddings, or a Lance table of one, with what was uploaded to it.

    Attributes: folder, num_rows, modalities (that some row has), settings (of the folder), limits, clips;
    keys {key: its rows}, labels {"field: name": their rows}, as int64 numbers of the folder, ascending;
    text_modalities (that text is compared with). Its methods may be called from several threads.
    """

    def __init__(self, index: EmbeddingIndex, embedder: Embedder, clips: ClipStore, limits: UploadLimits) -> None:
        self.index, self.embedder, self.clips, self.limits = index, embedder, clips, limits
        self.folder, self.settings, self.num_rows = index.folder, index.content.settings, index.content.num_rows
        self.modalities = index.modalities
        self.keys, self.labels = _listed(index)
        self.text_modalities = tuple(name for name in index.modalities if name in embedder.text_modalities())
        self.spaces = {
            name: [other for other in index.modalities if in_one_space(embedder, name, other)]
            for name in self.settings["modalities"]
        }
        self._uploads: dict[str, Upload] = {}
        self._lock, self._model = Lock(), Lock()

    def take(self, identifier: str, name: str, path: Path) -> None:
        """Embed a file as an upload that is asked for by `identifier`; it is removed with it.

        ValueError if it lasts too long, MediaError if it cannot be read. The message names no path of this machine.
        """
        names = tuple(self.settings["modalities"])
        grid = {key: self.settings[key] for key in ("window_seconds", "stride_seconds") if key in self.settings}
        try:
            seconds = self.clips.sandbox.submit(media_seconds, (str(path), names), name).result()
            if seconds > self.limits.seconds:
                raise ValueError(
                    f"{brief(name)} lasts {seconds:.0f} s; an upload may last {self.limits.seconds:g} s "
                    "(--upload-seconds)"
                )
            with self._model:
                table, failures = self.embedder.embed(
                    path, modalities=names, num_workers=1, limits=self.limits.reading, **grid
                )
            for error in failures.values():
                raise error
        except MediaError as error:
            raise MediaError(error.reason, told_without(str(path), error, brief(name))) from error
        with self._lock:
            self._uploads[identifier] = Upload(name, path, table)
            while len(self._uploads) > MOST_UPLOADS:
                self._uploads.pop(next(iter(self._uploads))).path.unlink(missing_ok=True)

    def answer(self, asked: Asked, top: int) -> Answer:
        """The `top` closest rows of each modality in one space with what is asked; ValueError says what is wrong."""
        if asked.label and asked.label not in self.labels:
            raise ValueError(f"no row has the label {brief(asked.label)}")
        numbers = self.labels[asked.label] if asked.label else None
        if asked.text:
            if len(asked.text) > MOST_TEXT:
                raise ValueError(f"the text has {len(asked.text)} characters; it may have {MOST_TEXT}")
            with self._model:
                vectors = {name: self.embedder.embed_text([asked.text], name) for name in self.text_modalities or [""]}
            hits = {name: self._nearest(name, one, top, numbers, (), asked) for name, one in vectors.items()}
            return Answer(asked.text, "text", hits, self._facts(hits))
        upload = self._upload(asked.upload) if asked.upload else None
        by_modality = dict(self._windows_of_upload(upload) if upload else self._windows_of_key(asked.key))
        name = upload.name if upload else asked.key
        if asked.by and asked.by not in by_modality:
            raise ValueError(f"{brief(name)} has no {brief(asked.by)}; it has {' and '.join(by_modality)}")
        modality = asked.by or next(iter(by_modality))
        windows = by_modality[modality]
        if not 0 <= asked.window <= len(windows.keys):
            raise ValueError(f"{brief(name)} has {len(windows.keys)} windows; {asked.window} is none of them")
        vector, row = self._asking(name, windows, asked.window)
        own = () if upload or asked.with_own else (asked.key,)
        hits = {
            target: self._nearest(target, vector, top, numbers, own, asked) for target in self.spaces.get(modality, ())
        }
        return Answer(name, modality, hits, self._facts(hits), tuple(by_modality), windows, row, upload)

    def resolved(self, asked: Asked) -> Asked:
        """What is asked for, with the key and the window in place of a row's number; ValueError without such a row."""
        if asked.row is None:
            return asked
        if not 0 <= asked.row < self.index.content.num_rows:
            raise ValueError(f"there is no row {asked.row}; there are {self.index.content.num_rows}")
        key = self.index.facts([asked.row])[asked.row].key
        by_modality = {name: windows.numbers.tolist() for name, windows in self._windows_of_key(key)}
        numbers = by_modality.get(asked.by or next(iter(by_modality), ""), [])
        if asked.row not in numbers:
            raise ValueError(f"row {asked.row} has no {brief(asked.by)}; it has {' and '.join(by_modality)}")
        window = ALL_WINDOWS if len(numbers) == 1 else numbers.index(asked.row) + 1
        return replace(asked, row=None, key=key, window=window)

    def first_rows(self, most: int) -> list[tuple[int, RowFacts, str]]:
        """(number of a row in the middle of a source, its facts, its modality) of up to `most` sources.

        They are spread evenly over the folder.
        """
        keys = list(self.keys)
        chosen = [keys[place] for place in np.unique(np.linspace(0, len(keys) - 1, most).round().astype(int)).tolist()]
        numbers = [int(self.keys[key][len(self.keys[key]) // 2]) for key in chosen]
        facts = self.index.facts(numbers)
        seen: dict[int, str] = {}
        for modality in self.index.modalities:
            for rows in self.index.rows(modality, np.array(sorted(numbers), np.int64), with_vectors=False):
                for number in rows.numbers.tolist():
                    seen.setdefault(number, modality)
        return [(number, facts[number], seen[number]) for number in numbers if number in seen]

    def _upload(self, identifier: str) -> Upload:
        with self._lock:
            if identifier not in self._uploads:
                raise ValueError(f"that upload is not kept any more (the last {MOST_UPLOADS} are); drop the file again")
            return self._uploads[identifier]

    def _windows_of_key(self, key: str) -> Iterator[tuple[str, EmbeddingRows]]:
        """(modality, the windows of a key that have it)."""
        if key not in self.keys:
            raise ValueError(f"{self.index.folder.name} has no rows of the key {brief(key)}")
        for modality in self.index.modalities:
            parts = list(self.index.rows(modality, self.keys[key]))
            if parts:
                yield modality, _joined(parts)

    def _windows_of_upload(self, upload: Upload) -> Iterator[tuple[str, EmbeddingRows]]:
        for modality in upload.table.modalities():
            table = upload.table.select(upload.table.has(modality))
            vectors = table.embedding(modality)
            assert vectors is not None  # it is one of the table's modalities
            none = np.full(len(table), -1, np.int64)
            yield modality, EmbeddingRows(none, vectors, table.keys, table.start_seconds, table.end_seconds)

    def _asking(self, name: str, windows: EmbeddingRows, window: int) -> tuple[NDArray[np.float64], RowFacts]:
        """(the vector (1, D) that asks, the seconds that it stands for)."""
        chosen = slice(None) if window == ALL_WINDOWS else slice(window - 1, window)
        vector = windows.vectors[chosen].astype(np.float64).mean(axis=0, keepdims=True)
        if not np.abs(vector).sum():
            raise ValueError(f"the mean of the windows of {brief(name)} is 0; choose one of them")
        start, end = float(windows.start_seconds[chosen].min()), float(windows.end_seconds[chosen].max())
        number = int(windows.numbers[chosen][0])
        if number < 0:
            return vector, RowFacts(name, -1, start, end, {})
        facts = self.index.facts([number])[number]
        return vector, RowFacts(name, facts.index, start, end, facts.labels)

    def _nearest(
        self,
        modality: str,
        vector: NDArray[Any],
        top: int,
        numbers: NDArray[np.int64] | None,
        own: Sequence[str],
        asked: Asked,
    ) -> list[Hit]:
        """The closest rows of a modality: of these numbers, all compared; None: of all, as the index searches them."""
        query, one_per_key = self.index.check_queries(modality, vector), not asked.each_row
        if numbers is None:
            return self.index.search(modality, query, top, exclude=own, one_per_key=one_per_key)[0]
        best: list[Hit] = []
        for rows in self.index.rows(modality, numbers):
            found = hits_among(rows, query, top, own, one_per_key=one_per_key)[0]
            best = best_of([*best, *found], top, one_per_key=one_per_key)
        return best

    def _facts(self, hits: Mapping[str, Sequence[Hit]]) -> dict[int, RowFacts]:
        return self.index.facts({hit.row for found in hits.values() for hit in found})


def _joined(parts: Sequence[EmbeddingRows]) -> EmbeddingRows:
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("numbers", "vectors", "start_seconds", "end_seconds")
    }
    return EmbeddingRows(keys=[key for part in parts for key in part.keys], **arrays)


def _listed(index: EmbeddingIndex) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """({key: its rows}, {"field: name": the rows that have the label}), labels sorted."""
    keys: dict[str, list[int]] = {}
    labels: dict[str, list[int]] = {}
    parsed: dict[str, list[str]] = {}
    number, where = 0, f"{index.folder}, the labels of a row"
    for some_keys, some_labels in index.names():
        for key, text in zip(some_keys, some_labels, strict=True):
            if text not in parsed:  # most rows have the labels of the row before
                fields = Fields({"labels": Fields.parse(text, where).record}, where).labels("labels")
                parsed = {text: [f"{field}: {name}" for field, names in fields.items() for name in names]}
            keys.setdefault(key, []).append(number)
            for label in dict.fromkeys(parsed[text]):
                labels.setdefault(label, []).append(number)
            number += 1
    return (
        {key: np.array(rows, np.int64) for key, rows in keys.items()},
        {label: np.array(labels[label], np.int64) for label in sorted(labels)},
    )
