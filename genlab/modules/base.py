"""What every model's Lightning module shares: steps seeded by position, metrics by contract."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genlab import seeding
from genlab.codecs import PixelCodec
from genlab.errors import TrainingError
from genlab.modules.hardware import peak_flops
from genlab.modules.optimization import Adam
from genlab.modules.sharding import shard
from genlab.protocols import ImageSpec
from genlab.vae.forecast import Forecast

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class GenerativeModule(pl.LightningModule):
    """A generative model under training.

    A model gives `objective` (what is optimised) and `evaluate` (what is measured, per image); this
    class draws the randomness of each step from (seed, epoch, batch), so that nothing of it needs
    to be saved and the number of processes does not matter, sets the learning rate as a function of
    the step, averages the measured terms over images, and sends both kinds of numbers to every
    logger under the names of the contract.

    Args:
        spec: the images.
        optimizer: recipe of the optimizer and of its learning rate.
        seed: of the run.

    Attributes:
        is_spread: whether the networks lie spread over the processes (`trainer=fsdp`), all of which
            must then take part wherever one of them is used.
    """

    def __init__(self, spec: ImageSpec, optimizer: Adam, seed: int) -> None:
        super().__init__()
        self.spec, self.recipe, self.seed = spec, optimizer, seed
        self.codec = PixelCodec(spec)
        self.final_metrics: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._evaluated = 0
        self.evaluated_images = 0
        #: Where the bound of the split evaluated last is spent; what bound.json will hold.
        self.final_curves: dict[str, list[float | None]] = {}
        self._window: tuple[float, int] = (0.0, 0)
        self._flops_per_image: float | None = None
        self._peak: float | None = None
        self.is_spread = False

    @abstractmethod
    def objective(self, x: Tensor, labels: Tensor | None, step: int) -> dict[str, Tensor]:
        """Scalars in nats per image of a batch (B, C, H, W); `loss` is what is minimised.

        `labels` (B,) are there for models that are told the class. Every other entry is a term of
        the loss by name, so that one that is not finite can be traced.
        """

    @abstractmethod
    def evaluate(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """What is measured on a validation or test batch: each (B,), averaged over all images."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks by name: what `torch.compile` and a count of parameters are about."""

    def on_evaluated(self) -> None:
        """The last batch of an evaluation was seen: the place to gather from other processes what
        callbacks, which come next, may ask of one process alone.
        """

    def summary(self, means: dict[str, float], split: str) -> dict[str, float]:
        """All metrics of a split, from the means over its images of what `evaluate` returned."""
        return means

    def training_metrics(self, terms: Mapping[str, float], step: int) -> dict[str, float]:
        """All metrics of a training row, from the scalars that `objective` returned."""
        return dict(terms)

    def meaning(self) -> str:
        """One line on what the knob of this model is set to; empty without one."""
        return ""

    def label(self) -> str:
        """The knob and its value for a caption; empty without one."""
        return ""

    def forecast(self, pixels: np.ndarray) -> Forecast | None:
        """What the knob must do on these training images; None where nothing is known."""
        return None

    def verdict(self, metrics: Mapping[str, float]) -> str:
        """What became of the model, in a word or two for a table; empty if there is nothing."""
        return ""

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets the name of the running hook dozens of times a step, and torch searches
        # parameters, buffers and modules each time; a name that is plain already stays plain
        if name in self.__dict__ and (value is None or isinstance(value, str)):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Spread the networks, where the strategy has a mesh of processes to spread them over."""
        if self._device_mesh is None or self.is_spread:
            return
        self.is_spread = True
        self._flops_per_image = self._count_flops()  # of whole networks, for the last time
        networks = self.networks()
        inside = {id(p) for network in networks.values() for p in network.parameters()}
        others = [n for n, p in self.named_parameters() if p.requires_grad and id(p) not in inside]
        shard(networks.values(), others, self._device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.recipe.build(p for p in self.parameters() if p.requires_grad)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        # what the optimizer's own does, without the records of a profiler around it
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _call_batch_hook(self, hook_name: str, *args: Any) -> Any:
        # Lightning asks at every step who overrides its three hooks; a CPU has nothing to move
        return args[0] if self.device.type == "cpu" else super()._call_batch_hook(hook_name, *args)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps
        per_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        return per_epoch * (trainer.max_epochs or 1)

    def on_train_start(self) -> None:
        self._total_steps = self.total_steps
        self._log_every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._batch_size = int(self.trainer.datamodule.batch_size)  # type: ignore[attr-defined]
        if self.trainer.is_global_zero and self._peak is None:
            if not self.is_spread:
                self._flops_per_image = self._count_flops()
            self._peak = peak_flops(self.device, str(self.trainer.precision))
        self._window = (time.perf_counter(), 0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        trainer = self.trainer
        step = trainer.global_step
        # every rank at the place of the first, of whose draws `_shared` gives it its rows
        seeding.reseed(self.seed, 0, trainer.current_epoch, batch_idx, 0)
        if not self.recipe.is_constant:
            lr = self.recipe.lr_at(step, self._total_steps)
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = lr
        x = self.codec.encode(batch["image"])
        with self._shared(lambda: self._batch_size):
            terms = self.objective(x, batch.get("label"), step)
        logged = (step + 1) % self._log_every == 0
        # reading one number is free on a CPU, but on a GPU it waits for all work in flight
        if logged or x.device.type == "cpu":
            self._refuse_non_finite(terms, step)
        self._window = (self._window[0], self._window[1] + len(x))
        if logged:
            self._log_training(terms, step)
        return terms["loss"]

    def _refuse_non_finite(self, terms: Mapping[str, Tensor], step: int) -> None:
        if math.isfinite(terms["loss"].item()):
            return
        values = {name: float(value.detach()) for name, value in terms.items()}
        broken = [n for n, v in values.items() if n != "loss" and not math.isfinite(v)] or ["loss"]
        checkpoint = getattr(self.trainer.checkpoint_callback, "last_model_path", "") or "none yet"
        lower = f"model.optimizer.lr={self.recipe.lr:g}"
        raise TrainingError(
            f"step {step}: {' and '.join(broken)} is not finite "
            f"({', '.join(f'{name}={value:g}' for name, value in values.items())}); "
            f"last good checkpoint: {checkpoint}; lower {lower}, or set trainer.gradient_clip_val"
        )

    def _log_training(self, terms: Mapping[str, Tensor], step: int) -> None:
        values = {name: float(self._mean_of_all(value.detach())) for name, value in terms.items()}
        metrics = self.training_metrics(values, step)
        started, images = self._window
        rate = images * self.trainer.world_size / max(time.perf_counter() - started, 1e-9)
        self._window = (time.perf_counter(), 0)
        metrics["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics["images_per_second"] = rate
        if self._flops_per_image and self._peak:
            metrics["mfu"] = rate * self._flops_per_image / (self._peak * self.trainer.world_size)
        self.record("train", metrics, step + 1)

    def _count_flops(self) -> float | None:
        """Floating-point operations of a forward and backward pass per image, on no data."""
        trainer, self._trainer = self._trainer, None  # a module with a trainer cannot be copied
        try:
            twin = copy.deepcopy(self).to("meta")
        finally:
            self._trainer = trainer
        x = torch.rand(2, *self.spec.shape, device="meta")
        try:
            with FlopCounterMode(display=False) as counter:
                twin.objective(x, None, 0)["loss"].backward()
        except (RuntimeError, NotImplementedError) as error:
            log.info("floating-point operations could not be counted (%s): no mfu", error)
            return None
        return counter.get_total_flops() / len(x)

    def on_validation_epoch_start(self) -> None:
        self._sums, self._evaluated = {}, 0

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, split: str) -> None:
        seeding.reseed(self.seed, split, batch_idx, 0)
        trainer = self.trainer
        with self._shared(lambda: trainer.datamodule.rows(split, batch_idx)):  # type: ignore[attr-defined]
            terms = self.evaluate(self.codec.encode(batch["image"]), batch.get("label"))
        for name, values in terms.items():
            total = values.detach().double().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._evaluated += len(batch["image"])
        batches = trainer.num_test_batches if split == "test" else trainer.num_val_batches
        if batch_idx + 1 == sum(batches):
            self.on_evaluated()

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _finish_evaluation(self, split: str) -> None:
        count = self.reduce_sum(torch.tensor(float(self._evaluated), dtype=torch.float64))
        self.evaluated_images = int(count)
        means = {name: float(self.reduce_sum(t) / count) for name, t in self._sums.items()}
        metrics = self.summary(means, split)
        self.log_dict({f"{split}/{k}": v for k, v in metrics.items()}, logger=False)
        self.record(split, metrics, self.trainer.global_step)
        if split == "test":
            self.final_metrics = metrics

    def reduce_sum(self, total: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total.to(self.device), reduce_op="sum")
        return total.cpu()

    def _shared(self, rows: Callable[[], int]) -> AbstractContextManager[None]:
        """Draws for a batch of so many rows on all processes together.

        One process does not ask: it evaluates any loader, also without a datamodule.
        """
        trainer = self.trainer
        if trainer.world_size == 1:
            return nullcontext()
        return seeding.dealt(trainer.global_rank, trainer.world_size, rows())

    def _mean_of_all(self, value: Tensor) -> Tensor:
        """The mean over all processes, each of which has an equal share of the batch."""
        world = self.trainer.world_size
        return value if world == 1 else self.reduce_sum(value.double()) / world

    def of_all(self, rows: Tensor) -> Tensor:
        """The rows (N, ...) of all processes, in the order in which they were dealt out."""
        world = 1 if self._trainer is None else self._trainer.world_size
        if world == 1:
            return rows
        parts: list[Any] = [None] * world
        torch.distributed.all_gather_object(parts, rows.cpu())
        whole = rows.new_empty((sum(map(len, parts)), *rows.shape[1:]))
        for rank, part in enumerate(parts):
            whole[rank::world] = part
        return whole

    def record(self, split: str, metrics: Mapping[str, float], step: int) -> None:
        """Send one row to every logger, with the prefix of its split."""
        row = {f"{split}/{name}": float(value) for name, value in metrics.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics({**row, "epoch": self.trainer.current_epoch}, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nothing of Lightning's own that is not tensors and plain containers goes in."""
        checkpoint.pop("hyper_parameters", None)


# Lightning looks the signature up at every step; kept here, that costs a tenth
GenerativeModule.training_step.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    GenerativeModule.training_step
)
