"""Validation and test: means over images, and draws that depend on seed and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trained_runs import load_with_data, train_in

from genlab.diffusion.bound import prior_kl
from genlab.diffusion.model import DDPM
from genlab.runs.run import Run
from genlab.tensors import to_unit_interval
from genlab.vae.model import VAE

BASE = [
    *("logger=none", "callbacks=none", "forecast=false", "trainer.log_every_n_steps=1"),
    *("data.batch_size=8", "data.eval_batch_size=4", "trainer.max_epochs=1", "evaluate=last"),
]
MODELS = {
    "vae": ["model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"],
    "ddpm": [
        *("model=ddpm", "model.steps=20", "model.sampler.steps=5", "model.val_draws=2"),
        *("model.test_draws=2", "model.net.channels=8", "model.net.multipliers=[1,1]"),
        "model.net.attention=[]",
    ],
}
#: A metric of each model that depends on the evaluation's draws.
NOISY = {"vae": "reconstruction", "ddpm": "kl_diffusion"}
# so small that training does not change the weights
FROZEN = ["model.optimizer.lr=1e-30"]


def train(runs_dir: Path, *overrides: str) -> Run:
    return train_in(runs_dir, *BASE, *overrides)


def evaluations(of: Run, split: str) -> list[dict[str, Any]]:
    """The metrics of each evaluation of a split, without their prefix."""
    if split == "test":
        assert of.result is not None
        rows: list[dict[str, Any]] = [of.result["metrics"]]
    else:
        rows = of.metrics()
    prefix = f"{split}/"
    found = [
        {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
        for row in rows
    ]
    return [row for row in found if row]


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Different images: 24 to train on, 10 to validate on and 10 for the test."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("varied")
    for split, number in (("train", 34), ("test", 10)):
        (folder / split / "a").mkdir(parents=True)
        for i in range(number):
            level, spread = random.uniform(20, 230), random.uniform(0, 100)
            pixels = (level + spread * random.standard_normal((8, 8))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / "a" / f"{i:02}.png")
    return of_folder(folder, 10)


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One image, over and over: 24 times to train on, 8 to validate on and 8 for the test."""
    folder = tmp_path_factory.mktemp("equal")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for split, number in (("train", 32), ("test", 8)):
        (folder / split / "a").mkdir(parents=True)
        for i in range(number):
            Image.fromarray(pixels).save(folder / split / "a" / f"{i:02}.png")
    return of_folder(folder, 8)


def of_folder(folder: Path, val_images: int) -> list[str]:
    return [
        *("data=folder", f"data.source.root={folder}", f"data.source.cache_dir={folder}/cache"),
        *("data.source.image_size=8", "data.source.channels=1", "data.source.fit=exact"),
        f"data.val_images={val_images}",
    ]


