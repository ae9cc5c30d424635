"""Parts of the report: runs compared, a page that follows a run, positive sets, failures by name, small sounds."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from avssl.eval import results
from avssl.eval.configs import LabelTaskConfig
from avssl.eval.outcome import Outcome, classified
from avssl.files.locks import locked
from avssl.pages.markup import Html
from avssl.pages.media import MediaLibrary, mu_law, sound_excerpt
from avssl.report import write_comparison, write_report
from avssl.report.comparison import differences, run_folders, run_names
from avssl.report.embedding_map import spots
from avssl.report.failures import own_ranks, skipped_section
from avssl.report.positives import Banks, positive_sets
from avssl.report.watch import watch
from avssl.train.run_folder import LOCK_FILE, is_at_work
from data_prep.inspect.stats.samples import fences
from data_prep.inspect.stats.tally import QUANTITIES, Histogram, Tally
from recipes import report as report_recipe
from tests.conftest import run_python
from tests.test_report import Checker, clip, make_run, make_table  # noqa: F401  (clip is a fixture)


def made_run(folder: Path, losses: list[float], **config: object) -> Path:
    """A run that logged these losses."""
    folder.mkdir(parents=True)
    rows = [
        {"step": step + 1, "samples_seen": 8 * step, "loss": loss, "seconds": 2.0} for step, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "config.yaml").write_text(json.dumps({"run": str(folder), "optim": config}), encoding="utf-8")
    return folder


def test_only_keys_that_differ_are_compared() -> None:
    found = differences(
        {"a": {"optim.lr": 0.1, "seed": 0, "run": "a"}, "b": {"optim.lr": 0.1, "seed": 1, "run": "b", "new": 2}}
    )
    assert found == {"seed": [0, 1], "new": ["–", 2]}


def test_a_folder_of_runs_gives_one_page_with_all_of_them(tmp_path: Path) -> None:
    for name, lr in (("slow", 0.001), ("quick", 0.25)):
        made_run(tmp_path / name, [3.0, 1.5], lr=lr, momentum=0.9)
    (tmp_path / "notes").mkdir()
    assert [path.name for path in run_folders(tmp_path)] == ["quick", "slow"]
    text = run_python("-m", "avssl", "report", tmp_path).stdout
    page = Path(text.strip()).read_text(encoding="utf-8")
    assert Path(text.strip()) == tmp_path / "report.html"
    for expected in ("optim.lr", "0.001", "0.25", "quick", "slow", "Time of training", "4 s"):
        assert expected in page, expected
    assert "optim.momentum" not in page
    curves = json.loads(page.split('id="curves">')[1].split("</script>")[0])
    assert [line["run"] for line in curves["charts"][0]["lines"]] == [0, 1]
    assert [line["mean"] for line in curves["charts"][0]["lines"]] == [[3.0, 1.5], [3.0, 1.5]]


def test_runs_of_one_name_and_no_runs_are_told_apart(tmp_path: Path) -> None:
    folders = [made_run(tmp_path / parent / "avid", [1.0]) for parent in ("a", "b")]
    assert list(run_names(folders)) == ["avid", f"avid ({folders[1]})"]
    with pytest.raises(ValueError, match="no run in"):
        write_comparison(tmp_path, {})
    page = report_recipe.main(made_run(tmp_path / "main", [1.0]), folders).read_text(encoding="utf-8")
    curves = json.loads(page.split('id="curves">')[1].split("</script>")[0])
    assert [line["run"] for line in curves["charts"][0]["lines"]] == [0, 1, 2]
    refused = run_python("-m", "avssl", "report", tmp_path / "nothing", check=False)
    assert refused.returncode != 0
    assert "is not a run folder and holds none" in refused.stderr


def test_a_metric_without_a_value_is_shown_as_not_measured(tmp_path: Path) -> None:
    """Every test sample is of both classes, so that no class has a ROC; a result stores such a value as null."""
    run = made_run(tmp_path / "run", [1.0])
    targets = np.ones((3, 2), np.bool_)
    outcomes = {
        weights: Outcome([classified(["a", "b", "c"], np.eye(3, 2), targets, ["x", "y"])])
        for weights in ("trained", "untrained")
    }
    config = LabelTaskConfig(task="knn", test="shards/test", multi_label=True)
    stored = results.evaluation_of(outcomes, config, "run", {"trained": "1", "untrained": "2"}, {})
    path = results.write(run / "evaluations", outcomes, stored)
    assert json.loads(path.read_text())["results"]["trained"]["roc_auc"] is None
    page = write_report(run).read_text(encoding="utf-8")
    row = page.split("<code>roc_auc</code>")[1].split("</tr>")[0]
    assert row.count("not measured") == 3  # trained, untrained and their difference
    standard = results.write(run, outcomes, {**stored, "task": "standard"}, "evaluation")
    assert "roc_auc" in write_comparison(tmp_path, {"run": standard.parent}).read_text(encoding="utf-8")


def test_results_of_a_task_stand_side_by_side_for_several_runs(tmp_path: Path) -> None:
    def evaluated(name: str, right: int, config: LabelTaskConfig, step: int | None = None) -> Path:
        run = tmp_path / name if (tmp_path / name).exists() else made_run(tmp_path / name, [1.0])
        scores = np.eye(2)[[0] * right + [1] * (4 - right)]
        outcome = Outcome([classified(list("abcd"), scores, np.zeros(4, np.int64), ["x", "y"])])
        outcomes = {"trained": outcome, "untrained": outcome}
        stored = results.evaluation_of(outcomes, config, name, {"trained": name, "untrained": "0"}, {})
        if step is not None:
            stored["checkpoint_step"] = step
        results.write(run / "evaluations", outcomes, stored, "" if step is None else f"linear-step_{step:06d}")
        return run

    config = LabelTaskConfig(task="linear", test="shards/test")
    runs = {name: evaluated(name, right, config) for name, right in (("avid", 3), ("simclr", 1))}
    page = write_comparison(tmp_path, runs | {"none": made_run(tmp_path / "none", [1.0])}).read_text(encoding="utf-8")
    table = page.split("<h3>linear</h3>")[1].split("</table>")[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["Metric", "samples", "avid", "simclr", "chance"]
    row = table.split("<code>top1_accuracy</code>")[1].split("</tr>")[0]
    assert re.findall(r"<td>([\d.]+)", row)[:3] == ["4", "75.0", "25.0"]
    assert "Not measured as" not in table
    runs["other"] = evaluated("other", 2, LabelTaskConfig(task="linear", test="shards/test", label_field="sound"))
    page = write_comparison(tmp_path, runs).read_text(encoding="utf-8")
    assert "Not measured as avid was, and not to be compared with it: other." in page
    runs["stopped"] = evaluated("stopped", 4, config, step=7)
    evaluated("avid", 0, config, step=7)
    page = write_comparison(tmp_path, runs).read_text(encoding="utf-8")
    assert page.split("<h3>linear</h3>")[1].split("</table>")[0].count('scope="col"') == 6  # three runs
    table = page.split("<h3>linear · checkpoint of step 7</h3>")[1].split("</table>")[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["Metric", "samples", "avid", "stopped", "chance"]


def test_without_embeddings_samples_of_the_shards_are_shown_and_facts_without_a_value_left_out(
    tmp_path: Path,
    clip: tuple[bytes, bytes],  # noqa: F811
) -> None:
    keys = [f"birds/{number}_mp4" for number in range(20)]
    facts = {"loss": "avid", "init_from": None, "plugins": []}
    path = write_report(make_run(tmp_path / "run"), media=lambda key: clip, keys=keys, facts=facts)
    words = " ".join(Checker(path.read_text(encoding="utf-8")).text)
    assert sum(key in words for key in keys) == 8
    assert "No samples are shown" not in words
    assert "loss" in words
    assert "init_from" not in words


def test_a_folder_is_at_work_while_its_lock_is_held(tmp_path: Path) -> None:
    assert not is_at_work(tmp_path)
    with locked(tmp_path / LOCK_FILE):
        assert is_at_work(tmp_path)
    assert not is_at_work(tmp_path)


def test_a_page_is_written_for_every_change_and_once_more_at_the_end(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", [3.0])
    written: list[bool] = []
    lines: list[str] = []
    turns = iter([True] * 9)

    def write(banner: Html) -> Path:
        written.append(bool(banner))
        if len(written) == 1:
            assert "at step 1" in banner
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 2, "samples_seen": 9, "loss": 2.0}) + "\n")
        return run / "report.html"

    watch([run], write, 0.01, told=lines.append, at_work=lambda run: next(turns, False))
    assert written == [True, True, False]
    assert lines[-1].endswith("no run is at work; run at step 2")


def test_an_interrupted_watch_leaves_a_page_that_does_not_reload(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", [3.0])
    written: list[bool] = []

    def at_work(folder: Path) -> bool:
        if written:
            raise KeyboardInterrupt
        return True

    def write(banner: Html) -> Path:
        written.append(bool(banner))
        return run

    with pytest.raises(KeyboardInterrupt):
        watch([run], write, 1.0, told=lambda line: None, at_work=at_work)
    assert written == [True, False]


@pytest.mark.slow
def test_the_command_follows_a_run_until_it_ends(tmp_path: Path) -> None:
    import subprocess
    import sys

    run = made_run(tmp_path / "run", [3.0])
    with locked(run / LOCK_FILE):
        process = subprocess.Popen(
            [sys.executable, "-m", "avssl", "report", str(run), "--watch", "1"], stderr=subprocess.PIPE, text=True
        )
        for _ in range(1200):
            if (run / "report.html").exists():
                break
            time.sleep(0.1)
        assert "data-reload-seconds" in (run / "report.html").read_text(encoding="utf-8")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "no run is at work" in said
    assert "data-reload-seconds=" not in (run / "report.html").read_text(encoding="utf-8")


def test_positive_sets_are_the_best_of_every_agreement() -> None:
    generator = torch.Generator().manual_seed(0)
    video, audio = torch.nn.functional.normalize(torch.randn(2, 40, 8, generator=generator), dim=-1)
    banks = Banks(video, audio, str, lambda number: {}, num_positives=5)
    cosines = {name: (bank.double() @ bank.double().T).numpy() for name, bank in (("video", video), ("audio", audio))}
    scores = {"consensus": np.minimum(*cosines.values()), "union": np.maximum(*cosines.values()), **cosines}
    for anchor in (0, 17):
        found = positive_sets(banks, anchor)
        for agreement, score in scores.items():
            row = score[anchor].copy()
            row[anchor] = -2
            assert [one.number for one in found[agreement]] == np.argsort(-row, kind="stable")[:5].tolist()
            np.testing.assert_allclose(
                [one.video for one in found[agreement]],
                cosines["video"][anchor][[one.number for one in found[agreement]]],
                atol=1e-6,
            )


def test_ranks_count_the_better_ones() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(2, 30, 6)).astype(np.float32)
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (queries.astype(np.float64), gallery.astype(np.float64))
    ]
    cosines = unit[0] @ unit[1].T
    assert own_ranks(queries, gallery).tolist() == [
        1 + int((cosines[row] > cosines[row, row]).sum()) for row in range(30)
    ]
    same = np.ones((4, 3), np.float32)
    assert own_ranks(same, same).tolist() == [2, 2, 2, 2]  # all equal: the middle place, rounded down


def test_skipped_inputs_have_names_and_are_escaped() -> None:
    found = skipped_section([{"key": "<b>", "reason": "truncated", "message": "ends early"}] * 60)
    assert "&lt;b&gt;" in found
    assert "truncated: ends early" in found
    assert "and 10 more" in found
    assert skipped_section([]) == ""


def test_mu_law_is_that_of_ffmpeg() -> None:
    values = np.linspace(-1, 1, 4001).astype(np.float32)
    codes = mu_law(values)
    decoder = av.CodecContext.create("pcm_mulaw", "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    frames = decoder.decode(av.Packet(codes.tobytes()))
    decoded = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float64) / 32768
    assert len(decoded) == len(values)
    # G.711 has 16 levels per octave above its smallest step: half a level, and the ends are cut at 0.98.
    assert np.abs(decoded - values).max() < 0.025
    quiet = np.abs(values) < 0.01
    assert np.abs(decoded - values)[quiet].max() < 0.0006


def test_an_excerpt_is_the_sound_in_few_bytes(clip: tuple[bytes, bytes]) -> None:  # noqa: F811
    content = sound_excerpt(clip[1])
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate) == ("pcm_mulaw", 12_000)
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(stream)]) / 32768
    assert len(samples) == 6000  # half a second
    assert len(content) == 58 + 6000
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(np.argmax(spectrum) * 2 - 440) <= 2
    assert np.abs(samples[3500:]).max() == pytest.approx(0.8, abs=0.05)


def test_the_map_spends_its_room_evenly(clip: tuple[bytes, bytes]) -> None:  # noqa: F811
    table = make_table(num_rows=32).pool_by_key()
    everything = MediaLibrary(lambda key: clip, 10_000_000)
    assert set(spots(range(len(table)), table, everything)) == set(range(len(table)))
    size = sum(map(len, everything.embedded.values())) / len(table)
    some = MediaLibrary(lambda key: clip, round(40_000 + 5.5 * size))
    rows = sorted(spots(range(len(table)), table, some))
    assert len(rows) == 6
    assert max(np.diff(rows)) <= 5, "no part of the table is left out"
    assert sum(map(len, some.embedded.values())) < 40_000 + 5.5 * size
    assert spots(range(len(table)), table, MediaLibrary(None, 10_000_000)) == {}


def test_extremes_do_not_depend_on_how_samples_are_split() -> None:
    values = [
        (f"key{number}", float(value)) for number, value in enumerate(np.random.default_rng(0).integers(1, 9, 40))
    ]
    whole, parts = Tally(), [Tally(), Tally(), Tally()]
    for number, (key, value) in enumerate(values):
        for tally in (whole, parts[number // 14]):
            tally.begin(key)
            tally.add_number("num_frames", value)
    merged = Tally()
    for part in parts:
        merged.merge(part)
    assert merged.to_json()["extremes"] == whole.to_json()["extremes"]
    expected = sorted((value, key) for key, value in values)[:5]
    assert whole.extremes["num_frames"].lowest == expected
    assert (
        whole.extremes["num_frames"].highest
        == sorted(((value, key) for key, value in values), key=lambda one: (-one[0], one[1]))[:5]
    )


def test_fences_are_those_of_tukey() -> None:
    values = np.random.default_rng(0).normal(-20, 3, 2000)
    histogram = Histogram(QUANTITIES["rms_dbfs"])
    for value in values:
        histogram.add(float(value))
    first, third = np.quantile(values, [0.25, 0.75])
    assert fences(histogram) == pytest.approx((first - 1.5 * (third - first), third + 1.5 * (third - first)), abs=1.0)
    seconds = Histogram(QUANTITIES["duration_seconds"])
    for value in np.exp(values / 10):
        seconds.add(float(value))
    assert fences(seconds)[1] == pytest.approx(np.exp((third + 1.5 * (third - first)) / 10), rel=0.1)
