from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

import genlab
from genlab.errors import RunDirectoryError
from genlab.report import (
    Record,
    answer,
    collect,
    draw_rate_distortion,
    print_sweep,
    sweep_table,
    swept_keys,
    write_sweep,
)
from genlab.report.naming import number_text, short_names
from genlab.runs.directory import RunDirectory
from genlab.runs.identity import NOT_IDENTITY

SWEEP = {
    0.0: (722.1034567, 180.2345, 20, 20, math.inf, 726.2),
    1.0: (734.0123456, 11.2456, 14, 12, 4.41, 738.9),
    30.0: (746.9123456, 0.0012, 0, 0, 0.0, 746.7),
}


def config(kl_weight: float = 1.0, latent_dim: int = 20, **top: Any) -> dict[str, Any]:
    return {
        "seed": 0,
        "runs_dir": "runs",
        "group": "demo",
        "data": {"name": "mnist_mini", "data_dir": "data"},
        "trainer": {"accelerator": "cpu", "max_epochs": 3},
        "model": {
            "_target_": "genlab.vae.model.VAE",
            "kl_weight": kl_weight,
            "latent_dim": latent_dim,
            "kl_schedule": {"_target_": "genlab.vae.kl_schedules.Constant", "weight": kl_weight},
        },
    } | top


def result(kl_weight: float) -> dict[str, Any]:
    reconstruction, kl, active, forecast_active, rate, forecast_reconstruction = SWEEP[kl_weight]
    return {
        "metrics": {
            "test/reconstruction": reconstruction,
            "test/kl": kl,
            "test/neg_elbo": reconstruction + kl,
            "test/bits_per_dim": (reconstruction + kl) / 784 / math.log(2),
            "test/active_units": active,
            "test/beta_effective": kl_weight,
            "forecast/active_units": forecast_active,
            "forecast/rate": rate,
            "forecast/reconstruction": forecast_reconstruction,
            "forecast/collapse_threshold": 5.3124,
        },
        "verdict": "collapsed" if active == 0 else f"{active} of 20 active",
        "seed": 0,
        "wall_seconds": 31.25,
    }


def write(path: Path, settings: dict[str, Any], outcome: dict[str, Any] | None = None) -> Path:
    with RunDirectory(path) as run:
        run.write_config(yaml.safe_dump(settings))
        if outcome is not None:
            run.write_result(outcome)
            run.write_status("completed")
    return path


def fail(path: Path, settings: dict[str, Any], message: str) -> Path:
    write(path, settings)
    with RunDirectory(path) as run:
        run.write_status("failed", type="TrainingError", message=message, where="fit")
    return path


def record(settings: dict[str, Any], metrics: dict[str, float] | None = None) -> Record:
    outcome = {"metrics": metrics} if metrics else {}
    state = "completed" if metrics else "failed"
    return Record(Path("run"), "run", "demo", state, settings, outcome)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for weight in (30.0, 0.0, 1.0):
        write(tmp_path / "demo" / f"kl_weight={weight:g}", config(weight), result(weight))
    return tmp_path / "demo"


def test_collect_reads_every_kind_of_run(sweep: Path) -> None:
    fail(sweep / "kl_weight=4", config(4.0), "loss is nan\nat step 31")
    (sweep / "kl_weight=5").mkdir()
    (sweep / "kl_weight=5" / "config.yaml").write_text("seed: [")
    status = {"state": "running", "pid": 2**22 + 1, "host": socket.gethostname()}
    write(sweep / "kl_weight=6", config(6.0))
    (sweep / "kl_weight=6" / "status.json").write_text(json.dumps(status))
    records = {r.run_id: r for r in collect(sweep)}
    assert {run_id: r.state for run_id, r in records.items()} == {
        "kl_weight=0": "completed",
        "kl_weight=1": "completed",
        "kl_weight=30": "completed",
        "kl_weight=4": "failed",
        "kl_weight=5": "unreadable",
        "kl_weight=6": "interrupted",
    }
    assert records["kl_weight=4"].error == "TrainingError: loss is nan at step 31 (in fit)"
    assert records["kl_weight=1"].metric("test/kl") == 11.2456
    assert records["kl_weight=0"].metric("forecast/rate") is None
    assert records["kl_weight=1"].group == "demo"
    listed = collect([sweep / "kl_weight=1", sweep / "kl_weight=9"])
    assert [r.state for r in listed] == ["completed", "missing"]
    with pytest.raises(RunDirectoryError, match="none is not a directory"):
        collect(sweep / "none")


def test_a_config_with_python_objects_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []")
    assert [r.state for r in collect(tmp_path)] == ["unreadable"]


def test_swept_is_what_was_swept(sweep: Path) -> None:
    assert swept_keys(collect(sweep)) == ["model.kl_weight"]
    assert swept_keys([]) == swept_keys([record(config())]) == []


