"""VAEs and the diffusion models that start from them, over the KL weight of the VAE."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from genlab.report.answer import about
from genlab.report.collect import collect
from genlab.report.models import Line, about_models, comparison, models_charts
from genlab.report.naming import run_label
from genlab.report.quality import Measured
from genlab.report.sweep import write_sweep
from genlab.runs.manifest import Job, Manifest
from genlab.runs.run import Run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three weights, two seeds; the latents of weight 0.1 are best for diffusion."""
    jobs: list[Job] = []
    for seed in (0, 1):
        for weight, fid, bound in ((0, 200, 2000), (0.1, 180, 900), (1, 130, 800)):
            write(
                tmp_path,
                jobs,
                "vae.model.VAE",
                weight,
                seed,
                fid,
                bound,
                rfid=2 + weight / (1 + seed),
            )
        for weight, fid, bound in ((0, 60, 1500), (0.1, 40 + seed, 790), (1, 41, 750 + seed)):
            write(tmp_path, jobs, "diffusion.model.DDPM", weight, seed, fid, bound)
    swept = ("model", "model.kl_weight", "seed")
    Manifest("which", swept, tuple(jobs), question="Which KL weight?").write(tmp_path)
    return tmp_path


def write(
    root: Path,
    jobs: list[Job],
    family: str,
    weight: float,
    seed: int,
    fid: float,
    bound: float,
    rfid: float | None = None,
) -> None:
    name = family.rpartition(".")[2].lower()
    run = Run(root / f"{name}-{weight}-{seed}")
    run.path.mkdir()
    own = {"kl_weight": weight} if name == "vae" else {"codec": {"vae": {"kl_weight": weight}}}
    model = {"_target_": f"genlab.{family}", **own}
    epochs = {"max_epochs": 4 if name == "vae" else 20}
    config = {"model": model, "seed": seed, "trainer": epochs}
    run.config_path.write_text(json.dumps(config))
    run.status_path.write_text(json.dumps({"state": "completed"}))
    metrics = {"test/neg_elbo": bound, "test/reconstruction": bound - 100, "test/kl": 100}
    if name == "ddpm":
        metrics["test/kl_diffusion"] = 50
    run.result_path.write_text(json.dumps({"metrics": metrics}))
    values = {
        key: {"value": v, "low": v - 1, "high": v + 1, "samples": 100}
        for key, v in (("fid_infinity", fid), ("rfid_infinity", rfid))
        if v is not None
    }
    record = {"features": "classifier_1a2b3c", "split": "test", "values": values}
    run.quality_path.write_text(json.dumps({"records": [record]}))
    point = {"model": name, "model.kl_weight": weight}
    jobs.append(Job(run.name, (), point, seed, {}))


def test_each_model_has_its_quality_and_bound_over_the_shared_setting(study: Path) -> None:
    found = comparison(collect(study))
    assert found is not None and found.key == "kl_weight"
    assert found.features == "classifier_1a2b3c"
    lines = {line.name: {x: m.value for x, m in line.values.items()} for line in found.lines}
    assert lines == {
        "samples of the VAE": {0: 200, 0.1: 180, 1: 130},
        "reconstructions of the VAE": {0: 2, 0.1: 2.075, 1: 2.75},
        "bound of the VAE": {0: 2000, 0.1: 900, 1: 800},
        "samples of the DDPM": {0: 60, 0.1: 40.5, 1: 41},
        "bound of the DDPM": {0: 1500, 0.1: 790, 1: 750.5},
    }
    (bound,) = (line for line in found.lines if line.name == "bound of the DDPM")
    low, high = bound.values[1][1:]
    # Student's t with one degree of freedom: 12.706 times 0.5
    assert (low, high) == pytest.approx((750.5 - 6.353, 750.5 + 6.353), abs=1e-3)


def test_the_answer_names_the_best_of_each_and_what_is_not_told_apart(study: Path) -> None:
    first, second = about_models(collect(study))
    assert first == (
        "Samples of the DDPM are best at kl_weight 0.1 (FID 40.5, 95 % 34.1 to 46.9; not told "
        "apart from 1), its bound is lowest at kl_weight 1 (750.5 nats, 95 % 744.1 to 756.9)."
    )
    assert second == (
        "Samples of the VAE are best at kl_weight 1 (FID 130.0, 95 % 129.3 to 130.7), its "
        "reconstructions are best at kl_weight 0 (FID 2.0, 95 % 1.3 to 2.7; not told apart from "
        "0.1, 1), its bound is lowest at kl_weight 1 (800.0 nats)."
    )
    assert about(collect(study)).startswith(first)


def test_settings_that_differ_alike_in_every_seed_are_told_apart() -> None:
    """The seeds spread by 20, so that all intervals overlap; the differences spread by 1."""

    def line(*differences: float) -> Line:
        spread = [0.0, 20.0, 40.0]
        seeds = {
            float(x): {str(i): 50.0 + s + (i % 2) * (x > 0) + d for i, s in enumerate(spread)}
            for x, d in enumerate((0.0, *differences))
        }
        values = {x: Measured(fmean(v.values()), 0.0, 200.0) for x, v in seeds.items()}
        return Line("DDPM", "samples", values, seeds)

    assert line(10.0, 11.0).ties == []
    assert line(10.0, 0.1).ties == [2.0]


def test_the_settings_of_the_two_models_have_names_of_their_own(study: Path) -> None:
    records = collect(study)
    names = {run_label(record, ["model._target_", "model.kl_weight"]) for record in records}
    vaes, ddpms = [f"kl_weight {w}" for w in (0, 0.1, 1)], ("0", "0.1", "1")
    assert names == {*vaes, *(f"DDPM, kl_weight {w}" for w in ddpms)}


def test_the_figure_shows_weight_0_on_its_logarithmic_axis(study: Path) -> None:
    found = models_charts(collect(study))
    assert found is not None
    quality, bound = (figure.to_dict() for figure in found["figures"])
    assert len(quality["datasets"]["quality"]) == 9 and len(bound["datasets"]["bound"]) == 6
    scale = quality["layer"][0]["encoding"]["x"]["scale"]
    assert (scale["type"], scale["constant"]) == ("symlog", pytest.approx(0.01))
    ringed = {(row["of"], row["x"]) for row in quality["datasets"]["quality"] if row["is_best"]}
    assert ("samples of the DDPM", 0.1) in ringed and len(ringed) == 3
    # reconstructions at weight 1: 2.75 with an interval from below 0, which has no logarithm
    floor, _ = quality["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert 0 < floor < 2
    rows = quality["datasets"]["quality"]
    assert min(row["low"] for row in rows) < 0 and min(row["end"] for row in rows) == floor


def test_the_report_of_the_study_has_the_figure_and_the_answer(study: Path) -> None:
    names = {path.name for path in write_sweep(collect(study), study)}
    assert {"models.png", "models.svg", "report.html"} <= names
    assert "](models.png)" in (study / "summary.md").read_text()
    page = (study / "report.html").read_text()
    assert "Samples of the DDPM are best at kl_weight 0.1" in page


def test_models_without_a_common_number_are_not_compared(study: Path, tmp_path: Path) -> None:
    records = collect(study)
    assert comparison([r for r in records if r.family == "VAE"]) is None
    few = [r for r in records if r.family == "VAE" or r.flat["model.kl_weight"] == 1]
    assert comparison(few) is None  # the DDPM has one setting
    assert about_models(few) == []
