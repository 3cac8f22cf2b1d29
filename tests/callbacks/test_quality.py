"""Quality in training and in the test: what is logged, kept, and left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trained_runs import logged, train_in

from genlab.errors import ConfigError
from genlab.metrics import names, quality

SMALL = [
    *("logger=none", "forecast=false", "trainer=smoke", "data.train_images=500"),
    *("data.batch_size=32", "data.eval_batch_size=100", "trainer.max_epochs=2"),
    *("model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]", "ema_decay=0.9"),
    *("callbacks=quality", "features@callbacks.quality.features=pixels"),
    *("callbacks.quality.samples=200", "callbacks.quality.samples_in_training=100"),
    "callbacks.quality.every_n_epochs=2",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_chosen_epochs_and_the_test_are_measured(tmp_path: Path) -> None:
    run = train_in(tmp_path, *SMALL)
    (record,) = run.quality
    features = record["features"]
    assert features.startswith("pixels_") and record["samples"] == 200
    result = run.result
    assert result is not None
    for name, estimate in record["values"].items():
        assert result["metrics"][f"test/{name}_{features}"] == estimate["value"]
    ends = {"fid_infinity_low", "fid_infinity_high", "rfid_infinity_low", "rfid_infinity_high"}
    assert {f"test/{end}_{features}" for end in ends} <= result["metrics"].keys()
    steps = {step for step, name in logged(run.metrics()) if name == f"val/fid_{features}"}
    validated = {step for step, name in logged(run.metrics()) if name == "val/kl"}
    assert steps == {max(validated)} and len(validated) == 2
    assert not (run.path / quality.FOLDER).exists()
    # a second run of the same data has its reference in the cache, and the same floor
    other = train_in(tmp_path, *SMALL, "seed=1")
    assert other.quality[0]["floor"] == record["floor"]
    assert other.quality[0]["values"] != record["values"]


def test_features_that_cannot_work_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dims=5000: images of 784 pixels have at most 784"):
        train_in(tmp_path, *SMALL, "callbacks.quality.features.dims=5000")
    with pytest.raises(ConfigError, match=r"callbacks.quality.samples=5: .* at least 40"):
        train_in(tmp_path, *SMALL, "callbacks.quality.samples=5")
    with pytest.raises(ConfigError, match=r"callbacks.quality.samples=1000000000: .* 10000000"):
        train_in(tmp_path, *SMALL, "callbacks.quality.samples=1e9")
    with pytest.raises(ConfigError, match="real numbers"):
        train_in(tmp_path, *SMALL, "data=gaussian", "model/likelihood=gaussian")
    for status in tmp_path.rglob("status.json"):
        assert json.loads(status.read_text()).get("step", 0) == 0


def test_names_of_quality_say_their_features() -> None:
    found = names.describe("test/fid_classifier_1a2b3c")
    assert (found.title, found.better) == ("FID of samples (classifier_1a2b3c)", "lower")
    assert names.describe("fid_infinity_classifier_1a2b3c").heading == "FID∞ (classifier)"
    low = names.describe("test/rfid_infinity_low_classifier_1a2b3c")
    assert low.is_part and low.heading == ""
    assert low.title.endswith("lower end of the interval (classifier_1a2b3c)")
    metrics = [
        "val/recall_pixels_abcdef",
        "val/fid_low_pixels_abcdef",
        "val/kl",
        "val/fid_x_1b2c3d",
    ]
    assert names.ordered(metrics)[0] == "val/kl"
    assert names.is_listed("test/energy_distance_pixels_abcdef")
    assert not names.is_listed("test/mine_pixels_abcdef")
