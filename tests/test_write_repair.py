"""Whatever somebody removes or cuts while `write` runs: it ends with index.json or an error, and the same command
repairs it to the same bytes.
"""

import json
import shutil

import pytest

import data_prep.write.run as write_shards_module
from data_prep.index.build import IndexOptions, build_manifest
from data_prep.transcode.options import WriteOptions
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, digest, make_clip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repair")
    for seed in range(7):
        make_clip(folder / "media" / f"{seed}.mp4", seed, seconds=0.5)
    build_manifest(folder / "media", folder / "corpus.jsonl", IndexOptions())
    return folder / "corpus.jsonl"


@pytest.fixture(scope="module")
def right(manifest):
    write_shards(manifest, manifest.parent / "right", OPTIONS)
    return digest(manifest.parent / "right")


@pytest.fixture(scope="module")
def moments(manifest):
    """Copies of the folder when all parts are done, and when they are packed but for index.json."""
    out = manifest.parent / "stopped"
    names = {"parts": "_pack", "packed": "_finish"}
    for moment, function in names.items():

        def stop(*_, moment=moment):
            shutil.copytree(out, manifest.parent / moment)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(write_shards_module, function, stop)
            with pytest.raises(KeyboardInterrupt):
                write_shards(manifest, out, OPTIONS)
    return manifest.parent


