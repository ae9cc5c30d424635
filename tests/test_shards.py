"""avssl.shards.shard_set: what is written is read back, by index, and whatever does not fit is refused by name."""

import io
import json
import os
import pickle
import tarfile

import pytest

from avssl.files.whole import sha256_file
from avssl.shards.format import SampleInfo, ShardIndex, ShardRecord, SideCar, dump_json, shard_name
from avssl.shards.shard_set import Sample, ShardSet, _any_members, parse_members, write_tar
from avssl.shards.tar_members import plain_members
from avssl.types import MediaError
from data_prep.inspect.verify import verify_folder

USUAL = ("__key__", "json", "video.mp4", "audio.flac")


def sample(index, video=b"video", audio=b"audio", key=None):
    return Sample(
        SampleInfo(
            index=index,
            key=key or f"class_{index % 3}/clip_{index}",
            duration_seconds=1.0,
            video_fps=16.0 if video else 0.0,
            num_frames=16 if video else 0,
            av_offset_seconds=0.0,
            audio_rate_hz=24000 if audio else 0,
            num_audio_samples=24000 if audio else 0,
            labels={"label": [f"class_{index % 3}"]},
            source={"path": f"clip {index}.mp4"},
        ),
        video and video * (index + 1),
        audio and audio * (2 * index + 1),
    )


def write_folder(folder, samples, per_shard):
    """A shard folder around media that nobody decodes."""
    records = []
    for number, first in enumerate(range(0, len(samples), per_shard)):
        run = samples[first : first + per_shard]
        path = folder / shard_name(number)
        with path.open("wb") as file:
            offsets = [0, *write_tar(file, run)]
        records.append(ShardRecord(path.name, len(run), path.stat().st_size, sha256_file(path), first))
        side_car = SideCar(records[-1], [one.info.key for one in run], offsets)
        path.with_suffix(".json").write_bytes(side_car.to_json())
    names = {"label": sorted({name for one in samples for name in one.info.labels["label"]})}
    index = ShardIndex(records, len(samples), len(samples) + 2, 2, {"no_audio": 2}, names, {"seed": 0}, "0" * 64)
    (folder / "index.json").write_bytes(index.to_json())
    return index


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, [sample(i, key="deep/" + "long_" * 40 if i == 3 else None) for i in range(7)], 3)
    return tmp_path


def edit(path, **changes):
    content = json.loads(path.read_bytes())
    path.write_bytes(dump_json({k: v for k, v in (content | changes).items() if v is not None}))


def test_every_sample_is_read_back_by_its_index(folder):
    shards = ShardSet(folder)
    assert (shards.num_samples, shards.shard_sizes) == (7, [3, 3, 1])
    for index in (6, 0, 3, 5, 1, 2, 4, 0):
        key = "deep/" + "long_" * 40 if index == 3 else None
        assert shards.read(index) == sample(index, key=key)
    assert [shards.read(index).info.key for index in range(7)] == shards.keys


def test_index_json_survives_a_round_trip(folder):
    index = ShardIndex.load(folder)
    assert index.num_listed == index.num_samples + index.num_skipped == 9
    assert index.to_json() == (folder / "index.json").read_bytes()


def test_the_tar_is_plain_and_its_headers_are_fixed(folder):
    with tarfile.open(folder / shard_name(0)) as archive:
        members = archive.getmembers()
    assert [member.name.split(".", 1)[1] for member in members] == ["audio.flac", "json", "video.mp4"] * 3
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    first, second = io.BytesIO(), io.BytesIO()
    for buffer in (first, second):
        list(write_tar(buffer, [sample(i) for i in range(3)]))
    assert first.getvalue() == second.getvalue()


def test_an_absent_stream_is_none(tmp_path):
    write_folder(tmp_path, [sample(0, video=None), sample(1, audio=None)], 2)
    shards = ShardSet(tmp_path)
    assert (shards.read(0).video, shards.read(1).audio) == (None, None)
    assert shards.read(0).info.has_audio
    assert not shards.read(0).info.has_video


