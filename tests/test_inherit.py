"""A run that starts from another one takes over what is its own, and nothing that belongs to other samples."""

import json
import shutil

import pytest
import torch

from avssl import checkpoint
from tests.tiny import NUM_SAMPLES, Run


def finished_run(folder, run, fingerprint="abc"):
    """A folder as a finished run leaves it."""
    folder.mkdir()
    provenance = {"data": {"fingerprint": fingerprint, "num_samples": NUM_SAMPLES}}
    checkpoint.export(folder, {"loss": run.loss}, provenance)
    assert json.loads((folder / checkpoint.PROVENANCE_FILE).read_text()) == provenance
    return folder


def test_the_license_of_a_run_of_an_earlier_version_is_read_and_kept(tmp_path):
    """Its keys had the British spelling."""
    run = Run("simclr", ("image", "image"))
    source = finished_run(tmp_path / "run", run)
    facts = json.loads((source / checkpoint.PROVENANCE_FILE).read_text())
    facts |= {"licence": "CC-BY-NC-4.0", "licence_note": "no commercial use"}
    (source / checkpoint.PROVENANCE_FILE).write_text(json.dumps(facts))
    (tmp_path / "next").mkdir()
    checkpoint.export(tmp_path / "next", {"loss": run.loss}, {"init_from": str(source)})
    for folder in (source, tmp_path / "next"):
        provenance = checkpoint.read_provenance(folder)
        assert (provenance["license"], provenance["license_note"]) == ("CC-BY-NC-4.0", "no commercial use")


@pytest.mark.parametrize(
    ("own", "inherited", "expected"),
    [
        ({"license": "cc-by-nc-4.0"}, {"license": "apache-2.0"}, {"license": "apache-2.0 and cc-by-nc-4.0"}),
        ({"license": "MIT"}, {"license": "apache-2.0 and mit"}, {"license": "apache-2.0 and MIT"}),
        ({"license": "for research and teaching"}, {}, {"license": "for research and teaching"}),
        ({}, {"license": "mit", "license_note": "n"}, {"license": "mit", "license_note": "n"}),
        (
            {"license": "mit", "license_note": "of the text encoder"},
            {"license": "mit", "license_note": "of the authors"},
            {"license": "mit", "license_note": "of the text encoder; of the authors"},
        ),
        ({}, {}, {}),
    ],
)
def test_a_run_has_its_own_licenses_and_those_of_the_run_that_it_started_from(own, inherited, expected, tmp_path):
    module = torch.nn.Linear(1, 1)
    checkpoint.export(tmp_path / "start", {"loss": module}, inherited)
    start = {"init_from": str(tmp_path / "start")}
    checkpoint.export(tmp_path / "run", {"loss": module}, own | start)
    assert checkpoint.read_provenance(tmp_path / "run") == expected | start


def test_the_license_of_the_start_is_kept_although_its_folder_is_gone_at_the_end(tmp_path):
    module, run, start = torch.nn.Linear(1, 1), tmp_path / "run", tmp_path / "start"
    run.mkdir()
    checkpoint.export(start, {"loss": module}, {"license": "mit", "license_note": "n", "steps": 5})
    checkpoint.keep_start(run, str(start))
    shutil.rmtree(start)
    checkpoint.export(run, {"loss": module}, {"init_from": str(start)})
    expected = {"init_from": str(start), "license": "mit", "license_note": "n"}
    assert checkpoint.read_provenance(run) == expected
    # A later start in this folder that begins from nothing has none.
    checkpoint.keep_start(run, "")
    checkpoint.export(run, {"loss": module}, {})
    assert checkpoint.read_provenance(run) == {}


def test_a_license_that_is_not_known_any_more_is_said_and_written(tmp_path, capsys):
    """A run of an earlier version has no start.json, and the folder that it started from is gone."""
    module, run = torch.nn.Linear(1, 1), tmp_path / "run"
    text = "the license of start, from which these weights began, is not known: its folder was gone at the end"
    checkpoint.export(run, {"loss": module}, {"init_from": str(tmp_path / "start"), "license": "mit"})
    assert checkpoint.read_provenance(run)["license_note"] == text
    assert f"warning: {run}: {text}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["moco", "moco_v3", "byol"])
def test_teachers_start_as_the_inherited_students_when_the_source_has_none(name, tmp_path):
    pair = ("image", "image")
    source = finished_run(tmp_path / "run", Run("simclr", pair))
    run = Run(name, pair)
    with torch.no_grad():
        for parameter in run.loss.encoders.parameters():
            parameter.add_(1.0)
    report = checkpoint.inherit(run.loss, source, "abc")
    run.loss.after_inherit(report["loaded"])
    for slow, fast in zip(run.loss.teachers["image"].parameters(), run.loss.student("image").parameters(), strict=True):
        assert torch.equal(slow, fast)


def test_teachers_of_the_source_are_kept(tmp_path):
    before = Run("byol", ("image", "image"))
    before.step()
    run = Run("byol", ("image", "image"))
    report = checkpoint.inherit(run.loss, finished_run(tmp_path / "run", before), "abc")
    run.loss.after_inherit(report["loaded"])
    for key, value in before.loss.teachers.state_dict().items():
        assert torch.equal(run.loss.teachers.state_dict()[key], value), key


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("name", "pair"),
    [("npid", ("image",)), ("deepcluster", ("image",)), ("deepcluster_v2", ("image", "image")), ("sela", ("image",))],
)
def test_rows_of_other_samples_are_not_inherited(name, pair, tmp_path):
    before = Run(name, pair)
    for _ in range(5):
        before.step()
    fresh = Run(name, pair).loss.state_dict()
    run = Run(name, pair)
    report = checkpoint.inherit(run.loss, finished_run(tmp_path / "run", before), fingerprint="another")
    per_sample = [key for key, value in fresh.items() if NUM_SAMPLES in value.shape and "encoders" not in key]
    assert per_sample
    for key in per_sample:
        assert torch.equal(run.loss.state_dict()[key], fresh[key]), key
        assert any(line.startswith(key) and "other samples" in line for line in report["not taken"])
    weight = next(key for key in fresh if key.startswith("encoders."))
    assert torch.equal(run.loss.state_dict()[weight], before.loss.state_dict()[weight])
