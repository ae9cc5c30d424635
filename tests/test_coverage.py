"""Coverage: every number compared with a count by hand, and with what `write` says itself."""

import json
import shutil
import tracemalloc

import pytest

from avssl.shards.manifest import Entry
from data_prep.__main__ import main
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.inspect.coverage import Counts, Fate, measure
from tests.clips import make_clip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with corpus.jsonl and shards: of seven rows two are written."""
    folder = tmp_path_factory.mktemp("coverage")
    make_clip(folder / "media" / "good.mkv", seconds=2.0, audio_codec="flac")
    make_clip(folder / "media" / "silent.mp4", audio=None)
    make_clip(folder / "media" / "audio.m4a", video=None)
    (folder / "media" / "text.mp4").write_text("no video\n" * 100)
    whole = folder / "media" / "half.mkv"
    make_clip(whole, seconds=3.0, audio_codec="flac")
    rows = [
        {"path": "good.mkv", "labels": {"animal": ["cat", "dog"], "place": ["home"]}, "segment": [0, 1]},
        {"path": "good.mkv", "labels": {"animal": ["cat"]}, "segment": [1, 2]},
        {"path": "silent.mp4", "labels": {"animal": ["cat"]}},
        {"path": "audio.m4a", "labels": {"animal": ["dog"]}},
        {"path": "text.mp4", "labels": {"animal": ["dog"], "place": ["home"]}},
        {"path": "half.mkv"},
        {"path": "gone.mp4", "labels": {"animal": ["emu"]}},
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_manifest(folder / "list.jsonl", folder / "corpus.jsonl", IndexOptions(media=folder / "media"))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])  # cut since
    command = ["write", str(folder / "corpus.jsonl"), "--out", str(folder / "shards"), "--num-workers", "1",
               "--short-side-px", "48", "--samples-per-shard", "2"]  # fmt: skip
    assert main(command) == 0
    return folder


def numbers(counts):
    """(listed, found, decodable, with video, with audio, written, skipped)."""
    return (counts.listed, counts.found, counts.decodable, counts.with_video, counts.with_audio, counts.written,
            counts.skipped)  # fmt: skip


def test_of_a_manifest_it_says_what_is_there_and_can_be_decoded(corpus):
    coverage = measure(str(corpus / "corpus.jsonl"))
    assert numbers(coverage.total) == (7, 6, 5, 4, 4, 0, 0)
    assert coverage.total.reasons == {"not_media": 1, "missing_file": 1}
    assert numbers(coverage.classes["animal"]["emu"]) == (1, 0, 0, 0, 0, 0, 0)
    assert coverage.num_not_opened == 0


def test_of_shards_it_says_what_was_written_and_why_the_rest_was_not(corpus):
    coverage = measure(str(corpus / "corpus.jsonl"), str(corpus / "shards"))
    assert numbers(coverage.total) == (7, 6, 4, 4, 4, 2, 5)
    assert coverage.total.reasons == {
        "not_media": 1, "missing_file": 1, "changed_file": 1, "no_audio": 1, "no_video": 1
    }  # fmt: skip
    animals, places = coverage.classes["animal"], coverage.classes["place"]
    assert {name: numbers(counts) for name, counts in animals.items()} == {
        "cat": (3, 3, 3, 3, 2, 2, 1),
        "dog": (3, 3, 2, 1, 2, 1, 2),
        "emu": (1, 0, 0, 0, 0, 0, 1),
    }
    assert animals["dog"].reasons == {"no_video": 1, "not_media": 1}
    assert numbers(places["home"]) == (2, 2, 1, 1, 1, 1, 1)
    assert numbers(coverage.unlabeled) == (1, 1, 0, 1, 1, 0, 1)
    assert coverage.total.written_hours * 3600 == pytest.approx(2.0, abs=0.15)
    assert animals["cat"].listed_hours * 3600 == pytest.approx(3.0, abs=0.05)
    shards = json.loads((corpus / "shards" / "index.json").read_text())
    assert (coverage.total.listed, coverage.total.written) == (shards["num_listed"], shards["num_samples"])
    assert coverage.total.reasons == shards["skipped_by_reason"]


def test_the_table_and_the_json_say_the_same(corpus, tmp_path, capsys):
    command = ["coverage", str(corpus / "corpus.jsonl"), str(corpus / "shards"), "--numbers", str(tmp_path / "c.json")]
    assert main([*command, "--classes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert lines[0].startswith(
        " " * 36 + "     listed      found  decodable with video with audio    written    skipped"
    )
    assert rows["all"][1:8] == ["7", "6", "4", "4", "4", "2", "5"]
    assert rows["cat"][1:8] == ["3", "3", "3", "3", "2", "2", "1"]
    assert rows["changed_file"] == ["changed_file", "1"]
    assert "  and 1 more; --classes 0 and --numbers show all" in lines
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["classes"]["animal"]["emu"]["reasons"] == {"missing_file": 1}
    assert found["total"] == json.loads(json.dumps(measure(*command[1:3]).to_json()["total"]))


def test_shards_of_another_manifest_are_refused(corpus, tmp_path, capsys):
    other = tmp_path / "corpus.jsonl"
    other.write_bytes(b"".join((corpus / "corpus.jsonl").read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["coverage", str(other), str(corpus / "shards")]) == 2
    assert "was not written from" in capsys.readouterr().err
    assert main(["coverage", str(tmp_path / "nowhere.jsonl")]) == 2
    assert main(["coverage", str(corpus / "corpus.jsonl"), str(tmp_path)]) == 2
    copy = shutil.copytree(corpus / "shards", tmp_path / "shards")
    (copy / "shard-000000.tar").write_bytes(b"no tar")
    assert main(["coverage", str(corpus / "corpus.jsonl"), str(copy)]) == 2
    assert "see `avssl prep verify`" in capsys.readouterr().err


def test_files_that_were_not_opened_are_found_but_not_called_decodable(corpus, tmp_path):
    build_manifest(corpus / "list.jsonl", tmp_path / "c.jsonl", IndexOptions(media=corpus / "media", probe=False))
    coverage = measure(str(tmp_path / "c.jsonl"))
    assert numbers(coverage.total) == (7, 6, 0, 0, 0, 0, 0)
    assert coverage.num_not_opened == 6


def test_what_an_option_of_write_left_out_was_opened_and_is_decodable_without_facts_of_the_manifest(corpus, tmp_path):
    manifest = tmp_path / "c.jsonl"
    build_manifest(corpus / "list.jsonl", manifest, IndexOptions(media=corpus / "media", probe=False))
    command = ["write", str(manifest), "--out", str(tmp_path / "shards"), "--num-workers", "1", "--short-side-px", "48"]
    assert main(command) == 0
    coverage = measure(str(manifest), str(tmp_path / "shards"))
    assert coverage.total.reasons == {"no_audio": 1, "no_video": 1, "not_media": 1, "truncated": 1, "missing_file": 1}
    assert numbers(coverage.total) == (7, 6, 4, 2, 2, 2, 5)  # without the last three
    counts = Counts()
    for reason in ("too_short", "silent_audio", "still_video"):
        counts.add(Entry("a.mp4", "a", {}, {}, None, 1), Fate(reason))
    assert numbers(counts) == (3, 3, 3, 0, 0, 0, 3)


def test_an_entry_that_index_could_not_open_is_not_decodable_for_what_write_says_again():
    counts = Counts()
    error = {"reason": "no_video", "message": "its video has no frame"}
    counts.add(Entry("a.mp4", "a", {}, {}, error, 1), Fate("no_video"))
    counts.add(Entry("b.mp4", "b", {}, {"container": "mp4", "video": None, "audio": None}, None, 1), Fate("no_video"))
    assert numbers(counts) == (2, 2, 0, 0, 0, 0, 2)


def test_images_count_as_decodable_by_their_header():
    counts = Counts()
    counts.add(Entry("a.png", "a", {}, {"image": {"width": 3}}, None, 1), None)
    counts.add(Entry("b.png", "b", {}, {"image": None}, {"reason": "not_media", "message": ""}, 1), None)
    assert numbers(counts) == (2, 2, 1, 0, 0, 0, 0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_manifest(tmp_path):
    def peak(number):
        path = tmp_path / "corpus.jsonl"
        with path.open("wb") as file:
            for k in range(number):
                file.write(Entry(f"{k}.mp4", f"key{k}", {"label": [f"class {k % 9}"]}, {}, None, 1).to_json())
        tracemalloc.start()
        assert measure(str(path)).total.listed == number
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(5000) < peak(500) + 100_000
