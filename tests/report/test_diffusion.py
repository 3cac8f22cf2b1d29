"""Reports on diffusion models, alone and beside VAEs; the runs are written, not trained."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from genlab.media import charts
from genlab.report import (
    answer,
    collect,
    draw_bounds,
    draw_rate_distortion,
    print_sweep,
    sweep_table,
    swept_keys,
    write_sweep,
)
from genlab.report.naming import run_label
from genlab.runs.directory import RunDirectory

Spec = dict[str, Any]
TARGETS = {"VAE": "genlab.vae.model.VAE", "DDPM": "genlab.diffusion.model.DDPM"}
BITS_PER_NAT = 1 / (784 * math.log(2))
EDGES = list(range(-20, 21, 2))
SCHEDULES = {"Cosine": 640.25, "Linear": 655.5, "LinearLogSNR": 641.0, "Sigmoid": 643.0}
#: The same, as they are typed.
TYPED = ["cosine", "linear", "linear_log_snr", "sigmoid"]


def recipe(family: str, **model: Any) -> dict[str, Any]:
    is_vae = family == "VAE"
    return {
        "seed": 0,
        "group": "plane",
        "ema_decay": None if is_vae else 0.999,
        "data": {
            "batch_size": 128 if is_vae else 64,
            "binarisation": "none",
            "source": {"_target_": "genlab.data.sources.MNISTMini"},
        },
        "trainer": {"max_epochs": 40 if is_vae else 20, "precision": "32-true"},
        "model": {"_target_": TARGETS[family], **model},
    }


def vae(
    kl_weight: float, likelihood: str = "DiscretizedLogisticLikelihood", **model: Any
) -> dict[str, Any]:
    return recipe(
        "VAE",
        kl_weight=kl_weight,
        latent_dim=20,
        likelihood={"_target_": f"genlab.vae.likelihoods.{likelihood}"},
        **model,
    )


def ddpm(schedule: str = "Cosine", seed: int = 0, **model: Any) -> dict[str, Any]:
    own = {"Linear": {"beta_min": 0.1}, "Sigmoid": {"tau": 1.0}}.get(schedule, {})
    target = {"_target_": f"genlab.diffusion.schedules.{schedule}", **own}
    return recipe("DDPM", noise_schedule=target, steps=None, **model) | {"seed": seed}


def metrics(reconstruction: float, kl: float, **others: float) -> dict[str, float]:
    neg_elbo = reconstruction + kl
    terms = {"reconstruction": reconstruction, "kl": kl, "neg_elbo": neg_elbo, **others}
    terms["bits_per_dim"] = neg_elbo * BITS_PER_NAT
    return {f"test/{name}": value for name, value in terms.items()}


def of_diffusion(
    kl_diffusion: float, error: float = 4.0, reconstruction: float = 11.0
) -> dict[str, float]:
    kl_prior = 0.25
    return metrics(
        reconstruction,
        kl_prior + kl_diffusion,
        kl_prior=kl_prior,
        kl_diffusion=kl_diffusion,
        neg_elbo_se=error,
    )


def write(
    path: Path,
    config: dict[str, Any],
    found: dict[str, float],
    nats: Sequence[float] | None = None,
    shown: tuple[str, ...] = (),
) -> Path:
    with RunDirectory(path) as run:
        run.write_config(yaml.safe_dump(config))
        if nats is not None:
            run.write_bound({"log_snr_edges": EDGES, "nats_by_log_snr": list(nats)})
        run.write_result({"metrics": found, "verdict": "", "wall_seconds": 60.0})
        run.write_status("completed")
        for name in shown:
            Image.new("L", (40, 30)).save(run.pictures / f"{name}-final.png")
    return path


def shares(kl_diffusion: float) -> list[float]:
    """Return 20 bins: the inner 10 are filled, the last of them with the remainder."""
    inner = [0.0, *(10.0 * i for i in range(1, 9))]
    return [0.0] * 5 + [*inner, kl_diffusion - sum(inner)] + [0.0] * 5


def write_schedules(root: Path, error: float = 4.0) -> Path:
    for name, kl in SCHEDULES.items():
        write(root / name, ddpm(name), of_diffusion(kl, error), shares(kl), ("samples",))
    return root


def write_plane(root: Path, likelihood: str = "DiscretizedLogisticLikelihood") -> Path:
    for weight, reconstruction, kl, active in (
        (0.0, 920.0, 90.0, 20),
        (1.0, 940.0, 22.0, 20),
        (30.0, 1066.0, 0.0, 0),
    ):
        found = metrics(reconstruction, kl, active_units=active)
        shown = ("reconstructions", "samples")
        write(root / f"vae-{weight:g}", vae(weight, likelihood), found, shown=shown)
    write(root / "ddpm", ddpm(), of_diffusion(640.0), shares(640.0), ("samples",))
    return root


@pytest.fixture
def schedules(tmp_path: Path) -> Path:
    return write_schedules(tmp_path / "schedules")


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    return write_plane(tmp_path / "plane")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """The figures that would have been written."""
    figures: list[Spec] = []
    monkeypatch.setattr(charts, "save", lambda made, *_: figures.append(charts.spec(made)))
    return figures


def points(spec: Spec) -> np.ndarray:
    """(N, 2), all the markers of the plane."""
    return np.array([(row["x"], row["y"]) for row in spec["datasets"]["runs"]])


def axis(spec: Spec, channel: str) -> Spec:
    """An axis of a chart, which all of its layers share."""
    found: Spec = spec["layer"][0]["encoding"][channel]
    return found


def lines(spec: Spec, name: str = "bounds") -> dict[str, tuple[list[float], list[float]]]:
    """Log-SNRs and nats of each setting."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in spec["datasets"][name]:
        x, y = found.setdefault(row["name"], ([], []))
        x.append(row["log_snr"])
        y.append(row["nats"])
    return found


