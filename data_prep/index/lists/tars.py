"""Reader of webdataset tars as video2dataset, img2dataset and others write them: a row per sample, media left in place.

Of the members of a sample, by suffix: one video; or one video and one sound, which then are a sample together; or one
sound; or one image, if no sample has video or sound or images are asked for. txt and json say labels and caption, cls
the label. Thumbnails beside videos are left out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from avssl.files import storage
from avssl.files.checked_json import Fields, parse
from avssl.files.location import is_remote, redacted
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import AUDIO_SUFFIXES, MEDIA_SUFFIXES
from avssl.shards.foreign_tars import TarEnd, TarSample, expand_braces, list_tar
from avssl.shards.format import FORMAT_NAME, INDEX_NAME
from avssl.shards.places import Place, Range
from avssl.types import FailureReason
from data_prep.index.lists.described import caption_of, labels_of
from data_prep.index.lists.row import BadRow, ListedFile, ListedFiles, ListSettings, parsed

SOUND_SUFFIXES = frozenset(f".{name}" for name in AUDIO_SUFFIXES.split())
TEXTS, JSONS, CLASSES = ("txt", "text", "transcript"), ("json", "jsn"), ("cls", "cls2", "class")
TEXT_SUFFIXES = frozenset((*TEXTS, *JSONS, *CLASSES))


def webdataset(source: storage.Location, settings: ListSettings) -> ListedFiles:
    """Read the samples of archives: a file, a folder of them, or a pattern like x-{000..123}.tar, also as URLs.

    An archive that cannot be read is a bad row. One that is cut lists what it holds, and a row that says where it ends.
    """
    archives = archives_of(source)
    kind = settings.kind or _kind_of(archives)
    for archive in archives:
        name = redacted(archive).rpartition("/")[2]
        try:
            for number, item in enumerate(list_tar(archive, TEXT_SUFFIXES), start=1):
                row = _row(archive, number, item, kind, settings)
                if row is not None:
                    yield from parsed(iter([(number, row)]), lambda row: row, f"{name}, sample")
        except (OSError, ValueError) as error:
            if len(archives) == 1:
                raise
            yield name, BadRow(name, redacted(str(error)))


def archives_of(source: storage.Location) -> list[str]:
    """The archives that a source names, local ones as absolute paths. FileNotFoundError or ValueError for none."""
    text = os.fspath(source)
    if not is_remote(text) and Path(text).is_dir():
        found = [str(path) for path in sorted(Path(text).absolute().rglob("*.tar")) if path.is_file()]
        _refuse_own_shards(Path(text))
    elif is_remote(text) and not _is_tar(text):
        found = [storage.join(text, name) for name, _ in storage.files_below(text) if _is_tar(name)]
    else:
        names = expand_braces(text)
        found = [name if is_remote(name) else os.path.abspath(storage.local_path(name)) for name in names]  # noqa: PTH100
    if not found:
        raise FileNotFoundError(f"{redacted(text)}: holds no .tar files")
    return found


def _is_tar(location: str) -> bool:
    return location.partition("?")[0].lower().endswith(".tar")


def _refuse_own_shards(folder: Path) -> None:
    index = folder / INDEX_NAME
    if index.is_file() and Fields.read(index).record.get("format") == FORMAT_NAME:
        raise ValueError(f"{folder}: is a shard folder of this program already; train on it, or embed it, as it is")


def _kind_of(archives: list[str]) -> str:
    """What archives are searched for: "images" if the first sample with any media has no video or audio."""
    for archive in archives:
        with suppress(OSError, ValueError):  # its rows say so
            for item in list_tar(archive, frozenset()):
                roles = {_role(suffix) for suffix in item.members} if isinstance(item, TarSample) else set()
                if roles - {""}:
                    return "media" if roles & {"video", "audio"} else "images"
    return "media"


def _role(suffix: str) -> str:
    """What a member is by what follows the last dot of its suffix: video, audio, image, or "" for others."""
    last = f".{suffix.rpartition('.')[2]}"
    if last in IMAGE_SUFFIXES:
        return "image"
    if last in SOUND_SUFFIXES:
        return "audio"
    return "video" if last in MEDIA_SUFFIXES else ""


def _row(archive: str, number: int, item: TarSample | TarEnd, kind: str, settings: ListSettings) -> ListedFile | None:
    """The row of a sample, the number-th of its archive, or of what is wrong at its end; None where nothing is."""
    if isinstance(item, TarEnd):
        if not item.problem:
            return None
        stem = Path(archive.partition("?")[0]).stem
        return ListedFile(
            path=archive, name=f"{stem}/end", kind=kind, error=("truncated", f"{redacted(archive)}: {item.problem}")
        )
    name = item.key.removeprefix("./").lstrip("/")
    names = [suffix for suffix in item.members if not settings.columns or suffix in settings.columns]
    roles = {role: [name for name in names if _role(name) == role] for role in ("video", "audio", "image")}
    problem = _problem(item, roles, kind)
    labels, caption = dict[str, list[str]](), ""
    try:
        labels, caption = _described(item, settings)
    except ValueError as error:
        problem = problem or ("bad_sample", str(error))
    if problem is not None:
        where = f"{redacted(archive)}: sample {number} ({item.key})"
        known = problem[0], f"{where}: {problem[1]}"
        return ListedFile(path=archive, name=name, labels=labels, caption=caption, kind=kind, error=known)
    videos, sounds = roles["image"] if kind == "images" else roles["video"], roles["audio"]
    within = item.members[(videos or sounds)[0]]
    sound = Place(archive, item.members[sounds[0]]) if kind != "images" and videos and sounds else None
    return ListedFile(path=archive, name=name, labels=labels, caption=caption, within=within, sound=sound, kind=kind)


def _problem(item: TarSample, roles: dict[str, list[str]], kind: str) -> tuple[FailureReason, str] | None:
    """(reason, message) if it is not clear which members are the sample's media; None if it is."""
    if item.problems:
        return "bad_sample", "; ".join(item.problems)
    wanted = ("image",) if kind == "images" else ("video", "audio")
    for role in wanted:
        if len(roles[role]) > 1:
            several = ", ".join(f".{name}" for name in roles[role])
            return "bad_sample", f"has several members that are {role}: {several}; choose by --columns, without the dot"
    if not any(roles[role] for role in wanted):
        there = ", ".join(f".{name}" for name in item.members) or "nothing"
        return "missing_file", f"has no member that is {' or '.join(wanted)}; it has {there}"
    return None


