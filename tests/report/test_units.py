"""The KL of each unit as a picture, checked at the rows that are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from genlab.media import charts
from genlab.report import collect, write_sweep
from genlab.report.units import FLOOR, draw_units
from genlab.runs.directory import RunDirectory


def write(path: Path, kl_weight: float, seed: int, bound: dict[str, Any] | None) -> None:
    settings = {"seed": seed, "data": {"name": "squares"}, "model": {"kl_weight": kl_weight}}
    with RunDirectory(path) as run:
        run.write_config(yaml.safe_dump(settings))
        run.write_result({"metrics": {"test/kl": 1.0, "test/reconstruction": 9.0}})
        if bound is not None:
            run.write_bound(bound)
        run.write_status("completed")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write(tmp_path / "a", 0.0, 0, {"kl_by_unit": [1.0, 9.0, 3.0]})
    write(tmp_path / "b", 0.0, 1, {"kl_by_unit": [5.0, 1.0, 11.0]})
    write(tmp_path / "c", 30.0, 0, {"kl_by_unit": [1e-6, 0, -1e-9], "forecast_kl_by_unit": [0, 0]})
    write(tmp_path / "d", 4.0, 0, None)
    return tmp_path


def test_each_setting_is_a_line_of_its_seeds_mean_and_a_dashed_forecast(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(charts, "save", lambda made, *_: drawn.append(charts.spec(made)))
    assert draw_units(collect(runs), runs / "x.png", runs / "x.svg")
    (spec,) = drawn
    lines: dict[tuple[str, str], list[float]] = {}
    for row in spec["datasets"]["units"]:
        lines.setdefault((row["name"], row["part"]), []).append(row["kl"])
    assert lines == {
        ("kl_weight 0", "run"): [10.0, 4.0, 1.0],
        ("kl_weight 30", "run"): [FLOOR] * 3,
        ("kl_weight 30", "forecast"): [FLOOR] * 2,
    }
    encoding = spec["layer"][0]["encoding"]
    assert encoding["color"]["scale"]["domain"] == ["kl_weight 0", "kl_weight 30"]
    assert encoding["strokeDash"]["scale"] == {
        "domain": ["run", "forecast"],
        "range": [[1, 0], [5, 4]],
    }
    low, high = encoding["y"]["scale"]["domain"]
    assert low < FLOOR and high > 10


def test_the_picture_is_written_twice_and_is_in_the_summary(runs: Path) -> None:
    names = [file.name for file in write_sweep(collect(runs), runs)]
    assert {"kl_by_unit.png", "kl_by_unit.svg"} <= set(names)
    assert "![KL of each latent unit](kl_by_unit.png)" in (runs / "summary.md").read_text()


def test_without_units_there_is_no_picture(tmp_path: Path) -> None:
    write(tmp_path / "a", 1.0, 0, None)
    write(tmp_path / "b", 2.0, 0, {"kl_by_unit": "many"})
    assert not draw_units(collect(tmp_path), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
