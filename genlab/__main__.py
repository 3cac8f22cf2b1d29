"""`genlab COMMAND`, and `python -m genlab COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from genlab.training import interrupts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a signal ends it as documented from the first import on."""
    interrupts.end_at_once()

    from genlab.training import terminal

    given = sys.argv[1:] if arguments is None else list(arguments)
    return terminal.command_line(lambda: _run(given))


def _run(arguments: Sequence[str]) -> int:
    from genlab import cli  # here, so that a lack of files or memory ends it in one sentence

    return cli.main(arguments)


if __name__ == "__main__":  # processes that draw import this file again
    sys.exit(main())
