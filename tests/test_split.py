"""Train, validation and test: no source in two parts, nothing moves when files are added, and what was read is kept."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avssl.shards.manifest import Entry, stream_manifest
from data_prep.__main__ import main
from data_prep.split import scan
from data_prep.split.links import Links, placed
from data_prep.split.rule import LEFT_OUT, PARTS, TEST, TRAIN, VALIDATION, SplitRule
from data_prep.split.run import split_manifest

NAMES = ("train", "validation", "test", "left_out")


def entry(number, *, labels=None, folder="videos", clip=0, content=None, **changes):
    """A row of source `number`, its clip of a second."""
    content = hashlib.sha256(f"{number}".encode()).hexdigest()[:16] if content is None else content
    labels = {"label": [f"class {number % 3}"]} if labels is None else labels
    facts = {"container": "mp4", "duration_seconds": 9.0, "video": None, "audio": None}
    key = f"{folder}/v{number}_{clip}"
    return Entry(
        f"{folder}/v{number}.mp4", key, labels, facts, None, 1000, None, (clip, clip + 1.0), content, **changes
    )


def manifest_of(entries, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(row.to_json() for row in entries))
    return path


def parts_of(manifest):
    """{key: part} by the files that were written."""
    found = {}
    for name in NAMES:
        path = manifest.with_name(f"{manifest.stem}.{name}.jsonl")
        if path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                assert record["part"] == name
                assert record["key"] not in found
                found[record["key"]] = name
    return found


def hash_part(content, path, size, rule):
    """The part of a source by the rule as docs/splits.md states it, in plain Python."""
    text = json.dumps([content or path, size, None], sort_keys=True) + "\n"
    x = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
    x = (x + (rule.seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * factor % 2**64
    x ^= x >> 31
    if x / 2**64 < rule.test_share:
        return "test"
    return "validation" if x / 2**64 > 1 - rule.validation_share else "train"


def test_each_source_lies_where_the_stated_hash_puts_it_with_all_its_clips(tmp_path):
    rows = [entry(number, clip=clip) for number in range(300) for clip in range(number % 4)]
    rule = SplitRule(test_share=0.2, validation_share=0.1, seed=5)
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    summary = split_manifest(manifest, rule)
    expected = {row.key: hash_part(row.content, row.path, 1000, rule) for row in rows}
    assert parts_of(manifest) == expected
    counts = Counter(expected.values())
    assert summary.rows.tolist() == [counts["train"], counts["validation"], counts["test"], 0]
    assert {line.part for line in stream_manifest(tmp_path / "corpus.test.jsonl")} == {"test"}


def test_lines_are_kept_as_they_are_in_their_order(tmp_path):
    rows = [entry(number) for number in range(40)]
    lines = [json.loads(row.to_json()) | {"of its own": [number]} for number, row in enumerate(rows)]
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines).rstrip("\n"))  # no end of line at the end
    split_manifest(manifest, SplitRule(test_share=0.3))
    found = defaultdict(list)
    for name in ("train", "test"):
        for line in (tmp_path / f"corpus.{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            found[record.pop("part")].append(record)
    assert sorted(found["train"] + found["test"], key=lambda record: record["of its own"]) == lines
    assert all(part == sorted(part, key=lambda record: record["of its own"]) for part in found.values())


SETS = st.sets(st.integers(0, 400), min_size=30, max_size=60)


@settings(max_examples=15, deadline=None)
@given(first=SETS, more=SETS, seed=st.integers(0, 1000), group=st.sampled_from(["source", "folder", "speaker"]))
def test_adding_files_moves_none_and_no_group_lies_in_two_parts(tmp_path_factory, first, more, seed, group):
    """Also into another folder, without any record of the first split, and with the rows in another order."""

    def row(number):
        speaker = {"label": [f"class {number % 3}"], "speaker": [f"speaker {number % 23}"]}
        return entry(number, labels=speaker, folder=f"folder {number % 19}")

    rule = SplitRule(test_share=0.3, validation_share=0.2, group=group, seed=seed)
    groups = {
        "source": lambda key: key.split("/")[1],
        "folder": lambda key: key.split("/")[0],
        "speaker": lambda key: int(key.split("/")[1].strip("v").split("_")[0]) % 23,
    }
    results = []
    for numbers in (sorted(first), sorted(first | more, reverse=True)):
        manifest = manifest_of(map(row, numbers), tmp_path_factory.mktemp("split") / "corpus.jsonl")
        try:
            split_manifest(manifest, rule)
        except ValueError as error:
            if "no row would be in" in str(error):
                return
            raise
        results.append(parts_of(manifest))
        frame = pd.DataFrame(results[-1].items(), columns=["key", "part"])
        assert (frame.groupby(frame["key"].map(groups[group]))["part"].nunique() == 1).all()
    assert results[0].items() <= results[1].items()


@settings(max_examples=20, deadline=None)
@given(
    links=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=30),
    more=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30),
    seed=st.integers(0, 99),
)
def test_linked_groups_lie_on_one_side_and_new_links_move_none_that_was_placed(links, more, seed):
    """The oracle colours the graph by repeated passes over all pairs."""
    rule = SplitRule(test_share=0.3, seed=seed)

    def split(pairs, groups, earlier):
        found = Links()
        for first, second in pairs:
            if first != second:
                found.join(first, second)
        exceptions = placed(found, rule, {group: part for group, part in earlier.items() if part != LEFT_OUT})
        return {group: exceptions.get(group, rule.part_of(group)) for group in groups}

    def colours(pairs, groups):
        colour = {group: group for group in groups}
        for _ in groups:
            for first, second in pairs:
                colour[first] = colour[second] = min(colour[first], colour[second])
        return colour

    before = split(links, range(41), {})
    colour = colours(links, range(41))
    assert len({(colour[group], part) for group, part in before.items()}) == len(set(colour.values()))
    after = split(links + more, range(61), before)
    assert {group: after[group] for group in range(41)} == before
    for first, second in links + more:
        if first > 40 or second > 40:  # a new one has a copy in its own part alone, or is in none
            assert LEFT_OUT in (after[first], after[second]) or after[first] == after[second]


def test_a_copy_in_another_folder_joins_both_folders(tmp_path):
    rows = [entry(number, folder=f"folder {number}") for number in range(60)]
    copies = [entry(number, folder=f"folder {number + 1}", clip=7) for number in range(0, 60, 2)]
    manifest = manifest_of([*rows, *copies], tmp_path / "corpus.jsonl")
    rule = SplitRule(test_share=0.4, group="folder")
    summary = split_manifest(manifest, rule)
    frame = pd.DataFrame(parts_of(manifest).items(), columns=["key", "part"])
    source, folder = frame["key"].str.extract(r"/(v\d+)")[0], frame["key"].str.extract(r"^folder (\d+)")[0].astype(int)
    assert (frame.groupby(source)["part"].nunique() == 1).all()
    assert (frame.groupby(folder // 2)["part"].nunique() == 1).all()
    assert summary.num_linked == 60
    assert 0 < summary.num_moved < 60


def test_a_part_of_the_earlier_split_that_is_gone_is_named_as_what_is_missing(tmp_path):
    rows = [entry(number, folder=f"folder {number}") for number in range(20)]
    copies = [entry(number, folder=f"folder {number + 1}", clip=7) for number in range(0, 20, 2)]
    manifest = manifest_of([*rows, *copies], tmp_path / "corpus.jsonl")
    rule = SplitRule(test_share=0.4, group="folder")
    split_manifest(manifest, rule)
    (tmp_path / "corpus.test.jsonl").rename(tmp_path / "moved.jsonl")
    with pytest.raises(FileNotFoundError, match=r"^[^ ]*/corpus\.test\.jsonl: "):
        split_manifest(manifest, rule)


def test_a_new_file_that_links_both_sides_is_left_out_and_the_others_stay(tmp_path):
    rule = SplitRule(test_share=0.5, group="folder")
    rows = [entry(number, folder=f"folder {number}") for number in range(20)]
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    split_manifest(manifest, rule)
    before = parts_of(manifest)
    first = next(row for row in rows if before[row.key] == "train")
    second = next(row for row in rows if before[row.key] == "test")
    new = [entry(900, folder="new", content=row.content, clip=clip) for clip, row in enumerate((first, second))]
    manifest_of([*rows, *new, entry(901, folder="other")], manifest)
    summary = split_manifest(manifest, rule)
    after = parts_of(manifest)
    assert before.items() <= after.items()
    assert [after[row.key] for row in new] == ["left_out", "left_out"]
    assert summary.rows[LEFT_OUT] == 2
    manifest_of([*rows, entry(901, folder="other")], manifest)
    split_manifest(manifest, rule)
    assert not (tmp_path / "corpus.left_out.jsonl").exists()


def test_copies_that_are_added_to_folders_of_two_parts_are_left_out_and_nothing_moves(tmp_path):
    """No source in two parts and no row moved, whatever is copied where: by pandas, on random copies in two steps."""
    random, rule = np.random.default_rng(5), SplitRule(0.3, 0.2, group="folder")
    rows = [entry(number, folder=f"folder {number // 3}") for number in range(90)]
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    split_manifest(manifest, rule)
    for step in (1, 2):
        before = parts_of(manifest)
        pairs = random.integers(0, (100, 30), (12, 2)).tolist()
        rows += [entry(number, folder=f"folder {folder}", clip=step) for number, folder in dict(pairs).items()]
        manifest_of(rows, manifest)
        split_manifest(manifest, rule)
        after = parts_of(manifest)
        assert {key: part for key, part in before.items() if part != "left_out"}.items() <= after.items()
        kept = pd.Series({key: part for key, part in after.items() if part != "left_out"}).reset_index()
        kept.columns = ["key", "part"]
        assert (kept.groupby(kept["key"].str.extract(r"/(v\d+)_")[0])["part"].nunique() == 1).all()
        assert (kept.groupby(kept["key"].str.split("/").str[0])["part"].nunique() == 1).all()
        assert "left_out" in after.values()
        assert len(after) == len(rows)


def test_linked_folders_stay_where_they_were_when_what_linked_them_is_gone(tmp_path):
    rule = SplitRule(test_share=0.5, group="folder")
    rows = [entry(number, folder=f"folder {number}") for number in range(30)]
    links = [entry(number, folder=f"folder {number + 1}", clip=7) for number in range(0, 30, 2)]
    manifest = manifest_of([*rows, *links], tmp_path / "corpus.jsonl")
    assert split_manifest(manifest, rule).num_moved
    before = parts_of(manifest)
    manifest_of(rows, manifest)
    split_manifest(manifest, rule)
    assert parts_of(manifest) == {row.key: before[row.key] for row in rows}


def test_reported_counts_are_those_of_pandas(tmp_path):
    """Rows with several labels count for each; sources count once however many clips they have."""
    random = np.random.default_rng(0)
    rows = [
        entry(number, clip=clip, labels={"tag": [f"tag {tag}" for tag in set(random.integers(0, 12, size=clip % 3))]})
        for number in range(150)
        for clip in range(3)
    ]
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    summary = split_manifest(manifest, SplitRule(0.25, 0.15), by="tag")
    parts = parts_of(manifest)
    frame = pd.DataFrame(
        [(row.path, parts[row.key], tag) for row in rows for tag in row.labels["tag"] or [None]],
        columns=["source", "part", "tag"],
    )
    expected = frame.groupby(["tag", "part"])["source"].nunique().unstack(fill_value=0)
    found = pd.DataFrame({name: dict(zip(NAMES, counts, strict=True)) for name, counts in summary.labels.items()}).T
    pd.testing.assert_frame_equal(found[expected.columns].sort_index(), expected, check_names=False, check_dtype=False)
    sources = frame.groupby("part")["source"].nunique()
    assert summary.groups.tolist() == [*sources[["train", "validation", "test"]], 0]
    record = json.loads((tmp_path / "corpus.split.json").read_text())
    assert record["labels"]["tag 3"] == {name: int(count) for name, count in found.loc["tag 3"].items()}


def test_shares_are_those_of_independent_draws():
    """10,000 sources: each share within four standard deviations of a binomial draw, and seeds are independent."""
    groups = np.random.default_rng(1).integers(0, 2**64, 10_000, np.uint64)
    parts = [SplitRule(0.1, 0.05, seed=seed).parts(groups) for seed in range(2)]
    for part, share in ((TEST, 0.1), (VALIDATION, 0.05), (TRAIN, 0.85)):
        for found in parts:
            assert abs((found == part).mean() - share) < 4 * (share * (1 - share) / 10_000) ** 0.5
    both = ((parts[0] == TEST) & (parts[1] == TEST)).mean()
    assert abs(both - 0.01) < 4 * (0.01 * 0.99 / 10_000) ** 0.5


def test_a_larger_test_share_keeps_the_test_sources():
    groups = np.random.default_rng(2).integers(0, 2**64, 5000, np.uint64)
    small, large = SplitRule(0.1, 0.1).parts(groups), SplitRule(0.3, 0.2).parts(groups)
    assert (large[small == TEST] == TEST).all()
    assert (large[small == VALIDATION] == VALIDATION).all()


def test_seed_auto_is_the_best_of_all_seeds_and_is_kept(tmp_path):
    rows = [entry(number, labels={"label": [f"class {number % 4}"]}) for number in range(40)]
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    summary = split_manifest(manifest, SplitRule(0.2), choose_seed=True)

    def distance(seed):
        tests = Counter(int(row.key.split("v")[-1][:-2]) % 4 for row in rows
                        if hash_part(row.content, row.path, 1000, SplitRule(0.2, seed=seed)) == "test")  # fmt: skip
        return sum((tests[name] - 2) ** 2 / 2 for name in range(4)) + (tests.total() - 8) ** 2 / 8

    assert distance(summary.rule.seed) == min(map(distance, range(300)))
    before = parts_of(manifest)
    manifest_of([*rows, *(entry(number) for number in range(40, 70))], manifest)
    assert split_manifest(manifest, SplitRule(0.2), choose_seed=True).rule.seed == summary.rule.seed
    assert before.items() <= parts_of(manifest).items()
    with pytest.raises(ValueError, match=r"corpus.split.json: .*another rule \(seed: \d+ there, .* now\).*Remove"):
        split_manifest(manifest, SplitRule(0.2, seed=summary.rule.seed + 1))


def test_ranges_read_in_processes_give_the_same_files(tmp_path, monkeypatch):
    rows = [entry(number, clip=clip) for number in range(60) for clip in range(2)]
    folders = []
    for size in (scan.RANGE_BYTES, 7000):
        monkeypatch.setattr(scan, "RANGE_BYTES", size)
        manifest = manifest_of(rows, tmp_path / f"{size}" / "corpus.jsonl")
        split_manifest(manifest, SplitRule(0.3, 0.1), num_workers=2)
        folders.append({path.name: path.read_bytes() for path in manifest.parent.iterdir()})
    assert folders[0] == folders[1]
    assert sorted(folders[0]) == [
        "corpus.jsonl", "corpus.split.json", "corpus.test.jsonl", "corpus.train.jsonl", "corpus.validation.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--test-share", "1.5"], r"--test-share is 1.5; it must be from 0 to below 1"),
        ({}, [], r"--test-share is 0.0 and --validation-share 0.0; together they must be above 0"),
        ({}, ["--test-share", ".3", "--seed", "x"], r"--seed is 'x'; it must be a number from 0, or auto"),
        ({}, ["--test-share", ".3", "--by", "colour"], r"no row has a label 'colour'"),
        ({}, ["--test-share", ".3", "--group", "speaker"], r"no row has a label 'speaker'"),
        ({}, ["--test-share", ".3", "--group", "folder"], r"of 1 folders .* The 2 parts need at least as many"),
        ({"labels": {"speaker": ["a", "b"]}}, ["--test-share", ".3", "--group", "speaker"], r"line 1: has 2 names"),
        ({"part": "test"}, ["--test-share", ".3"], r"is, or holds, the test part of a split"),
        ({"labels": {"label": 3}}, ["--test-share", ".3"], r"line 1: labels is"),
    ],
)
def test_what_cannot_be_split_is_an_error_and_nothing_is_written(tmp_path, capsys, changes, options, message):
    manifest = tmp_path / "corpus.jsonl"
    rows = [json.loads(entry(number).to_json()) | changes for number in range(20)]
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["split", str(manifest), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_file_that_is_no_part_is_not_overwritten(tmp_path):
    """The published test set, indexed beside the corpus under the name that its test part would have."""
    manifest = manifest_of([entry(number) for number in range(80)], tmp_path / "corpus.jsonl")
    published = manifest_of([entry(1000, labels={"part": ["wing"]})], tmp_path / "corpus.test.jsonl")
    before = published.read_bytes()
    with pytest.raises(ValueError, match=r"corpus\.test\.jsonl: is there already and is no part of a split"):
        split_manifest(manifest, SplitRule(0.2))
    split_manifest(manifest, SplitRule(validation_share=0.2))
    assert published.read_bytes() == before


def test_a_train_part_can_be_divided_again(tmp_path):
    rows = [entry(number) for number in range(80)]
    manifest = manifest_of(rows, tmp_path / "corpus.jsonl")
    split_manifest(manifest, SplitRule(0.2))
    again = tmp_path / "corpus.train.jsonl"
    split_manifest(again, SplitRule(validation_share=0.2, seed=1))
    parts = parts_of(tmp_path / "corpus.train.jsonl")
    assert set(parts) == {json.loads(line)["key"] for line in again.read_text().splitlines()}
    assert set(parts.values()) == {"train", "validation"}


def test_the_command_says_how_much_of_each_label_is_test_and_which_have_none(tmp_path, capsys):
    rows = [*(entry(number) for number in range(90)), entry(999, labels={"label": ["rare"]})]
    assert main(["split", str(manifest_of(rows, tmp_path / "corpus.jsonl")), "--test-share", ".2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = parts_of(tmp_path / "corpus.jsonl")
    count = Counter(parts.values())
    assert f"corpus.test.jsonl: {count['test']} rows of {count['test']} sources" in lines[1]
    assert any("of each of 4 names of label 0.0% (rare)" in line for line in lines)
    assert any(line.startswith("  not in test, with the number of sources: rare (1)") for line in lines)
    assert lines[-1].endswith("corpus.split.json; seed 0")


def test_names_of_parts_are_those_of_the_records():
    assert (PARTS[TRAIN], PARTS[VALIDATION], PARTS[TEST], PARTS[LEFT_OUT]) == NAMES


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Ten times the rows: the peak of the process stays the same but for 4 MB of blocks and buffers."""
    program = "import sys\nfrom data_prep.__main__ import main\nmain(sys.argv[1:])\n"
    # not ru_maxrss, which a process inherits from the one that starts it
    program += "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    peaks = []
    for count in (20_000, 200_000):
        manifest = tmp_path / f"{count}.jsonl"
        with manifest.open("wb") as file:
            for number in range(count):
                file.write(entry(number).to_json())
        command = [sys.executable, "-c", program, "split", str(manifest), "--test-share", ".1", "--num-workers", "1"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    assert peaks[1] - peaks[0] < 4e6, peaks
