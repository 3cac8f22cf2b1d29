"""Find the W&B key and agent of the environment, without a prompt or the network."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def key_is_configured() -> bool:
    """Return True if the environment or the netrc file holds a W&B key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def id_from_agent() -> str | None:
    """Return the run id that W&B's own agent gave to this process; None if no agent started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
