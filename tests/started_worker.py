"""What a worker of test_start_up.py runs; imports nothing itself."""

import sys


def tell(queue):
    """The modules that it found imported."""
    queue.put(sorted(sys.modules))
