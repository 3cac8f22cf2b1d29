"""What the environment says of W&B: an account, an agent; without asking, without the network."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def key_is_configured() -> bool:
    """Whether a W&B key can be found without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def id_from_agent() -> str | None:
    """The id that W&B's own agent gave to the run that it started as this process, if it did."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
