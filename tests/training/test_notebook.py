"""A model works without Lightning and Hydra: in a plain loop, and from a run directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import genlab
from genlab.config.compose import compose
from genlab.runs.run import Run
from genlab.seeding import BatchNoise, fold_in
from genlab.tensors import to_unit_interval
from genlab.training import planning, run

SMALL = [
    *("data.train_images=320", "data.batch_size=32", "trainer.max_epochs=1", "seed=3"),
    *("trainer.limit_test_batches=1", "trainer.log_every_n_steps=1", "logger=none"),
    "callbacks=none",
]
MODELS = {
    "vae": ["model/kl_schedule=linear", "model.kl_schedule.steps=8"],
    "ddpm": [
        *("model=ddpm", "model.net.channels=8", "model.net.attention=[]", "model.steps=10"),
        *("model.sampler.steps=5", "model/lr_schedule=constant"),
    ],
}


@pytest.mark.parametrize("choice", MODELS)
@pytest.mark.slow
def test_a_plain_loop_takes_the_steps_of_train_py(tmp_path: Path, choice: str) -> None:
    cfg = compose([*SMALL, *MODELS[choice], f"runs_dir={tmp_path}"])
    outcome = run.run(cfg)
    assert outcome.path is not None
    rows = [row for row in Run(outcome.path).metrics() if "train/loss" in row]

    data, module = planning.assemble(planning.plan(cfg, []))
    model, losses = module.model, []
    optimizer = module.optimizer(model.parameters())
    for step, batch in enumerate(data.train_dataloader()):
        x = to_unit_interval(batch["image"])
        noise = BatchNoise(len(x), fold_in(3, 0, 0, step, "noise"))
        loss = model.loss(x, batch["label"], step, noise)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses == [row["train/loss"] for row in rows]
    trained = torch.load(outcome.path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[f"model.{name}"]), name


def test_a_trained_model_is_loaded_from_its_run_directory(tmp_path: Path) -> None:
    outcome = run.run(compose([*SMALL, f"runs_dir={tmp_path}"]))
    assert outcome.path is not None
    model = genlab.load(outcome.path)
    assert not model.training
    x = torch.rand(3, 1, 28, 28)
    assert model.encode(x).mean.shape == (3, 20)
    assert model.sample(16, seed=0).shape == (16, 1, 28, 28)
    bound = model.bound(x)
    nats = model.log_likelihood(x, samples=500)
    assert nats.shape == (3,)
    # many samples bound log p(x) better than one does on average
    assert float(nats.mean()) > -float((bound["reconstruction"] + bound["kl"]).mean()) - 5
