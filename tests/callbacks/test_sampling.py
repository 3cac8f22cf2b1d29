"""Test the measures of a sampler: a distance that is 0 only for equal distributions, and cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genlab.config import compose
from genlab.metrics.distances import energy_distance
from genlab.report import answer, collect
from genlab.training import run


def test_the_distance_of_two_points_is_twice_theirs() -> None:
    x, y = torch.zeros(5, 1, 1, 2), torch.tensor([3.0, 4.0]).expand(7, 1, 1, 2)
    assert energy_distance(x, y) == pytest.approx(10)
    assert energy_distance(x, x) == 0


def test_the_distance_is_unbiased_and_grows_with_the_shift() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(shift: float) -> float:
        x, y = torch.randn(2, 40, 1, 4, 4, generator=generator)
        return energy_distance(x, y + shift)

    same = torch.tensor([draw(0.0) for _ in range(200)])
    assert abs(same.mean()) < 3 * same.std() / len(same) ** 0.5
    assert draw(0.5) < draw(1.0) < draw(2.0)


@pytest.mark.slow
def test_samplers_are_compared_by_their_samples(tmp_path: Path) -> None:
    small = [
        *("model=ddpm", "data=mnist_mini", "trainer=smoke", "callbacks=sampling", "logger=none"),
        *("model.steps=20", "model.net.channels=8", "model.net.attention=[]", "model.test_draws=1"),
        *("callbacks.samples.images=4", "callbacks.samples.measured=8", "data.batch_size=8"),
    ]
    evaluations = {}
    for sampler, steps in (("ddim", 4), ("heun", 4)):
        chosen = [f"model/sampler={sampler}", f"model.sampler.steps={steps}"]
        outcome = run.run(compose.compose([*small, *chosen, f"runs_dir={tmp_path}", "group=s"]))
        assert outcome.result is not None and outcome.path is not None
        metrics = outcome.result["metrics"]
        evaluations[sampler] = metrics["test/evaluations"]
        assert metrics["test/energy_distance"] > 1 and metrics["test/seconds_per_sample"] > 0
        assert (outcome.path / "pictures" / "samples-final.png").exists()
    assert evaluations == {"ddim": 4, "heun": 7}
    said = answer(collect(tmp_path / "s"))
    assert said.startswith("The samples nearest to the test images are those of sampler ")


@pytest.mark.slow
def test_guidance_takes_two_evaluations_at_each_step(tmp_path: Path) -> None:
    settings = [
        *("model=ddpm", "data=mnist_mini", "trainer=smoke", "callbacks=sampling", "logger=none"),
        *("model.steps=20", "model.net.channels=8", "model.net.attention=[]", "model.test_draws=1"),
        *("callbacks.samples.images=4", "callbacks.samples.measured=8", "data.batch_size=8"),
        *("model.sampler.steps=5", "model.conditional=true", f"runs_dir={tmp_path}"),
    ]
    for guidance, expected in ((1, 5), (2, 10)):
        outcome = run.run(compose.compose([*settings, f"model.guidance={guidance}"]))
        assert outcome.result is not None
        assert outcome.result["metrics"]["test/evaluations"] == expected
