"""The logged size of the gradients is that which the optimizer sees, and is measured unclipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from genlab.config.compose import compose
from genlab.runs.run import Run
from genlab.training import run

QUICK = [
    *("callbacks=gradients", "logger=none", "forecast=false", "trainer=smoke"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]", "data.batch_size=64"),
    *("trainer.log_every_n_steps=2", "trainer.limit_train_batches=6"),
]


def norms(path: Path, *overrides: str) -> tuple[list[float], list[float]]:
    """Train, and return the norms that were logged, and those at every step of the optimizer."""
    seen: list[float] = []

    def look(optimizer: Any, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads if g is not None)))

    hook = register_optimizer_step_post_hook(look)
    try:
        outcome = run.run(compose([*QUICK, f"runs_dir={path}", *overrides]))
    finally:
        hook.remove()
    assert outcome.path is not None
    rows = Run(outcome.path).metrics()
    return [row["train/grad_norm"] for row in rows if "train/grad_norm" in row], seen


def test_the_norm_is_that_of_the_step_whose_row_it_is_in(tmp_path: Path) -> None:
    logged, seen = norms(tmp_path)
    assert logged == pytest.approx(seen[-6:][1::2], rel=1e-6)


def test_the_norm_is_taken_before_clipping(tmp_path: Path) -> None:
    every = "trainer.log_every_n_steps=1"
    unclipped, _ = norms(tmp_path / "a", every)
    logged, seen = norms(tmp_path / "b", every, "trainer.gradient_clip_val=1e-3")
    assert logged[0] == pytest.approx(unclipped[0], rel=1e-6)  # the first step is the same
    assert seen[-6:] == pytest.approx([1e-3] * 6, rel=1e-3)