def test_where_a_run_lies_and_on_what_it_ran_is_not_swept() -> None:
    other = config(runs_dir="x", group="y", overwrite=True, logger={"key": 1})
    other["data"] = {"name": "mnist_mini", "data_dir": "/elsewhere"}
    other["trainer"] = {"accelerator": "gpu", "devices": 4, "max_epochs": 3}
    assert swept_keys([record(config()), record(other)]) == []


def test_what_is_no_part_of_a_runs_identity_is_not_swept() -> None:
    for key in NOT_IDENTITY:
        first, second = config(), config()
        for settings, value in ((first, 1), (second, 2)):
            *parents, last = key.split(".")
            for parent in parents:
                settings = settings.setdefault(parent, {})
            settings[last] = value
        assert swept_keys([record(first), record(second)]) == [], key


def test_whole_numbers_and_floats_are_one_value() -> None:
    assert swept_keys([record(config(1)), record(config(1.0)), record(config())]) == []  # type: ignore[arg-type]


def test_a_swept_component_is_one_column_and_its_name_the_value() -> None:
    def with_schedule(kl_weight: float, name: str, **schedule: Any) -> Record:
        settings = config(kl_weight)
        target = f"genlab.vae.kl_schedules.{name}"
        settings["model"]["kl_schedule"] = {"_target_": target, **schedule}
        return record(settings, {"test/reconstruction": 1.0})

    records = [
        with_schedule(1.0, "Constant", weight=1.0),
        with_schedule(1.0, "Linear", weight=1.0, steps=100),
        with_schedule(2.0, "Constant", weight=2.0),
        with_schedule(2.0, "Linear", weight=2.0, steps=100),
        with_schedule(2.0, "Capacity", steps=7, start=0.0),
    ]
    keys = ["model/kl_schedule", "model.kl_weight"]
    assert swept_keys(records) == keys
    table = sweep_table(records)
    assert [column.heading for column in table.columns][:2] == ["kl_schedule", "kl_weight"]
    names = [cells[0] for cells in table.cells()]
    assert names == ["capacity", "constant", "constant", "linear", "linear"]
    # Two lengths of one schedule are a difference of their own.
    longer = with_schedule(1.0, "Linear", weight=1.0, steps=200)
    assert swept_keys([*records, longer]) == [*keys[:1], "model.kl_schedule.steps", *keys[1:]]


def test_two_settings_that_change_together_are_both_shown() -> None:
    records = [record(config(1.0, latent_dim=2)), record(config(30.0, latent_dim=40))]
    assert swept_keys(records) == ["model.kl_weight", "model.latent_dim"]


def test_a_text_that_repeats_a_number_is_not_shown() -> None:
    records = [record(config(w, title=f"beta {w:g}, MLP")) for w in (0.0, 1.0, 30.0)]
    assert swept_keys(records) == ["model.kl_weight"]


def test_short_names_stay_apart() -> None:
    keys = ["model.kl_weight", "model.net.width", "data.width", "model.noise_schedule._target_"]
    assert list(short_names(keys).values()) == [
        "kl_weight",
        "net.width",
        "data.width",
        "noise_schedule",
    ]


def test_rows_are_sorted_by_number_and_failed_ones_stay(sweep: Path) -> None:
    fail(sweep / "kl_weight=4", config(4.0), "loss is nan")
    records = [*collect(sweep), *collect([sweep / "kl_weight=8"])]
    table = sweep_table(records)
    assert [cells[0] for cells in table.cells()] == ["0", "1", "4", "30", "-"]
    assert [cells[-1] for cells in table.cells()] == [
        "completed",
        "completed",
        "failed",
        "completed",
        "missing",
    ]
    for text in (table.to_text(), table.to_markdown()):
        assert "kl_weight 4 (failed): TrainingError: loss is nan (in fit)" in html.unescape(
            text.replace("\\", "")
        )
        assert "kl_weight=8 (missing): it was never started" in text
    with pytest.raises(RunDirectoryError, match="no runs"):
        sweep_table([])


def test_a_person_sees_rounded_numbers(sweep: Path) -> None:
    table = sweep_table(collect(sweep))
    headings = [column.heading for column in table.columns]
    assert [dict(zip(headings, cells, strict=True)) for cells in table.cells()][1:] == [
        {
            "kl_weight": "1",
            "reconstruction": "734.0",
            "kl": "11.25",
            "neg_elbo": "745.3",
            "bits/dim": "1.371",
            "active units": "14/20",
            "forecast": "12 units, 4.4 nats",
            "outcome": "",
            "state": "completed",
        },
        {
            "kl_weight": "30",
            "reconstruction": "746.9",
            "kl": "<0.01",
            "neg_elbo": "746.9",
            "bits/dim": "1.374",
            "active units": "0/20",
            "forecast": "collapse",
            "outcome": "collapsed",
            "state": "completed",
        },
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (-0.001, "0.00"), (0.004, "<0.01"), (0.005, "0.01"), (-3.456, "-3.46")],
)
def test_number_text(value: float, text: str) -> None:
    assert number_text(value, 2) == text


