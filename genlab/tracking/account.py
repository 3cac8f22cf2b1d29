"""Set W&B's variables, and ask W&B for its key and agent, without a prompt or the network."""

from __future__ import annotations

import os

import wandb

from genlab.errors import ConfigError


def set_variables() -> None:
    """Set the variables that W&B's client and its processes read; call it before any use of W&B.

    Error reports and telemetry are off: they would be sent offline too, and a process waits at its
    end until they are sent. W&B prints nothing. An empty `WANDB_MODE` and `auto`, which W&B
    refuses, count as unset.
    """
    os.environ.update(WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")
    if os.environ.get("WANDB_MODE") in ("", "auto"):
        del os.environ["WANDB_MODE"]


def key_is_configured() -> bool:
    """Return True if W&B finds a key or token for its server, and is not set offline.

    W&B looks into its variables, the netrc file and its settings, which also name the server; of
    these `wandb login` and `wandb offline` write the last two.

    Raises:
        ConfigError: W&B refuses the key.
    """
    set_variables()
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise ConfigError(f"W&B refuses the configured key: {error}") from error


def id_from_agent() -> str | None:
    """Return the run id that W&B's own agent gave to this process; None if no agent started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
