"""The quality of a sweep: which settings are told apart, and which of them the bound chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genlab.report.answer import about
from genlab.report.collect import collect
from genlab.report.quality import (
    Measured,
    about_quality,
    draw_quality,
    measured_settings,
    quality_chart,
)
from genlab.report.sweep import write_sweep


def write(
    root: Path,
    weight: float,
    fid: tuple[float, float],
    rfid: tuple[float, float] | None,
    neg_elbo: float,
    seed: int = 0,
    **others: Any,
) -> None:
    """A run directory with a measurement, given as value and half of the interval."""
    path = root / f"vae-{weight}-{seed}"
    path.mkdir(parents=True)
    model = f"model:\n  _target_: genlab.vae.model.VAE\n  kl_weight: {weight}\nseed: {seed}\n"
    (path / "config.yaml").write_text(model)
    (path / "status.json").write_text(json.dumps({"state": "completed"}))
    metrics = {"test/neg_elbo": neg_elbo, "test/reconstruction": neg_elbo, "test/kl": 0.0}
    (path / "result.json").write_text(json.dumps({"metrics": metrics}))
    values = {
        name: {"value": v, "low": v - half, "high": v + half, "samples": 100}
        for name, (v, half) in (("fid_infinity", fid), ("rfid_infinity", rfid or (0, 0)))
        if name == "fid_infinity" or rfid is not None
    }
    record = {"features": "classifier_1a2b3c", "split": "test", "values": values, **others}
    (path / "quality.json").write_text(json.dumps({"records": [record]}))


def test_bound_and_quality_may_choose_different_settings(tmp_path: Path) -> None:
    write(tmp_path, 0.0, (269.2, 1.0), (11.0, 0.6), 388.0)
    write(tmp_path, 1.0, (85.6, 1.4), (24.6, 1.2), 114.8)
    write(tmp_path, 4.0, (109.7, 1.8), (79.4, 2.8), 100.0)
    records = collect(tmp_path)
    settings = measured_settings(records)
    assert [s.x for s in settings] == [0, 1, 4]
    assert settings[0].distances["rfid_infinity"] == pytest.approx((11.0, 10.4, 11.6))
    assert about_quality(records) == (
        "The FID is lowest at kl_weight 1 for samples (85.6 ± 1.4) and at kl_weight 0 for "
        "reconstructions (11.0 ± 0.6). Bound and quality choose different settings: the bound is "
        "best at kl_weight 4 (100.0 nats)."
    )
    assert about(records).endswith(about_quality(records))


def test_the_figure_has_every_distance_with_its_interval(tmp_path: Path) -> None:
    write(tmp_path, 0.0, (269.2, 1.0), (11.0, 0.6), 388.0)
    assert quality_chart(collect(tmp_path)) is None  # nothing to compare
    write(tmp_path, 1.0, (85.6, 1.4), (24.6, 1.2), 114.8)
    found = quality_chart(collect(tmp_path))
    assert found is not None and found["features"] == "classifier_1a2b3c"
    drawn = found["figure"].to_dict()
    rows = drawn["datasets"]["quality"]
    assert {(r["setting"], r["of"], r["value"]) for r in rows} == {
        ("kl_weight 0", "samples", 269.2),
        ("kl_weight 0", "reconstructions", 11.0),
        ("kl_weight 1", "samples", 85.6),
        ("kl_weight 1", "reconstructions", 24.6),
    }
    assert all(r["low"] < r["value"] < r["high"] for r in rows)


def test_the_figure_marks_the_settings_that_quality_and_bound_choose(tmp_path: Path) -> None:
    write(tmp_path, 0.0, (269.2, 1.0), (11.0, 0.6), 388.0)
    write(tmp_path, 1.0, (85.6, 1.4), (24.6, 1.2), 114.8)
    write(tmp_path, 4.0, (109.7, 1.8), (79.4, 2.8), 100.0)
    found = quality_chart(collect(tmp_path))
    assert found is not None
    tables = found["figure"].to_dict()["datasets"]
    ringed = {(r["setting"], r["of"]) for r in tables["quality"] if r["is_best"]}
    assert ringed == {("kl_weight 1", "samples"), ("kl_weight 0", "reconstructions")}
    assert [row["setting"] for row in tables["bound"]] == ["kl_weight 4"]


def test_the_picture_is_written_twice_and_is_in_the_summary(tmp_path: Path) -> None:
    write(tmp_path, 0.0, (269.2, 1.0), (11.0, 0.6), 388.0)
    assert not draw_quality(collect(tmp_path), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    write(tmp_path, 1.0, (85.6, 1.4), (24.6, 1.2), 114.8)
    names = [file.name for file in write_sweep(collect(tmp_path), tmp_path)]
    assert {"quality.png", "quality.svg"} <= set(names)
    assert "](quality.png)" in (tmp_path / "summary.md").read_text()
    drawn = (tmp_path / "quality.svg").read_text()
    assert "samples" in drawn and "reconstructions" in drawn and "best bound" in drawn


def test_settings_within_the_interval_are_not_told_apart(tmp_path: Path) -> None:
    write(tmp_path, 1.0, (85.0, 3.0), None, 100.0)
    write(tmp_path, 2.0, (87.0, 3.0), None, 101.0)
    write(tmp_path, 3.0, (95.0, 3.0), None, 102.0)
    assert about_quality(collect(tmp_path)) == (
        "The FID is lowest at kl_weight 1 for samples (85.0 ± 3.0, not told apart from "
        "kl_weight 2). Bound and quality choose the same setting: the bound is best at kl_weight "
        "1 (100.0 nats)."
    )


def test_seeds_that_differ_more_than_samples_widen_the_interval(tmp_path: Path) -> None:
    for seed, fid in enumerate((80.0, 90.0)):
        write(tmp_path, 1.0, (fid, 1.0), None, 100.0, seed)
    write(tmp_path, 2.0, (100.0, 1.0), None, 100.0)
    (two, one) = measured_settings(collect(tmp_path))
    # Student's t of one degree of freedom times 10 / sqrt(2) / sqrt(2)
    assert two.distances["fid_infinity"] == pytest.approx((85, 85 - 63.53, 85 + 63.53), abs=0.01)
    assert one.distances["fid_infinity"] == Measured(100, 99, 101)
    assert [len(s.runs) for s in (two, one)] == [2, 1]


def test_the_result_is_read_where_there_is_no_measurement_on_its_own(tmp_path: Path) -> None:
    write(tmp_path, 1.0, (85.0, 3.0), None, 100.0)
    write(tmp_path, 2.0, (87.0, 3.0), None, 101.0)
    for path in tmp_path.glob("*/quality.json"):
        path.unlink()
        result = json.loads((path.parent / "result.json").read_text())
        for end, value in (("", 50.0), ("_low", 49.0), ("_high", 51.0)):
            result["metrics"][f"test/fid_infinity{end}_pixels_abcdef"] = value
        (path.parent / "result.json").write_text(json.dumps(result))
    found = measured_settings(collect(tmp_path))
    assert [s.distances["fid_infinity"] for s in found] == [Measured(50, 49, 51)] * 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"records": 3}',
        '{"records": [{"values": {"fid_infinity": {"value": "x"}}}]}',
        '{"records": [{"split": "test", "values": {"fid_infinity": 3}}]}',
        '{"records": [{"split": "test", "values": {"fid_infinity": '
        '{"value": 1e200, "low": 1, "high": 2}}}]}',
    ],
)
def test_a_stranger_s_file_says_nothing(content: str, tmp_path: Path) -> None:
    for weight in (1.0, 2.0):
        write(tmp_path, weight, (85.0, 3.0), None, 100.0)
    for path in tmp_path.glob("*/quality.json"):
        path.write_text(content)
    assert measured_settings(collect(tmp_path)) == []
    assert about_quality(collect(tmp_path)) == ""
