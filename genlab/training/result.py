"""What a run leaves of itself: its numbers with their units, or why there are none."""

from __future__ import annotations

import logging
import re
import signal
import traceback
from pathlib import Path
from typing import Any

import torch

from genlab.modules.base import GenerativeModule
from genlab.runs.directory import RunDirectory
from genlab.training.checkpoints import Stopped
from genlab.training.environment import git_commit, versions
from genlab.vae.forecast import Forecast

log = logging.getLogger(__name__)

UNITS = {
    "loss": "nats/image",
    "reconstruction": "nats/image",
    "kl": "nats/image",
    "kl_prior": "nats/image",
    "kl_diffusion": "nats/image",
    r"bound_log_snr_[+-]\d+": "nats/image",
    "neg_elbo_se": "nats/image",
    "neg_elbo": "nats/image",
    "nll_iwae": "nats/image",
    "rate": "nats/image",
    "rate_ceiling": "nats/image",
    "bits_per_dim": "bits",
    "mutual_information": "nats",
    "aggregate_kl": "nats",
    "information_cap": "nats",
    "active_units": "count",
    "images_per_second": "images/s",
    "energy_distance": "norm of pixels in [0, 1]",
    "seconds_per_sample": "s",
    "evaluations": "count",
    "squared_error": "summed squared error/image",
}


def result(module: GenerativeModule, seconds: float, expected: Forecast | None) -> dict[str, Any]:
    """The content of result.json of a tested module that was trained for so long."""
    metrics = {f"test/{k}": v for k, v in module.final_metrics.items()}
    if expected is not None:
        metrics |= {f"forecast/{k}": v for k, v in expected.metrics().items()}
    units = {
        name: unit
        for name in metrics
        for stem, unit in UNITS.items()
        if re.fullmatch(rf"{stem}(_\d+)?", name.partition("/")[2])
    }
    trainer = module.trainer
    images = trainer.global_step * trainer.datamodule.batch_size  # type: ignore[attr-defined]
    on_gpu = trainer.strategy.root_device.type == "cuda"
    return {
        "metrics": metrics,
        "units": units,
        "verdict": module.verdict(module.final_metrics),
        "forecast_verdict": _expected_verdict(module, expected),
        "seed": module.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "wall_seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "parameters": sum(p.numel() for p in module.parameters()),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def curves(module: GenerativeModule, expected: Forecast | None) -> dict[str, Any]:
    """The content of bound.json of a tested module; empty where its bound has no parts."""
    found: dict[str, Any] = dict(module.final_curves)
    if "kl_by_unit" in found and expected is not None and expected.rate_by_unit is not None:
        found["forecast_kl_by_unit"] = list(expected.rate_by_unit)
    return found


def _expected_verdict(module: GenerativeModule, expected: Forecast | None) -> str:
    known = expected is not None and expected.active_units is not None
    return module.verdict(expected.metrics()) if expected is not None and known else ""


def record_failure(directory: RunDirectory, error: BaseException) -> None:
    """Stopped or failed, and in the second case where, into the status."""
    stopped = error.__cause__ if isinstance(error, SystemExit) else error
    if isinstance(stopped, Stopped):
        directory.write_status("preempted", message=str(stopped))
        return
    if isinstance(error, KeyboardInterrupt | SystemExit):
        directory.write_status("preempted", message=signal.Signals.SIGINT.name)
        return
    log.error("failed", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "genlab" in f.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    kind = type(error).__name__
    directory.write_status("failed", type=kind, message=str(error), where=where)
