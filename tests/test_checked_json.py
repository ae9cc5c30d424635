"""json that others wrote or damaged: one ValueError that names file and field, whatever it holds; at every door."""

import json
import re

import pytest

from avssl.files.checked_json import MAX_DEPTH, Fields, parse
from avssl.shards.format import SampleInfo, ShardIndex, SideCar
from avssl.shards.manifest import Entry, stream_manifest
from avssl.shards.shard_set import ShardSet
from avssl.types import MediaError
from data_prep.inspect.verify import verify_folder
from data_prep.write.rows import scan
from tests.test_shards import sample, write_folder

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not json"),
        ("", "is not json"),
        (b"\xff\xfe\x00", "is not json"),
        (DEEP, f"nested more than {MAX_DEPTH} deep"),
        ("[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (f'{{"a": {{"b": [1, {HUGE}]}}}}', r"a\.b\[1\] is a number of 401 digits"),
        ('{"a": ' + "9" * 5000 + "}", "a is a number of 5000 digits"),
        ('{"a": 1e999}', "a is '1e999'"),
        ('{"a": -Infinity}', "a is -Infinity"),
        ("NaN", "it is NaN"),
    ],
)
def test_text_that_is_no_value_within_bounds_is_one_error_that_says_where(text, message):
    with pytest.raises(ValueError, match=f"^the file: .*{message}"):
        parse(text, "the file")


def test_what_json_can_hold_within_bounds_is_read_as_it_is():
    value = {"a": [1, -(2**63), 1.5, None, True, "\u202e\0"], "b": {}}
    assert parse(json.dumps(value), "x") == parse(json.dumps(value).encode(), "x") == value
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("count", -1), ("count", True), ("count", 1.0), ("count", None), ("count", 2**60), ("number", "1"),
        ("number", None), ("number", float("inf")), ("number", 10**400), ("number", True), ("text", 1),
        ("labels", {"a": "b"}), ("labels", {"a": [1]}), ("labels", []), ("counts", {"a": None}),
        ("counts", {"a": float("inf")}), ("items", {}), ("mapping", []), ("flag", 1),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_named_with_what_was_found(method, value):
    with pytest.raises(ValueError, match=r"^the file: the_field is .+; it must be "):
        getattr(Fields({"the_field": value}, "the file"), method)("the_field")
    with pytest.raises(ValueError, match=r"^the file: the field 'other' is missing; found 'the_field'"):
        getattr(Fields({"the_field": value}, "the file"), method)("other")


GOOD = json.loads(sample(0, video=b"v").info.to_json())


def with_text(**changes):
    """The json of a sample with fields replaced by raw text."""
    fields = {name: json.dumps(value) for name, value in GOOD.items()} | changes
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}").encode()


BAD_FIELDS = {
    "video_fps": ["Infinity", "0", "-1", "1e-320", HUGE, "1e999", "null", '"30"', DEEP],
    "duration_seconds": ["NaN", "-1", HUGE, "[]"],
    "av_offset_seconds": ["Infinity", "1e300"],
    "num_frames": ["1.5", "-3", HUGE],
    "audio_rate_hz": ["-1", "true", HUGE],
    "labels": ['{"a": "b"}', "3", f'{{"a": [{HUGE}]}}'],
    "source": ["[]", f'{{"a": {HUGE}}}'],
}


