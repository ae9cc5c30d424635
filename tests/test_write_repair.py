"""Whatever somebody removes or cuts while `write` runs: it ends with index.json or an error, and the same command
repairs it to the same bytes.
"""

import shutil

import pytest

import data_prep.write_shards as write_shards_module
from data_prep.index import IndexOptions, index
from data_prep.write_shards import write_shards
from tests.clips import OPTIONS, digest, make_clip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repair")
    for seed in range(7):
        make_clip(folder / "media" / f"{seed}.mp4", seed, seconds=0.5)
    index(folder / "media", folder / "corpus.jsonl", IndexOptions())
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
    "parts": [".parts/part-000001.bin", ".parts/part-000001.records", ".parts/part-000001.json", ".parts/rows.json",
              ".parts/rows.offsets"],
    "packed": ["shard-000001.tar", "shard-000001.json", ".parts/part-000001.json", ".parts/part-000001.records"],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("moment", "name"), [(moment, name) for moment, names in FILES.items() for name in names])
def test_a_file_that_is_damaged_between_two_runs_is_made_anew(manifest, right, moments, tmp_path, moment, name, damage):
    out = tmp_path / "shards"
    shutil.copytree(moments / moment, out)
    DAMAGE[damage](out / name)
    for _ in range(2):  # what only packing can see is an error that says to run again
        try:
            finished = write_shards(manifest, out, OPTIONS)
            break
        except ValueError as error:
            if "run the same command again" not in str(error):
                raise
    assert finished is not None
    assert digest(out) == right


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
