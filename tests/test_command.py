"""The command `avssl`, and recipes by name."""

import os
import subprocess
import sys

import pytest

from avssl import command, recipe_files
from tests.conftest import ROOT, run_python


def test_every_program_is_a_module_with_a_command():
    from importlib import import_module

    for name, (module, text) in command.PROGRAMS.items():
        assert callable(import_module(module).command), name
        assert name in command.usage()
        assert text in command.usage()


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", command.PROGRAMS)
def test_every_program_has_help_under_its_name(name):
    text = run_python("-m", "avssl", name, "--help").stdout
    without_parser = {"demo": "The whole program", "evaluate": "Evaluate a run by a task"}
    assert text.startswith(without_parser.get(name, f"usage: avssl {name} "))


def test_a_wrong_command_prints_the_usage_and_has_status_2(capsys):
    assert command.main(["pretrian"]) == 2
    printed = capsys.readouterr().err
    assert "error: avssl 'pretrian' is not a command" in printed
    assert "usage: avssl COMMAND" in printed
    assert command.main([]) == 2
    assert command.main(["--help"]) == 0


@pytest.mark.parametrize(
    ("stopped", "words"),
    [
        ("data_prep.inspect.show.run", ["prep", "show", "shards"]),
        ("avssl.recipes.search.main", ["search", "embeddings", "QUERY.mp4"]),
        ("avssl.recipes.report.command", ["report", "run"]),
    ],
)
def test_ctrl_c_ends_a_command_with_a_line_and_status_130(stopped, words, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, stop)
    try:
        status = command.main(words)
    except SystemExit as end:
        status = end.code
    assert status == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_every_yaml_is_listed_with_what_it_is(capsys):
    assert command.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    yamls = {path.relative_to(ROOT / "recipes/configs") for path in (ROOT / "recipes/configs").rglob("*.yaml")}
    assert {line.split()[0] for line in lines} == {path.with_suffix("").as_posix() for path in yamls}
    assert all(len(line.split(maxsplit=1)[1]) > 15 for line in lines)


def test_a_name_is_the_yaml_of_that_name_and_a_file_comes_first(tmp_path, monkeypatch):
    avid = str(ROOT / "recipes/configs/avid.yaml")
    assert recipe_files.replace_names(["avid", "run=avid", "--help", "avidd"]) == [avid, "run=avid", "--help", "avidd"]
    svm = recipe_files.replace_names(["svm_esc50"], "evaluate/")
    assert svm == [str(ROOT / "recipes/configs/evaluate/svm_esc50.yaml")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "avid").mkdir()
    assert recipe_files.replace_names(["avid"]) == [avid], "a folder is no YAML"
    (tmp_path / "avid").rmdir()
    (tmp_path / "avid").touch()
    assert recipe_files.replace_names(["avid"]) == ["avid"]


@pytest.mark.parametrize(("name", "script"), [("avid", "pretrain.py"), ("evaluate/svm_esc50", "evaluate.py")])
def test_a_copied_recipe_runs_and_is_not_written_over(name, script, tmp_path, capsys):
    assert command.main(["copy", name, str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out.startswith("copied; to run it: python ")
    copied = tmp_path / "mine" / script
    assert copied.read_bytes() == (ROOT / "recipes" / script).read_bytes()
    assert (tmp_path / "mine" / f"{name.split('/')[-1]}.yaml").is_file()
    if script == "pretrain.py":  # from elsewhere, with the YAML beside it
        assert "RECIPE_OR_YAML" in run_python(copied, "--help").stdout
    with pytest.raises(SystemExit):
        command.main(["copy", name, str(tmp_path / "mine")])
    assert "is there already; name another folder" in capsys.readouterr().err


def test_an_unknown_recipe_is_an_error_that_says_where_the_names_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["copy", "avidd", str(tmp_path)])
    assert left.value.code == 1
    assert "no recipe is called 'avidd'; `avssl recipes` lists them" in capsys.readouterr().err


def test_the_package_is_found_where_a_folder_has_its_name(tmp_path):
    """As in the folder that holds a clone."""
    (tmp_path / "avssl" / "avssl").mkdir(parents=True)
    code = "import avssl; print(avssl.__version__)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.stdout.strip() == "0.1.0", process.stderr


def test_output_that_nobody_reads_any_more_is_no_error():
    """As for `avssl recipes | head -n 1`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "avssl", "recipes"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_report_of_what_is_no_run_is_an_error_and_writes_nothing(tmp_path):
    process = run_python("-m", "avssl", "report", tmp_path / "mistyped", check=False)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: {tmp_path}/mistyped is not a run folder")
    assert not (tmp_path / "mistyped").exists()
