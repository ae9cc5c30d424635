"""What is known of every sample of a selection, in files: memory does not grow with the samples."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from avssl.files.plain_text import brief
from data_prep.measures.near_duplicates import NO_HASH
from data_prep.select.corpus import Corpus
from data_prep.select.expression import FALSE, TRUE, Condition
from data_prep.select.facts_file import HASHES, FactsFile, hashes, numbers, texts
from data_prep.select.rule import CONDITION_FALSE, CONDITION_UNKNOWN, REASONS, Rule
from data_prep.split.rule import mixed

NONE = -1
HAS_VIDEO, HAS_SOUND, HAS_IMAGE, IS_AUDIBLE = 1, 2, 4, 8  # bits of `kinds`
READ = ("key", "reason", "content", "bytes", "duration_seconds", "width_px", "height_px", "channels")

# {name: dtype} of a value per sample.
ARRAYS: dict[str, Any] = {
    "reason": np.int16,  # number in `reasons`; 0: it is kept
    "detail": np.int64,  # of a duplicate, the row that is kept; of a condition, the number of its part
    "score": np.float32,  # of a duplicate, how near it is: the cosine, or the bits in which hashes differ
    "draw": np.uint64,  # a random number, by the key and the seed alone
    "content": np.uint64,  # hash of what the sample is; 0: unknown
    "quality": np.float64,  # of duplicates the one with the highest is kept
    "seconds": np.float64,
    "picture": np.uint64,  # the hash by which near duplicates are found
    "first": np.uint64,
    "sound": np.uint64,
    "kinds": np.uint8,
}


class State:
    """A selection that is being made.

    Args:
        folder: for the files; the caller removes it. num_rows: samples of the corpus.

    Attributes:
        reasons: names of the numbers in `reason`. All arrays of ARRAYS, of num_rows values each.
    """

    reason: NDArray[np.int16]
    detail: NDArray[np.int64]
    score: NDArray[np.float32]
    draw: NDArray[np.uint64]
    content: NDArray[np.uint64]
    quality: NDArray[np.float64]
    seconds: NDArray[np.float64]
    picture: NDArray[np.uint64]
    first: NDArray[np.uint64]
    sound: NDArray[np.uint64]
    kinds: NDArray[np.uint8]

    def __init__(self, folder: Path, num_rows: int) -> None:
        self.folder, self.num_rows = folder, num_rows
        for name, dtype in ARRAYS.items():
            setattr(self, name, np.memmap(folder / name, dtype, "w+", shape=(num_rows,)))
        self.detail[:] = NONE
        self.reasons = ["", *REASONS]
        self.counts: Counter[str] = Counter()

    def leave_out(self, rows: NDArray[np.int64], reason: str, detail: Any = NONE, score: Any = np.nan) -> None:
        """Leave out kept samples. detail, score: as in ARRAYS, one for all or one each."""
        self.reason[rows], self.detail[rows], self.score[rows] = self.number(reason), detail, score
        self.counts[reason] += len(rows)

    def number(self, reason: str) -> int:
        """The number of a reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def kept(self, begin: int = 0, end: int | None = None) -> NDArray[np.int64]:
        """The rows from `begin` to `end` that are kept so far, ascending."""
        return np.flatnonzero(self.reason[begin:end] == 0).astype(np.int64) + begin


class Keys:
    """The keys of all samples, by row, in a file."""

    def __init__(self, folder: Path) -> None:
        self._text: BinaryIO = (folder / "keys").open("w+b")
        self._ends: BinaryIO = (folder / "key_ends").open("w+b")
        self._end = 0

    def add(self, key: str) -> None:
        """Add the key of the next row."""
        self._end += self._text.write(os.fsencode(key))
        self._ends.write(self._end.to_bytes(8, "little"))

    def __getitem__(self, row: int) -> str:
        self._text.flush()
        self._ends.flush()
        begin = 0 if row == 0 else int.from_bytes(os.pread(self._ends.fileno(), 8, 8 * (row - 1)), "little")
        end = int.from_bytes(os.pread(self._ends.fileno(), 8, 8 * row), "little")
        return os.fsdecode(os.pread(self._text.fileno(), end - begin, begin))

    def close(self) -> None:
        """Close the files."""
        self._text.close()
        self._ends.close()


