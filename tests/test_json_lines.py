"""--json: every command writes one JSON object a line on its standard output, the last of which is result or error."""

import json
import re

import pytest

from avssl import command
from avssl.recipe_files import config_files
from tests.conftest import ROOT, TINY, run_python

DOCUMENTED = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")


def lines_of(process, name):
    """The objects of a command's output, which are all of that command."""
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert lines, process.stderr
    assert {line["command"] for line in lines} == {name}
    return lines


def avssl(*arguments, check=True):
    """The lines of `avssl ARGUMENTS --json`: (those before, the last one), whose fields docs/json.md has."""
    process = run_python("-m", "avssl", *arguments, "--json", check=check)
    name = " ".join(map(str, arguments[: 2 if arguments[0] == "prep" else 1]))
    *before, last = lines_of(process, name)
    assert last["event"] == ("result" if check else "error")
    for line in (*before, last):
        assert re.search(rf"^\| `{line['event']}` ", DOCUMENTED, re.MULTILINE), line["event"]
    return before, last


@pytest.mark.slow
def test_files_become_shards_with_their_accounting(corpus, tmp_path):
    manifest, shards = tmp_path / "corpus.jsonl", tmp_path / "shards"
    _, listed = avssl("prep", "index", corpus / "test", "--out", manifest, "--num-workers", 1)
    assert (listed["num_listed"], listed["num_with_audio"]) == (6, 6)
    before, written = avssl("prep", "write", manifest, "--out", shards, "--short-side-px", 32, "--num-workers", 1)
    of_files = [line for line in before if line.get("task") == "write"]  # the last lines are of packing
    assert of_files[-1] | {"per_second": 0, "seconds_left": 0} == {
        "event": "progress", "command": "prep write", "task": "write", "unit": "file", "done": 6, "total": 6,
        "per_second": 0, "seconds_left": 0,
    }  # fmt: skip
    assert (written["num_listed"], written["num_samples"], written["num_skipped"]) == (6, 6, 0)
    _, verified = avssl("prep", "verify", shards, "--num-workers", 1)
    assert (verified["ok"], verified["num_problems"], verified["num_samples"]) == (True, 0, 6)


@pytest.mark.slow
def test_what_looks_at_shards_says_it_in_fields(shards, tmp_path):
    folder = shards["test"]
    _, coverage = avssl("prep", "coverage", folder.with_name("test.jsonl"), folder)
    assert coverage["total"]["written"] == 6
    _, stats = avssl("prep", "stats", folder, "--num-workers", 1)
    assert stats["num_samples"] == 6
    before, listed = avssl("prep", "show", folder, "--list")
    assert [line["event"] for line in before] == ["sample"] * 6
    assert listed["num_samples"] == 6
    _, shown = avssl("prep", "show", folder, "0", "--out", tmp_path / "clip.mp4")
    assert shown["bytes"] == (tmp_path / "clip.mp4").stat().st_size
    _, made = avssl("prep", "demo-corpus", tmp_path / "demo", "--num-train", 1, "--num-test", 0, "--num-workers", 1)
    assert made["num_train"] == 1


@pytest.mark.slow
def test_a_run_tells_its_metrics_and_its_end(shards, tmp_path):
    run = tmp_path / "avid"
    before, result = avssl("pretrain", "avid", *TINY, f"run={run}", f"data.shards={shards['train']}", "steps=3")
    assert (result["steps"], result["total_steps"], result["is_finished"]) == (3, 3, True)
    stored = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in before if line["event"] == "metrics"]
    assert [{**row, "event": "metrics", "command": "pretrain"} for row in stored] == told
    assert {"note", "progress"} <= {line["event"] for line in before}
    assert any(line["text"].startswith("step 1 of 3: ") for line in before if line["event"] == "note")


@pytest.mark.slow
def test_what_uses_a_run_tells_where_its_results_are(tiny_run, shards, corpus, tmp_path):
    rows, clip = tmp_path / "rows", next((corpus / "test").rglob("*.mp4"))
    _, embedded = avssl("embed", tiny_run, corpus / "test", "--out", rows, "--num-workers", 0)
    assert (embedded["num_listed"], embedded["num_embedded"]) == (6, 6)
    _, found = avssl("search", rows, clip, "--top", 2)
    assert len(found["answers"][0]["hits"]["video"]) == 2
    task = ["retrieval", f"test={shards['test']}", "num_workers=0"]
    _, evaluated = avssl("evaluate", tiny_run, *task)
    assert json.loads((ROOT / evaluated["file"]).read_text())["results"] == evaluated["results"]
    before, _ = avssl("evaluate", "--compare", evaluated["file"], evaluated["file"], "draws=10")
    assert {line["event"] for line in before} == {"difference"}
    _, report = avssl("report", tiny_run)
    assert report["page"].endswith("report.html")


@pytest.mark.slow
def test_the_machine_is_examined_in_lines():
    process = run_python("-m", "avssl", "doctor", "--json", check=False)
    *findings, result = lines_of(process, "doctor")
    assert result["num_wrong"] == sum(not line["is_well"] for line in findings if line["event"] == "finding")


def test_recipes_are_listed_and_copied_in_lines(tmp_path, capsys):
    assert command.main(["recipes", "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["name"] for line in printed.out.splitlines()[:-1]] == list(config_files())
    assert "avid_small" in printed.err  # what people read goes there
    assert command.main(["copy", "avid", str(tmp_path), "--json"]) == 0
    (copied,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert copied["files"] == [str(tmp_path / "pretrain.py"), str(tmp_path / "avid.yaml")]
    assert command.main(["recipes"]) == 0
    assert "{" not in capsys.readouterr().out  # --json is over with its command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "name", "status"),
    [
        (["pretrain", "avid", "data.shrads=x"], "pretrain", 2),
        (["pretrain", "avid", "data.shards=nowhere", "run=/nowhere/run"], "pretrain", 1),
        (["prep", "verify"], "prep verify", 2),
        (["prep", "index", "nowhere", "--out", "x.jsonl"], "prep index", 2),
        (["search", "nowhere", "x.mp4"], "search", 1),
        (["report", "nowhere"], "report", 1),
        (["demo", "--fast"], "demo", 1),
        (["copy", "avidd"], "copy", 1),
        (["nonsense"], "nonsense", 2),
    ],
)
def test_an_error_is_the_last_line(arguments, name, status):
    process = run_python("-m", "avssl", *arguments, "--json", check=False)
    last = lines_of(process, name)[-1]
    assert (last["event"], last["status"], process.returncode) == ("error", status, status)
    assert last["message"]
    assert last["message"].splitlines()[0][:40] in process.stderr


def test_the_demo_hands_json_on_to_its_commands(monkeypatch):
    from avssl.files import plain_text
    from recipes import demo

    monkeypatch.setattr(plain_text, "_json_of", "demo")
    commands = []
    monkeypatch.setattr(demo.subprocess, "run", lambda words, **options: commands.append(words))
    demo.prepare("train")
    assert [words[2:5] for words in commands] == [["avssl", "prep", name] for name in ("index", "write", "verify")]
    assert all(words[-1] == "--json" for words in commands)
