"""The online probe gives the scores of a finished run, and does not change the run."""

import json
import math
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from avssl.config import ProbeConfig
from avssl.data.every_sample import ClipPlan
from avssl.embedding.embedder import Embedder
from avssl.eval.features import extract
from avssl.eval.labels import FeatureSet
from avssl.plugins import required
from avssl.shards.format import SampleInfo
from avssl.shards.shard_set import ShardSet
from avssl.train import probe as online
from avssl.train.probe import OnlineProbe, check, evaluate, is_train_sample, scores_of
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.index.cutting import Cutting
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.conftest import run_ranks
from tests.test_pretrain import arguments_for, run_python


@pytest.fixture(scope="module")
def probed_run(shards, tmp_path_factory):
    """Four steps with a probe on the training clips every two steps, and the process that made it."""
    run = tmp_path_factory.mktemp("probe") / "run"
    options = [f"probe.shards={shards['train']}", "probe.every_steps=2", "steps=4"]
    return run, run_python(*arguments_for("avid", shards, run, *options))


def lines(run):
    return [json.loads(line) for line in (run / "probe.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_run_is_bit_for_bit_that_without_a_probe(probed_run, shards, tmp_path):
    run_python(*arguments_for("avid", shards, tmp_path / "run", "steps=4"))
    one, other = (load_file(run / "encoders.safetensors") for run in (probed_run[0], tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_snapshots_before_between_and_after_are_evaluated_or_reported_as_skipped(probed_run):
    run, process = probed_run
    found = {line["step"]: line for line in lines(run)}
    assert sorted(found) == [0, 2, 4]
    assert all("error" not in found[step] or "not evaluated" in found[step]["error"] for step in found)
    assert "error" not in found[0]
    assert "error" not in found[4]
    assert [found[step]["samples_seen"] for step in (0, 4)] == [0, 16]
    assert "probe of step 4: " in process.stdout + process.stderr
    assert not (run / "probe").exists()


@pytest.mark.slow
def test_the_last_line_is_what_the_finished_run_gives_and_scikit_learn_says_the_same(probed_run, shards):
    run, _ = probed_run
    embedder = Embedder.from_run(run)
    folder = str(shards["train"])
    last = {name: value for name, value in lines(run)[-1].items() if name not in ("step", "samples_seen")}
    assert last == pytest.approx(evaluate(embedder, folder, num_neighbors=20, temperature=0.07))
    assert {
        f"{m}_{kind}_{field}" for m in ("video", "audio") for kind in ("knn", "linear") for field in ("sound", "visual")
    } == set(last)
    features = extract(embedder, folder, ("audio",), ("feature",), ClipPlan())
    infos = map(ShardSet(folder).read_info, range(len(features)))
    is_train = np.array([is_train_sample(info) for info in infos])
    assert 4 <= is_train.sum() <= 14
    x = features.rows["audio"]["feature"][:, 0].astype(np.float64)
    y = np.array([labels["sound"][0] for labels in features.labels])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    neighbors = KNeighborsClassifier(
        min(20, int(is_train.sum())), weights=lambda distances: np.exp((1 - distances**2 / 2) / 0.07)
    ).fit(unit[is_train], y[is_train])
    assert last["audio_knn_sound"] == pytest.approx(neighbors.score(unit[~is_train], y[~is_train]))
    mean, deviation = x[is_train].mean(axis=0), x[is_train].std(axis=0)
    scaled = np.divide(x - mean, deviation, out=np.zeros_like(x), where=deviation > 1e-12)
    linear = LogisticRegression(max_iter=1000).fit(scaled[is_train], y[is_train])
    assert last["audio_linear_sound"] == pytest.approx(linear.score(scaled[~is_train], y[~is_train]))


def test_the_probe_gets_the_runs_own_plugins_and_not_others_of_this_process(
    shards, tmp_path, monkeypatch, own_registries
):
    """A notebook may have run other plugin files before, which this run has not kept."""
    for name in ("of_the_run.py", "of_another.py"):
        (tmp_path / name).write_text("")
    required.use([tmp_path / "of_the_run.py", tmp_path / "of_another.py"])
    run = tmp_path / "run"
    (run / "plugins").mkdir(parents=True)
    (run / "plugins" / "of_the_run.py").write_text("")
    started = []
    monkeypatch.setattr("avssl.train.probe.subprocess.Popen", lambda command, **_: started.append(command))
    probe = OnlineProbe(ProbeConfig(shards=str(shards["train"])), run, step=0, is_main=True)
    (run / "probe" / "step_000000").mkdir()
    probe._start(run / "probe" / "step_000000")
    (command,) = started
    assert [part for part in command if "plugin" in part] == [f"--plugin={run / 'plugins' / 'of_the_run.py'}"]


@pytest.mark.slow
def test_a_probe_that_fails_is_seen_and_the_run_goes_on(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards["train"], copy)
    for tar in copy.glob("*.tar"):  # whole by size, which the run looks at, and no tar
        tar.write_bytes(bytes(tar.stat().st_size))
    options = [f"probe.shards={copy}", "steps=1"]
    process = run_python(*arguments_for("avid", shards, tmp_path / "run", *options))
    assert "probe of step 0: status 1: " in process.stdout + process.stderr
    assert (tmp_path / "run" / "encoders.safetensors").is_file()


def test_a_score_that_does_not_exist_is_left_out(tmp_path, monkeypatch):
    """No class of the scored half has samples with it and samples without it: there is no average precision."""
    is_train = np.arange(8) % 2 == 0
    labels = [{"label": ["a" if row % 4 else "b"] if is_train[row] else ["a", "b"]} for row in range(8)]
    rows = np.random.default_rng(0).standard_normal((8, 1, 4)).astype(np.float32)
    keys = [f"clip_{row}" for row in range(8)]
    features = FeatureSet(keys, labels, {"video": np.ones(8, bool)}, {"video": {"feature": rows}}, [""] * 8)
    scores = scores_of(features, is_train, "video", "label", num_neighbors=3, temperature=0.07)
    assert scores
    assert all(map(math.isnan, scores.values()))
    monkeypatch.setattr(online, "evaluate", lambda *_, **__: scores | {"video_knn_sound": 0.5})
    monkeypatch.setattr(online.Embedder, "from_run", lambda *_, **__: None)
    monkeypatch.setattr(online.os, "nice", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["probe", str(tmp_path), "shards"])
    online.main()
    assert json.loads((tmp_path / "result.json").read_text()) == {"video_knn_sound": 0.5}


@pytest.mark.parametrize("content", [None, "", "[]", '{"video_knn_sound": NaN}'])
def test_a_result_that_cannot_be_read_is_seen_and_the_run_goes_on(tmp_path, content):
    probe = OnlineProbe(ProbeConfig(), tmp_path, step=0, is_main=True)
    snapshot = tmp_path / "probe" / "step_000002"
    snapshot.mkdir(parents=True)
    (snapshot / "provenance.json").write_text('{"samples_seen": 8}')
    if content is not None:
        (snapshot / "result.json").write_text(content)
    probe.is_active, probe.busy_with = True, 2
    probe.process = SimpleNamespace(poll=lambda: 0, returncode=0)
    (result,) = probe.step_done(3, {}, dict)
    assert lines(tmp_path) == [result]
    assert (result["step"], result["samples_seen"]) == (2, 8)
    assert "result.json" in result["error"]
    assert not snapshot.exists()


@pytest.mark.slow
def test_other_processes_wait_for_the_last_result_as_long_as_it_takes(shards, tmp_path):
    """A collective gives up after half an hour, or ten minutes on GPUs; the run would end before its export."""
    run_ranks(2, "late_probe", str(tmp_path), str(shards["train"]))


@pytest.mark.parametrize(("every", "evaluated", "missing"), [(2, [0], True), (2, [0, 2, 4], False), (3, [0, 3], True)])
def test_a_state_whose_evaluation_was_killed_is_evaluated_by_the_next_start(
    tmp_path, monkeypatch, every, evaluated, missing
):
    """A run that was ended after its last step, while it waited for the probe, has its last line later."""
    (tmp_path / "probe.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in evaluated))
    (tmp_path / "probe" / "step_000004").mkdir(parents=True)
    monkeypatch.setattr(online, "check", lambda config: None)
    monkeypatch.setattr(OnlineProbe, "_snapshot", lambda probe, step, *_: made.append(step) or [])
    made = []
    probe = OnlineProbe(ProbeConfig(shards="shards", every_steps=every), tmp_path, step=4, is_main=True)
    assert probe.step_done(4, {}, dict) == []
    assert made == ([4] if missing and every == 2 else [])
    if not made:
        probe.finish(4, {}, dict)
    assert made == ([4] if missing else [])


def test_a_snapshot_says_nothing_of_the_license_of_a_start_whose_folder_is_gone(shards, tmp_path, monkeypatch, capsys):
    """RUN/start.json has it, for the end of the run; each snapshot warned that it is not known."""
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr(OnlineProbe, "_start", lambda *_: None)
    probe = OnlineProbe(ProbeConfig(shards=str(shards["train"])), tmp_path, step=0, is_main=True)
    probe.step_done(0, {"loss": torch.nn.Linear(1, 1)}, lambda: {"init_from": str(tmp_path / "gone")})
    assert (tmp_path / "probe" / "step_000000" / "encoders.safetensors").is_file()
    assert "license" not in capsys.readouterr().err


def test_folders_without_labels_are_refused_before_the_run(shards, tmp_path):
    index = json.loads((shards["train"] / "index.json").read_text())
    index["label_names"] = {}
    (tmp_path / "index.json").write_text(json.dumps(index))
    for shard in shards["train"].glob("shard-*"):
        (tmp_path / shard.name).symlink_to(shard)
    with pytest.raises(ValueError, match="has no labels; index it"):
        check(ProbeConfig(shards=str(tmp_path)))


def info(number, **source):
    return SampleInfo(0, f"clip_{number}", 1.0, 25.0, 25, 0.0, 0, 0, {}, source)


def test_about_half_of_the_sources_and_of_samples_without_a_source_are_train_samples():
    for infos in (
        [info(number) for number in range(1000)],
        [info(0, path=f"{number}.mkv", bytes=5) for number in range(1000)],
        [info(0, path="0.mkv", content=f"{number:016x}") for number in range(1000)],
    ):
        assert 450 < sum(map(is_train_sample, infos)) < 550


def test_segments_of_one_film_are_all_fitted_or_all_scored(corpus, tmp_path, monkeypatch):
    """The neighbor of a segment is the next one of its film, which has the same label: the score would be a leak."""
    options = IndexOptions(labels=str(corpus / "test" / "labels.csv"), cutting=Cutting(clip_seconds=0.5))
    build_manifest(corpus / "test", tmp_path / "manifest.jsonl", options)
    write_shards(tmp_path / "manifest.jsonl", tmp_path / "shards", WriteOptions(short_side_px=32))
    shards, halves = ShardSet(tmp_path / "shards"), []
    features = SimpleNamespace(keys=shards.keys, labels=[{"sound": ["a"]}] * shards.num_samples)
    monkeypatch.setattr(online, "extract", lambda *_, **__: features)
    monkeypatch.setattr(online, "scores_of", lambda _, is_train, *__: halves.append(is_train) or {})
    evaluate(SimpleNamespace(modalities=("audio",)), str(tmp_path / "shards"), num_neighbors=1, temperature=0.1)
    films = [shards.read_info(number).source["path"] for number in range(shards.num_samples)]
    shards.close()
    assert (len(films), len(set(films))) == (18, 6)
    assert len(set(halves[0])) == 2
    assert len(set(zip(films, halves[0], strict=True))) == 6
