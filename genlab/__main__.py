"""`genlab COMMAND`, and `python -m genlab COMMAND`."""

from __future__ import annotations

import sys

from genlab.training import interrupts


def main() -> int:
    """Run a command; a signal ends it as documented from the first import on."""
    interrupts.end_at_once()

    from genlab import cli

    return cli.main()


if __name__ == "__main__":  # processes that draw import this file again
    sys.exit(main())
