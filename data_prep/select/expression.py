"""Conditions on facts, in the expressions of DuckDB's SQL. The only user of duckdb.

DuckDB parses the text and gives the tree as JSON; the tree is held against lists of what a condition may be made of:
facts, constants, comparisons, and functions that depend on their arguments alone. What runs is not the text but the
tree, written out by DuckDB, in a database that may open no file, load no extension and change no setting.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.files.checked_json import parse
from avssl.files.plain_text import brief, plain
from avssl.shards.format import dump_json
from data_prep.facts.table import EMBEDDING_COLUMNS

MAX_CHARACTERS, MAX_BRACKETS = 4096, 200  # thousands of brackets keep DuckDB's parser busy for half a minute
TRUE, FALSE, UNKNOWN = 1, 0, -1
CLASSES = frozenset(["COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "BETWEEN", "OPERATOR", "CASE", "FUNCTION"])
OPERATORS = frozenset(
    ["OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE", "COMPARE_IN", "COMPARE_NOT_IN"]
)
ARITHMETIC = ("+", "-", "*", "/", "//", "%", "**", "^", "abs", "round", "floor", "ceil", "sqrt", "ln", "log10", "log2")
TEXT = ("lower", "upper", "length", "contains", "starts_with", "ends_with", "regexp_matches", "regexp_full_match")
PATTERNS = ("~~", "!~~", "~~*", "!~~*")  # like, not like, ilike, not ilike
JSON = ("->>", "json_extract_string", "json_contains", "json_array_length")
FUNCTIONS = frozenset((*ARITHMETIC, "least", "greatest", *TEXT, *PATTERNS, *JSON))
SETTINGS: dict[str, Any] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
    "temp_directory": "",
    "memory_limit": "512MB",
    "threads": 1,
}
TABLE = "facts"
HINT = "a condition is like: loudness_lufs > -50 and motion > .3 (docs/selection.md has the language)"


class Condition:
    """A condition on the facts of a sample.

    Args:
        text: the expression. schema: the columns that it may name, as a pyarrow table with any number of rows.

    Raises:
        ValueError: the text is no expression, names no fact, or holds what no condition may: it says what and where.

    Attributes:
        text: as it was given. parts: what is joined by AND at the top, as SQL, each once.
        names: the facts of all parts, sorted.
        cuts: of each part the fact that it compares with numbers alone, and these numbers; None for other parts.
    """

    def __init__(self, text: str, schema: Any) -> None:
        self.text, self._columns = text, list(schema.column_names)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"--where has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        if sum(map(text.count, "([{")) > MAX_BRACKETS:
            raise ValueError(f"--where {brief(text)}: has more than {MAX_BRACKETS} brackets; {HINT}")
        self._database = _database()
        tree, query = self._parsed()
        self.names = sorted({name for node in _nodes(tree) for name in self._checked(node)})
        parts = {self._sql(part, query): _cut(part) for part in _conjuncts(tree)}
        self.parts, self.cuts = list(parts), list(parts.values())
        self._check_kinds(schema.slice(0, 0), [self._sql(node, query) for node in _truths(tree)])

    def values(self, facts: Any) -> NDArray[np.int8]:
        """TRUE, FALSE or UNKNOWN of each part for each row: int8 (n, parts), of a pyarrow table of n rows.

        ValueError if a value cannot be compared, as a text that is no number with a number.
        """
        columns = [f"CAST({part} AS BOOLEAN) AS part_{number}" for number, part in enumerate(self.parts)]
        found = self._on(
            facts, lambda: self._database.execute(f"SELECT {', '.join(columns)} FROM {TABLE}").fetchnumpy()
        )
        values = np.full((facts.num_rows, len(self.parts)), UNKNOWN, np.int8)
        for number, column in enumerate(found.values()):
            known = ~np.ma.getmaskarray(column)
            values[known, number] = np.asarray(column)[known].astype(np.int8)
        return values

    def _on(self, facts: Any, query: Any) -> Any:
        """The result of a query on a table. ValueError says what DuckDB says against the condition."""
        import duckdb

        self._database.register(TABLE, facts)
        try:
            return query()
        except duckdb.Error as error:
            raise self._refused(_first_line(error)) from error
        finally:
            self._database.unregister(TABLE)

    def _parsed(self) -> tuple[Any, Any]:
        """(the tree of the expression, the query around it)."""
        query, bare = self._serialized(self.text), self._serialized("1")
        if len(query["statements"]) != 1:
            raise self._refused("it holds several statements")
        tree = query["statements"][0]["node"].get("select_list")
        if not isinstance(tree, list) or len(tree) != 1 or _around(query) != _around(bare):
            raise self._refused("it must be one expression, without FROM, WHERE, ORDER, other clauses and parameters")
        if tree[0].get("alias"):
            raise self._refused(f"it gives a name ({plain(tree[0]['alias'])}); a condition has none")
        return tree[0], query

    def _serialized(self, expression: str) -> Any:
        """What DuckDB's parser makes of an expression."""
        import duckdb

        try:
            found = self._database.execute("SELECT json_serialize_sql(?)", [f"SELECT {expression}"]).fetchall()
            query = parse(found[0][0], "it")
        except (duckdb.Error, ValueError) as error:
            raise self._refused(_first_line(error).removeprefix("it: ")) from error
        if query.get("error"):
            raise self._refused(_first_line(query.get("error_message")))
        return query

    def _checked(self, node: Mapping[str, Any]) -> Iterator[str]:
        """The fact that a node of the tree names, if any. ValueError for what no condition may hold."""
        kind, what = node["class"], node.get("type")
        if kind not in CLASSES or (kind == "OPERATOR" and what not in OPERATORS):
            raise self._refused(f"{plain(kind if kind not in CLASSES else what)} is not allowed in it")
        if kind == "FUNCTION":
            self._check_function(node)
        if kind == "COLUMN_REF":
            names = node["column_names"]
            if len(names) != 1 or names[0].lower() not in self._columns:
                raise self._unknown(".".join(names))
            yield names[0].lower()

    def _check_function(self, node: Mapping[str, Any]) -> None:
        name = node["function_name"]
        if name not in FUNCTIONS:
            words = ", ".join(sorted(one for one in FUNCTIONS if one[0].isalpha()))
            raise self._refused(f"the function {brief(name)} is not allowed in it; allowed are {words}")
        is_plain = not node.get("filter") and not node.get("distinct") and not node.get("export_state")
        if not is_plain or node.get("schema") or node.get("catalog") or node["order_bys"]["orders"]:
            raise self._refused(f"the function {name} takes arguments alone")

    def _unknown(self, name: str) -> ValueError:
        near = difflib.get_close_matches(name.lower(), self._columns, 3, 0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        if name.lower() in EMBEDDING_COLUMNS:
            hint = " without --embeddings, of which it is computed."
        return ValueError(
            f"--where {brief(self.text)}: there is no fact {brief(name)}{hint} The facts are {', '.join(self._columns)}"
            "; text stands between single quotes"
        )

    def _refused(self, why: object) -> ValueError:
        return ValueError(f"--where {brief(self.text)}: {plain(why)}; {HINT}")

    def _sql(self, tree: Any, query: Any) -> str:
        """The SQL of a part of the tree."""
        statement = query["statements"][0]
        part = query | {"statements": [statement | {"node": statement["node"] | {"select_list": [tree]}}]}
        found = self._database.execute("SELECT json_deserialize_sql(?)", [dump_json(part).decode()]).fetchall()
        return str(found[0][0]).removeprefix("SELECT ")

    def _check_kinds(self, schema: Any, expressions: Sequence[str]) -> None:
        """ValueError for what must be true or false and is a number or a text: `motion > .3 or .5`."""
        query = f"DESCRIBE SELECT {', '.join(expressions)} FROM {TABLE}"
        rows = self._on(schema, lambda: self._database.execute(query).fetchall())
        for sql, (_, kind, *_) in zip(expressions, rows, strict=True):
            if kind not in ("BOOLEAN", '"NULL"', "NULL"):
                raise self._refused(f"{sql} is of type {kind}, neither true nor false")


def _database() -> Any:
    """A database in memory that reads nothing outside, and whose settings cannot be changed.

    ValueError if DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError('--where needs DuckDB, an extra: pip install "avssl[select]"') from error
    database = duckdb.connect(":memory:", config=SETTINGS)
    database.execute("SET lock_configuration = true").fetchall()
    return database


def _around(query: Any) -> Any:
    """A query without what it selects."""
    statement = query["statements"][0]
    return statement | {"node": {name: value for name, value in statement["node"].items() if name != "select_list"}}


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """All nodes of a tree, from the top."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _conjuncts(tree: Any) -> Iterator[Any]:
    """What is joined by AND at the top."""
    if tree["class"] == "CONJUNCTION" and tree["type"] == "CONJUNCTION_AND":
        for child in tree["children"]:
            yield from _conjuncts(child)
    else:
        yield tree


def _cut(part: Any) -> tuple[str, list[float]] | None:
    """The fact and the numbers of a comparison with numbers: motion > .3, or motion between .3 and 9."""
    names = {"COMPARISON": ("left", "right"), "BETWEEN": ("input", "lower", "upper")}.get(part["class"], ())
    sides = [part[name] for name in names]
    facts = [side["column_names"][0].lower() for side in sides if side["class"] == "COLUMN_REF"]
    literals = [side["literal"] for side in sides if side["class"] == "CONSTANT" and "literal" in side]
    numbers = [float(one["text"]) for one in literals if one.get("kind") in ("INTEGER", "NUMERIC")]
    return (facts[0], numbers) if len(facts) == 1 and len(numbers) == len(sides) - 1 else None


def _truths(tree: Any) -> Iterator[Any]:
    """The nodes that are used as true or false: the top, and what AND, OR and NOT join."""
    yield tree
    for node in _nodes(tree):
        if node["class"] == "CONJUNCTION" or node.get("type") == "OPERATOR_NOT":
            yield from node["children"]


def _first_line(error: object) -> str:
    return plain(str(error).split("\n", maxsplit=1)[0])
