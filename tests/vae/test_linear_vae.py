"""A linear VAE trained by genlab reaches the optimum that is known in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trained_runs import load_with_data

from genlab.config.build import build
from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.training import run
from genlab.vae.forecast import water_filling
from genlab.vae.posterior import DiagonalGaussian
from genlab.vae.spectrum import spectrum

EIGENVALUES = [6.0, 3.0, 2.0, 1.2, 0.7, 0.4, 0.2, 0.05]
LATENTS = 5


def trained(tmp_path: Path, kl_weight: float, scale: float) -> tuple[float, float, int, float]:
    """Rate, E SSE and active units on the training images, and the forecast's theta."""
    cfg = compose(
        [
            "data=gaussian",
            f"data.source.eigenvalues={EIGENVALUES}",
            "data.source.shape=[1,2,4]",
            "data.source.train_images=6000",
            "data.source.test_images=100",
            "data.val_images=100",
            "data.batch_size=590",
            "model/net=linear",
            "model/likelihood=gaussian",
            f"model.likelihood.scale={scale}",
            f"model.latent_dim={LATENTS}",
            f"model.kl_weight={kl_weight}",
            "model/optimizer=adamw",
            "model/lr_schedule=warmup_cosine",
            "model.optimizer.lr=0.02",
            "model.optimizer.weight_decay=0",
            "trainer.max_epochs=200",
            "trainer.check_val_every_n_epoch=50",
            "evaluate=last",
            "callbacks=none",
            "logger=none",
            "forecast=false",
            f"runs_dir={tmp_path}",
        ]
    )
    outcome = run.run(cfg)
    assert outcome.path is not None
    model, data = load_with_data(outcome.path, "last")
    data.prepare_data()
    data.setup("fit")
    x = torch.from_numpy(data.pixels("train"))
    torch.manual_seed(0)
    with torch.no_grad():
        q: DiagonalGaussian = model.encode(x)  # type: ignore[operator]
        rate = float(model.prior.kl_per_dim(q).sum(1).mean())  # type: ignore[operator, union-attr]
        sse = sum(
            float((model.decode(q.rsample()).mean - x).square().flatten(1).sum(1).mean())  # type: ignore[operator]
            for _ in range(40)
        )
    active = int((q.loc.double().var(0) > 0.01).sum())
    return rate, sse / 40, active, kl_weight * scale**2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kl_weight", "scale"),
    [(0.1, 1.0), (1.0, 1.0), (1.0, 1.5), (4.0, 1.0), (30.0, 1.0)],
    ids=["below", "among", "among-by-scale", "near-the-top", "above"],
)
def test_it_reaches_the_water_filling_optimum(
    tmp_path: Path, kl_weight: float, scale: float
) -> None:
    rate, sse, active, theta = trained(tmp_path, kl_weight, scale)
    source = build(
        resolve(
            compose(
                [
                    "data=gaussian",
                    f"data.source.eigenvalues={EIGENVALUES}",
                    "data.source.shape=[1,2,4]",
                    "data.source.train_images=6000",
                    "data.val_images=100",
                ]
            )
        )["data"]
    )
    source.prepare_data()
    source.setup("fit")
    optimum = water_filling(spectrum(source.pixels("train"), None).eigenvalues, theta, LATENTS)
    assert active == optimum.active_units
    assert sse == pytest.approx(optimum.distortion, rel=0.01)
    assert rate == pytest.approx(optimum.rate, rel=0.01, abs=1e-3)
