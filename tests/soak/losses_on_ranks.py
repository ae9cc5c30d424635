"""Two and three processes compute what one computes on the same global batches: every loss of the registry.

    python -m tests.soak.losses_on_ranks --seeds 0 1

Every loss on every combination of modalities, and with the options by which ranks share state in another way: banks
split over them, queues, batch norm in groups. Values, terms, gradients and state in float64 with gathered batch norm,
with and without gradient accumulation, of a data set that neither the batch nor the ranks divide.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.conftest import run_ranks
from tests.soak.outcome import Outcome

# Of a tensor's largest entry, in float64, at most twelve steps: sums in another order were seen to make 1.3e-12 of it.
LARGEST_DIFFERENCE = 1e-10


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--micro-batches", default="12")
    parser.add_argument("--seeds", nargs="+", default=["0", "1"])
    given = parser.parse_args(argv)
    outcome = Outcome("N processes compute what one process computes")
    settings = ("all", given.micro_batches, ",".join(given.seeds))
    with tempfile.TemporaryDirectory(prefix="avssl-soak-") as folder:
        run_ranks(1, "contract", folder, *settings)
        for processes in given.processes:
            with outcome.case(f"{processes} processes end"):
                run_ranks(processes, "contract", folder, *settings)
            found = Path(folder) / f"differences_{processes}.json"
            every = json.loads(found.read_text()) if found.exists() else {}
            for name, differences in every.items():
                with outcome.case(f"{name} on {processes} processes"):
                    wrong = {key: value for key, value in differences.items() if not value < LARGEST_DIFFERENCE}
                    assert not wrong, wrong
            largest = max((max(one.values()) for one in every.values()), default=float("nan"))
            print(f"{processes} processes: largest difference {largest:.1e}", file=sys.stderr, flush=True)
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
