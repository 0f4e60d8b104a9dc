"""``python -m stepwedge``."""

import sys

from stepwedge.cli import main

if __name__ == "__main__":
    sys.exit(main())
