"""The house: which folder may import which, no circles, short chains, no drawers; all read from the sources.

An import counts wherever it stands: at the top of a file, inside a function, or for type checkers alone.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_LINES, FEW_LINES, MOST_FILES, LONGEST_CHAIN = 400, 60, 16, 12
TOPS = ("avssl", "data_prep", "recipes")
REGISTRIES = ("avssl/losses", "avssl/eval/tasks")  # a file per method: these may grow

# Each folder, or file of its own, with the folders whose files it imports. A folder stands below all that it uses, so
# reading the table from top to bottom is reading the house from the ground up.
MAY_IMPORT = {
    "avssl/types": "",
    "avssl/version": "",
    "avssl/options": "",
    "avssl/exports": "",
    "avssl/files": "types",
    "avssl/plugins": "files",
    "avssl/distributed": "",
    "avssl/processes": "types files distributed plugins",
    "avssl/errors": "files plugins processes",
    "avssl/media": "exports types",
    "avssl/shards": "types files",
    "avssl/transforms": "exports types plugins",
    "avssl/ops": "exports types files distributed",
    "avssl/models/public": "types files",
    "avssl/models": "exports types plugins models/public",
    "avssl/optim": "exports ops",
    "avssl/losses": "exports types options distributed plugins models ops",
    "avssl/data": "exports types files distributed processes media shards transforms",
    "avssl/help_text": "options files",
    "avssl/config": "types options files help_text plugins shards transforms optim losses data",
    "avssl/device": "distributed ops models config",
    "avssl/checkpoint": "types files distributed ops",
    "avssl/public_models": "types files transforms models/public losses config checkpoint",
    "avssl/embedding": "exports types version files distributed processes plugins media shards transforms ops models "
    "models/public losses config device checkpoint public_models",
    "avssl/eval": "exports files distributed plugins shards transforms ops models optim data embedding",
    "avssl/eval/finetune": "types options files distributed plugins shards transforms ops models optim data embedding "
    "eval",
    "avssl/eval/tasks": "types distributed shards transforms ops losses data checkpoint embedding eval eval/finetune",
    "avssl/prepared": "files distributed shards config",
    "avssl/train": "types files distributed processes plugins shards transforms models models/public losses "
    "data config device checkpoint public_models embedding eval",
    "avssl/pages": "types media",
    "avssl/report": "types files pages ops config embedding eval train",
    "avssl/exchange": "types files processes plugins media shards transforms models losses data config checkpoint "
    "embedding",
    "avssl/recipe_files": "",
    "avssl/calls": "processes config checkpoint eval train recipe_files",
    "avssl": "version files plugins checkpoint embedding prepared calls",
    "data_prep/measures": "media",
    "data_prep/inspect/stats": "types files processes media pages shards data_prep/measures",
    "data_prep/split": "types files processes media shards data_prep/measures",
    "data_prep/index/lists": "types files plugins media shards",
    "data_prep/index": "types files processes plugins media shards data_prep/index/lists data_prep/split",
    "data_prep/transcode": "types media shards data_prep/index",
    "data_prep/write": "types files processes shards data_prep/index data_prep/transcode",
    "data_prep/facts": "types files processes media shards ops embedding data_prep/measures data_prep/index "
    "data_prep/transcode data_prep/write",
    "data_prep/inspect": "types files processes media shards data_prep/index data_prep/transcode",
    "avssl/exchange/targets": "types version files errors shards embedding exchange data_prep/inspect",
    "data_prep/demo": "files processes data_prep/transcode",
    "data_prep/__main__": "files processes shards data_prep/transcode data_prep/write data_prep/inspect",
    "avssl/embedding_pages": "types files shards media processes pages embedding report data_prep/transcode",
    "data_prep/select": "types files processes shards pages ops embedding embedding_pages data_prep/measures "
    "data_prep/inspect/stats data_prep/split data_prep/index data_prep/facts",
    "avssl/explorer": "types files shards processes pages embedding embedding_pages",
    "avssl/doctor": "files distributed processes media data_prep/transcode",
    "avssl/command": "version files errors recipe_files doctor",
    "avssl/__main__": "command",
}
# A recipe puts everything together and may import all of avssl, but nothing of data_prep.


def _modules() -> dict[str, Path]:
    files = [path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = _modules()


def _known(name: str) -> str:
    """The module of ours that a dotted name is, or lies in; "" if none."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@cache
