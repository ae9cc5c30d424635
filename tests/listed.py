"""Lists of media as text, the files that they name, and what `index` makes of them: entries, or a refusal."""

import shutil

import pytest

from avssl.shards.manifest import stream_manifest
from data_prep.index.build import IndexOptions, build_manifest


def copies_of(clip, folder, *names):
    """Put copies of a file into a folder, which is returned."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, path)
    return folder


def listed(tmp_path, name, text, **options):
    """{key: entry} of a list with this text, and the summary."""
    source = tmp_path / name
    source.write_text(text)
    options = {"media": tmp_path / "media", "probe": False} | options
    summary = build_manifest(source, tmp_path / "corpus.jsonl", IndexOptions(**options))
    return {entry.key: entry for entry in stream_manifest(tmp_path / "corpus.jsonl")}, summary


def refusal(tmp_path, name, text, **options):
    with pytest.raises(ValueError) as error:
        listed(tmp_path, name, text, **options)
    assert not (tmp_path / "corpus.jsonl").exists()
    assert not list(tmp_path.glob(".corpus*"))
    return str(error.value)


def facts(entries):
    """{key: (path, labels, segment, reason)}."""
    return {
        key: (entry.path, entry.labels, entry.segment, entry.error and entry.error["reason"])
        for key, entry in entries.items()
    }


KINETICS = """label,youtube_id,time_start,time_end,split
"playing, drums",abcdefghij0,10,20,train
abseiling,abcdefghij1,0,10,train
abseiling,-bcdefghij_,7,17,train
abseiling,absentabsen,5,15,validate
"""