def test_only_a_few_shards_are_open_at_a_time(tmp_path):
    write_folder(tmp_path, [sample(i) for i in range(40)], 1)
    shards = ShardSet(tmp_path)
    assert [shards.read(i).info.index for i in range(40)] == list(range(40))
    assert len(shards._files) == 16


def test_a_pickled_set_opens_its_own_files(folder):
    shards = ShardSet(folder)
    shards.read(0)
    copy = pickle.loads(pickle.dumps(shards))
    shards.close()
    assert copy.read(4) == sample(4)
    assert copy.fingerprint == shards.fingerprint


@pytest.mark.parametrize("position", [-1, 7])
def test_an_index_outside_is_refused(folder, position):
    with pytest.raises(IndexError, match=r"there are 0\.\.6"):
        ShardSet(folder).read(position)


def test_a_missing_file_is_named(folder):
    (folder / shard_name(1)).rename(folder / "moved")
    with pytest.raises(FileNotFoundError, match=r"shard-000001\.tar: the shard is missing"):
        ShardSet(folder)
    (folder / "moved").rename(folder / shard_name(1))
    (folder / "shard-000002.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000002\.json"):
        ShardSet(folder)
    with pytest.raises(FileNotFoundError, match="avssl prep write"):
        ShardSet(folder / "nowhere")


def test_a_shard_of_another_size_is_refused(folder):
    with (folder / shard_name(2)).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"shard-000002\.tar: has \d+ bytes; index\.json says"):
        ShardSet(folder)


@pytest.mark.parametrize("name", ["index.json", "shard-000000.json"])
def test_another_schema_version_is_refused(folder, name):
    edit(folder / name, schema_version=2)
    with pytest.raises(ValueError, match=f"{name}: has schema version 2; this program reads version 1"):
        ShardSet(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 8}, "num_samples is 8; the rest of the file says 7"),
        ({"num_listed": 7}, "num_listed is 7; the rest of the file says 9"),
        ({"num_skipped": 3}, "num_skipped is 3; the rest of the file says 2"),
        ({"total_bytes": 1}, "total_bytes is 1"),
        ({"num_samples": "7"}, "num_samples is '7'; it must be a whole number"),
        ({"num_samples": True}, "num_samples is True; it must be a whole number"),
        ({"shards": None}, "the field 'shards' is missing"),
        ({"format": "other"}, "format is 'other'"),
        ({"label_names": {"label": "a"}}, "each name a string"),
    ],
)
def test_an_index_that_does_not_add_up_is_refused(folder, changes, message):
    edit(folder / "index.json", **changes)
    with pytest.raises(ValueError, match=message):
        ShardIndex.load(folder)


