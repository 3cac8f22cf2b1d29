"""`python -m genlab.cli`."""

from __future__ import annotations

import sys

from genlab.cli import main

if __name__ == "__main__":  # processes that draw import this file again
    sys.exit(main())
