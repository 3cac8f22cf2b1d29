"""`genlab check-sampler | check-schedule`: the known numbers, in a table and a picture."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import altair as alt
import pytest
import torch
from PIL import Image

from genlab import cli
from genlab.cli.check_schedule import schedules_figure
from genlab.cli.choices import SCHEDULE, choices
from genlab.config.compose import options
from genlab.diffusion.grids import Grid
from genlab.diffusion.schedule_check import ScheduleSummary
from genlab.errors import DONE, REFUSED
from genlab.media import charts

#: A check that takes little time.
_FEW = ["model/noise_schedule=linear"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


Rows = list[dict[str, str]]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Rows, str]:
    """The rows of the table that a command prints, and all that it prints."""
    assert cli.main(arguments) == DONE
    said = capsys.readouterr().out
    lines = said.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith(("sampler ", "schedule ")))
    rows = list(itertools.takewhile(lambda line: "  " in line, lines[head + 1 :]))
    first = head - lines[head - 1].startswith(" ")  # a heading may have two lines
    shown = [line.ljust(200) for line in (*lines[first : head + 1], *rows)]
    blank = "".join(" " if set(at) == {" "} else "x" for at in zip(*shown, strict=True))
    columns = [(found.start(), found.end()) for found in re.finditer(r"(x ?)+", blank)]
    cells = [[line[a:b].strip() for a, b in columns] for line in shown]
    heading, values = cells[: -len(rows)], cells[-len(rows) :]
    names = [" ".join(parts).strip() for parts in zip(*heading, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in values], said


def percent(cell: str) -> float:
    return float(cell.strip("~ %"))


def is_picture(path: str) -> bool:
    with Image.open(path) as picture:
        return len(picture.convert("L").getcolors() or []) > 10


def test_diffusers_defaults_make_the_samples_too_even(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that were computed elsewhere, for data of standard deviation 1/4."""
    rows, said = run(
        capsys,
        *("check-sampler", "--std", "0.25", "model.sampler.steps=10,20,100"),
        *("--diffusers", "DDIMScheduler", "--diffusers", "DPMSolverMultistepScheduler"),
        *("--diffusers", "DPMSolverMultistepScheduler,use_lu_lambdas=true"),
        *("model/sampler=dpm_solver", "model/noise_schedule=linear_betas"),
    )
    errors = {(row["sampler"], int(row["steps"])): percent(row["std 0.25"]) for row in rows}
    assert errors["DDIMScheduler", 10] == pytest.approx(-41, abs=0.5)
    assert errors["DDIMScheduler", 100] == pytest.approx(-5, abs=0.1)
    assert errors["DPMSolverMultistepScheduler", 20] == pytest.approx(-19, abs=0.1)
    even = errors["DPMSolverMultistepScheduler,use_lu_lambdas=true", 20]
    assert even == pytest.approx(1.3, abs=0.1)
    assert errors["dpm_solver", 20] == pytest.approx(even, abs=0.1)
    assert "chart: check-sampler.png" in said and is_picture("check-sampler.png")


