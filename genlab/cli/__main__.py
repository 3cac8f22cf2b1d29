"""`python -m genlab.cli`."""

from __future__ import annotations

import sys

from genlab.cli import main

sys.exit(main())