def _described(item: TarSample, settings: ListSettings) -> tuple[dict[str, list[str]], str]:
    """(labels, caption) by the members that are text. ValueError for one that cannot be read."""
    records = [_json(suffix, item) for suffix in item.members if suffix.rpartition(".")[2] in JSONS]
    labels: dict[str, list[str]] = {}
    caption = next((text for suffix in item.members if suffix in TEXTS and (text := _text(suffix, item))), "")
    for record in records:
        labels |= labels_of(record, settings)
        caption = caption or caption_of(record, settings)
    for suffix in CLASSES:
        if suffix in item.members and (name := _text(suffix, item)):
            labels.setdefault("label", [name])
    return labels, caption


def _json(suffix: str, item: TarSample) -> dict[str, object]:
    """The fields of a json; of a list or a number, which says nothing that is read here, none."""
    value = parse(_content(suffix, item), f"its .{suffix}", finite=False)
    return value if isinstance(value, dict) else {}


def _text(suffix: str, item: TarSample) -> str:
    try:
        return _content(suffix, item).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"its .{suffix} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _content(suffix: str, item: TarSample) -> bytes:
    where: Range = item.members[suffix]
    content = item.texts.get(suffix)
    if content is None:
        raise ValueError(f"its .{suffix} has {where.num_bytes} bytes, too many for labels and captions")
    return content
