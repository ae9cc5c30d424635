"""Damage drawn from a generator: of bytes, of json, of tar headers, of arrays. Pure functions of what is given."""

from __future__ import annotations

import copy
import io
import json
import random
from typing import Any

import numpy as np

BLOCK_BYTES = 512
DEEP = "@deep@"  # stands for text that json.dumps cannot write
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 2**31, 2**53, 2**63, 2**64,
    -(2**63), 10**400, "", "a", "0", "\0", "\ud800", "\u202e", "../x", "/etc/passwd", "a" * 5000, "%s{}", [], [[]],
    {}, {"a": 1}, [None], ["a", "a"], [1, 2], [0, 1e400], {"": {}}, DEEP,
)  # fmt: skip
ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def damaged(content: bytes, rng: random.Random, others: tuple[bytes, ...] = ()) -> bytes:
    """The bytes after one to three kinds of damage; others: what pieces may also come from."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(KINDS)(content, rng, others or (content,))
    return content


def _flip(content: bytes, rng: random.Random, others: tuple[bytes, ...]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if content else 0):
        changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random, others: tuple[bytes, ...]) -> bytes:
    return content[: _place(content, rng)]


def _drop(content: bytes, rng: random.Random, others: tuple[bytes, ...]) -> bytes:
    begin, end = _span(content, rng)
    return content[:begin] + content[end:]


def _splice(content: bytes, rng: random.Random, others: tuple[bytes, ...]) -> bytes:
    other = rng.choice(others)
    begin, end = _span(other, rng)
    at = _place(content, rng)
    length = rng.choice((0, end - begin))  # put in between, or in place of as many bytes
    return content[:at] + other[begin:end] + content[at + length :]


def _fill(content: bytes, rng: random.Random, others: tuple[bytes, ...]) -> bytes:
    begin, end = _span(content, rng)
    return content[:begin] + rng.choice((b"\0", b"\xff", b"9", b"[", b" ")) * (end - begin) + content[end:]


def _number(content: bytes, rng: random.Random, others: tuple[bytes, ...]) -> bytes:
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    at = _place(content, rng)
    value = (rng.choice(ODD_NUMBERS) & (256**size - 1)).to_bytes(size, order)
    return content[:at] + value + content[at + size :]


KINDS = (_flip, _flip, _cut, _drop, _splice, _fill, _number, _number)


def _place(content: bytes, rng: random.Random) -> int:
    """A place in it; half of them near the beginning, where headers are."""
    if not content:
        return 0
    return rng.randrange(min(len(content), 256) if rng.random() < 0.5 else len(content))


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    begin = _place(content, rng)
    return begin, min(len(content), begin + rng.choice((1, 4, 16, 100, 512, 4000)))


def odd_json(content: bytes, rng: random.Random) -> bytes:
    """json with some of its values replaced, removed, doubled or renamed."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = odd_value(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    depth = rng.choice((10, 65, 2000, 50_000))
    text = text.replace(f'"{DEEP}"', rng.choice(('{"a":' * depth + "1" + "}" * depth, "[" * depth + "]" * depth)))
    return text.encode("utf-8", "surrogatepass")


def odd_value(value: Any, rng: random.Random) -> Any:
    """A value made of lists and objects with one of its parts changed."""
    value = copy.deepcopy(value)
    places = [(value, key) for value, key in _places(value)]
    if not places or rng.random() < 0.03:
        return rng.choice(ODD_VALUES)
    holder, key = rng.choice(places)
    action = rng.random()
    if action < 0.7:
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif action < 0.85:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    else:
        holder[rng.choice(("", "x", f"{key}x", "__class__", "a.b"))] = holder.pop(key)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def with_checksums(content: bytes) -> bytes:
    """tar bytes whose headers have the right checksum again, so that readers look at the rest of them."""
    changed = bytearray(content)
    for at in range(0, len(content) - BLOCK_BYTES + 1, BLOCK_BYTES):
        header = bytes(changed[at : at + BLOCK_BYTES])
        if b"ustar" in header[250:270]:
            total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
            changed[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(changed)


def odd_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header, json behind its length, is odd."""
    length = int.from_bytes(content[:8], "little")
    header = odd_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def odd_arrays(content: bytes, rng: random.Random) -> bytes:
    """An npz file with some arrays of another shape or type, or without them."""
    with np.load(io.BytesIO(content)) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    for name in rng.sample(list(arrays), min(len(arrays), rng.choice((1, 1, 2)))):
        arrays[name] = odd_array(arrays[name], rng)
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
    return stream.getvalue()


def odd_array(array: Any, rng: random.Random) -> Any:
    """An array of another shape or type; None: leave it out."""
    makers = (
        lambda: None,
        lambda: array[:1] if array.ndim else array[None],
        lambda: array[..., None],
        lambda: np.array(rng.choice(("", "{", "[]", '{"format_version": 1}', "\0", "a" * 99))),
        lambda: np.array(rng.choice((0, -1, 2**63 - 1, float("nan"), True))),
        lambda: np.full(array.shape, rng.choice((np.nan, np.inf, -1.0, 1e300))),
        lambda: np.full(array.shape, "x"),
        lambda: np.zeros(array.shape, "datetime64[s]"),
        lambda: np.zeros(array.shape, [("a", "i4")]),
        lambda: np.array([None], dtype=object),
        lambda: np.zeros((0, *array.shape[1:])),
        lambda: np.zeros(array.shape, np.complex64),
    )
    return rng.choice(makers)()
