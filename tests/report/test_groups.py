"""Runs are compared only where their numbers have one meaning."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree

import pytest
import yaml
from compared_runs import LIKELIHOODS, ddpm, sweep, vae, write

from genlab.report import collect, sweep_table
from genlab.report.answer import about
from genlab.report.groups import Group, apart, groups


def found(root: Path, as_one: bool = False) -> list[Group]:
    return groups(collect(root), as_one)


def sizes(root: Path, as_one: bool = False) -> list[int]:
    return sorted(len(group.records) for group in found(root, as_one))


def test_likelihoods_of_one_quantity_are_one_group(tmp_path: Path) -> None:
    for name in LIKELIHOODS:
        write(tmp_path / name, vae(name))
    write(tmp_path / "ddpm", ddpm())
    parts = [{record.run_id for record in group.records} for group in found(tmp_path)]
    assert sorted(map(sorted, parts)) == [
        ["bernoulli"],
        ["continuous_bernoulli"],
        ["ddpm", "discretized_logistic"],
        ["gaussian", "gaussian_calibrated", "gaussian_learned"],
    ]
    assert "the unit of the bound" in apart(found(tmp_path))


def test_a_bernoulli_of_binarised_data_compares_with_probabilities_of_them(tmp_path: Path) -> None:
    for name in ("bernoulli", "discretized_logistic"):
        write(tmp_path / name, vae(name, **{"data.binarisation": "static"}))
    assert sizes(tmp_path) == [2]
    write(tmp_path / "grey", vae("bernoulli"))
    assert sizes(tmp_path) == [1, 2]


def test_runs_of_other_images_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a", vae())
    write(tmp_path / "same", vae(**{"trainer.limit_test_batches": 1.0, "data.batch_size": 7}))
    write(tmp_path / "data", vae(**{"data.source._target_": "genlab.data.sources.CIFAR10"}))
    write(tmp_path / "bits", vae(**{"data.binarisation": "static"}))
    write(tmp_path / "few", vae(**{"trainer.limit_test_batches": 2}))
    titles = [group.title.partition(": ")[2] for group in found(tmp_path)]
    assert titles == [
        "mnist_mini, binarisation none, all test images",
        "mnist_mini, binarisation static, all test images",
        "cifar10, binarisation none, all test images",
        "mnist_mini, binarisation none, the first 1000 test images",
    ]
    assert len(found(tmp_path)[0].records) == 2


def test_the_keys_of_a_sweep_are_those_that_were_typed(tmp_path: Path) -> None:
    points = [{"model/noise_schedule": name} for name in ("linear_log_snr", "cosine")]
    sweep(tmp_path / "s", points, [ddpm("LinearLogSNR"), ddpm("Cosine", **{"seed": 0})])
    (group,) = found(tmp_path)
    assert group.keys == ("model/noise_schedule",) and group.others == ()
    values = [record.flat["model/noise_schedule"] for record in group.records]
    assert values == ["cosine", "linear_log_snr"]


def test_unrelated_runs_have_a_handful_of_keys(tmp_path: Path) -> None:
    for i in range(30):
        changes = {f"model.key{j}": i // (j + 1) for j in range(12)}
        noise = {"callbacks.videos.fps": i, "logger.wandb.name": str(i), "compile": bool(i % 2)}
        write(tmp_path / "single" / f"run{i:02}", vae(**changes, **noise))
    (group,) = found(tmp_path)
    assert len(group.keys) == 4 and len(group.others) == 8
    assert all(key.startswith("model.key") for key in group.swept)
    assert [r.flat["model.key0"] for r in group.records] == list(range(30)), "numeric order"


def test_unrelated_sweeps_are_apart_unless_asked_as_one(tmp_path: Path) -> None:
    weights, dims = (
        [{"model.kl_weight": w} for w in (0, 1)],
        [{"model.latent_dim": d} for d in (2, 4)],
    )
    sweep(tmp_path / "weights", weights, [vae(**p) for p in weights])
    sweep(tmp_path / "dims", dims, [vae(**p) for p in dims])
    assert [group.title for group in found(tmp_path)] == ["dims", "weights"]
    (group,) = found(tmp_path, as_one=True)
    assert group.title == "dims and weights"
    assert set(group.keys) == {"model.kl_weight", "model.latent_dim"}


def test_sweeps_that_share_all_but_the_values_are_one(tmp_path: Path) -> None:
    first, more = (
        [{"model.kl_weight": w} for w in (0, 1)],
        [{"model.kl_weight": w} for w in (4, 30)],
    )
    sweep(tmp_path / "first", first, [vae(**p) for p in first])
    sweep(tmp_path / "more", more, [vae(**p) for p in more])
    (group,) = found(tmp_path)
    assert [record.flat["model.kl_weight"] for record in group.records] == [0, 1, 4, 30]
    # and another width makes them two questions
    sweep(tmp_path / "wide", first, [vae(**p, **{"model.latent_dim": 99}) for p in first])
    assert sizes(tmp_path) == [2, 4]


def test_one_key_over_two_likelihoods_is_two_groups_and_said(tmp_path: Path) -> None:
    points = [
        {"model/likelihood": name, "model.kl_weight": w}
        for name in ("bernoulli", "gaussian")
        for w in (0, 30)
    ]
    configs = [
        vae(p["model/likelihood"], **{"model.kl_weight": p["model.kl_weight"]}) for p in points
    ]
    sweep(tmp_path / "s", points, configs)
    groups_ = found(tmp_path)
    assert [group.title for group in groups_] == ["s: bernoulli", "s: gaussian"]
    assert all(group.keys == ("model.kl_weight",) for group in groups_)
    assert "not compared" in apart(groups_)


def test_a_title_counts_the_runs_of_its_group(tmp_path: Path) -> None:
    for i, likelihood in enumerate(["bernoulli"] * 3 + ["gaussian"] * 4):
        write(tmp_path / f"g{i}" / "run", vae(likelihood, **{"model.latent_dim": i + 2}))
    titles = {len(group.records): group.title for group in found(tmp_path)}
    assert titles == {3: "3 single runs: bernoulli", 4: "4 single runs: gaussian"}


def test_names_of_ten_thousand_letters_are_cut_where_they_are_shown(tmp_path: Path) -> None:
    long = "n" * 10_000
    for weight in (0.0, 1.0):
        config = vae(**{"model.kl_weight": weight, "data.name": long})
        path = write(tmp_path / "s" / f"{weight}", config)
        metrics = {"test/kl": 1.0, f"test/{long}": 2.0}
        (path / "result.json").write_text(json.dumps({"metrics": metrics}))
    (group,) = found(tmp_path)
    assert len(group.title) <= 300
    assert max(len(column.heading) for column in sweep_table(group.records).columns) <= 60
    assert len(about(group.records)) < 500


def test_runs_without_a_result_were_measured_on_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "s" / "a", vae(**{"trainer.limit_test_batches": 1}))
    assert "measured on" not in sweep_table(collect(tmp_path)).to_text()
    (path / "result.json").write_text(json.dumps({"metrics": {"test/kl": 1.0}}))
    assert "test set" in sweep_table(collect(tmp_path)).to_text()


def test_the_groups_of_several_experiments_have_their_names(tmp_path: Path) -> None:
    points = [{"experiment": name} for name in ("vae/kl_weight", "vae/rate_distortion")]
    sweep(tmp_path / "s", points, [vae("bernoulli"), vae("discretized_logistic")])
    titles = [group.title for group in found(tmp_path)]
    assert titles == ["s: vae/kl_weight", "s: vae/rate_distortion"]


def test_vaes_and_a_ddpm_of_one_directory_are_one_group(tmp_path: Path) -> None:
    points = [{"model.kl_weight": w} for w in (0, 1, 30)]
    sweep(tmp_path / "plane", points, [vae("discretized_logistic", **p) for p in points])
    write(tmp_path / "plane" / "ddpm", ddpm())
    (group,) = found(tmp_path)
    assert group.keys == ("model._target_", "model.kl_weight")


def test_a_model_without_a_bound_joins_the_runs_of_its_data(tmp_path: Path) -> None:
    write(tmp_path / "vae", vae("discretized_logistic"))
    config = vae(**{"model._target_": "genlab.gan.model.GAN"})
    del config["model"]["likelihood"]
    write(tmp_path / "gan", config, bound=None)
    assert sizes(tmp_path) == [2]


def test_a_run_without_a_result_stays_with_its_sweep(tmp_path: Path) -> None:
    points = [{"model.kl_weight": w} for w in (0, 1)]
    path = sweep(tmp_path / "s", points, [vae(**p) for p in points])
    for i, state in enumerate(("failed", "preempted", "running")):
        write(path / f"other{i}", vae(**{"model.kl_weight": 5.0 + i}), state=state)
    assert sizes(tmp_path) == [5]


def test_a_gan_without_a_bound_is_compared_by_its_quality(tmp_path: Path) -> None:
    for name, fid in (("vae", 40.0), ("gan", 12.0)):
        config = vae("discretized_logistic")
        if name == "gan":
            config["model"] = {"_target_": "genlab.gan.model.GAN"}
        path = write(tmp_path / "plane" / name, config)
        metrics = {"test/energy_distance": fid}
        if name == "vae":
            metrics |= {"test/reconstruction": 900.0, "test/kl": 20.0, "test/neg_elbo": 920.0}
        result = {"metrics": metrics, "verdict": "mode collapse" if name == "gan" else ""}
        (path / "result.json").write_text(json.dumps(result))
    (group,) = found(tmp_path)
    said = about(group.records)
    assert "The GAN has no bound on the likelihood, and so no place in the rate" in said
    assert "The lowest energy distance is that of GAN: 12.00" in said
    table = sweep_table(group.records)
    headings = [column.heading for column in table.columns]
    assert "neg_elbo" in headings and "energy distance" in headings
    rows = {cells[0]: dict(zip(headings, cells, strict=True)) for cells in table.cells()}
    assert rows["GAN"]["neg_elbo"] == "" and rows["VAE"]["neg_elbo"] == "920.0"
    assert rows["GAN"]["outcome"] == "mode collapse" and rows["VAE"]["outcome"] == ""


def test_an_unlisted_metric_is_shown_where_it_is_one_kind(tmp_path: Path) -> None:
    for i, feature in enumerate((64, 64, 2048)):
        config = vae(**{"model.kl_weight": float(i), "metrics.sharpness.feature": feature})
        path = write(tmp_path / "s" / str(i), config)
        metrics = {
            "test/neg_elbo": 1.0,
            "test/reconstruction": 1.0,
            "test/sharpness": 9.0,
            "test/x": 2.0,
        }
        (path / "result.json").write_text(json.dumps({"metrics": metrics}))
    headings = [column.heading for column in sweep_table(collect(tmp_path / "s")).columns]
    assert "x" in headings and "sharpness" not in headings
    shown = sweep_table(collect([tmp_path / "s" / "0", tmp_path / "s" / "1"])).columns
    assert "sharpness" in [column.heading for column in shown]


def test_where_no_unit_is_active_the_weight_is_not_blamed(tmp_path: Path) -> None:
    def with_units(active: dict[float, int]) -> str:
        for weight, units in active.items():
            path = write(tmp_path / "s" / f"{weight}", vae(**{"model.kl_weight": weight}))
            metrics = {"test/reconstruction": 200.0 + weight, "test/kl": 0.0}
            metrics |= {"test/neg_elbo": 200.0 + weight, "test/active_units": units}
            (path / "result.json").write_text(json.dumps({"metrics": metrics}))
        return about(collect(tmp_path / "s"))

    assert with_units({0.5: 0, 1.0: 0, 30.0: 0}).startswith(
        "No latent unit is active at any weight from 0.5 to 30, so that the weight is not what"
    )
    rmtree(tmp_path / "s")
    said = with_units({0.5: 9, 1.0: 0, 30.0: 0})
    assert said.startswith("kl_weight 30 switches off all 20 latent units")
    assert "from 200.5 (kl_weight 0.5) to 230.0 nats" in said


@pytest.mark.parametrize("runs", [200, 1000])
def test_many_runs_are_one_table_in_numeric_order(tmp_path: Path, runs: int) -> None:
    config = yaml.safe_dump(vae(**{"model.kl_weight": -1.0}))
    result = {"metrics": {"test/reconstruction": 90.0, "test/kl": 1.0, "test/neg_elbo": 91.0}}
    for i in range(runs):
        path = tmp_path / "s" / f"run{i}"
        path.mkdir(parents=True)
        weight = f"kl_weight: {i * 7 % runs / 10}"
        (path / "config.yaml").write_text(config.replace("kl_weight: -1.0", weight))
        (path / "status.json").write_text('{"state": "completed"}')
        (path / "result.json").write_text(json.dumps(result))
    (group,) = found(tmp_path)
    assert group.keys == ("model.kl_weight",)
    shown = [float(cells[0]) for cells in sweep_table(group.records).cells()]
    assert shown == [i / 10 for i in range(runs)]
