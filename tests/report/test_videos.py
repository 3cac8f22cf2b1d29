"""Videos of a sweep's runs side by side."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from frames import psnr, unpadded
from trained_media import train_weights

from genlab.media import videos
from genlab.report import collect
from genlab.report.videos import MOST, compared, write_videos


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_weights(tmp_path_factory.mktemp("runs"))


def test_runs_go_side_by_side_below_their_setting(sweep: Path, tmp_path: Path) -> None:
    records = collect(sweep)
    labels = [label for label, _ in compared(records)]
    assert labels == ["kl_weight 0", "kl_weight 30"]  # of two seeds the first
    written = write_videos(records, tmp_path)
    assert {path.name for path in written} == {
        f"{kind}.{suffix}"
        for kind in ("interpolation", "traversal", "prior_walk", "training")
        for suffix in ("mp4", "webp")
    }
    path = tmp_path / "videos" / "prior_walk.mp4"
    assert videos.probe(path).title == "prior walk: kl_weight 0, kl_weight 30"
    both = videos.read_video(path)
    own = [
        videos.read_video(record.path / "videos" / "prior_walk-final.mp4")
        for _, record in compared(records)
    ]
    tiled = videos.beside(own, labels)
    assert psnr(unpadded(both, tiled), tiled) > 33

    times = {path: path.stat().st_mtime_ns for path in written}
    assert write_videos(records, tmp_path) == written
    assert {path: path.stat().st_mtime_ns for path in written} == times
    (record,) = (r for r in records if r.flat["model.kl_weight"] == 0)
    shutil.copy(
        record.path / "videos" / "traversal-final.mp4",
        record.path / "videos" / "prior_walk-final.mp4",
    )
    write_videos(records, tmp_path)
    changed = {path.name for path in written if path.stat().st_mtime_ns != times[path]}
    assert changed == {"prior_walk.mp4", "prior_walk.webp"}


def test_of_many_runs_the_ends_stay(sweep: Path) -> None:
    (record, *_) = (r for r in collect(sweep) if r.flat["model.kl_weight"] == 0)
    many = []
    for weight in range(40):
        config = {**record.config, "model": {**record.config["model"], "kl_weight": float(weight)}}
        many.append(replace(record, config=config, run_id=f"r{weight}"))
    shown = [label for label, _ in compared(many)]
    assert len(shown) == MOST and shown[0] == "kl_weight 0" and shown[-1] == "kl_weight 39"


def test_a_kind_for_which_there_is_no_memory_is_left_out_with_a_line(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    combine = videos.side_by_side

    def full(sources: Sequence[Path], labels: Sequence[str], stem: Path, title: str) -> list[Path]:
        if stem.name == "traversal":
            raise MemoryError
        return combine(sources, labels, stem, title)

    monkeypatch.setattr(videos, "side_by_side", full)
    written = {path.stem for path in write_videos(collect(sweep), tmp_path)}
    assert written == {"interpolation", "prior_walk", "training"}
    assert "no traversal videos side by side: the memory is full" in caplog.messages


def test_of_many_kinds_some_are_put_side_by_side(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "sweep"
    shutil.copytree(sweep, copied)
    for record in collect(copied):
        for i in range(100):
            (record.path / "videos" / f"x{i}-final.webp").touch()
    tried: list[Path] = []
    monkeypatch.setattr(videos, "has_av", lambda: False)
    (tmp_path / "videos").mkdir()
    monkeypatch.setattr(videos, "side_by_side", lambda *given: tried.append(given[2]) or [])
    write_videos(collect(copied), tmp_path)
    assert 5 < len(tried) < 20
