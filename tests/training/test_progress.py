"""Progress of a training off a terminal: lines with the terms that people compare."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from genlab.training.progress_bar import progress


class Counting(pl.LightningModule):
    """Logs the number of its validation, as the term that people see."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.w * batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/kl", float(self.current_epoch + 1))
        self.log("val/other", 5.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("epochs", "told"), [(20, range(2, 21, 2)), (25, [*range(2, 25, 2), 25]), (3, [1, 2, 3])]
)
def test_off_a_terminal_each_tenth_of_a_training_is_a_line_with_its_terms(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], epochs: int, told: Any
) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[progress()],
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    data = DataLoader(torch.ones(2))
    trainer.fit(Counting(), data, data)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("epoch")]
    found = [re.findall(r"[a-z]+\s+[\d./]+", line) for line in lines]
    assert [[" ".join(part.split()) for part in line] for line in found] == [
        [f"epoch {epoch}/{epochs}", f"step {2 * epoch}", f"kl {epoch}.00"] for epoch in told
    ]