def test_json_that_is_none_is_refused_by_name(folder):
    (folder / "index.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"index\.json: is not json"):
        ShardSet(folder)


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_defective_sample_is_a_bad_sample():
    good = sample(0).info.to_json()
    key = sample(0).info.key
    cases = {
        "no json": tar_of([(f"{key}.video.mp4", b"v"), (f"{key}.audio.flac", b"a")]),
        "a member is missing": tar_of([(f"{key}.json", good), (f"{key}.video.mp4", b"v")]),
        "two keys": tar_of([(f"{key}.json", good), ("other.json", good)]),
        "json is none": tar_of([(f"{key}.json", b"{")]),
        "a field is missing": tar_of([(f"{key}.json", b'{"index": 0}')]),
        "a field has the wrong type": tar_of([(f"{key}.json", good.replace(b'"index": 0', b'"index": "0"'))]),
        "no tar": b"\x17" * 2048,
        "nothing": b"",
    }
    for name, content in cases.items():
        with pytest.raises(MediaError, match="shard 5") as error:
            parse_members(content, "shard 5")
        assert error.value.reason == "bad_sample", name


def test_a_sample_in_the_wrong_place_is_a_bad_sample(folder):
    path = folder / "shard-000000.json"
    offsets = json.loads(path.read_bytes())["offsets"]
    keys = json.loads(path.read_bytes())["keys"]
    edit(path, keys=[keys[1], keys[0], keys[2]], offsets=offsets)
    with pytest.raises(MediaError, match="bad_sample"):
        ShardSet(folder).read(0)


def test_the_quick_reader_of_members_agrees_with_webdataset_or_leaves_it_to_webdataset(folder):
    def slow(content):
        return {name: part for name, part in _any_members(content, "here")[0].items() if name in USUAL}

    offsets, whole = ShardSet(folder)._side_cars[0].offsets, (folder / shard_name(0)).read_bytes()
    content = whole[offsets[1] : offsets[2]]
    assert plain_members(content) == slow(content)
    assert set(slow(content)) == set(USUAL)
    agreed = 0
    for position in range(0, 1100, 3):  # in headers, in media, in what fills a block
        damaged = bytearray(content)
        damaged[position] ^= 0x15
        quick = plain_members(bytes(damaged))
        assert quick is None or quick == slow(bytes(damaged))
        agreed += quick is not None
    assert 0 < agreed < 300
    long_key = (folder / shard_name(1)).read_bytes()[: ShardSet(folder)._side_cars[1].offsets[1]]
    for other in (content[:-512], content[:700], content + content, whole[: offsets[2]], long_key, b""):
        assert plain_members(other) is None


def test_reading_a_sample_is_one_read_of_its_bytes(folder, monkeypatch):
    shards = ShardSet(folder)
    calls = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, begin: calls.append((size, begin)) or pread(file, size, begin))
    for index in (4, 0, 4):
        shards.read(index)
    first, second = shards._side_cars[0].offsets, shards._side_cars[1].offsets
    assert calls == [(end - begin, begin) for begin, end in (second[1:3], first[0:2], second[1:3])]


def header(name=b"a.json", size=b"", kind=b"0", rest=b""):
    """A tar header with a right checksum. size: its field's 12 bytes."""
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157] = name, size.ljust(12, b"\0"), kind
    block[257:265], block[345 : 345 + len(rest)] = b"ustar  \0", rest
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * ord(" "))
    return bytes(block)


HUGE_SIZE = b"\x80" + (2**70).to_bytes(11, "big")
HOLES = b"".join(b"%011o\0" % number for number in (0, 1))  # the first byte is there, then zeros to the end


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "content",
    [
        header(size=HUGE_SIZE),
        header(size=HUGE_SIZE, kind=b"x"),
        header(size=HUGE_SIZE, kind=b"L"),
        header(size=b"%011o" % 0) + header(b"a.txt", HUGE_SIZE) + bytes(512),
        header(size=b"\x80" + (2**40).to_bytes(11, "big"), kind=b"x"),
        header(size=b"%011o" % 1, kind=b"L") * 3000,
        header(size=b"%011o" % 512, kind=b"S", rest=bytes(41) + HOLES + bytes(72) + b"\0%011o\0" % 2**33) + bytes(512),
    ],
    ids=["file", "pax", "name", "second", "memory", "recursion", "holes"],
)
def test_headers_that_announce_what_is_not_there_are_a_bad_sample_at_once(content, tmp_path):
    with pytest.raises(MediaError, match="bad_sample: the shard"):
        parse_members(content, "the shard")
    write_folder(tmp_path, [sample(0)], 1)
    tar, side_car, index = tmp_path / shard_name(0), tmp_path / "shard-000000.json", tmp_path / "index.json"
    tar.write_bytes(content)
    for path in (side_car, index):
        found = json.loads(path.read_text())
        for record in found.get("shards", [found]):
            record["bytes"] = len(content)
        found |= {"offsets": [0, len(content)]} if "offsets" in found else {"total_bytes": len(content)}
        path.write_text(json.dumps(found))
    shards = ShardSet(tmp_path)
    for read in (shards.read, shards.read_info):
        with pytest.raises(MediaError, match=r"bad_sample: .*shard-000000\.tar, sample 0"):
            read(0)
    assert verify_folder(tmp_path).problems
    shards.close()
