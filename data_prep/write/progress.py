"""The progress bar of `write`: files done, rate, time left, and what was skipped by reason."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

from avssl.processes.pool import REFRESH_SECONDS
from avssl.types import MediaError


class WriteProgress:
    """Counts files; a context manager. Rate and time left count only the files of this run.

    Args:
        num_files: number of all listed files. num_missing: number of files that have to be read now.
    """

    def __init__(self, num_files: int, num_missing: int) -> None:
        self._reasons: Counter[str] = Counter()
        self._bar: Any = tqdm(
            total=num_files, initial=num_files - num_missing, desc="write", unit="file", mininterval=REFRESH_SECONDS
        )

    def file_done(self, outcome: object) -> None:
        """Count a file. outcome: its sample, or the error."""
        if isinstance(outcome, MediaError):
            self._reasons[outcome.reason] += 1
            self._bar.set_postfix_str(describe(self._reasons), refresh=False)
        self._bar.update()

    def files_done(self, reasons: Counter[str], num_files: int) -> None:
        """Count several files. reasons: counts of those that were skipped, by reason."""
        self._reasons += reasons
        self._bar.set_postfix_str(describe(self._reasons), refresh=False)
        self._bar.update(num_files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()


def describe(reasons: Counter[str]) -> str:
    """E.g. "skipped 12: no_audio 9, timeout 3"; "" without any."""
    if not reasons:
        return ""
    return f"skipped {reasons.total()}: {', '.join(f'{name} {count}' for name, count in reasons.most_common())}"
