"""What a long check found, as one line of JSON on standard output and an exit status."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Outcome:
    """Cases that were tried of one claim, and those that failed.

    claim: what must hold, in one sentence. A check ends with `sys.exit(outcome.finish())`.
    """

    def __init__(self, claim: str) -> None:
        self.claim = claim
        self.num_cases = 0
        self.failures: list[str] = []
        self._began = time.monotonic()

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """One case: it failed if the block raises anything. The check goes on with the next case."""
        self.num_cases += 1
        try:
            yield
        except Exception as error:  # whatever it is, it is a failure of this case, with its name
            self.failures.append(f"{name}: {type(error).__name__}: {error}"[:2000])
            print(f"FAILED {self.failures[-1]}", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Print the line; the exit status: 0 if every case held and there was at least one."""
        facts = {
            "claim": self.claim,
            "cases": self.num_cases,
            "failures": self.failures,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        print(json.dumps(facts), flush=True)
        return 0 if self.num_cases and not self.failures else 1
