"""Operations of a training: counted as torch counts them, and as many as a budget allows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from trained_runs import train_in

from genlab.config.compose import compose
from genlab.errors import ConfigError
from genlab.modules.gan import GANModule
from genlab.training.flops import FlopCount, StepFlops
from genlab.training.interrupts import Stopped
from genlab.training.planning import Plan, assemble, counted, plan
from genlab.training.run_config import RunConfig

TINY = [
    "data.train_images=160",
    "data.batch_size=16",
    "trainer.limit_test_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1000",
    "callbacks=none",
    "logger=none",
    "forecast=false",
]
GAN = [
    "model=gan",
    "model.net.generator.channels=[8]",
    "model.net.discriminator.channels=[8]",
    "model.penalty.every=3",
    "model.module.discriminator_steps=2",
]


def planned(*overrides: str) -> Plan:
    given = [*TINY, *overrides]
    found = plan(compose(given), given)
    data, module = assemble(found)
    data.setup("fit")
    return counted(found, data, module)


def test_the_count_is_that_of_torch() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    totals = []
    for mode in (FlopCount(), FlopCounterMode(display=False)):
        with mode:
            net(torch.rand(3, 1, 8, 8)).square().sum().backward()
        totals.append(mode.total if isinstance(mode, FlopCount) else mode.get_total_flops())
    assert totals[0] == totals[1] > 0


def test_a_gradient_of_a_gradient_is_counted() -> None:
    weight, x = torch.rand(4, 4, requires_grad=True), torch.rand(2, 4, requires_grad=True)
    product = 2 * 2 * 4 * 4
    with FlopCount() as count:
        (gradient,) = torch.autograd.grad((x @ weight).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    # x W; its gradient of x; of that the gradients of W and of 2 x W; of the latter those of x, W
    assert count.total == 6 * product


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 200))
def test_the_steps_of_a_budget_are_the_most_that_it_allows(
    period: list[int], budget: float
) -> None:
    flops = StepFlops(tuple(period), 1)
    sums = itertools.accumulate(itertools.cycle(period))
    steps = sum(1 for _ in itertools.takewhile(lambda total: total <= budget, sums))
    assert flops.steps_within(budget) == steps
    assert flops.total(steps) <= budget < flops.total(steps + 1)


def test_a_last_step_of_fewer_batches_counts_less() -> None:
    whole = planned("trainer.accumulate_grad_batches=1").flops
    some = planned("trainer.accumulate_grad_batches=4").flops
    assert whole is not None and some is not None
    assert some.period == (4 * whole.period[0], 4 * whole.period[0], 2 * whole.period[0])
    assert some.per_image == whole.per_image


def test_a_gan_costs_its_discriminators_steps_and_its_penalties() -> None:
    no_penalty = ["model.penalty.r1=0", "model.penalty.r2=0"]
    flops, without = planned(*GAN).flops, planned(*GAN, *no_penalty).flops
    assert flops is not None and without is not None and len(flops.period) == 6
    alone, both = without.period[:2]
    assert without.period == 3 * (alone, both) and alone < both
    more = [a - b for a, b in zip(flops.period, without.period, strict=True)]
    assert more[:2] == more[3:5] == [0, 0] and more[2] == more[5] > 0


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The operations of each real step of a GAN, by its number."""
    found: dict[int, int] = {}
    step = GANModule.training_step

    def training_step(self: GANModule, batch: Any, batch_idx: int) -> None:
        number = self.trainer.global_step
        with FlopCount() as count:
            step(self, batch, batch_idx)
        found[number] = count.total

    monkeypatch.setattr(GANModule, "training_step", training_step)
    return found


def test_a_run_takes_the_operations_of_its_budget_also_if_it_is_resumed(
    tmp_path: Path, measured: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    flops = planned(*GAN).flops
    assert flops is not None
    budget = float(flops.total(13) + flops.period[1] // 2)
    overrides = [*TINY, *GAN, f"training_flops={budget}", "checkpoint_every_n_steps=4"]
    whole = train_in(tmp_path / "whole", *overrides).result
    assert whole is not None and whole["steps"] == 13 and whole["training_images"] == 13 * 16
    assert whole["training_flops"] == sum(measured.values())
    assert 0 <= budget - whole["training_flops"] < flops.period[13 % 6]

    step = GANModule.training_step

    def interrupted(self: GANModule, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 6:
            raise KeyboardInterrupt
        step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(GANModule, "training_step", interrupted)
        train_in(tmp_path / "parts", *overrides)
    measured.clear()
    parts = train_in(tmp_path / "parts", *overrides).result
    assert parts is not None and 0 < len(measured) < 13
    for name in ("steps", "epochs", "training_flops", "training_images"):
        assert parts[name] == whole[name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training_flops=0"], "training_flops=0: more than 0 is needed, or null"),
        (["training_flops=inf"], "training_flops=inf: more than 0"),
        (["training_flops=1e9", "trainer.max_steps=5"], "trainer.max_steps=5 sets the length"),
        (
            ["training_flops=1e9", "trainer.max_epochs=0", "init_from=x"],
            "trainer.max_epochs=0 sets the length",
        ),
        (["training_flops=10"], "training_flops=10: the first step of this training takes"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(*overrides)


@pytest.mark.parametrize("others", [[], ["trainer.max_epochs=null"]])
def test_a_budget_sets_steps_and_epochs(others: list[str]) -> None:
    flops = planned().flops
    assert flops is not None
    config: RunConfig = planned(f"training_flops={flops.total(25)}", *others).run_config
    assert (config.trainer["max_steps"], config.trainer["max_epochs"]) == (25, 3)