def test_a_csv_gives_back_every_number_exactly(sweep: Path) -> None:
    fail(sweep / "kl_weight=4", config(4.0), 'a "quoted", broken\nmessage')
    table = sweep_table(collect(sweep))
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [float(row["model.kl_weight"]) for row in rows] == [0.0, 1.0, 4.0, 30.0]
    for row in rows:
        weight = float(row["model.kl_weight"])
        metrics = result(weight)["metrics"] if weight in SWEEP else {}
        for name, value in metrics.items():
            assert row[name] == ("" if math.isinf(value) else repr(float(value)))
    assert rows[2]["error"] == 'TrainingError: a "quoted", broken message (in fit)'
    assert all(len(row) == len(table.rows[0]) for row in rows)


def test_markdown_survives_pipes_and_markup(tmp_path: Path) -> None:
    names = ["<e>*", "a|b", "c\\|d\\"]
    for name in names:
        outcome = result(1.0) | {"verdict": f"{name}\nsecond line"}
        write(tmp_path / str(names.index(name)), config(recipe=name), outcome)
    lines = sweep_table(collect(tmp_path)).to_markdown().splitlines()[:5]
    rows = [re.findall(r"(?:\\.|[^|\\])+", line) for line in lines]
    assert {len(row) for row in rows} == {9}
    for name, row in zip(names, rows[2:], strict=True):
        assert "<" not in row[0] + row[7]
        shown = html.unescape(re.sub(r"\\(.)", r"\1", row[0])).strip()
        assert shown == name
        assert row[7].strip().endswith(" second line")


def test_plain_text_is_aligned_and_free_of_control_characters(sweep: Path) -> None:
    fail(sweep / "kl_weight=4", config(4.0), "\x1b[31mred\x1b[0m [bold]x[/bold]")
    text = sweep_table(collect(sweep)).to_text()
    assert "\x1b" not in text and "[bold]x[/bold]" in text
    lines = text.splitlines()
    ends = [match.end() for match in re.finditer(r"-+", lines[1])]
    for line in (lines[0], *lines[2:6]):
        assert all(line[end : end + 2].strip() == "" for end in ends)


@pytest.mark.parametrize("width", range(30, 150, 7))
@pytest.mark.parametrize("failed", [False, True])
def test_no_width_of_terminal_cuts_a_number(sweep: Path, width: int, failed: bool) -> None:
    if failed:
        fail(sweep / "kl_weight=4", config(4.0), "[bold] " + "word " * 30)
    table = sweep_table(collect(sweep))
    console = Console(
        width=width, force_terminal=True, color_system=None, file=io.StringIO(), _environ={}
    )
    table.print(console)
    file = console.file
    assert isinstance(file, io.StringIO)
    shown = file.getvalue().split()
    numeric = [i for i, column in enumerate(table.columns) if column.numeric]
    for cells in table.cells():
        for i in numeric:
            assert not cells[i] or cells[i] in shown
    assert "…" not in file.getvalue()
    assert {"collapsed", "12", "units,", "reconstruction"} <= set(shown)


def test_the_answer_of_the_exercise(sweep: Path) -> None:
    assert answer(collect(sweep)) == (
        "kl_weight 30 switches off all 20 latent units (kl <0.01 nats) and raises the "
        "reconstruction term from 734.0 (kl_weight 1) to 746.9 nats per image; the linear forecast "
        "said so: 30 exceeds 5.31, above which a linear VAE collapses. kl_weight 0 reaches 722.1, "
        "but its KL is 180.2 nats, because nothing penalises it. The lowest neg_elbo is that of "
        "kl_weight 1: 745.3 nats."
    )


@pytest.mark.parametrize(
    ("likelihood", "ratio"),
    [
        # Of a Gaussian the constant D/2 ln(2 pi) is no error: (746.91 - 720.45) / (734.01 - 720.45)
        ({"_target_": "x.GaussianLikelihood", "scale": 1.0}, ", 2 times the squared error;"),
        ({"_target_": "x.DiscretizedLogisticLikelihood"}, " nats per image;"),
        ({"_target_": "x.LearnedGaussian"}, " nats per image;"),
    ],
)
def test_the_answer_counts_from_zero(
    tmp_path: Path, likelihood: dict[str, Any], ratio: str
) -> None:
    for weight in (1.0, 30.0):
        settings = config(weight)
        settings["model"]["likelihood"] = likelihood
        write(tmp_path / str(weight), settings, result(weight))
    assert ratio in answer(collect(tmp_path)).partition(". ")[0]


