"""The account of a selection: why each sample was left out, and the record of what was selected and how."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avssl.shards.format import dump_json
from data_prep.select.corpus import Corpus
from data_prep.select.expression import Condition
from data_prep.select.facts_file import FactsFile, texts
from data_prep.select.rule import CONDITION_FALSE, CONDITION_UNKNOWN, DUPLICATES, NEAR, NEAR_BITS, Rule
from data_prep.select.state import NONE, Keys, State

FORMAT_NAME, SCHEMA_VERSION = "avssl-selection", 1
RECORD_NAME, LEFT_OUT_NAME = "select.json", "select.left_out.jsonl"
ROWS_AT_A_TIME = 1 << 20


def beside(out: Path, ending: str) -> Path:
    """The file OUT.ending that belongs to OUT.jsonl."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.{ending}")


def is_kept(state: State) -> Iterator[bool]:
    """Whether each row of the corpus is kept, in its order."""
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        yield from (state.reason[begin : begin + ROWS_AT_A_TIME] == 0).tolist()


def left_out_lines(state: State, keys: Keys, facts: FactsFile, condition: Condition | None) -> Iterator[bytes]:
    """A line for each sample that is left out, in the order of the corpus."""
    for first, block in facts.blocks(["key", "path"]):
        part = slice(first, first + block.num_rows)
        columns = (state.reason[part].tolist(), state.detail[part].tolist(), state.score[part].tolist())
        for key, path, number, detail, score in zip(texts(block, "key"), texts(block, "path"), *columns, strict=True):
            if number:
                why = described(state.reasons[number], detail, score, keys, condition)
                yield dump_json({"key": key, "path": path} | why)


def described(reason: str, detail: int, score: float, keys: Keys, condition: Condition | None) -> dict[str, Any]:
    """The reason with what it is about: the part of the condition, or the sample that stays and how near it is."""
    if reason in (CONDITION_FALSE, CONDITION_UNKNOWN) and condition is not None:
        return {"reason": reason, "condition": condition.parts[detail]}
    if reason in DUPLICATES and detail != NONE:
        near = {} if math.isnan(score) else {"bits": int(score)} if reason == NEAR else {"cosine": round(score, 6)}
        return {"reason": reason, "duplicate_of": keys[detail], **near}
    return {"reason": reason}


def record_of(
    state: State, corpus: Corpus, facts: FactsFile, rule: Rule, condition: Condition | None
) -> dict[str, Any]:
    """What was selected and how, but for the hashes of the files. Counts are held against the arrays."""
    counts: Counter[str] = Counter()
    parts = (
        {part: dict.fromkeys((CONDITION_FALSE, CONDITION_UNKNOWN), 0) for part in condition.parts} if condition else {}
    )
    seconds = listed_seconds = 0.0
    for begin in range(0, state.num_rows, ROWS_AT_A_TIME):
        part = slice(begin, begin + ROWS_AT_A_TIME)
        numbers, many = np.unique(state.reason[part], return_counts=True)
        counts.update(dict(zip((state.reasons[number] for number in numbers), many.tolist(), strict=True)))
        seconds += float(state.seconds[part][state.reason[part] == 0].sum())
        listed_seconds += float(state.seconds[part].sum())
        for name, of_part in zip(parts, _by_part(state, part, len(parts)), strict=True):
            parts[name] = {reason: parts[name][reason] + count for reason, count in of_part.items()}
    num_kept = counts.pop("", 0)
    assert counts == state.counts, "a sample was left out twice"
    return {
        "format": FORMAT_NAME,
        "schema_version": SCHEMA_VERSION,
        "corpus": {"name": corpus.name, "kind": corpus.kind, "sha256": corpus.sha256()},
        "facts": {"sha256": facts.sha256(), "source": facts.source},
        "rule": rule.to_json() | ({"near_bits": NEAR_BITS} if rule.near else {}),
        "num_listed": state.num_rows,
        "num_kept": num_kept,
        "num_left_out": counts.total(),
        "left_out_by_reason": dict(sorted(counts.items())),
        "left_out_by_condition": parts,
        "listed_seconds": round(listed_seconds, 3),
        "kept_seconds": round(seconds, 3),
    }


def _by_part(state: State, rows: slice, num_parts: int) -> list[dict[str, int]]:
    """{reason: number of rows that are left out by it} for each part of the condition."""
    found = {}
    for reason in (CONDITION_FALSE, CONDITION_UNKNOWN):
        details = state.detail[rows][state.reason[rows] == state.number(reason)]
        found[reason] = np.bincount(details, minlength=num_parts).tolist()
    return [{reason: found[reason][number] for reason in found} for number in range(num_parts)]
