"""Time until a command answers: `import avssl`, `avssl --help` and the --help of every program, beside `import torch`.

    python benchmarks/start_up.py [--rounds 5]

Each start is a new interpreter, with warm file caches (one round before the measured ones). The claim is about the
median of wall seconds; the fastest start is printed beside it. tests/test_start_up.py names the libraries that must not
be loaded by then, which does not depend on the machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.command import PROGRAMS
from benchmarks.claims import ROOT, Claim, command_line, publish, take_turns

IMPORT_SECONDS, HELP_SECONDS = 0.1, 0.6  # that these may take

# {name: (arguments of Python, seconds that it may take; None: for comparison)}
STARTS: dict[str, tuple[list[str], float | None]] = {
    "an empty program": (["-c", ""], None),
    "import torch": (["-c", "import torch"], None),
    "import avssl": (["-c", "import avssl"], IMPORT_SECONDS),
    "avssl --help": (["-m", "avssl", "--help"], HELP_SECONDS),
    **{f"avssl {name} --help": (["-m", "avssl", name, "--help"], HELP_SECONDS) for name in PROGRAMS},
    "avssl pretrain with a mistyped key": (["-m", "avssl", "pretrain", "optim.learning_rate=1"], None),
}


def start(arguments: list[str]) -> None:
    """Run Python with these arguments to its end."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    methods = {name: partial(start, command) for name, (command, _) in STARTS.items()}
    seconds = take_turns(methods, arguments.rounds)
    torch_seconds = statistics.median(seconds["import torch"])
    claims = []
    for name, (_, goal) in STARTS.items():
        taken = statistics.median(seconds[name])
        note = f"fastest of {arguments.rounds}: {min(seconds[name]):.2f} s"
        claims.append(
            Claim(f"start: {name}", taken, torch_seconds, "s", "import torch alone (ratio: seconds)", taken, "at most",
                  goal, note)
        )  # fmt: skip
    publish(claims, arguments.json)


if __name__ == "__main__":
    main()