@pytest.mark.parametrize("model", MODELS)
def test_the_short_last_batch_counts_by_its_images(
    tmp_path: Path, varied: list[str], model: str
) -> None:
    """10 images in batches of 4: a mean over the images, not over the three batches."""
    trained = train(tmp_path, *varied, *MODELS[model])
    module, data = load_with_data(trained.path, "last")
    for split in ("val", "test"):
        data.setup("fit" if split == "val" else "test")
        x = to_unit_interval(torch.from_numpy(data.pixels(split).copy()))
        assert len(x) == 10
        (found,) = evaluations(trained, split)
        if isinstance(module, VAE):
            name = "kl"
            with torch.no_grad():
                by_image = module.prior.kl_per_dim(module.encode(x)).sum(1).double()  # type: ignore[union-attr]
        else:
            assert isinstance(module, DDPM)
            name = "kl_prior"
            by_image = prior_kl(2 * x - 1, module.process.log_snr(torch.ones(10).double()))
        mean = float(by_image.mean())
        by_batch = sum(float(part.mean()) for part in by_image.split(4)) / 3
        assert abs(by_batch - mean) > 1e-3 * mean
        assert found[name] == pytest.approx(mean, rel=1e-5)
    assert trained.bound is not None
    if model == "vae":
        assert sum(trained.bound["kl_by_unit"]) == pytest.approx(mean, rel=1e-5)
    else:
        bound = found["kl_diffusion"] + found["reconstruction"]
        assert sum(trained.bound["nats"]) == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_two_evaluations_of_a_run_are_equal(tmp_path: Path, varied: list[str], model: str) -> None:
    frozen = [*varied, *MODELS[model], *FROZEN]
    trained = train(tmp_path, *frozen, "trainer.max_epochs=3")
    first, *others = evaluations(trained, "val")
    assert len(others) == 2
    for row in others:
        assert row == pytest.approx(first, rel=1e-6)
    # after another training
    again = train(tmp_path, *frozen, "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert evaluations(again, "val")[0] == pytest.approx(first, rel=1e-6)
    (tested,), (tested_again,) = (evaluations(one, "test") for one in (trained, again))
    assert tested == pytest.approx(tested_again, rel=1e-6)
    # the same weights under another seed
    other = train(tmp_path, *frozen, "seed=1", f"init_from={trained.path}")
    for split in ("val", "test"):
        ours, theirs = evaluations(trained, split)[0], evaluations(other, split)[0]
        assert ours[NOISY[model]] != pytest.approx(theirs[NOISY[model]], rel=1e-6)
        same = "kl" if model == "vae" else "kl_prior"
        assert ours[same] == pytest.approx(theirs[same], rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_draws_differ_between_splits_and_between_batches_of_equal_images(
    tmp_path: Path, equal: list[str], model: str
) -> None:
    frozen = [*equal, *MODELS[model], *FROZEN]
    trained = train(tmp_path, *frozen)
    (val,), (test,) = (evaluations(trained, split) for split in ("val", "test"))
    same = "kl" if model == "vae" else "kl_prior"
    assert val[same] == pytest.approx(test[same], rel=1e-6)
    assert val[NOISY[model]] != pytest.approx(test[NOISY[model]], rel=1e-6)
    # one batch of the same image instead of two
    half = train(tmp_path, *frozen, "data.val_images=4")
    (fewer,) = evaluations(half, "val")
    assert val[same] == pytest.approx(fewer[same], rel=1e-6)
    assert val[NOISY[model]] != pytest.approx(fewer[NOISY[model]], rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_the_batch_size_of_an_evaluation_changes_nothing(
    tmp_path: Path, varied: list[str], model: str
) -> None:
    frozen = [*varied, *MODELS[model], *FROZEN]
    whole, parts = (
        train(tmp_path / size, *frozen, f"data.eval_batch_size={size}") for size in ("10", "3")
    )
    # float32 products round differently in a batch of another shape, and nothing else does
    for split in ("val", "test"):
        assert evaluations(whole, split)[0] == pytest.approx(evaluations(parts, split)[0], rel=1e-5)


def test_per_image_free_bits_are_a_mean_over_images(tmp_path: Path, varied: list[str]) -> None:
    """mean over images of the sum of max(nats, KL_d), which no mean over a batch gives."""
    bits = ["model.free_bits.kind=per_image", "model.free_bits.nats=0.05"]
    trained = train(tmp_path, *varied, *MODELS["vae"], *bits)
    model, data = load_with_data(trained.path, "last")
    data.setup("test")
    x = to_unit_interval(torch.from_numpy(data.pixels("test").copy()))
    with torch.no_grad():
        by_latent = model.prior.kl_per_dim(model.encode(x)).double()
    (found,) = evaluations(trained, "test")
    penalty = float(by_latent.clamp(min=0.05).sum(1).mean())
    assert found["loss"] - found["reconstruction"] == pytest.approx(penalty, rel=1e-5)
    assert abs(float(by_latent.mean(0).clamp(min=0.05).sum()) - penalty) > 1e-3 * penalty
