"""Conditions of `avssl prep select`: what they say of facts, and that they read, write and run nothing else."""

from __future__ import annotations

import duckdb
import pytest

from data_prep.select.expression import FALSE, FUNCTIONS, TRUE, UNKNOWN, Condition, _database
from tests.made_facts import facts_table

ROWS = [
    {"motion": 0.1, "loudness_lufs": -60.0, "caption": "a dog", "labels": '{"label": ["dog", "park"]}'},
    {"motion": 0.5, "loudness_lufs": None, "caption": None, "labels": "{}"},
    {"motion": 0.9, "loudness_lufs": -20.0, "caption": "A cat", "labels": '{"label": ["cat"]}'},
]
SCHEMA = facts_table([])

# Each with what it says of ROWS, worked out by hand.
CONDITIONS = {
    "motion > .3": [FALSE, TRUE, TRUE],
    "Motion > .3 and loudness_lufs > -50": [FALSE, UNKNOWN, TRUE],
    "motion < .3 or loudness_lufs > -50": [TRUE, UNKNOWN, TRUE],
    "loudness_lufs is null": [FALSE, TRUE, FALSE],
    "coalesce(loudness_lufs, -70) > -50": [FALSE, FALSE, TRUE],
    "motion between .1 and .5 and not (motion = .5)": [TRUE, FALSE, FALSE],
    "abs(loudness_lufs + 40) >= 20": [TRUE, UNKNOWN, TRUE],
    "caption like '%dog'": [TRUE, UNKNOWN, FALSE],
    "caption ilike 'a %'": [TRUE, UNKNOWN, TRUE],
    "labels ->> '$.label[0]' = 'dog'": [TRUE, UNKNOWN, FALSE],
    """json_contains(labels, '"park"')""": [TRUE, FALSE, FALSE],
    "labels ->> '$.label[0]' in ('cat', 'cow')": [FALSE, UNKNOWN, TRUE],
    "case when motion > .8 then loudness_lufs > -30 else true end": [TRUE, TRUE, TRUE],
    "motion > .3 -- moves": [FALSE, TRUE, TRUE],
}

# What is asked of DuckDB in vain: files, settings, statements, other tables, code, what depends on more than the row.
ATTACKS = [
    "motion > 0 from read_csv('/etc/passwd')",
    "(select count(*) from read_text('/etc/passwd')) > 0",
    "motion in (select 1)",
    "exists (from glob('/etc/*'))",
    "motion = any(select 1)",
    "read_text('/etc/passwd') = ''",
    "read_blob('/etc/passwd') is null",
    "true union select true",
    "with t as (select 1) select true",
    "true; copy (select 1) to '/tmp/owned'",
    "true; attach '/tmp/owned.db'",
    "true) from (select 1",
    "true where 1 = 1",
    "true order by motion",
    "true limit 1",
    "motion > 1 using sample 1",
    "motion > 1 qualify true",
    "copy facts to '/tmp/owned'",
    "install httpfs",
    "load '/tmp/x.so'",
    "set threads = 9",
    "pragma version",
    "call duckdb_settings()",
    "export database '/tmp/owned'",
    "getenv('HOME') = ''",
    "getvariable('x')",
    "current_setting('home_directory') = ''",
    "query('select 1')",
    "query_table('facts')",
    "pg_typeof(motion) = ''",
    "random() > .5",
    "now() is null",
    "nextval('x') > 0",
    "sum(motion) > 1",
    "count(*) > 1",
    "row_number() over () > 1",
    "avg(motion) over (order by motion) > 1",
    "list_transform([1], lambda x: x) is null",
    "apply([1], x -> x) is null",
    "unnest([true])",
    "repeat('a', 1000000000) = ''",
    "range(1000000000) is null",
    "error('x')",
    "system.main.abs(motion) > 1",
    "abs(motion order by key) > 1",
    "abs(motion) filter (where true) > 1",
    "columns('m.*') > 1",
    "*",
    "facts.motion > 1",
    "rowid > 1",
    "$1",
    "?",
    "motion::varchar = ''",
    "cast(motion as integer) = 1",
    "try(motion) > 1",
    "caption collate nocase = 'a'",
    "motion > 1 as kept",
    "distinct motion > 1",
]


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_says_true_false_or_unknown_of_each_row(text):
    values = Condition(text, SCHEMA).values(facts_table(ROWS))
    whole = [FALSE if FALSE in row else UNKNOWN if UNKNOWN in row else TRUE for row in values.tolist()]
    assert whole == CONDITIONS[text]


def test_a_condition_is_no_way_out_of_the_row():
    """One test, for a database is opened for each: whatever is not a function of the row is refused before it runs."""
    for attack in ATTACKS:
        with pytest.raises(ValueError, match=r"--where .*(docs/selection.md|The facts are)") as caught:
            Condition(attack, SCHEMA)
        assert "\n" not in str(caught.value), attack


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM glob('/etc/*')", "disabled by configuration"),
        ("COPY (SELECT 1) TO '/tmp/owned'", "disabled by configuration"),
        ("ATTACH '/tmp/owned.db'", "disabled by configuration"),
        ("INSTALL httpfs", "disabled by configuration"),
        ("LOAD httpfs", "disabled|not found"),
        ("SET enable_external_access = true", "locked|Cannot"),
        ("SET threads = 4", "locked"),
        ("SELECT getenv('HOME')", "does not exist"),
        ("SELECT * FROM ROWS", "does not exist"),  # a variable of Python in reach
    ],
)
def test_even_without_the_lists_the_database_reaches_nothing(sql, error):
    with pytest.raises(duckdb.Error, match=error):
        _database().execute(sql).fetchall()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loudnes_lufs > -50", r"there is no fact 'loudnes_lufs'; did you mean loudness_lufs"),
        ('caption = "dog"', "there is no fact 'dog'.*text stands between single quotes"),
        ("motion", "motion is of type DOUBLE, neither true nor false"),
        ("motion > .3 or .5", ".5 is of type DECIMAL.*neither true nor false"),
        ("not caption", "caption is of type VARCHAR, neither true nor false"),
        ("motion >", "syntax error"),
        ("", "SELECT clause without selection list"),
        ("motion > 'fast'", "Could not convert string 'fast' to DOUBLE"),
        ("squeeze(motion) > 1", "the function 'squeeze' is not allowed.*allowed are abs, ceil"),
        ("not " * 100 + "true", "nested more than 64 deep"),
        ("(" * 4000, "more than 200 brackets"),
        ("(" * 200, "syntax error|unterminated|nested|end of input"),
        ("motion > 1 or " * 400 + "true", "at most 4096"),
        ("\ud800", "surrogate"),
        ("motion > 1\x1b[2J", "[^\x1b]*"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_plain_line(text, says):
    with pytest.raises(ValueError, match=says) as caught:
        Condition(text, SCHEMA).values(facts_table(ROWS))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_every_function_of_the_list_is_one_that_duckdb_has_and_that_depends_on_its_arguments_alone():
    query = "SELECT function_name, function_type, stability, parameter_types FROM duckdb_functions()"
    known = [row for row in _database().execute(query).fetchall() if row[0] in FUNCTIONS]
    assert {name for name, *_ in known} == FUNCTIONS
    assert {kind for _, kind, *_ in known} == {"scalar"}
    # Of times, + and - depend on the time zone; facts have none.
    changing = {name for name, _, stability, kinds in known if stability != "CONSISTENT" and "TIME" not in str(kinds)}
    assert not changing
