"""The script that draws charts on a page: Vega, Vega-Lite and vega-embed as one text."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

from genlab.errors import RunDirectoryError
from genlab.runs.files import write_atomically
from genlab.runs.reading import read_bytes

#: Bytes of the script, which has about 900 kB.
_MOST = 8_000_000


@cache
def library() -> str:
    """Return the script, which defines `vegaEmbed`.

    Putting it together takes more than a second, so it is kept in the user's cache folder
    (`XDG_CACHE_HOME`, else `~/.cache`) under the version of vl-convert.
    """
    import vl_convert

    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        kept = home / "genlab" / f"vega-{version('vl-convert-python')}.js"
        if kept.stat().st_uid == os.getuid():
            return read_bytes(kept, _MOST).decode()
    except (OSError, RuntimeError, ValueError, RunDirectoryError):
        pass
    made: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, made)
    except (OSError, NameError):
        pass  # a home that cannot be written costs a second each time
    return made
