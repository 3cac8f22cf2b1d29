"""Information from Hydra about the current job; empty if Hydra did not start it."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def is_multirun() -> bool:
    """Return True if this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def is_first() -> bool:
    """Return True if this is the first job of its multirun, or a single run."""
    return not (is_multirun() and HydraConfig.get().job.num > 0)


def overrides() -> list[str]:
    """Return the overrides of the job, as typed by the user."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def choices() -> dict[str, str]:
    """Return the chosen config file of each group: data, model, model/likelihood, ..."""
    if not HydraConfig.initialized():
        return {}
    chosen = HydraConfig.get().runtime.choices
    return {
        str(key): str(value)
        for key, value in chosen.items()
        if value is not None and not str(key).startswith("hydra/")
    }
