"""A result is marked as best only beyond the interval of the difference; results are whole wherever writing stops."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from avssl.eval import intervals, results
from avssl.eval.compare import comparison_table, paired_differences
from avssl.eval.configs import TaskConfig
from avssl.eval.intervals import values_of
from avssl.eval.outcome import Metric, Outcome, Repeat
from avssl.report.page import write_report
from avssl.report.scores import samples_text
from avssl.report.stored import Result
from recipes import demo

ROWS = 300
KEYS = [f"clip{number}" for number in range(ROWS)]


def right(*places):
    found = np.zeros(ROWS, np.bool_)
    found[list(places)] = True
    return found


def repeat(correct, asked=None, name=""):
    asked = np.ones(ROWS, np.bool_) if asked is None else asked
    columns = {"right": correct, "asked": asked, "rank": np.where(correct, 1, 50)}
    metrics = {
        "video_knn_visual": Metric("mean_where", ("right", "asked"), 0.125),
        "video_to_audio_median_rank": Metric("median", ("rank",)),
    }
    return Repeat(name, KEYS, columns, metrics)


def written(folder, task="standard", stem="evaluation", test="t", **weights):
    outcomes = {name: Outcome([found]) for name, found in weights.items()}
    config = TaskConfig(task=task, train="shards", test=test)
    hashes = dict.fromkeys(weights, "abc")
    return results.write(folder, outcomes, results.evaluation_of(outcomes, config, folder.name, hashes, {}), stem)


def test_seven_of_three_hundred_are_no_better_than_five_and_two_hundred_are():
    few = [[repeat(right(*range(7)))], [repeat(right(*range(100, 105)))]]
    assert intervals.leaders(few, lambda name: "rank" in name) == {}
    many = [[repeat(right(*range(100)))], [repeat(right(*range(200)))], [repeat(right(*range(90)))]]
    found = intervals.leaders(many, lambda name: "rank" in name)
    assert found == {"video_knn_visual": 1, "video_to_audio_median_rank": 1}, "of ranks the lower one leads"
    assert intervals.leaders([many[1], many[0], many[1]], lambda name: "rank" in name) == {}, "two are equally good"
    assert intervals.leaders(many[:1], lambda name: "rank" in name) == {}


def test_intervals_are_those_of_scipy_and_paired_ones_are_narrower():
    generator = np.random.default_rng(0)
    first = generator.random(ROWS) < 0.5
    second = first | (generator.random(ROWS) < 0.08)  # what one has right, so has the other
    outcomes = {"trained": Outcome([repeat(second)]), "untrained": Outcome([repeat(first)])}
    found = intervals.intervals_of(outcomes)
    for name, values in (("trained", second), ("untrained", first)):
        low, high = found["values"][name]["video_knn_visual"]
        wanted = stats.bootstrap((values.astype(float),), np.mean, method="percentile", rng=1).confidence_interval
        assert (low, high) == pytest.approx(tuple(wanted), abs=0.01)
    low, high = found["trained - untrained"]["video_knn_visual"]
    apart = second.astype(float) - first
    wanted = stats.bootstrap((apart,), np.mean, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx(tuple(wanted), abs=0.006)
    assert low > 0
    assert found["values"]["trained"]["video_knn_visual"][0] < found["values"]["untrained"]["video_knn_visual"][1]


AGREEMENT = ("purity", "normalized_mutual_information", "adjusted_rand_index")


def assigned(generator, share_right):
    """200 rows in 50 clusters, and 10 classes: a share of the rows in a cluster of their class, the others anywhere."""
    targets = generator.integers(0, 10, 200)
    own = targets + 10 * generator.integers(0, 5, 200)
    clusters = [np.where(generator.random(200) < share, own, generator.integers(0, 50, 200)) for share in share_right]
    metrics = {name: Metric(name, ("clusters", "targets")) for name in AGREEMENT}
    return [[Repeat("", KEYS[:200], {"clusters": found, "targets": targets}, metrics)] for found in clusters]


def test_intervals_of_clusterings_hold_what_they_are_of_as_often_as_they_say():
    """Rows drawn with copies are in agreement with themselves: their interval of random clusters was [0.16, 0.23]."""
    generator, shares = np.random.default_rng(0), (0.5, 0.0)
    means = np.mean([[list(values_of(side).values()) for side in assigned(generator, shares)] for _ in range(300)], 0)
    wanted = [*means[0], *means[1], *(means[0] - means[1])]
    held = np.zeros(9)
    for seed in range(40):
        sides = assigned(generator, shares)
        first, second = intervals.bootstrap(sides, num_draws=100, seed=seed)
        pairs = paired_differences(sides[1], sides[0], num_draws=100, seed=seed)
        found = [intervals.ends(draws[name]) for draws in (first, second) for name in AGREEMENT]
        found += [(pairs[name].low, pairs[name].high) for name in AGREEMENT]
        held += [low <= value <= high for (low, high), value in zip(found, wanted, strict=True)]
        assert all(low < value < high for (low, high), value in zip(found, _values_and_differences(sides), strict=True))
    assert held.min() >= 33, "95 % of 40 is 38; of a share of 0.95, fewer than 33 come once in 1,000 times"


def _values_and_differences(sides):
    first, second = ([values_of(side)[name] for name in AGREEMENT] for side in sides)
    return [*first, *second, *(one - other for one, other in zip(first, second, strict=True))]


def test_one_row_and_seeds_of_a_clustering_have_intervals():
    (single,) = assigned(np.random.default_rng(0), (0.5,))[0]
    seeds = [[Repeat(f"seed {n}", single.keys, single.columns, single.metrics) for n in range(3)]]
    drawn, again = intervals.bootstrap([[single]], num_draws=20)[0], intervals.bootstrap(seeds, num_draws=20)[0]
    assert all(drawn[name] == pytest.approx(again[name]) for name in AGREEMENT), "seeds take the same rows"
    lonely = Repeat("", ["a"], {name: values[:1] for name, values in single.columns.items()}, single.metrics)
    assert intervals.ends(intervals.bootstrap([[lonely]], num_draws=5)[0]["purity"]) == (1.0, 1.0)


def films(generator, num_films=40):
    """300 rows of equally long films, right or wrong together, right with 0.7: without and with their sources."""
    film = np.arange(ROWS) * num_films // ROWS
    columns = {"right": (generator.random(num_films) < 0.7)[film]}
    clips = Repeat("", KEYS, columns, {"accuracy": Metric("mean", ("right",))})
    return clips, replace(clips, sources=film.astype(np.uint64) * 7)


def test_intervals_draw_sources_with_all_of_their_rows():
    """Of 20 films of 30 segments, intervals over segments held the true share in 22 % of 60 cases, not in 95 %."""
    generator, held = np.random.default_rng(0), np.zeros(2)
    for seed in range(40):
        for side, repeat in enumerate(films(generator)):
            low, high = intervals.ends(intervals.bootstrap([[repeat]], num_draws=100, seed=seed)[0]["accuracy"])
            held[side] += low <= 0.7 <= high
    assert held[0] < 24
    assert held[1] >= 33
    clips, segments = films(generator)
    alone = replace(clips, sources=np.arange(ROWS, dtype=np.uint64)[::-1])
    drawn = [intervals.bootstrap([[repeat]], num_draws=20)[0]["accuracy"] for repeat in (clips, alone)]
    assert (drawn[0] == drawn[1]).all(), "a row a source is what it was"
    paired = intervals.bootstrap([[clips], [segments]], num_draws=20)
    assert (paired[0]["accuracy"] == paired[1]["accuracy"]).all(), "one that knows its sources is enough"


def test_clips_of_one_source_have_an_interval_and_it_is_said_what_it_is_worth():
    """An interval over one source would have no width, as if one film told all about the others."""
    clips, _ = films(np.random.default_rng(3))
    one = replace(clips, sources=np.zeros(ROWS, np.uint64))
    assert (
        intervals.bootstrap([[one]])[0]["accuracy"].tolist() == intervals.bootstrap([[clips]])[0]["accuracy"].tolist()
    )
    said = intervals.units_text({"accuracy": ROWS}, intervals.source_counts([one]))
    assert said == "intervals of accuracy are over the clips of one source file: they say nothing about other files"


def test_sources_are_stored_and_said(tmp_path):
    clips, segments = films(np.random.default_rng(0))
    told = {}
    for name, repeat in (("clips", clips), ("segments", segments)):
        path = written(tmp_path / name, trained=repeat, untrained=repeat)
        evaluation = results.read_evaluation(path)
        (back,) = results.read_rows(path, evaluation, "untrained")
        assert list(back.columns) == ["right"]
        assert back.sources is None if name == "clips" else (back.sources == repeat.sources).all()
        told[name] = evaluation["intervals"]["num_sources"], results.table(evaluation).splitlines()[-1]
        told[name] += (samples_text([Result(evaluation)], "accuracy"),)
        written(path.parent / "evaluations", "knn", "knn", trained=repeat, untrained=repeat)
        page = write_report(path.parent).read_text(encoding="utf-8")
        assert page.count(told[name][1][1:]) == 2, "what the terminal says, once a result"
        compared = paired_differences([back], [repeat], num_draws=5)
        assert (compared["accuracy"].mcnemar is None) == (name == "segments")
        assert ("McNemar's test" in comparison_table(compared, 0.95)) == (name == "segments")
    assert told["segments"][0] == {"accuracy": 40}
    assert "over sources, each drawn with all of its clips (40 sources of 300 clips)" in told["segments"][1]
    assert told["segments"][2] == "300 samples of 40 sources"
    assert told["clips"][0] == {}
    assert "over clips, whose source files are not known" in told["clips"][1]
    assert told["clips"][2] == "300 samples"


def test_samples_are_counted_by_metric_once_over_seeds_and_all_over_folds():
    asked = right(*range(40))
    assert intervals.row_counts([repeat(asked, asked)]) == {"video_knn_visual": 40, "video_to_audio_median_rank": ROWS}
    seeds = [repeat(asked, asked, "seed 0"), repeat(asked, asked, "seed 1")]
    assert intervals.row_counts(seeds)["video_knn_visual"] == 40
    other = repeat(asked, asked, "fold 2")
    folds = [seeds[0], Repeat("fold 2", [f"other {key}" for key in KEYS], other.columns, other.metrics)]
    assert intervals.row_counts(folds)["video_knn_visual"] == 80


def test_terminal_and_page_show_numbers_of_samples_and_mark_only_a_significant_best(tmp_path):
    asked = right(*range(290))
    paths = {}
    for name, few, many in (("a", 7, 200), ("b", 5, 100)):
        run = tmp_path / name
        paths[name] = written(run, trained=repeat(right(*range(few)), asked), untrained=repeat(right(3), asked))
        written(run / "evaluations", "knn", "knn", trained=repeat(right(*range(many)), asked))
    text = results.table(results.read_evaluation(paths["a"]))
    heading, line = text.splitlines()[:2]
    assert heading.split()[:2] == ["samples", "trained"]
    assert heading.count("95% interval") == 3
    assert line.split()[:3] == ["video_knn_visual", "290", "0.024"]
    page = write_report(tmp_path / "a", evaluations=[paths["b"]]).read_text("utf-8")
    assert "290 samples" in page
    assert "300 samples" in page
    assert ' class="best"' not in page, "7 clips of 290 are no better than 5"
    written(tmp_path / "a", trained=repeat(right(*range(200)), asked), untrained=repeat(right(3), asked))
    page = write_report(tmp_path / "a", evaluations=[paths["b"]]).read_text("utf-8")
    best = [piece.split("<tr>")[-1] for piece in page.split(' class="best"')[:-1]]
    assert len(best) == 2
    assert all("a · trained" in row for row in best)
    next(tmp_path.glob("b/*.npz")).unlink()
    page = write_report(tmp_path / "a", evaluations=[paths["b"]]).read_text("utf-8")
    assert ' class="best"' not in page, "without rows nobody knows"
    assert "lacks its rows" in page


def demo_rows(correct, positives=0.5):
    """A made-up result with the metrics of the demo's claims."""
    columns = {"right": correct, "rank": np.where(correct, 1, 60), "low": np.full(ROWS, positives)}
    metrics = {demo.KNN: Metric("mean", ("right",))}
    for direction in demo.DIRECTIONS:
        metrics |= {f"{direction}_recall_at_10": Metric("mean", ("right",))}
        metrics |= {f"{direction}_median_rank": Metric("median", ("rank",))}
    for agreement in ("consensus", "video"):
        for field in ("visual", "sound"):
            metrics[f"positive_precision_{agreement}_{field}"] = Metric("mean", ("low",))
    return [Repeat("", KEYS, columns, metrics)]


