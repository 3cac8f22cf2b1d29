"""The choices of a command line, as a job knows them."""

from __future__ import annotations

import pytest
from hydra.core.hydra_config import HydraConfig

from genlab.config import hydra_job
from genlab.config.compose import compose


def test_a_group_that_follows_from_others_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices become tags: `experiment_on:None/mnist_mini` would say nothing."""
    cfg = compose(["trainer=smoke"], with_hydra=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    found = hydra_job.choices()
    assert found["data"] == "mnist_mini"
    assert found["trainer"] == "smoke"
    assert not {"after_experiment", "experiment_on"} & found.keys()
