"""What comes from data is harmless where it is printed, configurations that are none are one line, tensors one hash."""

import io
import logging

import pytest
import torch

from avssl import config
from avssl.files.plain_text import plain, say
from avssl.files.tensors import write_tensors

MALICIOUS = "a\x1b[31m\x9b2J\n\u202eb\u2066\r\udcff\x07"


def test_no_character_that_acts_is_left_and_the_rest_stays():
    assert plain(MALICIOUS) == r"a\x1b[31m\x9b2J\n\u202eb\u2066\r\udcff\x07"
    assert plain("köln 日本 עברית") == "köln 日本 עברית"


def test_a_line_is_one_line_in_any_encoding():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    say(f"{MALICIOUS} é", stream)
    assert raw.getvalue() == plain(MALICIOUS).encode() + rb" \xe9" + b"\n"


def test_records_of_the_log_are_plain(caplog):
    logging.getLogger("avssl").warning("sample %s", MALICIOUS)
    assert "\x1b" not in caplog.text
    assert r"\x1b[31m" in caplog.text


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    "content",
    [b"\x00\x01\xff", b"a:\t- b\n\t c", b"- a\n- b\n", b"[" * 100_000, BOMB.encode(), b"a: 1\na: 2\n", b"", b"3"],
)
def test_a_file_that_is_no_configuration_is_one_line(content, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(config.ConfigError, match=r"recipe\.yaml: ") as caught:
        config.parse(config.RunConfig, [str(path)])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_equal_tensors_have_equal_bytes(tmp_path):
    state = {"b": torch.ones(2), "a": torch.zeros(3)}
    names = [f"k{number}" for number in range(12)]
    found = set()
    for attempt in range(6):
        path = tmp_path / "x.safetensors"
        write_tensors(state, path, dict.fromkeys(names if attempt % 2 else names[::-1], "v"))
        found.add(path.read_bytes())
    assert len(found) == 1
