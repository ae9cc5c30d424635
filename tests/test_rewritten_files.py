"""What a resumed run writes anew is the new file, or the one before: a stop between leaves no part of it."""

import os

import pytest

from avssl import config
from avssl.files.json_lines import truncate_log

WRITERS = {
    "config.yaml": lambda path: config.save(config.DataConfig(), path),
    "metrics.jsonl": lambda path: truncate_log(path, 1),
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


@pytest.mark.parametrize("half", ['{"ste', '{"step": 3', '{"step": 3, "of": {"a": 1}', ""])
def test_lines_beyond_the_step_that_is_gone_on_from_are_dropped_and_half_a_line_with_them(half, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": NaN}\n{"step":5}\n{"step": 10}\n' + half)
    truncate_log(path, 5)
    assert path.read_text() == '{"step": 0, "loss": NaN}\n{"step":5}\n'
