"""Averages of the weights against their length, read from the evaluations of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from genlab.errors import RunDirectoryError
from genlab.report.averaging import averages_of, draw_averages
from genlab.report.collect import collect
from genlab.report.page import report_page
from genlab.report.quality import Measured, measured_settings


def evaluated(run: Path, width: float, nats: float, time: int, **others: Any) -> None:
    record = {
        "metrics": {"test/neg_elbo": nats, "test/kl": None},
        "ema": width,
        "split": "test",
        "batches": None,
        "data": ["data=mnist_mini"],
        "weights": "0",
    }
    path = run / "evaluations" / f"test-last-ema_{width:g}-{len(others)}-{time}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record | others))
    os.utime(path, (time, time))


def measured(width: float | None, fid: float, samples: int = 100) -> dict[str, Any]:
    settings = {"model": f"{fid}", "steps": 10} | ({} if width is None else {"ema": width})
    value = {"value": fid, "low": fid - 1, "high": fid + 1, "samples": samples}
    return {
        **{"id": f"{fid}", "features": "pixels", "split": "test", "samples": samples},
        **{"values": {"fid_infinity": value, "fid": value}, "settings": settings},
        **{"floor": {}, "train_test": {}, "notes": []},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "sweep" / "ddpm-0"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("model:\n  _target_: genlab.diffusion.model.DDPM\nseed: 0\n")
    (path / "status.json").write_text(json.dumps({"state": "completed"}))
    (path / "result.json").write_text(json.dumps({"metrics": {"test/neg_elbo": 900.0}}))
    return path


def test_evaluations_of_one_kind_are_one_curve(run: Path) -> None:
    evaluated(run, 0.2, 903.0, 10)
    evaluated(run, 0.1, 902.0, 11)
    evaluated(run, 0.1, 999.0, 1)  # an older one
    evaluated(run, 0.05, 500.0, 2, batches=1)  # of other images
    records = [measured(0.1, 7), measured(0.1, 90, 50), measured(0.2, 8), measured(None, 1)]
    (run / "quality.json").write_text(json.dumps({"records": records}))
    assert averages_of(run) == {
        0.1: {
            "neg_elbo": Measured(902, 902, 902),
            "fid_infinity": Measured(7, 6, 8),
            "fid": Measured(7, 6, 8),
        },
        0.2: {
            "neg_elbo": Measured(903, 903, 903),
            "fid_infinity": Measured(8, 7, 9),
            "fid": Measured(8, 7, 9),
        },
    }
    picture = run / "evaluations" / "averages.png"
    assert draw_averages(run, picture) and picture.stat().st_size > 1000
    # the quality of the run is that of the run, not of the last of its averages
    (setting,) = measured_settings(collect(run))
    assert setting.distances["fid_infinity"] == Measured(1, 0, 2)
    page = report_page(collect(run), run.parent)
    assert "Averages of the weights" in page


def test_a_run_without_averages_has_no_curve(run: Path, tmp_path: Path) -> None:
    assert averages_of(run) == {}
    assert not draw_averages(run, tmp_path / "a.png")
    evaluated(run, 0.1, 902.0, 11)  # one point is no curve
    assert not draw_averages(run, tmp_path / "a.png")
    assert "Averages of the weights" not in report_page(collect(run), run.parent)


@pytest.mark.parametrize("text", ['{"ema": "x", "metrics": {}}', '{"metrics": 1}', "[]", "{"])
def test_what_is_no_evaluation_is_no_point(run: Path, text: str) -> None:
    (run / "evaluations").mkdir()
    (run / "evaluations" / "test-ema_1.json").write_text(text)
    if text.endswith("}"):
        assert averages_of(run) == {}
    else:
        with pytest.raises(RunDirectoryError, match=r"test-ema_1\.json"):
            averages_of(run)
    assert "Averages of the weights" not in report_page(collect(run), run.parent)


def test_a_folder_of_evaluations_elsewhere_is_refused(run: Path, tmp_path: Path) -> None:
    evaluated(run, 0.1, 902.0, 11)
    (run / "evaluations").rename(tmp_path / "elsewhere")
    (run / "evaluations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="link"):
        averages_of(run)
