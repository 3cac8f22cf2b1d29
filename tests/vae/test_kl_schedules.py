"""The laws of KL schedules, held by every YAML in conf/model/kl_schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from genlab.config.build import build
from genlab.config.check import check
from genlab.vae import kl_schedules
from genlab.vae.kl import KLPenalty, KLWeight
from genlab.vae.kl_schedules import KLSchedule

FILES = sorted((Path(__file__).parents[2] / "conf/model/kl_schedule").glob("*.yaml"))
FAR = 10**9


def component(path: Path) -> KLSchedule:
    node = check(OmegaConf.to_container(OmegaConf.load(path)), "model.kl_schedule")
    schedule: KLSchedule = build(node)
    return schedule


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_schedule_is_a_pure_function_of_the_step(path: Path) -> None:
    schedule, steps = component(path), [0, 7, 999, 3, 7, 5000, 0]
    state = dict(vars(schedule))
    values = [(schedule.weight(s), schedule.capacity(s)) for s in steps]
    assert values == [(component(path).weight(s), component(path).capacity(s)) for s in steps]
    assert dict(vars(schedule)) == state


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_schedule_stays_in_range_and_ends_at_its_final_values(path: Path) -> None:
    schedule = component(path)
    weights = [schedule.weight(s) for s in range(5000)]
    assert all(0 <= w <= 1 for w in weights)
    assert schedule.final_weight == schedule.weight(FAR) == 1
    assert schedule.final_capacity == schedule.capacity(FAR)
    if not isinstance(schedule, kl_schedules.Cyclical):
        assert weights == sorted(weights)
    capacities = [schedule.capacity(s) for s in range(5000)]
    assert (None in capacities) == (schedule.final_capacity is None)
    if schedule.final_capacity is not None:
        assert capacities == sorted(capacities)  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["Linear", "Cosine", "Sigmoid"])
def test_a_ramp_goes_from_start_over_the_middle_to_one(name: str) -> None:
    schedule = getattr(kl_schedules, name)(steps=100, start=0.2)
    assert schedule.weight(0) == pytest.approx(0.2)
    assert schedule.weight(50) == pytest.approx(0.6)
    assert schedule.weight(99) < schedule.weight(100) == 1
    for step in range(101):
        assert schedule.weight(step) + schedule.weight(100 - step) == pytest.approx(1.2)


def test_the_curves_are_what_they_are_called() -> None:
    assert kl_schedules.Linear(10).weight(3) == pytest.approx(0.3)
    assert kl_schedules.Cosine(10).weight(3) == pytest.approx((1 - math.cos(0.3 * math.pi)) / 2)
    logistic = [1 / (1 + math.exp(-u)) for u in (-5.0, -2.0, 5.0)]
    cut = (logistic[1] - logistic[0]) / (logistic[2] - logistic[0])
    assert kl_schedules.Sigmoid(10, steepness=10).weight(3) == pytest.approx(cut)
    assert kl_schedules.Sigmoid(10, steepness=1e-3).weight(3) == pytest.approx(0.3, abs=1e-6)


def test_four_cycles_with_ratio_one_half_average_three_quarters() -> None:
    schedule = kl_schedules.Cyclical(steps=4000, cycles=4, ratio=0.5)
    weights = [schedule.weight(s) for s in range(4000)]
    assert sum(weights) / 4000 == pytest.approx(0.75, abs=1e-3)
    assert sum(w == 1 for w in weights) == 2000
    assert [weights[1000 * c] for c in range(4)] == [0, 0, 0, 0]
    assert weights[:1000] == weights[3000:]


def test_no_steps_means_the_full_weight_at_once() -> None:
    for name in ("Linear", "Cosine", "Sigmoid", "Cyclical"):
        assert getattr(kl_schedules, name)(steps=0).weight(0) == 1
    assert kl_schedules.Capacity(nats=5, steps=0).capacity(0) == 5


def penalty(schedule: KLSchedule, weight: float) -> KLPenalty:
    return KLPenalty(KLWeight(weight, weight, None, ""), schedule)


def test_the_penalty_is_the_weighted_kl_and_is_judged_at_the_end() -> None:
    kl = torch.tensor([8.0])
    linear = penalty(kl_schedules.Linear(steps=10), 3.0)
    assert float(linear(kl, 5)) == pytest.approx(12)
    assert float(linear(kl, None)) == pytest.approx(24)
    assert linear.at(5) == {"kl_weight": 1.5, "beta_effective": 1.5}
    assert linear.at(None) == {"kl_weight": 3.0, "beta_effective": 3.0}
    assert float(penalty(kl_schedules.Linear(steps=10), 0.0)(kl, None)) == 0


def test_capacity_holds_the_mean_kl_not_that_of_each_image() -> None:
    held = penalty(kl_schedules.Capacity(nats=10, steps=10), 30.0)
    mean_rows = held.rows(torch.tensor([2.0, 18.0]), None).mean(0)
    assert float(held(mean_rows, None)) == 0
    assert float(held(mean_rows, 4)) == 180


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Linear", {"steps": -1}, "steps=-1"),
        ("Linear", {"steps": 1.5}, "steps=1.5"),
        ("Cosine", {"steps": 10, "start": 1.1}, "start=1.1"),
        ("Sigmoid", {"steps": 10, "steepness": 0}, "steepness=0"),
        ("Cyclical", {"steps": 10, "cycles": 0}, "cycles=0"),
        ("Cyclical", {"steps": 10, "ratio": 0.0}, "ratio=0.0"),
        ("Capacity", {"nats": -5, "steps": 10}, "nats=-5"),
        ("Capacity", {"nats": math.inf, "steps": 10}, "nats=inf"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}: "):
        getattr(kl_schedules, name)(**arguments)