def test_our_default_spacing(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = run(
        capsys, "check-sampler", "--std=0.25", "model/sampler=ddim,dpm_solver", "--out=a.png"
    )
    assert [(row["sampler"], row["grid"], row["steps"]) for row in rows] == [
        (sampler, "log_snr", str(steps))
        for sampler in ("ddim", "dpm_solver")
        for steps in (10, 20, 50, 100)
    ]
    assert all(float(row["order"]) == pytest.approx(1, abs=0.1) for row in rows[:4])
    assert all(float(row["order"]) == pytest.approx(2, abs=0.1) for row in rows[4:])
    assert percent(rows[5]["std 0.25"]) == pytest.approx(1.3, abs=0.1)
    assert all(abs(float(row["mean"])) < 0.005 for row in rows)
    assert is_picture("a.png")


def test_all_samplers_on_all_grids(capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = run(capsys, "check-sampler", "--all", "model.sampler.steps=20", "--std=0.25,1")
    pairs = {(row["sampler"], row["grid"]) for row in rows}
    assert len(rows) == len(pairs) == len(options("model/sampler")) * len(get_args(Grid))
    assert {row["forwards"] for row in rows} == {"20", "39"}


def test_a_stochastic_scheduler_is_estimated_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["check-sampler", "--std=0.25", "model.sampler.steps=100"]
    estimate, said = run(capsys, *arguments, "--diffusers=DDPMScheduler,timestep_spacing=trailing")
    exact, _ = run(
        capsys,
        *(*arguments, "model.sampler.grid=uniform", "model/sampler=ancestral"),
        *("model/noise_schedule=linear_betas", "model/reverse_variance=fixed_small"),
    )
    assert estimate[0]["std 0.25"].startswith("~") and "from samples" in said
    assert percent(estimate[0]["std 0.25"]) == pytest.approx(percent(exact[0]["std 0.25"]), abs=0.7)


def test_schedules_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    rows, said = run(
        capsys, "check-schedule", "model/noise_schedule=linear_betas,cosine,linear_log_snr"
    )
    table = {row["schedule"]: row for row in rows}
    assert list(table) == ["linear_betas", "cosine", "linear_log_snr"]
    assert float(table["linear_betas"]["L_T, bits/dim"]) == pytest.approx(2.9e-5, rel=0.01)
    assert float(table["linear_betas"]["alpha-bar at t=1"]) == pytest.approx(4.04e-5, rel=0.01)
    assert float(table["cosine"]["alpha-bar at t=0.5"]) == pytest.approx(0.494, abs=0.001)
    assert float(table["linear_log_snr"]["log-SNR to"]) == -9
    assert "warning" not in said and is_picture("check-schedule.png")


@pytest.mark.parametrize(
    "arguments",
    [
        ["model/noise_schedule=linear_betas", "model.noise_schedule.rescale=false"],
        ["--diffusers", "DDPMScheduler"],
    ],
    ids=["ours", "diffusers"],
)
def test_a_schedule_that_ends_too_early_is_warned_of(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The betas of T = 1000 taken for T = 100 leave 36 % of the variance to the image."""
    steps = "model.steps=100"
    if "--diffusers" in arguments:
        arguments, steps = ["--diffusers"], "DDPMScheduler,num_train_timesteps=100"
    assert cli.main(["check-schedule", *arguments, steps]) == DONE
    said = capsys.readouterr().out
    assert "alpha-bar is 0.364" in said and "0.326 bits/dim, 326 times" in said
    assert "rescaled by 1000/T" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check-sampler", "model=vae"], "model: there is no noise schedule"),
        (["check-sampler", "model.sampler.steps=2000"], "model.sampler.steps=2000"),
        (["check-sampler", "model.sampler.steps=few"], "model.sampler.steps=few"),
        (["check-sampler", "model.sampler.grid=even"], "choose one of uniform, quadratic"),
        (["check-sampler", "model/sampler=dimm"], "did you mean ddim?"),
        (["check-sampler", "--std=0"], "std=0"),
        (["check-sampler", "--out=there/a.png"], "there is no folder there"),
        (["check-sampler", "--out=a.pdf"], "a chart is a .png or an .svg"),
        (["check-schedule", "--out=chart"], "a chart is a .png or an .svg"),
        (["check-sampler", "--diffusers=DIMScheduler"], "did you mean DDIMScheduler?"),
        (["check-sampler", "--diffusers=DDIMScheduler,spacing=1"], "DDIMScheduler has no spacing"),
        (["check-sampler", "--diffusers=FlowMatchEulerDiscreteScheduler"], "no alpha-bar"),
        (["check-schedule", "model/noise_schedule=linaer"], "did you mean linear?"),
        (["check-schedule", "model.steps=0"], "steps=0"),
        (["check-schedule", "model.steps=null"], "model.steps=null"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not list(Path().iterdir())


@pytest.mark.parametrize("command", ["check-sampler", "check-schedule"])
def test_no_chart_is_overwritten_unless_asked(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.svg").write_text("precious")
    Path(f"{command}.png").write_text("precious")
    assert cli.main([command, "--out=mine.svg"]) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out mine.svg" in line and "--overwrite" in line
    assert cli.main([command, *_FEW]) == DONE
    assert f"chart: {command}-2.png" in capsys.readouterr().out and is_picture(f"{command}-2.png")
    assert {Path(name).read_text() for name in ("mine.svg", f"{command}.png")} == {"precious"}
    assert cli.main([command, *_FEW, "--overwrite"]) == DONE
    assert is_picture(f"{command}.png")
    assert cli.main([command, *_FEW, "--out=mine.svg", "--overwrite"]) == DONE
    assert Path("mine.svg").read_text().startswith("<svg")
    assert len(list(Path().iterdir())) == 3


def drawn(chart: alt.TopLevelMixin) -> list[dict[str, Any]]:
    """The rows of a chart's only table."""
    values: list[dict[str, Any]] = charts.spec(chart)["data"]["values"]
    return values


def summaries(*overrides: str) -> list[ScheduleSummary]:
    return [
        ScheduleSummary.of(choice.files[SCHEDULE], choice.process())
        for choice in choices(overrides)
    ]


def test_the_chart_of_schedules_holds_every_step_and_shows_lines_on_lines() -> None:
    found = summaries("model/noise_schedule=linear,linear_log_snr", "model.steps=50,1000")
    rows = drawn(schedules_figure(found))
    width: dict[str, float] = {}
    for one in found:
        name = f"{one.name}, T={one.steps}"
        own = [row for row in rows if row["schedule"] == name]
        assert [row["t"] for row in own] == one.times.tolist()
        assert [row["log_snr"] for row in own] == one.log_snr.tolist()
        assert [row["alpha_bar"] for row in own] == torch.sigmoid(one.log_snr).tolist()
        (width[name],) = {row["width"] for row in own}
    # those of T = 1000 lie on those of T = 50, which are drawn before
    for name in ("linear", "linear_log_snr"):
        assert width[f"{name}, T=50"] > width[f"{name}, T=1000"] == width["linear, T=1000"]


def test_the_chart_of_samplers_holds_the_errors_of_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[alt.TopLevelMixin] = []
    monkeypatch.setattr(charts, "save", lambda chart, *paths: kept.append(chart))
    arguments = ["model/sampler=ddim,heun", "model/noise_schedule=linear,cosine"]
    rows, _ = run(capsys, "check-sampler", "--std=0.25,1", *arguments, "model.sampler.steps=10,50")
    points = {
        (row["sampler"], row["grid"], row["panel"], row["forwards"]): row["error"]
        for row in drawn(kept[0])
    }
    assert len(points) == 2 * len(rows) == 16
    for row in rows:
        for std in ("0.25", "1"):
            name = (row["sampler"], f"{row['grid']} {row['schedule']}", f"data of std {std}")
            error = points[*name, int(row["forwards"])]
            assert error == pytest.approx(abs(percent(row[f"std {std}"])), abs=0.05001)
    shown = ElementTree.fromstring(charts.svg(kept[0])).itertext()
    assert {"10", "50", "1"} <= set(shown)  # ticks of two logarithmic axes


def test_tables_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """The longest names that genlab has, but for several schedules of samplers at once."""
    many = "model/noise_schedule=linear_betas,linear_log_snr,cosine"
    _, said = run(capsys, "check-schedule", many)
    _, also = run(capsys, "check-sampler", "--all", "model.sampler.steps=10", "--out=s.png")
    lines = (said + also).splitlines()
    assert max(len(line) for line in lines if "  " in line) <= 80


def test_a_package_in_the_working_directory_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    folder = Path("lab_of_checks/conf/model/noise_schedule")
    folder.mkdir(parents=True)
    for package in ("lab_of_checks", "lab_of_checks/conf"):
        Path(package, "__init__.py").touch()
    Path("lab_of_checks/schedules.py").write_text(
        "from genlab.diffusion.schedules import NoiseSchedule\n\n\n"
        "class Straight(NoiseSchedule):\n"
        "    def curve(self, u):\n"
        "        return 9 - 21 * u\n"
    )
    (folder / "straight.yaml").write_text("_target_: lab_of_checks.schedules.Straight\n")
    search = "hydra.searchpath=[pkg://lab_of_checks.conf]"
    rows, _ = run(capsys, "check-schedule", search, "model/noise_schedule=straight,linear")
    assert [row["schedule"] for row in rows] == ["straight", "linear"]
    assert float(rows[0]["log-SNR to"]) == -12


def test_without_diffusers_the_remedy_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert cli.main(["check-schedule", "--diffusers=DDIMScheduler"]) == REFUSED
    assert "pip install 'genlab[diffusers]'" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from genlab import cli\n"
        "try: cli.main(['check-sampler', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'hydra', 'altair', 'numpy'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "set()"


def test_the_package_runs_as_a_module() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "genlab", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("forecast", "check-sampler", "check-schedule", "sample", "report"):
        assert command in told.stdout
