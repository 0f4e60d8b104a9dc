"""``python -m stepwatch``."""

import sys

from stepwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
