"""Check the computations and records of a run, in process and on a tiny budget."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from trained_runs import load_with_data, train_in

from genlab.errors import TrainingError
from genlab.runs.run import Run, find_runs
from genlab.seeding import BatchNoise
from genlab.tensors import to_unit_interval
from genlab.vae.model import VAE

TINY = [
    "data.train_images=512",
    "data.batch_size=64",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "logger=none",
    "callbacks=none",
]


def train(tmp_path: Path, *overrides: str) -> Run:
    return train_in(tmp_path, *TINY, *overrides)


def result(of: Run) -> dict[str, Any]:
    found = of.result
    assert found is not None
    metrics: dict[str, Any] = found["metrics"]
    return metrics


def test_the_result_is_that_of_the_best_checkpoint_on_the_test_set(tmp_path: Path) -> None:
    trained = train(tmp_path)
    metrics = result(trained)
    module, data = load_with_data(trained.path)
    assert isinstance(module, VAE)
    data.setup("test")
    x = to_unit_interval(torch.from_numpy(data.pixels("test").copy()))
    with torch.no_grad():
        kl = float(module.prior.kl_per_dim(module.encode(x)).sum(1).double().mean())  # type: ignore[union-attr]
        torch.manual_seed(5)
        reconstruction = float(module.bound(x)["reconstruction"].double().mean())
    assert metrics["test/kl"] == pytest.approx(kl, rel=1e-5)
    assert metrics["test/reconstruction"] == pytest.approx(reconstruction, rel=1e-2)
    assert metrics["test/neg_elbo"] == pytest.approx(
        metrics["test/reconstruction"] + metrics["test/kl"]
    )
    assert metrics["test/bits_per_dim"] == pytest.approx(
        metrics["test/neg_elbo"] / (784 * math.log(2))
    )


def test_the_kl_of_each_unit_is_that_of_the_whole_test_set(tmp_path: Path) -> None:
    trained = train(tmp_path, "model/likelihood=gaussian", "model.kl_weight=0.5")
    module, data = load_with_data(trained.path)
    assert isinstance(module, VAE) and trained.bound is not None
    data.setup("test")
    x = to_unit_interval(torch.from_numpy(data.pixels("test").copy()))
    with torch.no_grad():
        q = module.encode(x)
    unit = Normal(torch.zeros(()), torch.ones(()))
    expected = kl_divergence(Normal(q.loc, q.scale), unit).double().mean(0)
    assert trained.bound["kl_by_unit"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    metrics = result(trained)
    assert sum(trained.bound["kl_by_unit"]) == pytest.approx(metrics["test/kl"], rel=1e-6)
    rates = trained.bound["forecast_kl_by_unit"]
    assert len(rates) == module.latent_dim and rates == sorted(rates, reverse=True)
    assert sum(rates) == pytest.approx(metrics["forecast/rate"])
    assert sum(rate > 0 for rate in rates) == metrics["forecast/active_units"]


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["model/prior=vamp", "model.prior.components=10"], None),
        (["model/likelihood=bernoulli", "model.latent_dim=3"], {"kl_by_unit"}),
        (["model/likelihood=gaussian", "model.kl_weight=0"], {"kl_by_unit"}),
    ],
    ids=["no parts by unit", "no exact forecast", "no finite forecast"],
)
def test_what_is_not_known_of_each_unit_is_left_out(
    tmp_path: Path, overrides: list[str], kept: set[str] | None
) -> None:
    bound = train(tmp_path, "trainer.max_epochs=1", *overrides).bound
    assert (None if bound is None else set(bound)) == kept


def test_validation_is_judged_at_the_weight_that_the_schedule_ends_at(tmp_path: Path) -> None:
    trained = train(
        tmp_path, "model.kl_weight=3", "model/kl_schedule=linear", "model.kl_schedule.steps=1000"
    )
    rows = trained.metrics()
    first = next(row for row in rows if "train/loss" in row)
    assert first["train/kl_weight"] == 0
    assert first["train/loss"] == pytest.approx(first["train/reconstruction"], rel=1e-6)
    for row in rows:
        if "val/loss" in row:
            assert row["val/loss"] == pytest.approx(
                row["val/reconstruction"] + 3 * row["val/kl"], rel=1e-6
            )


def test_a_convention_is_the_same_training_as_its_canonical_weight(tmp_path: Path) -> None:
    gaussian = ["model/likelihood=gaussian", "model.likelihood.scale=0.5"]
    quoted = train(
        tmp_path,
        *gaussian,
        "model.kl_convention={error: squared, reconstruction: sum, kl: mean}",
        "model.kl_weight=3",
    )
    beta = 3 * (1 / 20) / (2 * 0.5**2)
    canonical = train(tmp_path, *gaussian, f"model.kl_weight={beta}")
    ours, theirs = result(quoted), result(canonical)
    assert ours["test/kl_weight"] == 3
    assert ours["test/beta_effective"] == pytest.approx(beta)
    assert ours["test/theta"] == pytest.approx(beta * 0.25)
    assert ours["test/reconstruction"] == pytest.approx(theirs["test/reconstruction"], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_with_its_step_term_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: .*(kl|reconstruction).* is not finite"):
        train(tmp_path, "model.optimizer.lr=1e30")
    (failed,) = find_runs(tmp_path)
    assert failed.state == "failed"
    assert failed.status["type"] == "TrainingError"
    assert "lr" in failed.status["message"]
    assert "checkpoint" in failed.status["message"]


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    trained = train(
        tmp_path, "early_stopping_epochs=1", "trainer.max_epochs=50", "model.optimizer.lr=0.1"
    )
    assert trained.result is not None
    assert trained.result["epochs"] < 50


def test_the_best_checkpoint_is_that_of_the_lowest_loss_with_free_bits_and_capacity(
    tmp_path: Path,
) -> None:
    """The bound itself is best in another validation where these terms keep the KL up."""
    chosen = {
        "model.free_bits.kind=total model.free_bits.nats=1000 model.optimizer.lr=0.03": (
            lambda row: row["val/reconstruction"] + max(1000, row["val/kl"])
        ),
        "model/kl_schedule=capacity model.kl_schedule.nats=200 model.kl_schedule.steps=0 "
        "model.kl_weight=10 model.optimizer.lr=0.01": (
            lambda row: row["val/reconstruction"] + 10 * abs(row["val/kl"] - 200)
        ),
    }
    small = ["trainer.max_epochs=6", "model.net.encoder.hidden=[64]"]
    for choice, loss in chosen.items():
        trained = train(tmp_path, *small, *choice.split())
        rows = [row for row in trained.metrics() if "val/loss" in row]
        assert [row["val/loss"] for row in rows] == pytest.approx([loss(row) for row in rows])
        lowest = min(rows, key=loss)
        best = torch.load(trained.checkpoints / "best.ckpt", weights_only=True)
        assert best["global_step"] == lowest["step"]
        assert lowest["step"] != min(rows, key=lambda row: row["val/neg_elbo"])["step"]


#: Five batches an epoch, two of them a step: three steps an epoch, the last of them of one batch.
ACCUMULATED = ["data.train_images=320", "trainer.accumulate_grad_batches=2"]


def test_with_accumulated_gradients_each_step_has_its_learning_rate_and_the_last_is_counted(
    tmp_path: Path,
) -> None:
    recipe = ["model/lr_schedule=warmup_cosine", "model.lr_schedule.warmup_steps=2"]
    trained = train(tmp_path, *ACCUMULATED, *recipe, "model.optimizer.lr=0.01")
    rates = {r["step"]: r["train/learning_rate"] for r in trained.metrics() if "train/loss" in r}
    # a row of step n is about the n-th, which follows n - 1; the cosine would be 0 after the last
    cosine = {n: 0.5 * (1 + math.cos(math.pi * max(0, n - 1 - 2) / (6 - 2))) for n in range(1, 7)}
    assert rates == pytest.approx({n: 0.01 * min(1, n / 2) * cosine[n] for n in range(1, 7)})
    assert trained.result is not None and trained.result["steps"] == 6


def test_a_step_of_accumulated_gradients_is_taken_at_the_learning_rate_of_its_place(
    tmp_path: Path,
) -> None:
    once = ["data.train_images=128", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=1"]
    warm = ["model.lr_schedule.warmup_steps=10", "model.optimizer.lr=0.01"]
    weights = [
        torch.load(of.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
        for of in (train(tmp_path, *once, *warm), train(tmp_path, *once, "model.optimizer.lr=1e-3"))
    ]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, msg=name)


def test_batches_whose_gradients_are_accumulated_have_noise_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[bytes] = []
    normal = BatchNoise.normal

    def record(noise: BatchNoise, *shape: int) -> torch.Tensor:
        made = normal(noise, *shape)
        if made.device.type == "cpu":
            drawn.append(made.numpy().tobytes())
        return made

    monkeypatch.setattr(BatchNoise, "normal", record)
    train(tmp_path, *ACCUMULATED, "forecast=false")
    # z of each batch of both epochs
    assert len(drawn) == len(set(drawn)) == 2 * 5


def test_importance_samples_tighten_the_bound(tmp_path: Path) -> None:
    trained = train(
        tmp_path, "model.iwae_samples=30", "model.iwae_chunk=7", "data.binarisation=static"
    )
    metrics = result(trained)
    assert metrics["test/nll_iwae_30"] < metrics["test/neg_elbo"]


@pytest.mark.parametrize(
    "choice",
    [
        "model/prior=vamp model.prior.components=10",
        "model/likelihood=gaussian_calibrated",
        "model/likelihood=discretized_logistic_mixture",
        "model/net=conv model.net.encoder.channels=[8,8] model.net.decoder.channels=[8,8]",
        "trainer.precision=bf16-mixed trainer.gradient_clip_val=1.0",
        "model/kl_schedule=capacity model.kl_schedule.nats=5 model.kl_schedule.steps=10",
        "model.free_bits.kind=per_dimension model.free_bits.nats=0.1",
        "trainer.accumulate_grad_batches=2 trainer.gradient_clip_val=1.0 channels_last=true",
    ],
)
def test_every_part_trains_and_is_rebuilt_from_its_directory(tmp_path: Path, choice: str) -> None:
    trained = train(tmp_path, "trainer.max_epochs=1", *choice.split())
    metrics = result(trained)
    assert all(value is not None and math.isfinite(value) for value in metrics.values())
    module, _ = load_with_data(trained.path)
    assert isinstance(module, VAE)
    images = module.sample(3, seed=1)
    assert images.shape == (3, 1, 28, 28)
    torch.testing.assert_close(module.sample(5, seed=1)[:3], images)


def test_capacity_holds_the_rate_where_it_is_told_to(tmp_path: Path) -> None:
    trained = train(
        tmp_path,
        "model/kl_schedule=capacity",
        "model.kl_schedule.nats=6",
        "model.kl_schedule.steps=50",
        "model.kl_weight=100",
        "trainer.max_epochs=25",
        "trainer.check_val_every_n_epoch=25",
    )
    rows = [row["train/kl"] for row in trained.metrics() if "train/kl" in row]
    assert sum(rows[-40:]) / 40 == pytest.approx(6, abs=0.5)


def test_checkpoints_hold_tensors_and_plain_containers(tmp_path: Path) -> None:
    trained = train(tmp_path, "ema_decay=0.9")
    for path in trained.checkpoints.iterdir():
        content = torch.load(path, weights_only=True)
        assert "hyper_parameters" not in content
    assert json.loads(trained.env_path.read_text())["versions"]["torch"]


def test_without_an_epoch_the_weights_of_another_run_are_tested_as_they_are(tmp_path: Path) -> None:
    """No step, no validation, and the same numbers as that run's own test."""
    first = train(tmp_path, "trainer.max_epochs=1", "evaluate=last", "ema_decay=0.9")
    start = f"init_from={first.checkpoints / 'last.ckpt'}"
    again = train(tmp_path, "trainer.max_epochs=0", "evaluate=last", "ema_decay=0.9", start)
    assert first.result is not None and again.result is not None
    assert again.result["metrics"] == first.result["metrics"]
    assert (again.result["steps"], again.result["epochs"]) == (0, 0)
    ours, theirs = (
        torch.load(run.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
        for run in (again, first)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("lr", "is_diverged"), [(100, True), (1e-3, False)])
def test_a_run_that_diverged_says_so(tmp_path: Path, lr: float, is_diverged: bool) -> None:
    settings = ["model/likelihood=gaussian", f"model.optimizer.lr={lr}", "evaluate=last"]
    trained = train(tmp_path, *settings)
    assert trained.result is not None
    assert (trained.result["verdict"] == "diverged") is is_diverged
    assert ("active" in trained.result["verdict"]) is not is_diverged
