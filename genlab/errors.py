"""What genlab raises when it refuses something, and the exit code that each means.

Every message is one sentence that names the key, the value and what would be right, since it is
printed alone, without a traceback.
"""

from __future__ import annotations

DONE, TRAINING_FAILED, REFUSED, INTERRUPTED, PREEMPTED = 0, 1, 2, 130, 143


class GenlabError(Exception):
    """Base of every error that genlab raises on purpose."""

    exit_code = TRAINING_FAILED


class ConfigError(GenlabError):
    """The configuration was refused before any work was done."""

    exit_code = REFUSED


class DataError(GenlabError):
    """The data is missing, altered, or does not fit the configuration."""

    exit_code = REFUSED


class RunDirectoryError(GenlabError):
    """A run directory cannot be written, is in use, or does not hold what was asked of it."""

    exit_code = REFUSED


class TrainingError(GenlabError):
    """Training itself failed, for instance by a loss that is not finite."""

    exit_code = TRAINING_FAILED
