"""The progress of `write`: files done, rate, time left, and what was skipped by reason."""

from __future__ import annotations

from collections import Counter

from avssl.files.progress import Bar
from avssl.types import MediaError


class WriteProgress(Bar):
    """Counts files; a context manager. Rate and time left count only the files of this run.

    Args:
        num_files: number of all listed files. num_missing: number of files that have to be read now.
    """

    def __init__(self, num_files: int, num_missing: int) -> None:
        super().__init__("write", num_files, "file", done=num_files - num_missing)
        self._reasons: Counter[str] = Counter()

    def file_done(self, outcome: object) -> None:
        """Count a file. outcome: its sample, or the error."""
        self.files_done(Counter([outcome.reason] if isinstance(outcome, MediaError) else []), 1)

    def files_done(self, reasons: Counter[str], num_files: int) -> None:
        """Count several files. reasons: counts of those that were skipped, by reason."""
        if reasons:
            self._reasons += reasons
            self.show(describe(self._reasons), skipped_by_reason=dict(self._reasons))
        self.update(num_files)


def describe(reasons: Counter[str]) -> str:
    """E.g. "skipped 12: no_audio 9, timeout 3"; "" without any."""
    if not reasons:
        return ""
    return f"skipped {reasons.total()}: {', '.join(f'{name} {count}' for name, count in reasons.most_common())}"
