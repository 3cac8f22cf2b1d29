"""What Hydra knows of the job at hand; nothing where it was not started by Hydra."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def is_multirun() -> bool:
    """Whether this is one job of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def is_first() -> bool:
    """Whether no job of the same multirun came before."""
    return not (is_multirun() and HydraConfig.get().job.num > 0)


def overrides() -> list[str]:
    """Of the job, as they were typed."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def choices() -> dict[str, str]:
    """The config files that were chosen: data, model, model/likelihood, ..."""
    if not HydraConfig.initialized():
        return {}
    chosen = HydraConfig.get().runtime.choices
    return {
        str(key): str(value)
        for key, value in chosen.items()
        if value is not None and not str(key).startswith("hydra/")
    }