def test_a_claim_of_the_demo_is_yes_only_where_its_whole_interval_holds():
    chance = dict.fromkeys(demo_rows(right())[0].metrics, 0.01)
    rows = {"avid": 200, "avid_longer": 200, "avid_cma": 201, "untrained": 60}
    made = {name: demo_rows(right(*range(count))) for name, count in rows.items()}
    found = {claim: verdict for claim, verdict, *_ in demo.judged(made, chance)}
    assert list(found.values()) == ["yes", "yes", "yes", "open", "yes", "open"]
    made["avid"] = demo_rows(right(*range(92)))  # 92 / 60 is more than 1.5, but not by more than chance
    found = [verdict for _, verdict, *_ in demo.judged(made, chance)]
    assert found[:2] == ["open", "open"]
    made["avid_cma"] = demo_rows(right(*range(150)))
    assert demo.judged(made, chance)[-1][1] == "NO"


def stopped_after(steps, work):
    """Do work in a process that dies, without cleaning up, before the step of that number; False if it finished."""
    child = os.fork()
    if child == 0:
        left = [steps]

        def counted(original):
            def step(*arguments, **options):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return original(*arguments, **options)

            return step

        os.fsync, Path.replace, Path.unlink = counted(os.fsync), counted(Path.replace), counted(Path.unlink)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def sets_with_rows(folder):
    """The test sets of the results in a folder; each result has its rows."""
    found = []
    for path in results.standard_results(folder):
        evaluation = results.read_evaluation(path)
        (rows,) = results.read_rows(path, evaluation, "trained")
        assert rows.values()["video_knn_visual"] == evaluation["results"]["trained"]["video_knn_visual"]
        found.append(evaluation["data"]["test"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("new", ["one", "two", "three"])
def test_wherever_writing_a_result_is_stopped_all_results_are_whole(new, tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "NUM_DRAWS", 2)
    for steps in range(40):
        folder = tmp_path / str(steps)
        for test, count in (("one", 5), ("two", 6)):
            written(folder, test=test, trained=repeat(right(*range(count))))
        was_stopped = stopped_after(steps, lambda to=folder: written(to, test=new, trained=repeat(right(1))))
        assert set(sets_with_rows(folder)) >= {"one", "two"}
        written(folder, test=new, trained=repeat(right(1)))
        found = sets_with_rows(folder)
        assert (found[0], sorted(found)) == (new, sorted({"one", "two", new}))
        assert len(list(folder.glob("*.npz"))) == len(found), "rows that no result names are gone"
        assert not list(folder.glob(".*.tmp"))
        if not was_stopped:
            break
    assert 6 < steps < 39


def test_rows_of_a_result_of_an_earlier_version_are_kept_as_long_as_it_is(tmp_path):
    path = written(tmp_path, test="one", trained=repeat(right(1)))
    found = json.loads(path.read_text())
    path.with_name(found["rows"]["file"]).rename(tmp_path / "evaluation.npz")
    path.write_text(json.dumps(found | {"rows": found["rows"] | {"file": "evaluation.npz"}}))
    written(tmp_path, test="two", trained=repeat(right(1)))
    assert sorted(sets_with_rows(tmp_path)) == ["one", "two"]
    written(tmp_path, test="one", trained=repeat(right(1, 2)))
    assert sorted(sets_with_rows(tmp_path)) == ["one", "two"]
    assert not (tmp_path / "evaluation.npz").exists()
