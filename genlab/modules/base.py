"""The base LightningModule of all model families."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from genlab import seeding
from genlab.data.datamodule import SplitName
from genlab.metrics import measures
from genlab.metrics.measures import Evaluation, SplitMetrics
from genlab.modules import optimization
from genlab.protocols import CanReconstruct, EvaluatesInTerms, KeepsInputs, ShardsNetworks
from genlab.seeding import BatchNoise, ImageNoise, Noise, fold_in
from genlab.tensors import nats_to_bits_per_dim, to_unit_interval

Batch = dict[str, Tensor]


class GenerativeModule(pl.LightningModule):
    """A LightningModule that trains and evaluates a generative model.

    The randomness of a training step is a function of (seed, epoch, batch), and that of the
    evaluation of an image a function of (seed, split, image). So no random state needs to be saved,
    and results do not depend on the number of processes or on `eval_batch_size`. Torchmetrics
    accumulate the metrics, and `log_dict` logs them as `train/...`, `val/...`, `test/...`. Means
    over a split are exact; only a network's own float32 products round differently in a batch of
    another shape, by about 1e-7 of a value.

    A model family adds its own metrics in `split_metrics`. A family with several optimizers
    overrides `configure_optimizers`, `losses` and `training_step`, with
    `automatic_optimization = False`; its optimizers together count one step for each batch.

    Args:
        model: the model; see `genlab.protocols.Model`.
        optimizer: creates the optimizer from parameters, such as a partial of `torch.optim.Adam`.
        lr_schedule: creates the learning-rate schedule from the optimizer, stepped after every
            optimizer step; None for a constant rate. If it has a parameter `total_steps`, it gets
            the number of training steps.
        seed: seed of the run.
        metrics: metrics of the user, by name.

    Attributes:
        monitor: the metric of a validation by which `best.ckpt` is chosen; lower is better.
        remedy: what to do, beside lowering the learning rate, if a loss is not finite.
        evaluations: the last evaluation of each split.
        tested: the split that is evaluated in full by a test.
        cycle: number of optimizer steps after which the work of a step repeats.
        on_term: functions that are called with the rows of every term of an evaluation that was
            computed (`protocols.Terms`), and with None after every batch of a model that evaluates
            all at once.
        known_terms: returns the terms of a batch of a test that are known before, the first ones.
            A test removes both at its end.
    """

    monitor: ClassVar[str] = "val/loss"
    remedy: ClassVar[str] = "set trainer.gradient_clip_val"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        lr_schedule: Callable[..., LRScheduler] | None = None,
        seed: int = 0,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.seed = seed
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        self.metrics = dict(metrics or {})
        self.evaluations: dict[str, Evaluation] = {}
        self.tested: SplitName = "test"
        self.cycle = 1
        self.on_term: list[Callable[[Tensor | None], None]] = []
        self.known_terms: Callable[[Batch], Sequence[Tensor]] = _none_known
        self._measured: SplitMetrics
        self._terms: dict[str, Tensor] = {}

    def split_metrics(self, full: bool) -> dict[str, Metric]:
        """Return the family's metrics over a whole split, beside the means of (B,) values.

        Args:
            full: whether they are those of a test.
        """
        return {}

    def constants(self) -> dict[str, float]:
        """Return settings that are logged with the metrics."""
        return {}

    def training_row(self, terms: Mapping[str, Tensor], step: int) -> dict[str, Any]:
        """Return the values to log for a training step, from the terms of its loss."""
        row: dict[str, Any] = dict(terms)
        if {"reconstruction", "kl"} <= terms.keys():
            row["neg_elbo"] = terms["reconstruction"] + terms["kl"]
            row["bits_per_dim"] = nats_to_bits_per_dim(row["neg_elbo"], self.model.spec.dims)
        return row

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardsNetworks):
            strategy.shard(self.model)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = self.optimizer(parameters)
        return optimization.configure(self.trainer, optimizer, self.lr_schedule, self.monitor)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: Any = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        if not optimization.clip_in_bf16(self, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def losses(
        self, x: Tensor, labels: Tensor | None, step: int, noise: Noise | None
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Compute the losses of an optimizer step one after another.

        Each is differentiated, and followed by a step of its optimizer, before the next is asked
        for.

        Yields:
            The name of a loss, and its terms, of which it is one.
        """
        yield "loss", self.model.loss(x, labels, step, noise)

    def losses_of(
        self, x: Tensor, labels: Tensor | None, inputs: Tensor | None, step: int, noise: Noise
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Compute the losses as `losses` does, from the kept `inputs` of the images if not None."""
        if inputs is not None and isinstance(self.model, KeepsInputs):
            yield "loss", self.model.loss_of_inputs(inputs, labels, step, noise)
        else:
            yield from self.losses(x, labels, step, noise)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, noise = self.training_input(batch, batch_idx)
        step = self.trainer.global_step
        labels, inputs = batch.get("label"), batch.get("inputs")
        ((name, terms),) = self.losses_of(x, labels, inputs, step, noise)
        self.log_terms(terms, step)
        return terms[name]

    def training_input(self, batch: Batch, batch_idx: int) -> tuple[Tensor, BatchNoise]:
        """Return the images of a training batch, and its noise."""
        trainer = self.trainer
        counters = (0, trainer.current_epoch, batch_idx)
        seeding.reseed(self.seed, trainer.global_rank, *counters[1:])  # for dropout
        x = to_unit_interval(batch["image"])
        noise = BatchNoise(
            len(x),
            fold_in(self.seed, *counters, "noise"),
            x.device,
            trainer.global_rank,
            trainer.world_size,
        )
        return x, noise

    def is_logged(self, step: int) -> bool:
        """Return whether the terms of an optimizer step are logged."""
        return (step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def log_terms(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Check the terms of the loss of an optimizer step, and log them where a row is due.

        Raises:
            TrainingError: the loss is not finite.
        """
        trainer, device = self.trainer, terms["loss"].device
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self._terms = {name: value.detach() for name, value in terms.items()}
        logged = self.is_logged(step)
        # on a GPU, reading a number waits for all queued work; on a CPU it costs nothing
        if logged or device.type == "cpu":
            optimization.check_finite(terms, step, lr, self.remedy)
        if logged:
            row = self.training_row(self._terms, step)
            row["learning_rate"] = lr
            self.log_row("train", row, step + 1, sync_dist=trainer.world_size > 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # on a GPU the loss is looked at where a row is logged, and before it is kept for good
        if self._terms:
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            optimization.check_finite(self._terms, self.trainer.global_step - 1, lr, self.remedy)

    def on_validation_epoch_start(self) -> None:
        self._start(full=False)

    def on_test_end(self) -> None:
        self.on_term.clear()
        self.known_terms = _none_known

    def on_test_epoch_start(self) -> None:
        self._start(full=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        is_last = batch_idx + 1 == sum(self.trainer.num_val_batches)
        self._measure(batch, "val", is_last, full=False)
        if is_last:
            self.on_validated()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        is_last = batch_idx + 1 == sum(self.trainer.num_test_batches)
        self._measure(batch, self.tested, is_last, full=True)

    def on_validation_epoch_end(self) -> None:
        self.log_row("val", self.evaluations["val"].metrics, self.trainer.global_step)

    def on_test_epoch_end(self) -> None:
        self.log_row(self.tested, self.evaluations[self.tested].metrics, self.trainer.global_step)

    def log_row(self, split: str, values: Mapping[str, Any], step: int, **options: Any) -> None:
        """Log values with the prefix of a split; `step` is the number of optimizer steps."""
        row = {f"{split}/{name}": value for name, value in values.items()}
        row |= {"step": step, "epoch": self.trainer.current_epoch}
        self.log_float64(row, **options)

    def log_float64(self, row: Mapping[str, Any], **options: Any) -> None:
        """Log values in float64, since Lightning would convert numbers to float32."""
        float64 = {
            name: torch.as_tensor(value, dtype=torch.float64, device=self.device)
            for name, value in row.items()
        }
        self.log_dict(float64, batch_size=1, **options)

    def _start(self, full: bool) -> None:
        own = {name: metric.clone() for name, metric in self.metrics.items()}
        others = {**self.split_metrics(full), **own}
        self._measured = SplitMetrics(others, self.model.spec.dims).to(self.device)

    def _measure(self, batch: Batch, split: str, is_last: bool, full: bool) -> None:
        x, labels = to_unit_interval(batch["image"]), batch.get("label")
        noise = ImageNoise(self.seed, split, indices=batch["index"].tolist(), device=x.device)
        if isinstance(self.model, EvaluatesInTerms):
            known = self.known_terms(batch) if full else ()
            terms = _ToldTerms(known, self._tell)
            found = self.model.evaluate(x, labels, noise, full=full, terms=terms)
        else:
            found = self.model.evaluate(x, labels, noise, full=full)
            self._tell(None)
        values = {**found, "target": x}
        if labels is not None:
            values[measures.LABELS] = labels
        if self._measured.needs("preds") and isinstance(self.model, CanReconstruct):
            values["preds"] = self.model.reconstruct(x)
        self._measured.update(values, len(x))
        if is_last:
            # before the callbacks at the end of the epoch, and in all processes
            evaluation = self._measured.compute()
            metrics = {**evaluation.metrics, **self.constants()}
            self.evaluations[split] = replace(evaluation, metrics=metrics)

    def _tell(self, rows: Tensor | None) -> None:
        for listener in self.on_term:
            listener(rows)

    def on_validated(self) -> None:
        """React to a new validation, before anything is logged of it."""


class _ToldTerms:
    """The terms of a batch, of which a function is told."""

    def __init__(self, known: Sequence[Tensor], tell: Callable[[Tensor], None]) -> None:
        self._known, self._tell = known, tell

    def known(self) -> Sequence[Tensor]:
        return self._known

    def add(self, rows: Tensor) -> None:
        self._tell(rows)


def _none_known(batch: Batch) -> Sequence[Tensor]:
    return ()
