"""Who may import whom: the layers of CONTRIBUTING.md, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    0: [
        "avssl.types",
        "avssl.ops.kernels",
        "avssl.distributed",
        "avssl.embedding.table",
        "avssl.embedding.parquet",
        "avssl.embedding.index",
        "avssl.files.whole",
        "avssl.files.disk_errors",
        "avssl.files.scratch",
        "avssl.files.locks",
        "avssl.files.json_lines",
        "avssl.files.checked_json",
        "avssl.files.plain_text",
        "avssl.files.tensors",
        "avssl.files.foreign",
        "avssl.processes.stopping",
        "avssl.errors",
    ],
    1: [
        "avssl.ops",
        "avssl.models",
        "avssl.media.decode",
        "avssl.processes.limits",
        "avssl.processes.worker_server",
        "avssl.processes.patience",
        "avssl.media.images",
        "avssl.transforms.time_sampling",
        "avssl.transforms.geometry",
        "avssl.transforms.draw",
        "avssl.transforms.published_sets",
        "avssl.transforms.color",
        "avssl.data.batch",
        "avssl.transforms.jigsaw",
        "avssl.transforms.spectrogram",
        "avssl.transforms.audio",
        "avssl.data.order",
        "avssl.media.lengths",
        "avssl.media.placeholders",
        "avssl.media.streams",
        "avssl.media.cursor",
        "avssl.media.entry_points",
        "avssl.media.readers",
        "avssl.media.sharing",
        "avssl.media.sound",
        "avssl.media.skipping",
        "avssl.media.info",
        "avssl.media.ffmpeg",
        "avssl.media.frames",
        "avssl.media.packets",
        "avssl.media.presentation",
        "avssl.media.truncation",
        "avssl.shards.format",
        "avssl.shards.shard_set",
        "avssl.shards.sample_digests",
        "avssl.shards.subset",
        "avssl.shards.tar_members",
        "avssl.shards.cache",
        "avssl.shards.remote",
        "avssl.files.location",
        "avssl.files.folders",
        "avssl.files.retry",
        "avssl.files.storage",
        "avssl.files.web_files",
        "avssl.files.storage",
    ],
    2: ["avssl.losses", "avssl.data", "avssl.optim", "avssl.eval"],
    3: ["avssl"],
    4: ["data_prep", "recipes"],
}
DATA_PREP_MAY_USE = (
    "avssl.types",
    "avssl.files.whole",
    "avssl.files.locks",
    "avssl.files.disk_errors",
    "avssl.files.scratch",
    "avssl.files.checked_json",
    "avssl.files.plain_text",
    "avssl.media.decode",
    "avssl.processes.limits",
    "avssl.processes.patience",
    "avssl.media.images",
    "avssl.shards.shard_set",
    "avssl.shards.format",
    "avssl.shards.sample_digests",
    "avssl.files.storage",
    "avssl.files.location",
    "avssl.files.folders",
    "avssl.files.retry",
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