DAMAGE = {
    "is removed": lambda path: path.unlink(),
    "is cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "is empty": lambda path: path.write_bytes(b""),
}
FILES = {
    "parts": [".parts/part-000001.bin", ".parts/part-000001.records", ".parts/part-000001.json", ".parts/rows-*.json",
              ".parts/rows-*.offsets"],
    "packed": ["shard-000001.tar", "shard-000001.json", ".parts/part-000001.json", ".parts/part-000001.records"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("moment", "name"), [(moment, name) for moment, names in FILES.items() for name in names])
def test_a_file_that_is_damaged_between_two_runs_is_made_anew(manifest, right, moments, tmp_path, moment, name, damage):
    out = tmp_path / "shards"
    shutil.copytree(moments / moment, out)
    (path,) = out.glob(name)
    DAMAGE[damage](path)
    for _ in range(2):  # what only packing can see is an error that says to run again
        try:
            finished = write_shards(manifest, out, OPTIONS)
            break
        except ValueError as error:
            if "run the same command again" not in str(error):
                raise
    assert finished is not None
    assert digest(out) == right


@pytest.mark.slow
@pytest.mark.parametrize("name", ["part-000001.json", "part-000001.bin", "part-000001.records"])
def test_a_part_that_vanishes_while_it_runs_is_an_error_and_then_made_anew(
    manifest, right, tmp_path, monkeypatch, name
):
    out = tmp_path / "shards"
    counts = write_shards_module._counts

    def remove_first(job, attempt):
        (out / ".parts" / name).unlink()
        return counts(job, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(write_shards_module, "_counts", remove_first)
        with pytest.raises((RuntimeError, ValueError), match="run the same command again"):
            write_shards(manifest, out, OPTIONS)
    assert not (out / "index.json").exists()
    assert write_shards(manifest, out, OPTIONS) is not None
    assert digest(out) == right


# --- a folder that was finished ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_skips(tmp_path_factory):
    """Seven clips of two classes and a text that is named as a film is, in shards of three listed files."""
    folder = tmp_path_factory.mktemp("finished")
    for seed in range(7):
        make_clip(folder / "media" / f"class {seed % 2}" / f"{seed}.mp4", seed, seconds=0.5)
    (folder / "media" / "text.mp4").write_text("no video")
    build_manifest(folder / "media", folder / "corpus.jsonl", IndexOptions())
    write_shards(folder / "corpus.jsonl", folder / "right", OPTIONS)
    return folder


def facts(folder):
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


FINISHED = ["shard-000000.tar", "shard-000001.tar", "shard-000001.json", "shard-000002.tar", "skipped.jsonl"]


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("names", "damage"),
    [
        *(([name], damage) for name in FINISHED[1:] for damage in ("is removed", "is cut")),
        (FINISHED, "is empty"),
        (["index.json"], "is removed"),
        (["index.json"], "is cut"),
        (["index.json", "shard-000001.tar", "skipped.jsonl"], "is removed"),
    ],
)
def test_what_is_damaged_of_a_finished_folder_is_written_anew_and_nothing_else_is_touched(
    with_skips, tmp_path, names, damage
):
    out = tmp_path / "shards"
    shutil.copytree(with_skips / "right", out)
    before = facts(out)
    for name in names:
        DAMAGE[damage](out / name)
    write_shards(with_skips / "corpus.jsonl", out, OPTIONS)
    after = facts(out)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    # A shard without its side-car is written again, too.
    damaged = {name.replace(".json", ".tar") for name in names}
    untouched = {name for name in before if name.endswith(".tar") and name not in damaged}
    assert all(after[name][0] == before[name][0] for name in untouched)


def test_without_the_sources_a_damaged_shard_is_an_error_that_names_them_and_all_else_stays(with_skips, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(with_skips, folder)
    out = folder / "right"
    keys = json.loads((out / "shard-000001.json").read_text())["keys"]
    (out / "shard-000001.tar").unlink()
    before = facts(out)
    (folder / "media").rename(folder / "away")
    for _ in range(2):
        with pytest.raises(ValueError, match="bring them back and run the same command again") as error:
            write_shards(folder / "corpus.jsonl", out, OPTIONS)
        assert all(key.rsplit("/", 1)[1].removesuffix("_mp4") + ".mp4" in str(error.value) for key in keys)
        assert facts(out) == before
    (folder / "away").rename(folder / "media")
    write_shards(folder / "corpus.jsonl", out, OPTIONS)
    assert digest(out) == digest(with_skips / "right")


def test_shards_of_other_options_that_lost_their_index_are_not_overwritten(with_skips, tmp_path):
    out = tmp_path / "shards"
    shutil.copytree(with_skips / "right", out)
    (out / "index.json").unlink()
    before = facts(out)
    for options in (WriteOptions(short_side_px=32, samples_per_shard=3), WriteOptions(48, samples_per_shard=3, seed=9)):
        with pytest.raises(ValueError, match="they are not what this command writes"):
            write_shards(with_skips / "corpus.jsonl", out, options)
        assert facts(out) == before


@pytest.mark.slow
def test_a_repair_that_is_interrupted_goes_on(with_skips, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    shutil.copytree(with_skips / "right", out)
    for name in ("shard-000000.tar", "shard-000002.tar"):
        (out / name).unlink()

    def stop(*_):
        raise KeyboardInterrupt

    for function in ("_pack", "_finish"):
        with monkeypatch.context() as patch:
            patch.setattr(write_shards_module, function, stop)
            with pytest.raises(KeyboardInterrupt):
                write_shards(with_skips / "corpus.jsonl", out, OPTIONS)
    write_shards(with_skips / "corpus.jsonl", out, OPTIONS)
    assert digest(out) == digest(with_skips / "right")


@pytest.mark.slow
def test_a_damaged_folder_is_repaired_and_its_failed_files_are_read_again_by_one_command(with_skips, tmp_path):
    out = tmp_path / "shards"
    shutil.copytree(with_skips / "right", out)
    (out / "shard-000000.tar").unlink()
    write_shards(with_skips / "corpus.jsonl", out, OPTIONS, retry_failed=True)
    assert digest(out) == digest(with_skips / "right")


@pytest.mark.slow
def test_a_shard_whose_bytes_changed_is_not_packed_anew_as_if_it_were_whole(with_skips, tmp_path):
    """Reading failed files again makes all shards anew, with new hashes, by which no change could be found any more."""
    out = tmp_path / "shards"
    shutil.copytree(with_skips / "right", out)
    content = bytearray((out / "shard-000001.tar").read_bytes())
    content[content.index(b"mdat") + 100] ^= 1
    (out / "shard-000001.tar").write_bytes(content)
    before = facts(out)
    with pytest.raises(ValueError, match=r"shard-000001\.tar changed since they were written; remove these"):
        write_shards(with_skips / "corpus.jsonl", out, OPTIONS, retry_failed=True)
    assert facts(out) == before
    (out / "shard-000001.tar").unlink()
    write_shards(with_skips / "corpus.jsonl", out, OPTIONS)
    write_shards(with_skips / "corpus.jsonl", out, OPTIONS, retry_failed=True)
    assert digest(out) == digest(with_skips / "right")