def read_facts(state: State, keys: Keys, corpus: Corpus, facts: FactsFile, rule: Rule) -> Condition | None:
    """Fill the arrays, and leave out what cannot be read and what the condition does not hold for.

    ValueError if the condition is none, or if the facts are those of another corpus.
    """
    condition = Condition(rule.where, facts.schema()) if rule.where else None
    names = {*READ, *HASHES} | set(condition.names if condition else ())
    listed = corpus.keys()
    for first, block in facts.blocks(names):
        part = slice(first, first + block.num_rows)
        _read_block(state, part, block, rule)
        _read_keys(state, keys, first, block, listed, corpus, facts, rule.seed)
        _leave_out_failed(state, first, texts(block, "reason"))
        if condition is not None:
            _apply(state, first, condition.values(block))
    if next(listed, None) is not None:
        raise _other_corpus(facts, corpus, f"it has {facts.num_rows:,} rows, and the corpus more")
    if facts.source.get("corpus") != {"kind": corpus.kind, "sha256": corpus.sha256()}:
        raise _other_corpus(facts, corpus, "the corpus was changed, although its keys are the same")
    return condition


def _read_block(state: State, part: slice, block: Any, rule: Rule) -> None:
    seconds = numbers(block, "duration_seconds")
    pixels = numbers(block, "width_px") * numbers(block, "height_px")
    quality = {"longest": seconds, "highest-resolution": pixels}.get(rule.keep, np.zeros(len(seconds)))
    state.quality[part] = np.nan_to_num(quality, nan=-1.0)
    state.seconds[part] = np.nan_to_num(seconds)
    if rule.near:
        middle, image, first, sound = (
            hashes(block, name, NO_HASH) for name in ("middle_hash", "image_hash", "first_hash", "sound_hash")
        )
        has_picture, has_sound = np.isfinite(pixels), np.isfinite(numbers(block, "channels"))
        has_image = has_picture & ~np.isfinite(seconds)
        kinds = (
            has_picture * HAS_VIDEO + has_sound * HAS_SOUND + has_image * HAS_IMAGE + (sound != NO_HASH) * IS_AUDIBLE
        )
        state.picture[part] = np.where(has_picture, np.where(image != NO_HASH, image, middle), sound)
        state.first[part], state.sound[part], state.kinds[part] = first, sound, kinds.astype(np.uint8)


def _read_keys(
    state: State,
    keys: Keys,
    first: int,
    block: Any,
    listed: Iterator[str],
    corpus: Corpus,
    facts: FactsFile,
    seed: int,
) -> None:
    """Keys, draws and contents of a block, in which corpus and facts must agree about the keys."""
    contents, sizes = texts(block, "content"), block["bytes"].to_pylist()
    draws, marks = np.zeros(block.num_rows, np.uint64), np.zeros(block.num_rows, np.uint64)
    for number, (key, content, size) in enumerate(zip(texts(block, "key"), contents, sizes, strict=True)):
        expected = next(listed, None)
        if key != expected or key is None:
            raise _other_corpus(
                facts, corpus, f"row {first + number + 1:,} is {brief(key)} in it and {brief(expected)} there"
            )
        keys.add(key)
        draws[number] = _hash(key)
        if content:
            marks[number] = _hash(f"{content} {size}")
    state.draw[first : first + block.num_rows] = mixed(draws + np.uint64(seed))
    state.content[first : first + block.num_rows] = marks


def _leave_out_failed(state: State, first: int, reasons: list[str | None]) -> None:
    failed: dict[str, list[int]] = {}
    for number, reason in enumerate(reasons):
        if reason is not None:
            failed.setdefault(reason, []).append(first + number)
    for reason, rows in failed.items():
        state.leave_out(np.array(rows, np.int64), reason)


def _apply(state: State, first: int, values: NDArray[np.int8]) -> None:
    """Leave out rows of a block for which a part of the condition is false or, if none is, unknown."""
    is_false, is_true = values == FALSE, values == TRUE
    kept = state.reason[first : first + len(values)] == 0
    for reason, is_wrong in ((CONDITION_FALSE, is_false), (CONDITION_UNKNOWN, ~is_true)):
        rows = np.flatnonzero(kept & is_wrong.any(axis=1))
        state.leave_out(rows + first, reason, is_wrong[rows].argmax(axis=1))
        kept[rows] = False


def _other_corpus(facts: FactsFile, corpus: Corpus, why: str) -> ValueError:
    return ValueError(
        f"{facts.path}: holds the facts of another corpus than {corpus.name}: {why}; compute them again with `avssl "
        "prep facts`, or leave out --facts"
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
