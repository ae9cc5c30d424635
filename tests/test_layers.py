"""Who may import whom: the layers of CONTRIBUTING.md, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    0: [
        "avssl.types",
        "avssl.kernels",
        "avssl.distributed",
        "avssl.tables",
        "avssl.table_files",
        "avssl.table_folders",
        "avssl.whole_files",
        "avssl.disk_errors",
        "avssl.scratch",
        "avssl.locks",
        "avssl.step_lines",
        "avssl.checked_json",
        "avssl.plain_text",
        "avssl.tensor_files",
        "avssl.foreign_files",
        "avssl.stopping",
        "avssl.one_line_errors",
    ],
    1: [
        "avssl.ops",
        "avssl.models",
        "avssl.data.decode",
        "avssl.data.sandbox",
        "avssl.data.worker_server",
        "avssl.data.patience",
        "avssl.data.pictures",
        "avssl.data.clips",
        "avssl.data.video",
        "avssl.data.augment",
        "avssl.data.augment_sets",
        "avssl.data.colour",
        "avssl.data.copies",
        "avssl.data.puzzle",
        "avssl.data.audio",
        "avssl.data.audio_augment",
        "avssl.data.order",
        "avssl.data.lengths",
        "avssl.data.placeholders",
        "avssl.data.streams",
        "avssl.data.cursor",
        "avssl.data.entry_points",
        "avssl.data.playing",
        "avssl.data.sharing",
        "avssl.data.sound",
        "avssl.data.skipping",
        "avssl.data.timeline",
        "avssl.data.ffmpeg",
        "avssl.data.frames",
        "avssl.data.packets",
        "avssl.data.presentation",
        "avssl.data.wholeness",
        "avssl.data.shard_format",
        "avssl.data.shards",
        "avssl.data.sample_digests",
        "avssl.data.subset",
        "avssl.data.tar_members",
        "avssl.data.shard_cache",
        "avssl.data.remote_shards",
        "avssl.data.location",
        "avssl.data.folders",
        "avssl.data.retry",
        "avssl.data.file_systems",
        "avssl.data.web_files",
        "avssl.data.storage",
    ],
    2: ["avssl.losses", "avssl.data", "avssl.optim", "avssl.eval"],
    3: ["avssl"],
    4: ["data_prep", "recipes"],
}
DATA_PREP_MAY_USE = (
    "avssl.types",
    "avssl.whole_files",
    "avssl.locks",
    "avssl.disk_errors",
    "avssl.scratch",
    "avssl.checked_json",
    "avssl.plain_text",
    "avssl.data.decode",
    "avssl.data.sandbox",
    "avssl.data.patience",
    "avssl.data.pictures",
    "avssl.data.shards",
    "avssl.data.shard_format",
    "avssl.data.sample_digests",
    "avssl.data.storage",
    "avssl.data.location",
    "avssl.data.folders",
    "avssl.data.retry",
    "data_prep",
)


def layer(module):
    """The layer of the longest prefix that the table names."""
    matches = [
        (len(name), level)
        for level, names in LAYERS.items()
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert matches, f"{module} has no layer"
    return max(matches)[1]


def imports(path):
    """Modules of ours that a file imports when it runs; those for type checkers alone do not count."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in ("avssl", "avssl.data", "data_prep"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


FILES = sorted([*ROOT.glob("avssl/**/*.py"), *ROOT.glob("data_prep/**/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_layer_or_below(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    ours = [module for module in imports(path) if module.split(".")[0] in ("avssl", "data_prep", "recipes")]
    for module in ours:
        if name == "avssl" or module == "avssl":  # the package itself imports lazily
            continue
        assert layer(module) <= layer(name), f"{name} (layer {layer(name)}) imports {module} (layer {layer(module)})"
        if name.startswith("avssl.losses"):
            assert not module.startswith("avssl.data"), f"{name} imports {module}: losses and data meet in avssl.types"
        if name.startswith("avssl.data"):
            assert not module.startswith("avssl.losses"), (
                f"{name} imports {module}: losses and data meet in avssl.types"
            )
        if name.startswith("data_prep"):
            assert module.startswith(DATA_PREP_MAY_USE), f"{name} imports {module}; allowed: {DATA_PREP_MAY_USE}"


def test_files_stay_short():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 300}
    assert not long, f"over 300 lines: {long}"


def test_nothing_is_called_utils():
    assert not [path for path in FILES if path.stem in ("utils", "misc", "helpers", "common")]
