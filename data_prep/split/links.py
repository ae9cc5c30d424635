"""Groups that must lie in one part because they share a file, or files that look and sound alike.

Of linked groups all go where the rule puts the one with the least hash, which is where it puts any group: linking
changes no share. Groups that an earlier split has placed stay there, and new ones join them. A new group that is linked
to earlier ones of two parts has no place without a copy on the other side: it is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from data_prep.split.rule import LEFT_OUT, Hashes, SplitRule


class Links:
    """Which groups are linked, directly or over others. Memory: about 200 bytes a linked group."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def join(self, first: int, second: int) -> None:
        """Link two groups."""
        first, second = self.first_of(first), self.first_of(second)
        self._parent[max(first, second)] = min(first, second)
        self._parent.setdefault(min(first, second), min(first, second))

    def first_of(self, group: int) -> int:
        """The least of all groups that the group is linked with; itself if there are none."""
        first = group
        while (parent := self._parent.get(first, first)) != first:
            first = parent
        while (parent := self._parent.get(group, group)) != first:
            self._parent[group], group = first, parent
        return first

    def groups(self) -> Hashes:
        """All linked groups in order: uint64 (n,)."""
        return np.array(sorted(self._parent), np.uint64)

    def components(self) -> Iterable[list[int]]:
        """Lists of groups that are linked."""
        members: dict[int, list[int]] = defaultdict(list)
        for group in self._parent:
            members[self.first_of(group)].append(group)
        return members.values()

    def join_sharing(self, pairs: Iterator[NDArray[np.uint64]]) -> None:
        """Link groups that share a source. pairs: (source, group), as PairFiles.distinct gives them."""
        for bucket in pairs:
            for row in np.flatnonzero(bucket[1:, 0] == bucket[:-1, 0]).tolist():
                self.join(int(bucket[row, 1]), int(bucket[row + 1, 1]))


def placed(links: Links, rule: SplitRule, earlier: Mapping[int, int]) -> dict[int, int]:
    """{group: its part} of all linked groups, and of those of `earlier`: {group: its part in an earlier split}."""
    parts = dict(earlier)
    for component in links.components():
        before = {earlier[group] for group in component if group in earlier}
        if len(before) > 1:
            part = LEFT_OUT
        else:
            part = before.pop() if before else rule.part_of(min(component))
        parts |= {group: part for group in component if group not in earlier}
    return parts
