"""Train a run from Python, as `genlab train` does from a command line."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from genlab.config.compose import compose
from genlab.errors import ConfigError
from genlab.runs.run import Run
from genlab.training import run
from genlab.training.interrupts import Stopped
from genlab.training.planning import plan


def train(overrides: Sequence[str] = ()) -> Run:
    """Train and test the run of these overrides, in this process; return it with its result.

    It is the run of `genlab train` with the same overrides: one that was completed before is
    returned as it is, an interrupted one goes on. `launcher` has no meaning here.

    Args:
        overrides: as on the command line, such as `["model.kl_weight=4", "trainer=smoke"]`.

    Returns:
        The run, with `path`, `result` (its numbers under `["metrics"]`) and `metrics()`; it may be
        given to `genlab.load`.

    Raises:
        ConfigError: an override is refused, before anything is written.
        KeyboardInterrupt: the training was interrupted; the same call goes on.
    """
    for override in overrides:
        _refuse_several(override)
    cfg = compose(overrides, with_hydra=True)
    try:
        with _hydra_config(cfg):
            _refuse_processes(cfg)
            outcome = run.run(cfg)
    except Stopped as stopped:
        if str(stopped) == signal.SIGINT.name:
            raise KeyboardInterrupt from stopped
        raise SystemExit(stopped.exit_code) from stopped
    assert outcome.path is not None
    return Run(outcome.path)


def _refuse_several(override: str) -> None:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return  # composing it raises an error with a remedy
    if parsed.is_sweep_override():
        raise ConfigError(
            f"{override}: genlab.train makes one run; call it for each value with the same "
            "group=NAME, then genlab.compare('runs/NAME'), or use genlab train -m"
        )


def _refuse_processes(cfg: DictConfig) -> None:
    planned = plan(cfg, ())
    if planned.processes > 1:
        raise ConfigError(
            f"trainer.devices={planned.run_config.trainer.get('devices')}: the other processes of "
            "a run are started with its command; use genlab train"
        )


@contextmanager
def _hydra_config(cfg: DictConfig) -> Iterator[None]:
    """Take Hydra's part out of a config, and set it as that of the current job."""
    before: Any = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
