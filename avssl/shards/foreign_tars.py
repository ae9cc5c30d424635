"""Webdataset tars that other programs wrote: where each member of each sample lies, without reading the media.

Which members are a sample is decided by webdataset's own functions: what precedes the first dot of a file's name is the
key, members of one key that follow each other are a sample, and what lies below __name__ is left out. Headers are read
by tarfile, which reads no more than the file has; media are skipped.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from avssl.files.storage import Location
from avssl.shards.places import Range
from avssl.shards.ranged_file import RangedFile, open_ranged
from avssl.shards.tar_members import BLOCK_BYTES, DAMAGED_TAR

MAX_TEXT_BYTES = 1 << 20  # of a member whose text is read while its archive is listed
METADATA = re.compile(r"__[^/]*__($|/)")  # names that webdataset leaves out
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TarSample:
    """A sample of an archive. members: {suffix in lower case: where it lies}. texts: {suffix: bytes} of those that were
    asked for. problems: with members that are not taken: of a name that the sample has already, which webdataset
    refuses, or stored with holes.
    """

    key: str
    members: dict[str, Range]
    texts: dict[str, bytes]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class TarEnd:
    """Where an archive ends, or cannot be read any further. problem: what is wrong there; "" if nothing is."""

    offset: int
    problem: str


@dataclass
class _Listing:
    """The members of an open archive, for webdataset's grouping. problems: of those refused since the last sample."""

    file: RangedFile
    text_suffixes: frozenset[str]
    end: TarEnd = field(default_factory=lambda: TarEnd(0, ""))
    problems: list[str] = field(default_factory=list)

    def members(self) -> Iterator[dict[str, Any]]:
        """{"fname", "data": (range, text or None)} of each file; sets `end` after the last one."""
        offset = 0
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # else they all stay in memory
                    offset = member.offset_data
                    if member.isreg() and not METADATA.match(member.name):
                        where = Range(member.name, member.offset_data, member.size)
                        data = (where, self._text(where)) if member.sparse is None else None
                        yield {"fname": member.name, "data": data, "__url__": ""}
                    if (rest := member.offset_data + member.size - self.file.num_bytes) > 0:
                        self.end = TarEnd(offset, f"it ends {rest} bytes before its member {member.name!a} does")
                        return
                offset = archive.offset
            self.end = TarEnd(offset, self._problem_at(offset))
        except DAMAGED_TAR as error:
            if isinstance(error, ConnectionError | PermissionError | FileNotFoundError):
                raise
            self.end = TarEnd(offset, f"what follows byte {offset} is no tar archive ({error})")

    def _text(self, where: Range) -> bytes | None:
        """The content of a member whose text is wanted; None for another one, or a long one."""
        is_wanted = where.name.rpartition(".")[2].lower() in self.text_suffixes
        if not is_wanted or where.num_bytes > MAX_TEXT_BYTES:
            return None
        self.file.seek(where.offset)
        return self.file.read(where.num_bytes)

    def _problem_at(self, offset: int) -> str:
        """What is wrong where tarfile saw the end: it takes a damaged header for one, too."""
        self.file.seek(offset)
        block = self.file.read(BLOCK_BYTES)
        if not block:
            return "it has no mark of its end: it was cut between two members, or its writer never closed it"
        return "" if not any(block) else f"there is no header of a member at byte {offset}"

    def refuse(self, error: Exception) -> bool:
        """Webdataset's handler of errors: remembers a repeated member, and goes on."""
        if not isinstance(error, ValueError):
            raise error
        self.problems.append(f"it has two members {str(error.args[0]).rpartition(': duplicate')[0]!a}")
        return True


def list_tar(location: Location, text_suffixes: frozenset[str]) -> Iterator[TarSample | TarEnd]:
    """The samples of an archive in order, then its end. text_suffixes: of members whose text is read, like "json".

    A member that is cut off is listed as its header says, and the end says so.

    Raises:
        ValueError: the file is compressed, or is no tar archive at all.
        OSError: it cannot be opened or fetched.
    """
    from webdataset.tariterators import group_by_keys

    with open_ranged(location) as file:
        listing = _Listing(file, text_suffixes)
        _check_head(file, location)
        for group in group_by_keys(listing.members(), handler=listing.refuse):
            problems, listing.problems = listing.problems, []
            found = {suffix: value for suffix, value in group.items() if not suffix.startswith("__")}
            problems += [f"its member .{suffix} is stored with holes" for suffix in found if found[suffix] is None]
            plain = {suffix: value for suffix, value in found.items() if value is not None}
            members = {suffix: where for suffix, (where, _) in plain.items()}
            texts = {suffix: text for suffix, (_, text) in plain.items() if text is not None}
            yield TarSample(group["__key__"], members, texts, tuple(problems))
        if not listing.end.offset and listing.end.problem:
            raise ValueError(f"{location}: is no tar archive ({listing.end.problem})")
        yield listing.end


def _check_head(file: RangedFile, location: Location) -> None:
    head = file.read(8)
    file.seek(0)
    for mark, name in COMPRESSED.items():
        if head.startswith(mark):
            raise ValueError(
                f"{location}: is compressed ({name}), so its members cannot be read by themselves; unpack it to a "
                "plain .tar (media hardly become smaller)"
            )


def expand_braces(pattern: str) -> list[str]:
    """The locations that a pattern like x-{000..123}.tar means, as webdataset has it. ValueError for a wrong one."""
    from webdataset.shardlists import braceexpand

    try:
        return list(braceexpand.braceexpand(pattern))
    except (braceexpand.UnbalancedBracesError, ValueError) as error:
        raise ValueError(f"{pattern}: its braces do not match ({error}); write them like x-{{000..123}}.tar") from error
