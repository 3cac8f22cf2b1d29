"""The cost of samples: operations that are known, and quality at other numbers of steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained_runs import load_with_data, train_in

from genlab.callbacks.quality import as_pixels
from genlab.errors import ConfigError
from genlab.metrics import names, quality
from genlab.metrics.features.base import ready
from genlab.metrics.features.pixels import PixelComponents
from genlab.metrics.rows import Rows

SMALL = [
    *("logger=none", "forecast=false", "data.train_images=200", "data.batch_size=50"),
    *("trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("data.eval_batch_size=50", "callbacks=claims", "~callbacks.quality"),
    "features@callbacks.cost.features=pixels",
]
DDPM = [
    *("model=ddpm", "model.net.channels=8", "model.net.multipliers=[1,2]", "model.test_draws=1"),
    *("model.net.attention=[]", "model.sampler.steps=4", "callbacks.cost.steps=[2,4]"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def metrics_of(folder: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    run = train_in(folder, *SMALL, *overrides)
    assert run.result is not None
    return run.path, run.result["metrics"]


def test_the_operations_of_a_sample_of_a_vae_are_those_of_its_decoder(tmp_path: Path) -> None:
    _, found = metrics_of(tmp_path, "model.net.decoder.hidden=[32]", "model.latent_dim=5")
    assert found["test/sampling_flops"] == 2 * (5 * 32 + 32 * 784)
    assert found["test/latency_low"] <= found["test/latency"] <= found["test/latency_high"]
    assert found["test/latency"] > 0 and found["test/latency_cpu"] > 0
    assert found["test/samples_per_second"] > 0
    assert "test/evaluations" not in found and not any("steps_" in name for name in found)


@pytest.mark.slow
def test_quality_at_each_number_of_steps_is_that_of_its_samples(tmp_path: Path) -> None:
    path, found = metrics_of(tmp_path, *DDPM)
    assert found["test/evaluations"] == 4
    model, data = load_with_data(path, "last")
    data.setup("test")
    features = ready(PixelComponents(), data.spec, data, None)
    real = Rows.of(features(torch.from_numpy(np.array(data.pixels("test")))))
    for steps in (2, 4):
        with torch.inference_mode():
            images = as_pixels(model.sample(24, 0, sampler=replace(model.sampler, steps=steps)))
        own = quality.measured(Rows.of(features(images)), real, features)
        name = f"test/steps_{steps}/kid_{features.name}"
        assert found[name] == pytest.approx(own["kid"].value, rel=1e-4)
        assert found[f"test/steps_{steps}/latency"] > 0


def test_more_steps_than_the_model_has_are_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.cost\.steps=2000: the model has"):
        train_in(tmp_path, *SMALL, *DDPM, "callbacks.cost.steps=[2000]")


@pytest.mark.parametrize("override", ["repeats=5", "batch=0", "measured=19", "steps=[0]"])
def test_a_value_out_of_range_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=f"callbacks.cost.{override.partition('=')[0]}"):
        train_in(tmp_path, *SMALL, f"callbacks.cost.{override}")


def test_metrics_at_a_number_of_steps_are_parts_with_a_title_of_their_own() -> None:
    plain, low = names.describe("test/latency"), names.describe("test/latency_low")
    assert plain.heading == "latency" and low.is_part and not low.heading
    assert names.is_listed("test/latency_low") and not names.is_listed("test/lower")
    some = names.describe("test/steps_50/fid_infinity_classifier_1a2b3c")
    assert some.is_part and not some.heading and some.better == "lower"
    assert some.title == "FID of infinitely many samples, 50 steps (classifier_1a2b3c)"
