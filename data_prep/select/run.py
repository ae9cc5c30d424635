"""Selects samples of a corpus by facts about them: kept.jsonl, and beside it what was left out and why.

1. Facts and corpus are read together, a block at a time (state.py): what cannot be read is left out, and what the
   condition does not hold for.
2. Of duplicates, the best by the rule stays (duplicates.py, semantic.py).
3. What is over the limits on classes and hours is left out (limits.py).
4. The lines of the kept samples are copied; OUT.select.left_out.jsonl says why of each other one. OUT.select.json,
   which says how all was selected, is written last.

The bytes are a function of corpus, facts, embeddings and rule alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avssl.files.disk_errors import clear_errors
from avssl.files.scratch import scratch_folder
from avssl.files.whole import hashed_file, write_whole
from avssl.shards.format import dump_json
from data_prep.select.corpus import Corpus
from data_prep.select.duplicates import leave_out_exact, leave_out_near, name_those_that_stay
from data_prep.select.facts_file import FactsFile
from data_prep.select.limits import leave_out_full_classes, leave_out_hours
from data_prep.select.outcome import LEFT_OUT_NAME, RECORD_NAME, beside, is_kept, left_out_lines, record_of
from data_prep.select.rule import Rule
from data_prep.select.state import Keys, State, read_facts


@dataclass(frozen=True)
class Selected:
    """What was selected. out: of the kept samples. record: the content of OUT.select.json."""

    out: Path
    record: dict[str, Any]


def select(
    corpus: Corpus,
    facts: FactsFile,
    rule: Rule,
    out: Path,
    semantic: Callable[[State], dict[str, Any]] | None = None,
) -> Selected:
    """Write the kept samples of a corpus and what belongs to them.

    Args:
        semantic: leaves out semantic duplicates, and says by which embeddings.

    Raises:
        ValueError: the condition is none, the facts are of another corpus, a limit for which there are no facts.
        RuntimeError: the corpus changed meanwhile.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        clear_errors(out, "written"),
        scratch_folder(out.parent, f"{out.name}.select") as scratch,
        closing(Keys(scratch)) as keys,
    ):
        state = State(scratch, facts.num_rows)
        condition = read_facts(state, keys, corpus, facts, rule)
        if rule.exact:
            leave_out_exact(state)
        if rule.near:
            leave_out_near(state)
        embeddings = semantic(state) if semantic else None
        name_those_that_stay(state)
        if rule.keep_per_class is not None:
            leave_out_full_classes(state, facts, rule.by, rule.keep_per_class)
        if rule.max_hours is not None:
            leave_out_hours(state, rule.max_hours)
        record = record_of(state, corpus, facts, rule, condition) | {"embeddings": embeddings}
        beside(out, RECORD_NAME).unlink(missing_ok=True)  # of an earlier selection: it says that all is whole
        with hashed_file(out) as kept:
            corpus.write_kept(is_kept(state), out, kept)
        with hashed_file(beside(out, LEFT_OUT_NAME)) as left_out:
            for line in left_out_lines(state, keys, facts, condition):
                left_out.write(line)
        record |= {"kept_sha256": kept.sha256, "left_out_sha256": left_out.sha256}
        write_whole(beside(out, RECORD_NAME), dump_json(record))
    return Selected(out, record)
