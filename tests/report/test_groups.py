"""Runs are compared only where their numbers have one meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from genlab.report import collect
from genlab.report.groups import Group, apart, groups
from genlab.runs.manifest import Job, Manifest

VAE, DDPM = "genlab.vae.model.VAE", "genlab.diffusion.model.DDPM"
LIKELIHOODS = {
    "bernoulli": "Bernoulli",
    "gaussian": "GaussianLikelihood",
    "gaussian_calibrated": "CalibratedGaussian",
    "gaussian_learned": "LearnedGaussian",
    "continuous_bernoulli": "ContinuousBernoulliLikelihood",
    "discretized_logistic": "DiscretizedLogisticLikelihood",
}


def vae(likelihood: str = "bernoulli", **changes: Any) -> dict[str, Any]:
    """Return a config; the changes are under dotted keys."""
    target = f"genlab.vae.likelihoods.{LIKELIHOODS[likelihood]}"
    base = {
        "seed": 0,
        "data._target_": "genlab.data.datamodule.ImageData",
        "data.source._target_": "genlab.data.sources.MNISTMini",
        "data.binarisation": "none",
        "data.eval_batch_size": 500,
        "trainer.max_epochs": 40,
        "trainer.limit_test_batches": None,
        "model._target_": VAE,
        "model.kl_weight": 1.0,
        "model.latent_dim": 20,
        "model.likelihood._target_": target,
    }
    return nested(base | changes)


def ddpm(schedule: str = "LinearLogSNR", **changes: Any) -> dict[str, Any]:
    config = vae(**{"trainer.max_epochs": 20, **changes})
    target = f"genlab.diffusion.schedules.{schedule}"
    config["model"] = {"_target_": DDPM, "steps": 1000, "noise_schedule": {"_target_": target}}
    return config


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return config


def write(
    path: Path, config: dict[str, Any], bound: float | None = 100.0, state: str = "completed"
) -> Path:
    metrics = {"test/reconstruction": bound, "test/kl": 0.0, "test/neg_elbo": bound}
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "status.json").write_text(json.dumps({"state": state}))
    if state == "completed":
        found = metrics if bound is not None else {"test/fid": 9.0}
        (path / "result.json").write_text(json.dumps({"metrics": found}))
    return path


def sweep(path: Path, points: list[dict[str, Any]], configs: list[dict[str, Any]]) -> Path:
    """Write the runs of a sweep and its manifest."""
    names = [f"run{i}" for i in range(len(points))]
    for name, config in zip(names, configs, strict=True):
        write(path / name, config)
    jobs = tuple(
        Job(name, (), {k: v for k, v in point.items() if k != "seed"}, config["seed"])
        for name, point, config in zip(names, points, configs, strict=True)
    )
    Manifest(path.name, tuple(points[0]), jobs).write(path)
    return path


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
