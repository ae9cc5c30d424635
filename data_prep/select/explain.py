"""Why a sample was kept or left out: the record of the selection, and the condition on its facts part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.files.checked_json import Fields
from avssl.files.plain_text import brief, plain
from avssl.files.whole import sha256_file
from data_prep.select.expression import FALSE, TRUE, Condition
from data_prep.select.facts_file import FactsFile
from data_prep.select.outcome import FORMAT_NAME, LEFT_OUT_NAME, RECORD_NAME, beside
from data_prep.select.rule import CLASS_FULL, DUPLICATES, HOURS_FULL

NUM_NAMED = 5  # samples that were left out for one
TRUTHS = {TRUE: "true", FALSE: "false"}


@dataclass(frozen=True)
class Explanation:
    """Why a sample was kept or left out.

    record: of the file of those that were left out, {} if it was kept. facts: {name: value}. parts: {part of the
    condition: "true", "false" or "unknown"}. stands_for: keys of samples that were left out for it.
    """

    key: str
    record: dict[str, Any]
    facts: dict[str, Any]
    parts: dict[str, str]
    stands_for: list[str]
    rule: dict[str, Any]


def explain(key: str, out: Path, facts: FactsFile) -> Explanation:
    """Why a sample of a selection was kept or left out.

    FileNotFoundError if there is no selection, ValueError for a key that the corpus has not or facts of another one.
    """
    path = beside(out, RECORD_NAME)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such selection; select first, without --explain")
    header = Fields.read(path)
    if header.record.get("format") != FORMAT_NAME:
        raise header.wrong("format", repr(FORMAT_NAME))
    if header.section("facts").text("sha256") != facts.sha256():
        raise ValueError(f"{facts.path}: {out} was selected by other facts; give those with --facts, or select again")
    left_out = beside(out, LEFT_OUT_NAME)
    if sha256_file(left_out) != header.text("left_out_sha256"):
        raise ValueError(f"{left_out}: is not what {path.name} says; select again")
    row = _row(key, facts)
    record, stands_for = {}, []
    with left_out.open("rb") as file:
        for number, line in enumerate(file, start=1):
            found = Fields.parse(line, f"{left_out}, line {number}").record
            if found.get("key") == key:
                record = found
            if found.get("duplicate_of") == key:
                stands_for.append(str(found["key"]))
    rule, parts = header.mapping("rule"), {}
    if where := header.section("rule").text("where"):
        condition = Condition(where, facts.schema())
        values = condition.values(row)[0].tolist()
        parts = {part: TRUTHS.get(value, "unknown") for part, value in zip(condition.parts, values, strict=True)}
    return Explanation(key, record, row.to_pylist()[0], parts, stands_for, rule)


def _row(key: str, facts: FactsFile) -> Any:
    """The row of a key, as a table of one row."""
    for _, block in facts.blocks(facts.columns):
        keys = block["key"].to_pylist()
        if key in keys:
            return block.slice(keys.index(key), 1)
    raise ValueError(f"{facts.path}: has no sample with the key {brief(key)}; keys stand in the manifest")


def explanation_lines(found: Explanation) -> Iterator[str]:
    """The explanation as lines of text."""
    record = found.record
    yield f"{plain(found.key)}: {'left out: ' + plain(record['reason']) if record else 'kept'}"
    if record.get("reason") in DUPLICATES:
        how = f", {record['bits']} bits of a hash differ" if "bits" in record else ""
        how = f", cosine {record['cosine']:g}" if "cosine" in record else how
        yield f"  of {plain(record['duplicate_of'])}, which stands for both ({found.rule['keep']}){how}"
    if record.get("reason") == CLASS_FULL:
        yield f"  {found.rule['keep_per_class']} samples of its {plain(found.rule['by'])} were drawn before it"
    if record.get("reason") == HOURS_FULL:
        yield f"  {found.rule['max_hours']:g} h were drawn before it"
    for part, truth in found.parts.items():
        yield f"  {plain(part)}: {truth}"
    if found.stands_for:
        more = f" and {len(found.stands_for) - NUM_NAMED} more" if len(found.stands_for) > NUM_NAMED else ""
        yield f"  stands for {', '.join(map(plain, found.stands_for[:NUM_NAMED]))}{more}"
    for name, value in found.facts.items():
        if value is not None and name != "key":
            yield f"  {name:<18} {plain(f'{value:.6g}' if isinstance(value, float) else value)}"
