"""Run directories of sweeps as they are left behind, without training them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

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
