"""Information from Hydra about the current job; empty if Hydra did not start it."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

#: The groups whose files follow from those of other groups.
FOLLOWING = ("after_experiment", "experiment_on")
_TELL_THE_SWEEPER = tuple(f"hydra_plugins.hydra_{name}_" for name in ("joblib", "submitit", "ray"))


def is_multirun() -> bool:
    """Return True if this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def returns_outcomes(launcher: str) -> bool:
    """Return whether a launcher, given its class, tells callbacks how the jobs ended.

    Those of Hydra's plugins run callbacks in their workers, and tell only the sweeper.
    """
    return not launcher.startswith(_TELL_THE_SWEEPER)


def must_raise_refusals() -> bool:
    """Return whether a job that left no run directory can only be told by an exception."""
    return is_multirun() and not returns_outcomes(str(HydraConfig.get().launcher._target_))


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
        if value is not None and not str(key).startswith(("hydra/", *FOLLOWING))
    }
