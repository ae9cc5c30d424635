"""`python -m avssl`: the command `avssl`."""

import sys

from avssl.command import main

if __name__ == "__main__":
    sys.exit(main())
