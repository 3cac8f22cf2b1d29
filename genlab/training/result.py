"""Build result.json and bound.json, and record failures."""

from __future__ import annotations

import logging
import signal
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genlab.data.datamodule import ImageData
from genlab.metrics.names import describe
from genlab.modules.base import GenerativeModule
from genlab.protocols import Forecast, HasSetting
from genlab.runs.directory import RunDirectory
from genlab.tensors import parameter_count
from genlab.training.environment import git_commit, versions
from genlab.training.flops import StepFlops
from genlab.training.interrupts import Stopped

log = logging.getLogger(__name__)


def result(
    module: GenerativeModule,
    tested: Mapping[str, float],
    seconds: float,
    forecast: Forecast | None,
    flops: StepFlops | None,
) -> dict[str, Any]:
    """Build the content of result.json.

    Args:
        tested: the logged metrics of the test; those not under `test/` are left out.
        seconds: spent in training.
        forecast: of the model, if there was one.
        flops: of the steps of the training, if they are known.
    """
    metrics = {name: float(v) for name, v in tested.items() if name.startswith("test/")}
    # those that callbacks have measured too
    verdict = _verdict(module.model, {n.removeprefix("test/"): v for n, v in metrics.items()})
    forecast_verdict = ""
    if forecast is not None:
        metrics |= {f"forecast/{name}": value for name, value in forecast.metrics().items()}
        forecast_verdict = _verdict(module.model, forecast.metrics())
    trainer = module.trainer
    batches = trainer.global_step * trainer.accumulate_grad_batches
    data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
    images = batches * data.batch_size
    tested_images = int(sum(trainer.num_test_batches)) * data.eval_batch_size
    on_gpu = trainer.strategy.root_device.type == "cuda"
    return {
        "metrics": metrics,
        "units": {name: unit for name in metrics if (unit := describe(name).unit)},
        "verdict": verdict,
        "forecast_verdict": forecast_verdict,
        "test_images": min(tested_images, data.size("test")),
        "seed": module.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "training_images": images,
        "training_flops": None if flops is None else flops.total(trainer.global_step),
        "wall_seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "parameters": parameter_count(module),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def curves(module: GenerativeModule, forecast: Forecast | None) -> dict[str, Any]:
    """Build the content of bound.json; empty where the bound of the model has no parts."""
    found: dict[str, Any] = dict(module.evaluations["test"].curves)
    if "kl_by_unit" in found and forecast is not None and forecast.rate_by_unit is not None:
        found["forecast_kl_by_unit"] = list(forecast.rate_by_unit)
    return found


def _verdict(model: object, metrics: Mapping[str, float]) -> str:
    return model.verdict(metrics) if isinstance(model, HasSetting) else ""


def record_failure(directory: RunDirectory, error: BaseException) -> None:
    """Write the state, stopped or failed, to the status; for a failure also where it happened."""
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
