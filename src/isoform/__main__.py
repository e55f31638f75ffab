"""`python -m isoform`, for commands that start a module."""

import sys

from isoform.cli import main

if __name__ == "__main__":
    sys.exit(main())