@pytest.mark.quick(9)
@pytest.mark.parametrize(("field", "text"), [(name, text) for name, texts in BAD_FIELDS.items() for text in texts])
def test_a_sample_with_such_a_field_is_bad_for_the_loader_and_verify_names_shard_key_and_field(field, text, tmp_path):
    wanted = "nested more than" if text == DEEP else field

    class BadInfo(SampleInfo):
        def to_json(self):
            return with_text(index="1", key='"clip_1"', **{field: text})

    samples = [sample(i, video=b"v") for i in range(3)]
    object.__setattr__(samples[1], "info", BadInfo(**vars(samples[1].info) | {"key": "clip_1"}))
    write_folder(tmp_path, samples, 3)
    shards = ShardSet(tmp_path)
    for read in (shards.read, shards.read_info):
        with pytest.raises(MediaError, match=wanted) as caught:
            read(1)
        assert caught.value.reason == "bad_sample"
    assert shards.read(0) == samples[0]
    problems = [str(one) for one in verify_folder(tmp_path).problems]
    assert any("shard-000000.tar, sample clip_1" in one and wanted in one for one in problems), problems


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"offsets": [0, 10**15]}, "offsets end at"), ({"offsets": [0, None]}, "offsets"), ({"keys": [1]}, "keys"),
        ({"offsets": "x"}, "offsets"), ({"num_samples": None}, "num_samples"), ({"bytes": float("inf")}, "bytes"),
        ({"name": "../../etc.tar"}, "name"), ({"schema_version": "1"}, "schema_version"),
    ],
)  # fmt: skip
def test_a_side_car_that_does_not_fit_is_named_with_its_field(change, field, tmp_path):
    write_folder(tmp_path, [sample(0, video=b"v")], 1)
    path = tmp_path / "shard-000000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for load in (lambda: SideCar.load(path), lambda: ShardSet(tmp_path)):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{field}"):
            load()
    assert any(field in problem.message for problem in verify_folder(tmp_path).problems)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shards": None}, "shards"), ({"shards": [1]}, r"shards\[0\]"), ({"shards": [{}]}, r"the field .shards\[0\]"),
        ({"num_samples": float("inf")}, "num_samples"), ({"skipped_by_reason": {"a": "b"}}, "skipped_by_reason"),
        ({"skipped_by_reason": {"a": None}}, "skipped_by_reason"), ({"label_names": {"a": [None]}}, "label_names"),
        ({"options": []}, "options"), ({"manifest_sha256": 3}, "manifest_sha256"), ({"total_bytes": None}, "total"),
        ({"schema_version": [1]}, "schema_version"), ({"format": 10**50}, "format"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_named_with_its_field(change, field, tmp_path):
    write_folder(tmp_path, [sample(0, video=b"v")], 1)
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}.*{field}"):
        ShardIndex.load(tmp_path)
    assert not verify_folder(tmp_path).ok


ROW = json.loads(Entry("a.mp4", "a", {"label": ["x"]}, {"duration_seconds": 3.0, "video": {}}, None, 5).to_json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", None), ("bytes", "many"), ("bytes", -1), ("labels", {"a": [None]}), ("labels", {"a": "b"}),
        ("error", {"reason": []}), ("error", "no"), ("error", {"reason": "timeout", "message": 3}), ("path", 3),
        ("path", "a\0b"), ("key", ["a"]), ("key", "a\n"), ("duration_seconds", "long"), ("duration_seconds", 10**300),
        ("video", 3), ("video", {"fps": "fast"}), ("audio", [1]), ("segment", [0, 10**400]), ("segment", [0, "1"]),
        ("item", 10**30), ("container", {}),
    ],
)  # fmt: skip
def test_a_row_of_a_manifest_that_does_not_fit_is_named_by_file_line_and_field(field, value, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW | {field: value})}\n")
    for read in (lambda: list(stream_manifest(path)), lambda: scan(path, tmp_path / "work")):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line 2[:,].*{field}"):
            read()


def test_a_row_that_is_nested_too_deep_is_named_by_its_line(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{DEEP}\n")
    for read in (lambda: list(stream_manifest(path)), lambda: scan(path, tmp_path / "work")):
        with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: is nested more than"):
            read()


def test_json_of_files_is_parsed_by_this_module():
    """Elsewhere json is parsed only where a process of the same program, or this run, has written it."""
    from tests.test_layers import MODULES, ROOT

    of_this_program = {
        "avssl/embedding/blocks.py", "avssl/embedding/folder.py",
        "avssl/embedding/sources.py", "avssl/eval/finetune/state.py", "avssl/files/tensors.py", "avssl/ops/kernels.py",
        "avssl/processes/parcels.py", "data_prep/index/labels.py", "data_prep/index/spool.py", "recipes/demo.py",
    }  # fmt: skip
    parsing = {
        str(path.relative_to(ROOT)) for path in MODULES.values() if re.search(r"\bjson\.loads?\(", path.read_text())
    }
    assert parsing - of_this_program == set()
