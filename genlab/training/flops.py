"""Floating-point operations of a training, counted on the losses of its steps."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from genlab.data.datamodule import ImageData
from genlab.modules.base import GenerativeModule
from genlab.protocols import KeepsInputs
from genlab.seeding import or_default

log = logging.getLogger(__name__)

#: Images of a step whose operations are counted.
_IMAGES = 2


class FlopCount(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions, gradients of gradients included.

    Torch's own `FlopCounterMode` gives the same total, but also assigns it to modules, and its
    hooks for that refuse `torch.autograd.grad` of an input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)  # type: ignore[attr-defined]
        if count is not None:
            self.total += count(*args, **kwargs, out_val=out)
        return out


@dataclass(frozen=True)
class StepFlops:
    """The floating-point operations of the steps of a training, which repeat after a period.

    Attributes:
        period: of each step of a period, on all processes together.
        images: number of images of a period.
    """

    period: tuple[int, ...]
    images: int

    @property
    def per_image(self) -> float:
        """The mean number of operations per image."""
        return sum(self.period) / self.images

    def total(self, steps: int) -> int:
        """Return the operations of the first steps."""
        whole, rest = divmod(steps, len(self.period))
        return whole * sum(self.period) + sum(self.period[:rest])

    def steps_within(self, budget: float) -> int:
        """Return the largest number of steps whose operations are within a budget."""
        whole, rest = divmod(int(budget), sum(self.period))
        sums = itertools.accumulate(self.period)
        return whole * len(self.period) + sum(total <= rest for total in sums)


def flops_per_image(module: GenerativeModule) -> list[int] | None:
    """Count the operations per image of each step of a module's cycle, forward and backward.

    They are those of copies of its losses and their gradients; what an optimizer does is not
    counted, nor what frozen networks make of the images once and for all (`KeepsInputs`). Returns
    None if they cannot be counted.
    """
    for device in ("meta", "cpu"):  # penalties on gradients need numbers
        twin = copy.deepcopy(module).to(device)
        try:
            with torch.random.fork_rng(devices=[]):
                return [_of_step(twin, step, device) for step in range(module.cycle)]
        except Exception as error:  # of a user's model, which can be trained all the same
            log.debug("no operations counted on %s: %s", device, error)
    log.info("the floating-point operations of a step could not be counted: no mfu")
    return None


def _of_step(module: GenerativeModule, step: int, device: str) -> int:
    model, spec = module.model, module.model.spec
    x = torch.rand(_IMAGES, *spec.shape, device=device)
    labels = torch.zeros(_IMAGES, dtype=torch.int64, device=device) if spec.classes else None
    keeps = isinstance(model, KeepsInputs) and model.keeps_inputs
    inputs = model.inputs(x) if keeps else None
    noise = or_default(None, x)
    # fused kernels of attention are counted on some devices alone
    with sdpa_kernel(SDPBackend.MATH), FlopCount() as count:
        for name, terms in module.losses_of(x, labels, inputs, step, noise):
            terms[name].backward()
    return count.total // _IMAGES


def step_flops(
    module: GenerativeModule, data: ImageData, trainer: Mapping[str, Any]
) -> StepFlops | None:
    """Count the operations of the steps of a training; None if they cannot be counted.

    Args:
        data: set up, for the size of a batch, and for the number of batches of an epoch, whose
            last step may take fewer of them.
        trainer: the keys of the trainer.
    """
    per_image = flops_per_image(module)
    if per_image is None or not sum(per_image):
        return None
    images = _images_of_steps(data, trainer)
    steps = math.lcm(len(per_image), len(images) if len(set(images)) > 1 else 1)
    taken = [images[k % len(images)] for k in range(steps)]
    period = (per_image[k % len(per_image)] * n for k, n in enumerate(taken))
    return StepFlops(tuple(period), sum(taken))


def _images_of_steps(data: ImageData, trainer: Mapping[str, Any]) -> list[int]:
    """Return the number of images of each optimizer step of an epoch."""
    batches = limited(data.batches()["train"], trainer.get("limit_train_batches"))
    each = trainer.get("accumulate_grad_batches") or 1
    steps, rest = divmod(batches, each)
    return [n * data.batch_size for n in [each] * steps + [rest] * (rest > 0)]


def steps_per_epoch(data: ImageData, trainer: Mapping[str, Any]) -> int:
    """Return the number of optimizer steps of an epoch."""
    return len(_images_of_steps(data, trainer))


def limited(batches: int, limit: float | None) -> int:
    """Return how many batches one of Lightning's limits leaves, a number or a share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
