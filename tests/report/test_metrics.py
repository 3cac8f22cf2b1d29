"""A metric that no table lists, and a model family that genlab does not have, are reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from genlab.metrics.names import describe
from genlab.report import Record, answer, collect, draw_rate_distortion, sweep_table, swept_keys
from genlab.report.diagnostics import diagnostics
from genlab.report.page import report_page
from genlab.report.plane import NATS, plane
from genlab.report.replicates import summarise, to_text
from genlab.report.shown import shown_runs
from genlab.report.training import training_curves
from genlab.runs.directory import RunDirectory

BITS_PER_NAT = 1 / (784 * math.log(2))


def model(family: str, optimizer: str = "torch.optim.AdamW", **own: Any) -> dict[str, Any]:
    package = "mine" if family == "Flow" else "genlab"
    return {
        "_target_": f"{package}.{family.lower()}.model.{family}",
        "module": {"_target_": f"{package}.modules.{family}Module", "_partial_": True},
        "optimizer": {"_target_": optimizer, "_partial_": True, "lr": 1e-3},
        **own,
    }


def vae(kl_weight: float) -> dict[str, Any]:
    return model("VAE", kl_weight=kl_weight, latent_dim=20)


def write(
    path: Path, model: dict[str, Any], reconstruction: float, kl: float, seed: int = 0, **own: float
) -> Path:
    neg_elbo = reconstruction + kl
    found = {"reconstruction": reconstruction, "kl": kl, "neg_elbo": neg_elbo, **own}
    found["bits_per_dim"] = neg_elbo * BITS_PER_NAT
    config = {"seed": seed, "group": "g", "data": {"name": "mnist_mini"}, "model": model}
    with RunDirectory(path) as run:
        run.write_config(yaml.safe_dump(config))
        for step in (1, 2):
            run.append_metrics(step, step, {f"val/{n}": v / step for n, v in found.items()})
        run.write_result({"metrics": {f"test/{name}": value for name, value in found.items()}})
        run.write_status("completed")
    return path


def test_an_unlisted_metric_is_shown_under_its_plain_name(tmp_path: Path) -> None:
    for weight in (1.0, 30.0):
        for seed in (0, 1):
            mine = 0.25 * weight + seed
            write(tmp_path / f"{weight}-{seed}", vae(weight), 90.0, 5.0, seed, mine=mine)
    records = collect(tmp_path)
    table = sweep_table(records)
    (column,) = [column for column in table.columns if column.heading == "mine"]
    assert [column.text(row) for row in table.rows] == ["0.250", "1.250", "7.500", "8.500"]
    assert "test/mine" in table.to_csv().splitlines()[0]

    points = to_text(summarise(records, swept_keys(records)))
    assert points.split("\n")[0].split()[-1] == "mine"
    assert "0.750 +- 6.353 (0.707)" in points

    curves = training_curves(records)
    assert curves["names"] == [
        *("val/reconstruction", "val/kl", "val/neg_elbo", "val/bits_per_dim", "val/mine")
    ]
    assert curves["units"] == dict.fromkeys(curves["names"][:3], "nats per image")
    assert [chart.title for chart in diagnostics(shown_runs(records))] == ["mine"]


def test_the_curves_of_a_gan_begin_with_its_losses(tmp_path: Path) -> None:
    logged = ("learning_rate", "fake_score", "images_per_second", "generator_loss")
    path = write(tmp_path / "s" / "gan", vae(1.0), 700, 20)
    rows = [{"step": i, "epoch": 0, **{f"train/{n}": float(i) for n in logged}} for i in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training_curves(collect(tmp_path / "s"))["names"][0] == "train/generator_loss"


def test_every_listed_metric_of_a_table_has_a_title_and_a_place() -> None:
    assert describe("test/nll_iwae_200").title.startswith("Negative log-likelihood")
    assert describe("val/kl_prior").full_title == "L_T: what the noise still tells (nats per image)"
    assert describe("active_units").full_title == "Active latent units"
    assert describe("mine").heading == "mine"


def test_a_third_family_is_compared_without_an_edit(tmp_path: Path) -> None:
    for weight, reconstruction, kl in ((0.0, 920.0, 90.0), (1.0, 940.0, 22.0), (30.0, 990.0, 1.0)):
        write(tmp_path / f"vae-{weight:g}", vae(weight), reconstruction, kl, active_units=9.0)
    write(tmp_path / "flow", model("Flow", blocks=4), 955.0, 0.0)
    records = collect(tmp_path)
    assert swept_keys(records) == ["model._target_", "model.kl_weight"]

    text = sweep_table(records).to_text()
    (row,) = [line for line in text.splitlines() if "Flow" in line]
    assert "955.0" in row and "0.00" in row

    found = plane(records)
    assert found is not None and found.unit is NATS and len(found.points) == 4
    kinds = {record.family: found.kind(record) for record in found.records}
    assert kinds == {"VAE": ("trained", "VAE"), "Flow": ("trained", "Flow")}
    assert (0.0, 955.0) in found.points
    assert draw_rate_distortion(records, tmp_path / "a.png", tmp_path / "a.svg")
    assert "Flow" in (tmp_path / "a.svg").read_text()
    assert "The Flow reaches 1.757 bits/dim (reconstruction 1.757, kl 0.000)" in answer(records)
    assert "Flow" in report_page(records, tmp_path)


def test_the_classes_around_a_model_follow_from_it() -> None:
    def record(model: dict[str, Any]) -> Record:
        return Record(Path("r"), "r", "g", "completed", {"model": model})

    assert swept_keys([record(vae(1.0)), record(model("DDPM", steps=10))])[0] == "model._target_"
    assert swept_keys([record(model("VAE")), record(model("VAE", "torch.optim.SGD"))]) == [
        "model/optimizer"
    ]