def test_a_schedule_is_one_column_and_a_family_brings_its_own_recipe(
    schedules: Path, plane: Path
) -> None:
    assert swept_keys(collect(schedules)) == ["model/noise_schedule"]
    assert swept_keys(collect(plane)) == ["model._target_", "model.kl_weight"]
    # A batch size that differs within a family is no part of its recipe.
    other = vae(1.0)
    other["data"]["batch_size"] = 32
    write(plane / "other", other, metrics(940.0, 22.0))
    assert swept_keys(collect(plane))[0] == "data.batch_size"


def test_what_the_families_were_trained_on_is_no_recipe(plane: Path) -> None:
    other = ddpm()
    other["data"]["source"]["_target_"] = "genlab.data.cifar.CIFAR10"
    write(plane / "ddpm", other, of_diffusion(640.0))
    assert "data.source._target_" in swept_keys(collect(plane))


def test_labels_say_what_is_needed(plane: Path) -> None:
    swept = ["model._target_", "model.kl_weight"]
    labels = [run_label(record, swept) for record in collect(plane)]
    assert labels == ["DDPM", "kl_weight 0", "kl_weight 1", "kl_weight 30"]
    (record,) = collect([write(plane / "x", ddpm(width=16), of_diffusion(640.0))])
    assert run_label(record, [*swept, "model.width"]) == "DDPM, width 16"


def test_the_table_of_a_schedule_sweep(schedules: Path) -> None:
    table = sweep_table(collect(schedules))
    headings = [column.heading for column in table.columns]
    assert headings == [
        "noise_schedule",
        "reconstruction",
        "kl",
        "L_T",
        "diffusion",
        "neg_elbo",
        "bits/dim",
        "+-",
        "state",
    ]
    cells = table.cells()
    assert cells[0][:6] == ["cosine", "11.0", "640.50", "0.25", "640.25", "651.5"]
    assert cells[0][6:8] == ["1.199", f"{4 * BITS_PER_NAT:.3f}"]
    assert [row[0] for row in cells] == TYPED
    assert "L_0" in table.caption and "standard error" in table.caption
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [float(row["test/kl_diffusion"]) for row in rows] == list(SCHEDULES.values())
    assert all(row["test/neg_elbo_se"] == "4.0" for row in rows)


