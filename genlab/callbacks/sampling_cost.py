"""Measure what samples cost: latency, throughput, operations, and quality against steps."""

# no postponed annotations: see genlab.callbacks.base

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genlab.callbacks import quality as drawn
from genlab.callbacks.base import data_of, generative, takes_part
from genlab.callbacks.sampling import counting_rows
from genlab.errors import GenlabError, at_key, whole
from genlab.metrics import quality
from genlab.metrics.features.base import Features, ready
from genlab.metrics.intervals import GROUPS, Estimate, median
from genlab.metrics.rows import Rows, chunks_of
from genlab.modules.base import GenerativeModule
from genlab.protocols import CanSample, HasSampler, HasTrajectory
from genlab.tensors import device_of

log = logging.getLogger(__name__)

#: Draws from which on a median has a 95 % interval.
_LEAST_REPEATS = 6
#: The qualities that are measured at each number of steps.
_OF_STEPS = ("fid", "kid", "precision", "recall", "density", "coverage")
#: Function from a number of images and the number of the first to the images.
Draw = Callable[[int, int], Tensor]


@dataclass(eq=False, kw_only=True)
class SamplingCost(pl.Callback):
    """Measures in the test what it costs to draw samples, on the device of the run.

    The metrics are `latency`, the seconds of one image drawn alone, and `samples_per_second` of a
    batch, each the median of some draws with its 95 % interval (`latency_low`, ...);
    `latency_cpu`, the CPU time of this process for one image, which other programs lengthen less;
    `sampling_flops`, the operations of one image; and, for a model that samples step by step,
    `evaluations` of its networks. The first draw warms up and is not timed.

    With `steps`, a model with a choice of steps is measured at each number of them too, under names
    such as `steps_50/latency`, of one draw, and `steps_50/kid_classifier_1a2b3c`.

    Args:
        features: in which quality is measured; see `genlab.metrics.features.base`.
        repeats: draws of which the median is taken; 6 or more, since fewer give no 95 % interval.
        batch: images of a batch.
        steps: numbers of sampling steps.
        measured: samples whose quality is measured at each number of steps; 20 or more.
        data_key: of the data in the cache; None keeps nothing there.
    """

    features: nn.Module
    repeats: int = 9
    batch: int = 64
    steps: list[int] = field(default_factory=list)
    measured: int = 64
    data_key: str | None = None

    def __post_init__(self) -> None:
        whole("repeats", self.repeats, _LEAST_REPEATS)
        whole("batch", self.batch, 1)
        whole("measured", self.measured, GROUPS)
        for number in self.steps:
            whole("steps", number, 1)
        self._ready: Features | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse before the training what cannot be measured after it."""
        model = generative(pl_module).model
        if not self.steps or not isinstance(model, HasSampler):
            return
        with at_key("callbacks.cost"):
            for sampler in self._samplers(model).values():
                model.sampling_steps(sampler)
        if self._ready is None and trainer.is_global_zero:
            drawn.refuse_real_values(model.spec)
            data = data_of(trainer)
            self._ready = ready(self.features, data.spec, data, self._cache())

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = generative(pl_module)
        if not isinstance(module.model, CanSample) or not takes_part(trainer):
            return
        try:
            found = self._measured(trainer, module)
        except (GenlabError, OSError) as error:
            log.warning("no cost of samples at step %d: %s", trainer.global_step, error)
            return
        row = {f"test/{name}": value for name, value in found.items()}
        module.log_float64(row, rank_zero_only=True)

    def _cache(self) -> Path | None:
        return None if self.data_key is None else drawn.cache(self.data_key)

    def _samplers(self, model: HasSampler) -> dict[int, Any]:
        return {number: replace(model.sampler, steps=number) for number in self.steps}

    def _measured(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, float]:
        model, seed = module.model, module.seed
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, rows = counting_rows(model, lambda: model.sample(1, seed))
        found = {"sampling_flops": float(counter.get_total_flops())}
        if isinstance(model, HasTrajectory):
            found["evaluations"] = float(rows)
        found |= self._times(model, lambda n, first: model.sample(n, seed, first))
        if not self.steps or not isinstance(model, HasSampler):
            return found
        reference = None
        with TemporaryDirectory(prefix="genlab-cost-") as temporary:
            if self._ready is not None:
                self._ready.module.to(module.device)
                folder = self._cache() or Path(temporary) / "reference"
                reference = quality.Reference.of(self._ready, "test", data_of(trainer), folder)
            for number, sampler in self._samplers(model).items():

                def draw(n: int, first: int, sampler: Any = sampler) -> Tensor:
                    return model.sample(n, seed, first, sampler=sampler)

                one, cpu = _timed(partial(draw, 1, 0), module.device)
                own = {"latency": one, "latency_cpu": cpu} | self._quality(draw, reference)
                found |= {f"steps_{number}/{name}": value for name, value in own.items()}
        return found

    def _times(self, model: nn.Module, draw: Draw) -> dict[str, float]:
        """Time the draws of one image, and of a batch."""
        device = device_of(model)
        alone = [_timed(partial(draw, 1, i), device) for i in range(self.repeats)]
        found = {"latency_cpu": median([cpu for _, cpu in alone]).value}
        found |= _with_ends("latency", median([wall for wall, _ in alone]))
        batches = [_timed(partial(draw, self.batch, 0), device)[0] for _ in range(self.repeats)]
        rate = median([self.batch / wall for wall in batches])
        return found | _with_ends("samples_per_second", rate)

    def _quality(self, draw: Draw, reference: quality.Reference | None) -> dict[str, float]:
        """Measure the quality of samples; a process without the reference only helps to draw."""
        rows = []
        for part in chunks_of(self.measured):
            with torch.inference_mode():
                images = drawn.as_pixels(draw(len(part), part.start).float())
            if reference is not None:
                rows.append(reference.features(images, part.start))
        if reference is None:
            return {}
        values = quality.measured(Rows.of(np.concatenate(rows)), reference.real, reference.features)
        kept = {name: values[name].value for name in _OF_STEPS}
        return {f"{name}_{reference.features.name}": value for name, value in kept.items()}


def _with_ends(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _timed(draw: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """Return the seconds that a draw takes by the clock, and in this process on the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    draw()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock, time.process_time() - cpu
