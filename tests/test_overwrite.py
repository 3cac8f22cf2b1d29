"""`overwrite=true`: the run that was there is kept under another name, and a new one begins."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from trained_runs import train_in

from genlab.report import collect, write_sweep
from genlab.runs.run import Run, find_runs
from genlab.vae.model import VAE

STEPS = 16
SMALL = [
    "data.train_images=512",
    "data.batch_size=64",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "model.net.encoder.hidden=[32]",
    "model.net.decoder.hidden=[32]",
    "checkpoint_every_n_steps=3",
    "logger=none",
    "callbacks=none",
    "forecast=false",
]


def train(tmp_path: Path, *overrides: str) -> Run:
    return train_in(tmp_path, *SMALL, "group=demo", *overrides)


def aside(trained: Run, number: int) -> Run:
    return Run(trained.path.with_name(f"{trained.name}.old-{number}"))


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def mark(trained: Run, text: str) -> dict[str, bytes]:
    """Leave a file of a person's own beside a picture, and return all that lies there."""
    (trained.path / "notes.txt").write_text(text)
    (trained.pictures / "mine.png").write_bytes(text.encode())
    return contents(trained.path)


def steps(trained: Run) -> list[int]:
    return [row["step"] for row in trained.metrics() if "train/loss" in row]


def test_overwrite_keeps_every_earlier_run_with_all_its_files(tmp_path: Path) -> None:
    kept = []
    for number in range(3):
        again = ["overwrite=true"] if number else []
        trained = train(tmp_path, *again)
        assert steps(trained) == list(range(1, STEPS + 1))
        assert trained.is_completed and not (trained.path / "notes.txt").exists()
        for earlier, before in enumerate(kept, start=1):
            assert contents(aside(trained, earlier).path) == before
        kept.append(mark(trained, f"run {number}"))
    assert sorted(path.name for path in trained.path.parent.iterdir()) == [
        trained.name,
        f"{trained.name}.old-1",
        f"{trained.name}.old-2",
    ]


def test_without_overwrite_a_completed_run_is_neither_trained_nor_renamed(tmp_path: Path) -> None:
    trained = train(tmp_path)
    before = mark(trained, "mine")
    assert train(tmp_path).path == trained.path
    assert contents(trained.path) == before
    assert [path.name for path in trained.path.parent.iterdir()] == [trained.name]


def test_overwrite_of_an_interrupted_run_begins_at_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, seen = VAE.loss, []

    def fail(self: VAE, x: Any, labels: Any, step: int, noise: Any) -> Any:
        seen.append(step)
        if step == 11:
            raise RuntimeError("the power went")
        return loss(self, x, labels, step, noise)

    monkeypatch.setattr(VAE, "loss", fail)
    with pytest.raises(RuntimeError, match="the power went"):
        train(tmp_path)
    (broken,) = find_runs(tmp_path)
    before = contents(broken.path)
    assert "checkpoints/last.ckpt" in before

    seen.clear()
    with pytest.raises(RuntimeError, match="the power went"):
        train(tmp_path, "overwrite=true")
    assert seen[0] == 0 and max(seen) == 11
    assert contents(aside(broken, 1).path) == before

    # the same without it goes on from the checkpoint
    seen.clear()
    monkeypatch.setattr(VAE, "loss", loss)
    capsys.readouterr()
    resumed = train(tmp_path)
    assert "(going on)" in capsys.readouterr().out
    assert steps(resumed) == list(range(1, STEPS + 1))
    assert not aside(resumed, 2).path.exists()


def test_a_report_does_not_show_what_was_set_aside(tmp_path: Path) -> None:
    first = train(tmp_path)
    (first.path / "result.json").write_text(json.dumps({"metrics": {"test/kl": 12345.0}}))
    second = train(tmp_path, "overwrite=true")
    assert aside(second, 1).result == {"metrics": {"test/kl": 12345.0}}
    for root in (tmp_path, tmp_path / "demo"):
        assert [record.path for record in collect(root)] == [second.path]
    write_sweep(collect(tmp_path / "demo"), tmp_path / "demo")
    with (tmp_path / "demo" / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert second.result is not None
    assert row["run"] == second.name
    assert float(row["test/kl"]) == second.result["metrics"]["test/kl"]
    assert "12345" not in (tmp_path / "demo" / "summary.md").read_text()
