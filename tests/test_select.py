"""`avssl prep select`: which samples are kept, which one of duplicates, and the account of the others."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.facts.table import read_tables
from data_prep.measures import near_duplicates
from data_prep.measures.near_duplicates import NO_HASH, distances
from data_prep.select.duplicates import leave_out_near
from data_prep.select.state import State
from tests.conftest import ROOT, run_python
from tests.made_facts import lines_of, made_corpus, write_facts

BASE = 0x0F0F_3C3C_5A5A_9696
KEPT, LEFT_OUT, HEADER = "kept.jsonl", "kept.select.left_out.jsonl", "kept.select.json"


def select(folder: Path, rows: list[dict], *options: str, without: tuple[str, ...] = ()) -> tuple[list[str], dict]:
    """(keys that are kept, {key: record} of those that are left out)."""
    manifest, facts = made_corpus(folder, rows, without)
    status = main(["select", str(manifest), "--facts", str(facts), "--out", str(folder / KEPT), *options])
    assert status == 0
    return [row["key"] for row in lines_of(folder / KEPT)], {row["key"]: row for row in lines_of(folder / LEFT_OUT)}


def picture(bits: int = 0, sound: int | None = None, **others: object) -> dict:
    """Hashes that differ in so many bits from those of a picture, and in `sound` bits from a sound; None: no sound."""
    flipped = BASE ^ ((1 << bits) - 1)
    audio = {"channels": None, "sound_hash": None} if sound is None else {"sound_hash": BASE ^ ((1 << sound) - 1)}
    return {"middle_hash": flipped, "first_hash": flipped} | audio | others


def test_every_listed_sample_is_kept_or_left_out_for_one_reason(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        {
            "motion": None if random.random() < 0.1 else random.random(),
            "reason": "truncated" if random.random() < 0.1 else None,
            "content": f"{random.integers(30):016x}",
            "bytes": 5,
            "labels": json.dumps({"label": [str(random.integers(3))]}),
        }
        for _ in range(200)
    ]
    options = ("--where", "motion > .4", "--dedup", "exact", "--keep-per-class", "7", "--max-hours", ".05")
    kept, left_out = select(tmp_path, rows, *options)
    keys = [f"k{number}" for number in range(200)]
    assert sorted([*kept, *left_out]) == sorted(keys)
    assert kept == [key for key in keys if key in set(kept)]  # in the order of the corpus
    assert [row["key"] for row in lines_of(tmp_path / LEFT_OUT)] == [key for key in keys if key in left_out]
    header = json.loads((tmp_path / HEADER).read_text())
    assert header["num_listed"] == header["num_kept"] + header["num_left_out"] == 200
    assert header["left_out_by_reason"] == Counter(row["reason"] for row in left_out.values())
    assert header["kept_sha256"] == hashlib.sha256((tmp_path / KEPT).read_bytes()).hexdigest()
    assert header["rule"]["where"] == "motion > .4"
    seen = set()
    for number, row in enumerate(rows):  # what comes first decides
        record, best = left_out.get(f"k{number}", {"reason": None}), row["content"]
        if row["reason"]:
            assert record["reason"] == "truncated"
        elif row["motion"] is None:
            assert record["reason"] == "condition_unknown"
        elif row["motion"] <= 0.4:
            assert record == {"key": f"k{number}", "path": f"k{number}.mp4", "reason": "condition_false",
                              "condition": "(motion > .4)"}  # fmt: skip
        elif best in seen:
            assert record["reason"] == "exact_duplicate"
            assert rows[int(record["duplicate_of"][1:])]["content"] == best
        else:
            seen.add(best)
            assert record["reason"] in (None, "class_full", "hours_full")
    assert Counter(rows[int(key[1:])]["labels"] for key in kept).most_common(1)[0][1] <= 7
    assert len(kept) == 18 == 0.05 * 3600 // 10
    assert (tmp_path / KEPT).read_text().splitlines() == [
        line for line in (tmp_path / "corpus.jsonl").read_text().splitlines() if json.loads(line)["key"] in set(kept)
    ]


def test_same_picture_with_other_sound_is_no_duplicate_nor_the_reverse(tmp_path):
    rows = {
        "clip": picture(0, sound=0),
        "copy": picture(3, sound=4),
        "other_sound": picture(0, sound=20),
        "other_picture": picture(20, sound=0),
        "muted": picture(0),
        "muted_copy": picture(1),
        "silent": picture(0, sound=0, sound_hash=None),
        "longer": picture(0, sound=0, duration_seconds=12.0),
        "as_long": picture(0, sound=0, duration_seconds=9.9),
        "song": {"width_px": None, "height_px": None, "sound_hash": BASE},
        "song_copy": {"width_px": None, "height_px": None, "sound_hash": BASE ^ 1},
        "photo": {"image_hash": BASE, "channels": None, "duration_seconds": None},
        "photo_copy": {"image_hash": BASE ^ 3, "channels": None, "duration_seconds": None},
        "far": picture(6, sound=0),
        "black": {"channels": None},
        "also_black": {"channels": None},
    }
    _, left_out = select(tmp_path, [{"key": key} | row for key, row in rows.items()], "--dedup", "near")
    assert {key: (row["duplicate_of"], row["bits"]) for key, row in left_out.items()} == {
        "copy": ("clip", 3), "muted_copy": ("muted", 1), "as_long": ("clip", 0), "song_copy": ("song", 1),
        "photo_copy": ("photo", 2),
    }  # fmt: skip


@pytest.mark.parametrize(("keep", "best"), [("longest", "c"), ("highest-resolution", "b"), ("first", "a")])
def test_the_rule_says_which_one_of_a_group_is_kept(tmp_path, keep, best):
    same = {"content": "f" * 16, "bytes": 9}
    rows = [same | {"key": "a"}, same | {"key": "b", "width_px": 128},
            same | {"key": "c", "duration_seconds": 10.1},
            same | {"key": "d", "motion": 0.0, "duration_seconds": 99.0}]  # fmt: skip
    rows = [{"motion": 1.0} | row for row in rows]
    kept, left_out = select(tmp_path, rows, "--dedup", "exact", "--keep", keep, "--where", "motion > .5")
    assert kept == [best]  # never d, for which the condition does not hold
    assert {row.get("duplicate_of") for row in left_out.values() if row["reason"] == "exact_duplicate"} == {best}
    assert json.loads((tmp_path / HEADER).read_text())["rule"]["keep"] == keep


def test_of_near_ones_the_best_stay_and_no_two_of_them_are_near(tmp_path):
    random = np.random.default_rng(1)
    hashes = [BASE ^ sum(1 << int(bit) for bit in random.choice(12, 6, replace=False)) for _ in range(150)]
    rows = [
        {"middle_hash": value, "first_hash": value, "channels": None, "duration_seconds": 10 + 0.001 * (number % 40)}
        for number, value in enumerate(hashes)
    ]
    kept, left_out = select(tmp_path, rows, "--dedup", "near")
    order = sorted(range(150), key=lambda number: (-rows[number]["duration_seconds"], number))
    stay: list[int] = []  # by comparing each with all better ones that stay
    for number in order:
        if all((hashes[number] ^ hashes[other]).bit_count() > 4 for other in stay):
            stay.append(number)
    assert kept == [f"k{number}" for number in sorted(stay)]
    for key, row in left_out.items():
        other = int(row["duplicate_of"][1:])
        assert other in stay
        assert row["bits"] == (hashes[int(key[1:])] ^ hashes[other]).bit_count() <= 4


def test_lengths_that_are_the_same_make_no_chain_of_samples_that_are_not_near(tmp_path):
    """b is near to a and to c; a and c, whose lengths are not the same, are near to b alone."""
    rows = [picture(key=key, duration_seconds=seconds) for key, seconds in (("c", 964.0), ("b", 983.0), ("a", 1002.0))]
    kept, left_out = select(tmp_path, rows, "--dedup", "near", "--keep", "first")
    assert kept == ["c", "a"]
    assert {key: row["duplicate_of"] for key, row in left_out.items()} == {"b": "c"}


@pytest.mark.parametrize("seed", range(30))
def test_near_duplicates_are_those_of_comparing_each_with_all_better_ones_that_stay(tmp_path, seed):
    random = np.random.default_rng(seed)
    count = 40
    state = State(tmp_path, count)
    for name in ("picture", "first", "sound"):
        one, other = (int(value) for value in random.integers(1, 2**63, 2))
        near = [one, one ^ 0b111, one ^ 0b111000, one ^ 0b111111, other]
        getattr(state, name)[:] = np.array(near, np.uint64)[random.choice(5, count, p=[0.5, 0.2, 0.1, 0.1, 0.1])]
    state.sound[random.random(count) < 0.3] = NO_HASH
    state.kinds[:] = random.choice([1, 3], count, p=[0.2, 0.8])
    state.seconds[:] = random.choice([964, 975, 983, 990, 1002, 1010, 1021], count)
    state.quality[:] = random.integers(0, 4, count)
    leave_out_near(state)

    def are_near(one: int, other: int) -> bool:
        longest = max(state.seconds[one], state.seconds[other])
        if state.kinds[one] != state.kinds[other] or abs(state.seconds[one] - state.seconds[other]) > 0.02 * longest:
            return False
        pairs = [(int(values[one]), int(values[other])) for values in (state.picture, state.first, state.sound)]
        return all(NO_HASH in pair or (pair[0] ^ pair[1]).bit_count() <= 4 for pair in pairs)

    stay: list[int] = []
    for row in sorted(range(count), key=lambda row: (-state.quality[row], row)):
        better = [one for one in stay if are_near(one, row)]
        if better:
            assert state.detail[row] in better
            assert state.score[row] == (int(state.picture[row]) ^ int(state.picture[state.detail[row]])).bit_count()
        else:
            stay.append(row)
    assert state.kept().tolist() == sorted(stay)
    assert len(stay) < count


def test_of_many_that_are_near_to_each_other_far_fewer_than_all_pairs_are_compared(tmp_path, monkeypatch):
    """2,000 of one crowd, all of them worse than 2,000 others: a million pairs of near ones, and one stays."""
    random, num_near, compared = np.random.default_rng(0), 2000, []
    state = State(tmp_path, 2 * num_near)
    flips = np.uint64(1) << random.integers(0, 64, (2, num_near), np.uint64)
    state.picture[:] = np.concatenate([BASE ^ flips[0] ^ flips[1], random.integers(1, 2**63, num_near, np.uint64)])
    state.kinds[:], state.seconds[:] = 1, 10
    state.quality[:num_near] = -1

    def counted(one, other):
        compared.append(len(one))
        return distances(one, other)

    monkeypatch.setattr(near_duplicates, "distances", counted)
    monkeypatch.setattr(near_duplicates, "PAIRS_AT_ONCE", 10_000)
    leave_out_near(state)
    assert state.kept().tolist() == [0, *range(num_near, 2 * num_near)]
    assert (state.detail[1:num_near] == 0).all()
    assert sum(compared) < 20 * len(state.picture)


def test_a_larger_limit_holds_the_samples_of_a_smaller_one_and_the_order_of_rows_changes_nothing(tmp_path):
    random = np.random.default_rng(2)
    rows = [{"key": f"k{n}", "labels": json.dumps({"label": [str(random.integers(4)), "x"][: n % 2 + 1]})}
            for n in range(120)]  # fmt: skip
    small, medium = (set(select(tmp_path / n, rows, "--keep-per-class", n)[0]) for n in ("5", "9"))
    assert small < medium
    turned = select(tmp_path / "turned", rows[::-1], "--keep-per-class", "5")[0]
    assert set(turned) == small
    other = select(tmp_path / "other", rows, "--keep-per-class", "5", "--seed", "1")[0]
    assert set(other) != small
    hours = [set(select(tmp_path / h, rows, "--max-hours", h)[0]) for h in ("0.1", "0.2")]
    assert [len(kept) for kept in hours] == [36, 72]
    assert hours[0] < hours[1]


def test_two_runs_give_the_same_bytes_and_a_manifest_that_split_takes(tmp_path):
    rows = [picture(number % 3, sound=0, motion=number / 40) for number in range(40)]
    options = ("--where", "motion > .2", "--dedup", "near", "--keep-per-class", "30")
    select(tmp_path, rows, *options)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("kept*")}
    assert set(first) == {KEPT, LEFT_OUT, HEADER}
    select(tmp_path, rows, *options)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("kept*")} == first
    assert main(["select", str(tmp_path / "corpus.jsonl"), "--facts", str(tmp_path / "facts.parquet"), "--out",
                 str(tmp_path / "far" / KEPT)]) == 0  # fmt: skip
    assert [row["path"] for row in lines_of(tmp_path / "far" / KEPT)][:1] == [str(tmp_path / "k0.mp4")]
    assert main(["split", str(tmp_path / "far" / KEPT), "--test-share", ".3", "--seed", "1"]) == 0


@pytest.mark.parametrize(
    ("options", "without", "says"),
    [
        (["--where", "loudness > -50"], (), "no fact 'loudness'; did you mean loudness_lufs"),
        (["--where", "motion"], (), "neither true nor false"),
        (["--where", "motion > 1; drop table facts"], (), "Only SELECT statements"),
        (["--dedup", "nearly"], (), "--dedup has 'nearly'; it takes exact, near, a cosine"),
        (["--dedup", "1.5"], (), "--dedup has '1.5'"),
        (["--dedup", "smell=.9"], (), "--dedup has 'smell=.9'"),
        (["--dedup", ".95"], (), "--dedup .* compares embeddings; give --embeddings"),
        ([], ("middle_hash",), r"lacks the column middle_hash \(it has image_hash"),
        (["--keep-per-class", "0"], (), "--keep-per-class is 0; it must be at least 1"),
        (["--keep-per-class", "3", "--by", "speaker"], (), "no sample has a label 'speaker'"),
        (["--max-hours", "nan"], (), "--max-hours is nan; it must be above 0"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(tmp_path, capsys, options, without, says):
    manifest, facts = made_corpus(tmp_path, [{}, {}], without)
    assert main(["select", str(manifest), "--facts", str(facts), "--out", str(tmp_path / KEPT), *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(says, message), message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "facts.parquet"]


def test_a_mistake_in_the_condition_is_said_before_anything_is_decoded(tmp_path, capsys):
    manifest, facts = made_corpus(tmp_path, [{}])
    facts.unlink()
    mistakes = {"motoin > 1": "did you mean motion", "av_cosine > .2": "no fact 'av_cosine' without --embeddings"}
    for condition, says in mistakes.items():
        assert main(["select", str(manifest), "--where", condition, "--out", str(tmp_path / KEPT)]) == 2
        assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_facts_of_another_corpus_and_damaged_ones_are_refused(tmp_path, capsys):
    manifest, facts = made_corpus(tmp_path, [{}, {}, {}])
    lines, content = manifest.read_bytes().splitlines(keepends=True), facts.read_bytes()
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join(lines[::-1]))
    assert main(["select", str(other), "--facts", str(facts), "--out", str(tmp_path / KEPT)]) == 2
    assert "another corpus than" in capsys.readouterr().err
    other.write_bytes(manifest.read_bytes().replace(b'"bytes": 100', b'"bytes": 999'))
    assert main(["select", str(other), "--facts", str(facts), "--out", str(tmp_path / KEPT)]) == 2
    assert "the corpus was changed, although its keys are the same" in capsys.readouterr().err
    other.write_bytes(b"".join(lines[::-1]))
    table = read_tables(facts)
    write_facts(facts, other, next(table))  # that says of itself what is not so
    assert main(["select", str(other), "--facts", str(facts), "--out", str(tmp_path / KEPT)]) == 2
    message = capsys.readouterr().err
    assert f"another corpus than {other}: row 1 is 'k0' in it and 'k2' there" in message
    for damaged in (b"no parquet", content[:-900], content[:200] + b"x" * 200 + content[400:]):
        facts.write_bytes(damaged)
        assert main(["select", str(manifest), "--facts", str(facts), "--out", str(tmp_path / KEPT)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "Parquet file" in message
    assert not (tmp_path / KEPT).exists()


def test_the_command_tells_what_is_left_out_and_by_which_part(tmp_path):
    manifest, facts = made_corpus(tmp_path, [{"motion": n / 10, "brightness": n} for n in range(8)])
    done = run_python("-m", "data_prep", "select", manifest, "--facts", facts, "--out", tmp_path / KEPT, "--where",
                      "motion > .2 and brightness < 6", "--json")  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["num_listed"], result["num_kept"], result["left_out_by_reason"]) == (8, 3, {"condition_false": 5})
    assert "(motion > .2): 3" in done.stderr
    assert "(brightness < 6): 2" in done.stderr


def test_a_part_that_the_condition_repeats_counts_once_and_the_others_keep_their_counts(tmp_path):
    rows = [{"motion": n / 10, "width_px": 100 + 20 * n} for n in range(8)]
    _, left_out = select(tmp_path, rows, "--where", "motion > .3 and motion > .3 and width_px > 200")
    said = Counter(row["condition"] for row in left_out.values())
    assert said == {"(motion > .3)": 4, "(width_px > 200)": 2}
    by_part = json.loads((tmp_path / HEADER).read_text())["left_out_by_condition"]
    assert {part: counts["condition_false"] for part, counts in by_part.items()} == said


@pytest.mark.slow
def test_a_killed_selection_starts_again_with_the_same_bytes(tmp_path):
    """It is killed at several moments; what lies there then is whole or absent, and the record comes last."""
    rows = [{"motion": (number * 37 % 101) / 100, "middle_hash": BASE + number % 900, "first_hash": BASE,
             "channels": None} for number in range(60_000)]  # fmt: skip
    manifest, facts = made_corpus(tmp_path / "once", rows)
    command = [sys.executable, "-m", "data_prep", "select", str(manifest), "--facts", str(facts), "--where",
               "motion > .1", "--dedup", "near", "--out", str(tmp_path / "once" / KEPT)]  # fmt: skip
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    lasted = time.monotonic() - began
    whole = {name: (tmp_path / "once" / name).read_bytes() for name in (KEPT, LEFT_OUT, HEADER)}
    for share in (0.5, 0.7, 0.85, 0.95):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(share * lasted)
        process.kill()
        process.wait()
        for name, content in whole.items():
            if (tmp_path / "once" / name).exists():
                assert (tmp_path / "once" / name).read_bytes() == content
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert {name: (tmp_path / "once" / name).read_bytes() for name in whole} == whole
    assert {path.name for path in (tmp_path / "once").iterdir()} == {*whole, "corpus.jsonl", "facts.parquet"}