def imports() -> dict[str, set[str]]:
    """Every module of ours with the modules of ours that it imports."""
    result: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                result[name].update(_known(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                result[name].update(_known(f"{node.module}.{alias.name}") for alias in node.names)
        result[name] -= {"", name}
    return result


def folder(module: str) -> str:
    """The key of MAY_IMPORT that a module belongs to: its own, or that of the folder it lies in."""
    path = MODULES[module].relative_to(ROOT)
    own = str(path.with_suffix(""))
    return own if own in MAY_IMPORT else str(path.parent)


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes of which each reaches each other one."""
    reached: dict[str, set[str]] = {}
    for start, first in graph.items():
        todo, seen = list(first), set()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(graph.get(node, ()))
        reached[start] = seen
    groups = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in graph}
    return [sorted(group) for group in groups if group]


def longest_chain(start: str) -> list[str]:
    """The longest way down from a module, itself included."""

    @cache
    def way(name: str) -> tuple[str, ...]:
        return (name, *max((way(below) for below in sorted(imports()[name])), key=len, default=()))

    return list(way(start))


def test_a_folder_imports_only_what_its_line_in_the_table_says():
    wrong = []
    for module, used in imports().items():
        here = folder(module)
        for other in sorted(used):
            there = folder(other)
            if there == here:
                continue
            if here == "recipes":
                is_allowed = there.startswith("avssl")
            else:
                assert here in MAY_IMPORT, f"{here} has no line in MAY_IMPORT"
                is_allowed = there.removeprefix("avssl/") in MAY_IMPORT[here].split()
            if not is_allowed:
                wrong.append(f"{module} imports {other}: {here} may import {MAY_IMPORT.get(here) or 'nothing'}")
    assert not wrong, "\n".join(wrong)


def test_the_table_of_folders_says_nothing_that_is_not_so():
    used: dict[str, set[str]] = defaultdict(set)
    for module, others in imports().items():
        used[folder(module)].update(folder(other).removeprefix("avssl/") for other in others)
    idle = {here: set(line.split()) - used[here] for here, line in MAY_IMPORT.items()}
    assert not {here: names for here, names in idle.items() if names}


def test_each_folder_stands_below_the_folders_that_use_it():
    order = list(MAY_IMPORT)
    upward = [
        (here, name)
        for here, line in MAY_IMPORT.items()
        for name in line.split()
        if order.index(name if name in order else f"avssl/{name}") >= order.index(here)
    ]
    assert not upward


def test_no_file_imports_itself_by_way_of_others():
    assert not _circles(imports())


def test_chains_of_imports_are_short():
    starts = [name for name in MODULES if name.startswith(("recipes.", "data_prep.")) and not name.endswith("__main__")]
    chains = [longest_chain(name) for name in starts]  # __main__ is a list of commands
    long = [" > ".join(chain) for chain in chains if len(chain) > LONGEST_CHAIN]
    assert not long, "\n".join(long)


def test_files_are_neither_long_nor_scraps():
    everywhere = [path for top in (*TOPS, "benchmarks", "examples", "tests") for path in (ROOT / top).rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in everywhere}
    assert not {str(path.relative_to(ROOT)): number for path, number in lines.items() if number > MOST_LINES}
    importers = Counter(other for others in imports().values() for other in others)
    stands_alone = ("__init__", "__main__")
    scraps = {
        name: lines[path]
        for name, path in MODULES.items()
        if lines[path] < FEW_LINES and importers[name] < 2 and path.stem not in stands_alone
    }
    registered = {name for name in scraps if str(MODULES[name].parent.relative_to(ROOT)) in (*REGISTRIES, "recipes")}
    assert not {name: number for name, number in scraps.items() if name not in registered}


def test_no_folder_is_a_drawer():
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in MODULES.values() if path.stem != "__init__")
    assert not {name: n for name, n in folders.items() if n > MOST_FILES and name not in REGISTRIES}


def test_nothing_is_called_utils():
    assert not [path for path in MODULES.values() if path.stem in ("utils", "misc", "helpers", "common")]
