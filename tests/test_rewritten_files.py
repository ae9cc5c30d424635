"""What a resumed run writes anew is the new file, or the one before: a stop between leaves no part of it."""

import os

import pytest

from avssl import config
from avssl.monitor import _truncate_after
from avssl.online_probe import keep_until

WRITERS = {
    "config.yaml": lambda path: config.save(config.DataConfig(), path),
    "metrics.jsonl": lambda path: _truncate_after(path, 1),
    "online_probe.jsonl": lambda path: keep_until(path, 1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_stop_before_the_disk_has_the_new_file_leaves_the_one_before(name, tmp_path, monkeypatch):
    before = '{"step": 1}\n{"step": 2}\n'
    path = tmp_path / name
    path.write_text(before)

    def stop(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](path)
    assert path.read_text() == before
    assert [one.name for one in tmp_path.iterdir()] == [name]
