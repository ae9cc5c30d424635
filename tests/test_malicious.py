"""Quick representatives of tests/soak/malicious.py, and that text files name their encoding."""

import ast
from pathlib import Path

import pytest

from avssl.embedding.index import FolderIndex
from avssl.eval.compare import Difference, comparison_table
from avssl.eval.intervals import DIFFERENCE
from avssl.eval.results import table
from tests.conftest import run_python
from tests.soak.malicious import KINDS, acting_lines, make_sounds
from tests.soak.outcome import Outcome

ROOT = Path(__file__).parent.parent
NAME = "a\x1b[31m\nINJECTED"


@pytest.mark.quick(2)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_opens_data_runs_code_reaches_elsewhere_or_acts_on_the_terminal(kind, tmp_path):
    outcome = Outcome(kind)
    KINDS[kind](outcome, tmp_path, quick=True)
    assert outcome.num_cases
    assert not outcome.failures


def test_a_metric_called_after_a_malicious_label_field_is_one_line_of_a_table():
    intervals = {"confidence": 0.95, "num_rows": {NAME: 9}, "num_sources": {NAME: 9}, DIFFERENCE: {}}
    intervals["values"] = {"trained": {NAME: [0.4, 0.6]}}
    evaluation = {"results": {"trained": {NAME: 0.5}}, "deviation": {"trained": {}}, "chance": {NAME: 0.1}}
    evaluation["intervals"] = intervals
    assert len(table(evaluation).split("\n")) == 2
    assert not acting_lines(table(evaluation))
    shown = comparison_table({NAME: Difference(0.5, 0.4, -0.2, 0.2)}, 0.95)
    assert not acting_lines(shown)


@pytest.mark.parametrize("name", ["../elsewhere.parquet", "/etc/x.parquet", "a/b.parquet", ".hidden.parquet"])
def test_a_folder_of_embeddings_names_files_of_its_own_alone(tmp_path, name):
    record = f'{{"name": "{name}", "num_rows": 1, "bytes": 1, "sha256": ""}}'
    numbers = '"num_listed": 1, "num_embedded": 1, "num_skipped": 0, "num_rows": 1, "run_folder": ""'
    maps = '"settings": {}, "widths": {}, "skipped_by_reason": {}, "rows_with": {}'
    content = f'{{"kind": "avssl embeddings", "version": 1, {numbers}, {maps}, "files": [{record}]}}'
    (tmp_path / "index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"files\[0\]\.name is .* in the same folder"):
        FolderIndex.read(tmp_path)


@pytest.mark.slow
def test_index_and_stats_work_in_the_c_locale_with_names_of_other_scripts(tmp_path):
    make_sounds(tmp_path / "media", ["köln", "日本"])
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    manifest, shards = tmp_path / "ünï.jsonl", tmp_path / "scherben-ö"
    run_python("-m", "data_prep", "index", tmp_path / "media", "--out", manifest, "--num-workers", "1", **locale)
    keep = ("--on-missing-video", "keep", "--num-workers", "1")
    run_python("-m", "data_prep", "write", manifest, "--out", shards, *keep, **locale)
    page = tmp_path / "seite-é"
    shown = run_python("-m", "data_prep", "stats", shards, "--no-decode", "--out", page, "--num-workers", "1", **locale)
    assert "köln" in shown.stdout
    assert "日本" in (page / "stats.html").read_text(encoding="utf-8")


def unnamed(tree):
    """Lines of calls of open, read_text, write_text of text that name no encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        named = any(word.arg == "encoding" for word in call.keywords)
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        texts = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if (name == "read_text" and not named and not texts) or (name == "write_text" and not named):
            yield call.lineno
        elif name == "open" and not named and not ast.unparse(function).startswith("av."):
            is_builtin = isinstance(function, ast.Name)
            mode = next((one for one in texts if set(one) <= set("rwaxt+")), None)
            if mode is not None or (is_builtin and not any("b" in one for one in texts)):
                yield call.lineno


def test_every_text_file_is_opened_with_a_named_encoding():
    files = [path for folder in ("avssl", "data_prep", "recipes") for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in files for line in unnamed(ast.parse(path.read_text("utf-8")))
    ]
    assert len(files) > 100
    assert not found


def test_the_lint_finds_a_file_without_encoding():
    source = "p.open('w')\nopen(p)\np.read_text()\np.write_text('x')\np.open('rb')\np.read_text('utf-8')\nos.open(p, f)"
    assert list(unnamed(ast.parse(source))) == [1, 2, 3, 4]