def test_the_answer_says_when_the_forecast_was_wrong() -> None:
    terms = {"test/reconstruction": 100.0, "test/kl": 9.0, "test/neg_elbo": 109.0}
    wrong = {"test/active_units": 3, "forecast/active_units": 0, "forecast/collapse_threshold": 5}
    records = [
        record(config(1.0), terms),
        record(config(6.0), terms | wrong | {"test/reconstruction": 105.0}),
    ]
    assert "the linear forecast had said collapse: 6 exceeds 5" in answer(records)


def test_the_answer_needs_no_more_than_one_number() -> None:
    few = [record(config(w), {"test/reconstruction": 100 + w}) for w in (1.0, 2.0)]
    assert answer(few).startswith("kl_weight 2 holds the rate down and raises")
    assert answer([few[0]]) == "run: reconstruction 101.0 nats per image on mnist_mini."
    assert answer([record(config())]) == (
        "No run has a result yet (1 failed): no reason was recorded."
    )
    assert answer([]) == "No run has a result yet (there are no runs)."
    assert answer([*few, record(config(3.0))]).endswith("left out: 1 failed.")


def test_the_answer_for_another_key_and_over_seeds() -> None:
    records = []
    for latent_dim, neg_elbo in ((2, 140.0), (40, 100.0)):
        for seed in (0, 1):
            metrics = {
                "test/reconstruction": neg_elbo - 20 + seed,
                "test/kl": 20.0,
                "test/neg_elbo": neg_elbo + seed,
            }
            records.append(record(config(latent_dim=latent_dim, seed=seed), metrics))
    assert swept_keys(records) == ["model.latent_dim", "seed"]
    assert answer(records) == (
        "The lowest neg_elbo is that of latent_dim 40: reconstruction 80.5, kl 20.00, neg_elbo "
        "100.5 nats per image on mnist_mini. The highest is that of latent_dim 2: reconstruction "
        "120.5, kl 20.00, neg_elbo 140.5 nats per image on mnist_mini. Over 2 common seeds, "
        "latent_dim 40 has a lower neg_elbo than latent_dim 2 (40.0 +- 0.0) at p <= 0.05; +- is "
        "half of the 95 % interval of the paired difference."
    )


def test_the_picture_is_drawn_for_one_run_and_for_many(tmp_path: Path) -> None:
    path = tmp_path / "rate_distortion.png"
    assert not draw_rate_distortion([record(config())], path) and not path.exists()
    generator = np.random.default_rng(0)
    for n in (1, 30):
        records = [
            record(
                config(float(i)),
                {"test/kl": float(generator.uniform(0, 900)), "test/reconstruction": -float(i)},
            )
            for i in range(n)
        ]
        assert draw_rate_distortion(records, path)
        with Image.open(path) as picture:
            assert picture.width >= 1200 and picture.height >= 825
            assert np.asarray(picture.convert("L")).std() > 5


def test_a_sweep_is_written_whole_and_the_same_again(sweep: Path) -> None:
    records = collect(sweep)
    files = write_sweep(records, sweep)
    names = ["report.html", "summary.csv", "summary.md"]
    names += ["rate_distortion.png", "rate_distortion.svg"]
    assert [file.name for file in files] == names
    first = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in write_sweep(collect(sweep), sweep)] == first
    text = (sweep / "summary.md").read_text()
    assert text.startswith("# demo\n\nkl_weight 30 switches off all 20 latent units")
    assert "](rate_distortion.png)" in text
    assert not list(sweep.glob(".*"))


def test_what_is_printed_for_a_pipe_is_plain_and_names_the_files(sweep: Path) -> None:
    file = io.StringIO()
    print_sweep(collect(sweep), sweep, Console(file=file, width=60, _environ={}))
    lines = file.getvalue().splitlines()
    assert lines[0].split()[:5] == ["kl_weight", "reconstruction", "kl", "neg_elbo", "bits/dim"]
    assert answer(collect(sweep)) in lines
    assert lines[-1] == f"  {sweep / 'rate_distortion.svg'}"


def test_a_directory_that_cannot_be_written_is_named(sweep: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"config\.yaml/x .*writable"):
        write_sweep(collect(sweep), sweep / "kl_weight=0" / "config.yaml" / "x")


def test_a_report_does_not_import_torch_and_loads_altair_late() -> None:
    script = (
        "import sys, genlab.report, genlab.media.pictures, genlab.runs.directory;"
        "assert not {'torch', 'altair', 'jinja2', 'lightning'} & set(sys.modules)"
    )
    project = Path(genlab.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=project)
