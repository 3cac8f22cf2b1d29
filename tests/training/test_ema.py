"""Averaged weights equal the average; validation, best.ckpt and a resumed run use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genlab.training.checkpoints import BestCheckpoint
from genlab.training.ema import WeightAverage, averaged
from genlab.vae.likelihoods import CalibratedGaussian


class Line(pl.LightningModule):
    """One weight that moves by SGD on w x; it records what it saw in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.raw: list[float] = []
        self.seen: list[float] = []
        self.saved: Path | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.w * batch).sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.raw.append(self.w.item())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.w.item())

    def on_validation_epoch_end(self) -> None:
        self.seen.append(self.w.item())
        if self.saved is not None:
            self.trainer.save_checkpoint(self.saved)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def averages(raw: list[float], decay: float) -> list[float]:
    average, history = 0.0, []
    for n, value in enumerate(raw, start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * value
        history.append(average)
    return history


def fit(module: Line, ema: WeightAverage, tmp_path: Path, **options: Any) -> pl.Trainer:
    data = torch.arange(1.0, 9.0)
    checkpoint = options.pop("ckpt_path", None)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[ema, BestCheckpoint(tmp_path, "val/loss")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module, DataLoader(data), DataLoader(data), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_validation_sees_the_average_and_training_goes_on_raw(tmp_path: Path, decay: float) -> None:
    module = Line()
    fit(module, WeightAverage(decay), tmp_path, max_epochs=3)
    expected = averages(module.raw, decay)
    assert module.seen == pytest.approx([expected[7], expected[15], expected[23]], rel=1e-5)
    # the gradient does not depend on w, so that the raw weights fall by 0.1 * 36 an epoch
    assert module.raw[-1] == pytest.approx(-0.1 * 36 * 3, rel=1e-5)


@pytest.mark.parametrize("options", [{"max_epochs": 3}, {"max_epochs": 1, "val_check_interval": 3}])
def test_the_best_checkpoint_holds_what_was_validated(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    module = Line()
    fit(module, WeightAverage(0.9), tmp_path, **options)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    # w falls without end, so that the last one is the best
    assert best["state_dict"]["w"].item() == module.seen[-1]
    assert module.seen[-1] > module.raw[-1]


def test_a_checkpoint_holds_the_average_and_a_resume_takes_the_raw_weights(tmp_path: Path) -> None:
    straight = Line()
    fit(straight, WeightAverage(0.9), tmp_path, max_epochs=2)

    first = Line()
    trainer = fit(first, WeightAverage(0.9), tmp_path, max_epochs=1)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert saved["state_dict"]["w"].item() == pytest.approx(averages(first.raw, 0.9)[-1])
    assert saved["raw_weights"]["w"].item() == pytest.approx(first.raw[-1])

    second = Line()
    fit(second, WeightAverage(0.9), tmp_path, max_epochs=2, ckpt_path=str(path))
    assert first.raw + second.raw == straight.raw
    assert second.seen[-1] == straight.seen[-1]


def test_a_checkpoint_written_in_validation_holds_raw_weights_and_average_in_their_places(
    tmp_path: Path,
) -> None:
    straight = Line()
    fit(straight, WeightAverage(0.9), tmp_path / "straight", max_epochs=2)

    first = Line()
    first.saved = tmp_path / "validation.ckpt"
    fit(first, WeightAverage(0.9), tmp_path / "first", max_epochs=1)
    saved = torch.load(first.saved, weights_only=True)
    assert saved["state_dict"]["w"].item() == first.seen[-1]
    assert first.seen[-1] == pytest.approx(averages(first.raw, 0.9)[-1])
    assert saved["raw_weights"]["w"].item() == first.raw[-1]
    # it goes on from the raw weights, which the first batch of an epoch lowers by 0.1
    second = Line()
    fit(second, WeightAverage(0.9), tmp_path / "first", max_epochs=3, ckpt_path=str(first.saved))
    assert second.raw[0] == pytest.approx(first.raw[-1] - 0.1)
    # and saving leaves the training as it is
    twice = Line()
    twice.saved = tmp_path / "each.ckpt"
    fit(twice, WeightAverage(0.9), tmp_path / "twice", max_epochs=2)
    assert (twice.raw, twice.seen) == (straight.raw, straight.seen)


def test_with_accumulated_gradients_the_average_follows_once_a_step(tmp_path: Path) -> None:
    module = Line()
    fit(module, WeightAverage(0.9), tmp_path, max_epochs=2, accumulate_grad_batches=3)
    # 8 batches are steps of 3, 3 and 2 batches
    steps = [module.raw[i] for i in (2, 5, 7, 10, 13, 15)]
    expected = averages(steps, 0.9)
    assert module.seen == pytest.approx([expected[2], expected[5]], rel=1e-5)


def test_a_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decay=1\.5"):
        WeightAverage(1.5)


class Scale(nn.Module):
    """A buffer that is averaged, and one that is not."""

    averaged = ("value",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(1))
        self.register_buffer("count", torch.zeros(1))


class LineWithScale(Line):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()
        self.values: list[float] = []
        self.averages: list[tuple[float, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.scale.value += batch.mean()
        self.scale.count += 1
        self.values.append(self.scale.value.item())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.averages.append((self.scale.value.item(), self.scale.count.item()))


def test_a_buffer_that_says_so_is_averaged_with_the_weights(tmp_path: Path) -> None:
    module = LineWithScale()
    trainer = fit(module, WeightAverage(0.9), tmp_path, max_epochs=2)
    expected = averages(module.values, 0.9)
    steps = len(module.values) // 2
    assert module.averages[0] == (pytest.approx(expected[steps - 1]), steps)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["scale.value"].item() == pytest.approx(expected[-1])
    assert saved["raw_weights"]["scale.value"].item() == module.values[-1]
    assert "scale.count" not in saved["raw_weights"]


def test_the_variance_of_a_calibrated_gaussian_is_averaged_with_the_weights() -> None:
    likelihood = CalibratedGaussian()
    assert set(averaged(likelihood)) == {"variance"}