@pytest.mark.parametrize("which", ["schedules", "plane"])
@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_a_terminal(which: str, width: int, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(which)
    file = io.StringIO()
    console = Console(width=width, force_terminal=True, color_system=None, file=file, _environ={})
    sweep_table(collect(root)).print(console)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(set(line.strip()) == {"─"} for line in lines), "no room for the table itself"


def test_the_table_of_two_families_has_no_column_of_one(plane: Path) -> None:
    table = sweep_table(collect(plane))
    headings = [column.heading for column in table.columns]
    shared = ["reconstruction", "kl", "neg_elbo", "bits/dim", "state"]
    assert headings == ["model", "kl_weight", *shared]
    assert all(cell for cells in table.cells() for cell in cells)
    assert [cells[:2] for cells in table.cells()] == [
        ["DDPM", "-"],
        ["VAE", "0"],
        ["VAE", "1"],
        ["VAE", "30"],
    ]
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert rows[0]["test/kl_diffusion"] == "640.0" and rows[1]["test/active_units"] == "20.0"


def test_schedules_that_agree_are_said_to(tmp_path: Path) -> None:
    records = collect(write_schedules(tmp_path, error=6.0))
    # sqrt(6^2 + 6^2) = 8.5, twice which is more than the 15.25 between the first and the last.
    assert answer(records) == (
        "The lowest neg_elbo is that of noise_schedule cosine: reconstruction 11.0, kl 640.50, "
        "neg_elbo 651.5 nats per image (standard error 6.0) on mnist_mini. The highest is that of "
        "noise_schedule linear: reconstruction 11.0, kl 655.75, neg_elbo 666.8 nats per image "
        "(standard error 6.0) on mnist_mini. They differ by 15.2 +- 8.5 nats per image "
        "(0.028 +- 0.016 bits/dim): the 4 settings of noise_schedule agree within the error "
        "(two standard errors). The error is "
        "that of independent runs, sqrt(se1^2 + se2^2) over test images: too large where all runs "
        "see the same images, as in a sweep; other seeds are not in it."
    )


def test_schedules_that_differ_are_said_to(schedules: Path) -> None:
    assert (
        "noise_schedule cosine is lower than noise_schedule linear by 15.2 +- 5.7 nats per image "
        "(0.028 +- 0.010 bits/dim); within two standard errors of it: noise_schedule "
        "linear_log_snr, noise_schedule sigmoid."
    ) in answer(collect(schedules))


def test_a_large_error_of_the_worst_does_not_hide_a_difference(tmp_path: Path) -> None:
    for name, kl, error in (("Cosine", 600.0, 1.0), ("Linear", 650.0, 1.0), ("Sigmoid", 700.0, 90)):
        write(tmp_path / name, ddpm(name), of_diffusion(kl, error))
    assert (
        "noise_schedule cosine is lower than noise_schedule linear by 50.0 +- 1.4 nats per image"
    ) in answer(collect(tmp_path))


def test_settings_are_compared_over_their_common_seeds(tmp_path: Path) -> None:
    # Each seed shifts both settings alike, by far more than the second gains: 2 +- 0.1 nats.
    for name, gain in (("Cosine", (2.1, 1.9, 2.0)), ("Linear", (0, 0, 0))):
        for seed, shift in enumerate((-50, 0, 50)):
            found = of_diffusion(600.0 + shift - gain[seed], error=3.0)
            write(tmp_path / f"{name}-{seed}", ddpm(name, seed), found)
    said = answer(collect(tmp_path))
    # half of the interval: t(2) = 4.303 times 0.1 / sqrt(3)
    assert (
        "Over 3 common seeds, noise_schedule cosine has a lower neg_elbo than noise_schedule "
        "linear (2.0 +- 0.2) at p <= 0.05" in said
    )
    assert "independent runs" not in said


def test_one_run_has_its_error(tmp_path: Path) -> None:
    write(tmp_path / "only", ddpm(), of_diffusion(640.0))
    assert answer(collect(tmp_path)) == (
        "only: reconstruction 11.0, kl 640.25, neg_elbo 651.2 nats per image (standard error 4.0) "
        "on mnist_mini."
    )


def test_the_answer_compares_the_best_of_each_family_in_bits(plane: Path) -> None:
    said = answer(collect(plane))
    assert said.startswith(
        "The DDPM reaches 1.198 +- 0.007 bits/dim (reconstruction 0.020, kl 1.178) and the best "
        "VAE (kl_weight 1) reaches 1.770 bits/dim (reconstruction 1.730, kl 0.040): the DDPM is "
        "lower by 0.572 +- 0.007 (the error of the DDPM alone). Among the VAE runs: kl_weight 30 "
        "switches off all 20"
    )
    assert "The lowest neg_elbo is that of kl_weight 1: 962.0 nats." in said


def test_what_is_no_comparison_is_not_made(tmp_path: Path) -> None:
    said = answer(collect(write_plane(tmp_path / "density", "Bernoulli")))
    assert "not compared, since they differ in the unit of the bound" in said
    assert "is lower by" not in said and "reaches 1.198" not in said
    other = vae(1.0)
    other["data"]["binarisation"] = "stochastic"
    write(tmp_path / "data" / "vae", other, metrics(90.0, 22.0))
    write(tmp_path / "data" / "ddpm", ddpm(), of_diffusion(640.0))
    assert "since they differ in the binarisation" in answer(collect(tmp_path / "data"))


def test_the_plane_of_two_families_is_in_bits(plane: Path, drawn: list[Spec]) -> None:
    assert draw_rate_distortion(collect(plane), plane / "x.png")
    (spec,) = drawn
    assert axis(spec, "x")["axis"]["title"] == "rate: kl (bits/dim)"
    assert axis(spec, "y")["axis"]["title"] == "distortion: reconstruction (bits/dim)"
    assert axis(spec, "x")["scale"]["type"] == "symlog"
    expected = np.array([[90, 920], [22, 940], [0, 1066], [640.25, 11]]) * BITS_PER_NAT
    found = points(spec)
    np.testing.assert_allclose(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    legend = {row["legend"] for row in spec["datasets"]["runs"]}
    assert legend == {"VAE", "VAE, collapsed: no latent unit is active", "DDPM"}
    texts = {row["text"] for row in spec["datasets"]["names"]}
    assert {"DDPM", "kl_weight 0", "kl_weight 1", "kl_weight 30"} <= texts


@pytest.mark.parametrize("which", ["schedules", "plane"])
def test_lines_of_equal_bound_and_points_in_sight(
    which: str, request: pytest.FixtureRequest, drawn: list[Spec]
) -> None:
    root = request.getfixturevalue(which)
    assert draw_rate_distortion(collect(root), root / "x.png")
    (spec,) = drawn
    straight: dict[float, list[float]] = {}
    for row in spec["datasets"]["equal"]:
        straight.setdefault(row["level"], []).append(row["x"] + row["y"])
    assert len(straight) > 2
    assert all(sums == pytest.approx([level] * len(sums)) for level, sums in straight.items())
    (left, right), (bottom, top) = (axis(spec, channel)["scale"]["domain"] for channel in "xy")
    x, y = points(spec).T
    assert (left < x).all() and (x < right).all() and (bottom < y).all() and (y < top).all()


def test_the_plane_of_schedules_is_close_and_has_errors(schedules: Path, drawn: list[Spec]) -> None:
    assert draw_rate_distortion(collect(schedules), schedules / "x.png")
    (spec,) = drawn
    assert "type" not in axis(spec, "x")["scale"]  # linear
    spans = [np.ptp(axis(spec, channel)["scale"]["domain"]) for channel in "xy"]
    assert spans[0] == pytest.approx(spans[1]) and spans[0] < 0.2
    bars = spec["datasets"]["spread"]
    assert len(bars) == len(SCHEDULES)
    assert [bar["right"] - bar["left"] for bar in bars] == pytest.approx([8 * BITS_PER_NAT] * 4)


def test_the_bound_by_log_snr_has_a_line_for_each_run(schedules: Path, drawn: list[Spec]) -> None:
    assert draw_bounds(collect(schedules), schedules / "x.png")
    (spec,) = drawn
    found = {name.removeprefix("noise_schedule "): line for name, line in lines(spec).items()}
    assert list(found) == TYPED
    for name, kl in zip(TYPED, SCHEDULES.values(), strict=True):
        np.testing.assert_array_equal(found[name][0], np.arange(-7, 11, 2))
        np.testing.assert_allclose(found[name][1], shares(kl)[6:15])
    left, right = spec["hconcat"]
    assert axis(left, "y")["axis"]["title"] == "nats per image in each bin"
    assert axis(right, "y")["axis"]["title"] == "difference from noise_schedule cosine (nats)"
    ends = {
        name.removeprefix("noise_schedule "): y[-1]
        for name, (_, y) in lines(spec, "differences").items()
    }
    assert ends == {
        name: pytest.approx(kl - 640.25) for name, kl in zip(TYPED, SCHEDULES.values(), strict=True)
    }


def test_in_discrete_time_l_0_is_said_to_be_in_the_curve(tmp_path: Path, drawn: list[Spec]) -> None:
    config = ddpm()
    config["model"]["steps"] = 250
    write(tmp_path / "a", config, of_diffusion(640.0), shares(640.0))
    assert draw_bounds(collect(tmp_path), tmp_path / "x.png")
    assert axis(drawn[0], "y")["axis"]["title"] == "nats per image in each bin, with L_0"


def test_runs_of_one_setting_stay_apart(tmp_path: Path, drawn: list[Spec]) -> None:
    for group in ("a", "b"):
        write(tmp_path / group, ddpm(), of_diffusion(640.0), shares(640.0))
    write(tmp_path / "c", ddpm("Linear"), of_diffusion(640.0), shares(640.0))
    assert draw_bounds(collect(tmp_path), tmp_path / "x.png")
    names = [f"noise_schedule {end}" for end in ("cosine (plane/a)", "cosine (plane/b)", "linear")]
    assert list(lines(drawn[0])) == names


def test_seeds_are_one_line_and_samplers_none(tmp_path: Path, drawn: list[Spec]) -> None:
    for name in ("Cosine", "Linear"):
        for seed, bound in enumerate((640.0, 660.0)):
            config = {**ddpm(name), "seed": seed}
            write(tmp_path / f"{name}{seed}", config, of_diffusion(bound), shares(bound))
    assert draw_bounds(collect(tmp_path), tmp_path / "x.png")
    found = lines(drawn[0])
    assert list(found) == ["noise_schedule cosine", "noise_schedule linear"]
    for _, nats in found.values():
        np.testing.assert_allclose(nats, shares(650.0)[6:15])

    for steps in (10, 20):
        config = ddpm()
        config["model"]["sampler"] = {"steps": steps}
        write(tmp_path / "samplers" / str(steps), config, of_diffusion(640.0), shares(640.0))
    assert not draw_bounds(collect(tmp_path / "samplers"), tmp_path / "y.png")


def test_many_runs_on_one_spot_have_a_label_that_fits(tmp_path: Path, drawn: list[Spec]) -> None:
    for i in range(30):
        config = ddpm()
        config["model"]["sampler"] = {"steps": i}
        write(tmp_path / str(i), config, of_diffusion(640.0), shares(640.0))
    assert draw_rate_distortion(collect(tmp_path), tmp_path / "x.png")
    texts = [row["text"] for row in drawn[0]["datasets"]["names"]]
    assert any(re.fullmatch(r"steps 0.* and \d+ more", text) for text in texts), texts


def test_curves_of_other_bins_are_drawn_without_a_difference(
    tmp_path: Path, drawn: list[Spec]
) -> None:
    write(tmp_path / "a", ddpm(), of_diffusion(640.0), shares(640.0))
    with RunDirectory(write(tmp_path / "b", ddpm("Linear"), of_diffusion(640.0))) as run:
        run.write_bound({"log_snr_edges": [-10, 0, 10], "nats_by_log_snr": [40.0, 600.0]})
    assert draw_bounds(collect(tmp_path), tmp_path / "x.png")
    assert len(lines(drawn[0])) == 2 and "differences" not in drawn[0]["datasets"]


def test_a_bound_that_cannot_be_read_loses_no_number(schedules: Path) -> None:
    (schedules / "Linear" / "bound.json").write_text('{"log_snr_edges": [')
    (schedules / "Cosine" / "bound.json").write_text('{"nats_by_log_snr": 3}')
    records = collect(schedules)
    assert [record.state for record in records].count("unreadable") == 1
    assert any("bound.json" in note for note in sweep_table(records).notes())
    assert all(cells[2] for cells in sweep_table(records).cells())
    assert (schedules / "x.png").exists() is False
    assert draw_bounds(records, schedules / "x.png")


def test_all_pictures_of_a_schedule_sweep_are_written_and_named(schedules: Path) -> None:
    names = [file.name for file in write_sweep(collect(schedules), schedules)]
    pictures = ["rate_distortion.png", "rate_distortion.svg", "bound_by_log_snr.png", "samples.png"]
    assert names == ["report.html", "summary.csv", "summary.md", *pictures]
    text = (schedules / "summary.md").read_text()
    assert all(f"]({name})" in text for name in pictures if name.endswith(".png"))
    with Image.open(schedules / "samples.png") as picture:
        # four pictures of 30 rows in two, each below its name, whose 280 columns are wider, and 24
        # rows; then a margin
        assert picture.size == (2 * (280 + 6), 2 * (24 + 30 + 6))


def test_the_same_setting_of_two_sweeps_is_pictured_twice_and_a_seed_once(tmp_path: Path) -> None:
    def sizes(folder: Path) -> tuple[int, int]:
        for run in folder.rglob("config.yaml"):
            (run.parent / "pictures").mkdir(exist_ok=True)
            Image.new("L", (300, 30)).save(run.parent / "pictures" / "samples-final.png")
        write_sweep(collect(folder), folder)
        with Image.open(folder / "samples.png") as picture:
            return picture.size

    for group in ("a", "b"):
        write(tmp_path / "sweeps" / group, ddpm(), of_diffusion(640.0))
    assert sizes(tmp_path / "sweeps")[0] == 2 * (300 + 6)
    for i, (name, seed) in enumerate([("Cosine", 0), ("Cosine", 1), ("Linear", 0), ("Linear", 1)]):
        write(tmp_path / "seeds" / str(i), {**ddpm(name), "seed": seed}, of_diffusion(640.0))
    assert sizes(tmp_path / "seeds") == (2 * (300 + 6), 24 + 30 + 6)


def test_vaes_alone_get_no_picture_of_diffusion(plane: Path) -> None:
    records = [record for record in collect(plane) if not record.is_diffusion]
    names = [file.name for file in write_sweep(records, plane)]
    pictures = ["rate_distortion.png", "rate_distortion.svg", "reconstructions.png"]
    assert names == ["report.html", "summary.csv", "summary.md", *pictures]
    names = [file.name for file in write_sweep(collect(plane), plane)]
    assert names[3:] == [
        "rate_distortion.png",
        "rate_distortion.svg",
        "bound_by_log_snr.png",
        "reconstructions.png",
        "samples.png",
    ]


def test_a_failed_run_of_either_family_stays_in_sight(plane: Path) -> None:
    for name, config in (("vae-4", vae(4.0)), ("ddpm-2", ddpm("Linear"))):
        with RunDirectory(plane / name) as run:
            run.write_config(yaml.safe_dump(config))
            run.write_status("failed", type="TrainingError", message="loss is nan", where="fit")
    file = io.StringIO()
    print_sweep(collect(plane), plane, Console(file=file, width=80, _environ={}))
    text = file.getvalue()
    assert "DDPM, noise_schedule linear (failed): TrainingError: loss is nan" in text
    assert "kl_weight 4 (failed)" in text
    assert "left out: 2 failed." in text
