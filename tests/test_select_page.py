"""select.html and --explain: what a reader is told about a selection, with clips that play."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.facts.run import make_facts
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.stats.tally import Histogram
from data_prep.select.distributions import QUANTITIES, Distribution, chart
from data_prep.select.expression import Condition
from tests.browser import (  # noqa: F401  (chromium is a fixture)
    DESKTOP,
    PHONE,
    VIEWS,
    Chromium,
    View,
    chromium,
    faint_texts,
    overflow_px,
    plays,
    unnamed_controls,
)
from tests.made_facts import facts_table, made_corpus, write_facts


def test_the_cuts_of_a_condition_are_its_comparisons_with_numbers():
    condition = Condition(
        "motion > .3 and 60 >= duration_seconds and loudness_lufs between -50 and -10 and key like 'a%' and"
        " motion > brightness and (motion > 1 or brightness > 2)",
        facts_table([]),
    )
    assert condition.cuts == [
        ("motion", [0.3]), ("duration_seconds", [60.0]), ("loudness_lufs", [-50.0, -10.0]), None, None, None,
    ]  # fmt: skip


def test_bars_say_how_many_are_kept():
    random = np.random.default_rng(0)
    values = random.gamma(2, 2, 500)
    distribution = Distribution.of("motion", [3.0])
    distribution.listed.add_all(values)
    distribution.kept.add_all(values[values > 3])
    one_by_one = Histogram(QUANTITIES["motion"])
    for value in values.tolist():
        one_by_one.add(value)
    assert one_by_one.counts.tolist() == distribution.listed.counts.tolist()
    assert one_by_one.total == pytest.approx(distribution.listed.total)
    hints = re.findall(r"<title>[^:]+: (\d+), of which (\d+) are kept", chart(distribution))
    assert sum(int(count) for count, _ in hints) == 500
    assert sum(int(kept) for _, kept in hints) == (values > 3).sum()
    assert "cut at 3" in chart(distribution)


def test_a_key_is_explained_by_its_facts_and_each_part_of_the_condition(tmp_path, capsys):
    rows = [{"motion": 0.5, "content": "f" * 16, "bytes": 1}, {"motion": 0.6, "content": "f" * 16, "bytes": 1},
            {"motion": 0.1}, {"motion": None}, {"reason": "truncated"}]  # fmt: skip
    manifest, facts = made_corpus(tmp_path, rows)
    command = ["select", str(manifest), "--facts", str(facts), "--out", str(tmp_path / "kept.jsonl")]
    assert main([*command, "--explain", "k1"]) == 2
    assert "there is no such selection; select first" in capsys.readouterr().err
    assert main([*command, "--where", "motion > .3 and duration_seconds > 1", "--dedup", "exact"]) == 0
    capsys.readouterr()
    said = {}
    for key in ("k0", "k1", "k2", "k3", "k4"):
        assert main([*command, "--explain", key]) == 0
        said[key] = capsys.readouterr().out
    assert said["k0"].startswith("k0: kept\n")
    assert "stands for k1" in said["k0"]
    assert "k1: left out: exact_duplicate\n  of k0, which stands for both (longest)" in said["k1"]
    assert "k2: left out: condition_false\n  (motion > .3): false\n  (duration_seconds > 1): true" in said["k2"]
    assert "k3: left out: condition_unknown\n  (motion > .3): unknown" in said["k3"]
    assert "k4: left out: truncated" in said["k4"]
    assert re.search(r"motion +0\.1\n", said["k2"])
    assert main([*command, "--explain", "nobody"]) == 2
    assert "has no sample with the key 'nobody'" in capsys.readouterr().err
    write_facts(facts, manifest, facts_table([row | {"brightness": 0.5} for row in rows]))
    assert main([*command, "--explain", "k1"]) == 2
    assert "was selected by other facts" in capsys.readouterr().err


@pytest.fixture(scope="module")
def selected(corpus, tmp_path_factory) -> Path:
    """A page of real clips of which some are copies, one is damaged, and one has a name that is markup."""
    folder = tmp_path_factory.mktemp("selected")
    media = folder / "media"
    media.mkdir()
    clips = sorted(path for path in (corpus / "train").rglob("*.mp4"))[:4]
    for number, path in enumerate(clips):
        (media / f"clip{number}.mp4").write_bytes(path.read_bytes())
    (media / "copy.mp4").write_bytes(clips[0].read_bytes())
    (media / "damaged.mp4").write_bytes(clips[1].read_bytes()[:900])
    (media / "<img src=x onerror=alert(1)>.mp4").write_bytes(clips[2].read_bytes())
    manifest, facts = folder / "corpus.jsonl", folder / "corpus.facts.parquet"
    build_manifest(media, manifest, IndexOptions())
    make_facts(str(manifest), facts, num_workers=1)
    status = main(["select", str(manifest), "--where", "duration_seconds > 1 and brightness > .4", "--dedup", "near",
                   "--page", str(folder / "page"), "--out", str(folder / "kept.jsonl"),
                   "--num-workers", "1"])  # fmt: skip
    assert status == 0
    return folder


def test_the_page_is_one_file_that_tells_what_was_selected(selected):
    text = (selected / "page" / "select.html").read_text()
    record = json.loads((selected / "kept.select.json").read_text())
    assert record["num_listed"] == 7
    assert record["left_out_by_reason"]["exact_duplicate"] == 2
    assert "Exact duplicates: the same content" in text
    assert "Cut: <code>(brightness &gt; .4)</code>" in text
    assert "<img src=x" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert text.count('data-clip="clip-') >= 6
    assert record["kept_sha256"] in text


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_page_reads_and_plays_in_a_browser(chromium: Chromium, selected: Path, view: View) -> None:  # noqa: F811
    with chromium.open(selected / "page" / "select.html", view) as page:
        assert overflow_px(page) <= 0
        assert faint_texts(page) == []
        assert unnamed_controls(page) == []
        if view in (DESKTOP, PHONE):
            button = page.locator("button.play").first
            button.scroll_into_view_if_needed()
            button.click()
            assert plays(page, "video, audio")
