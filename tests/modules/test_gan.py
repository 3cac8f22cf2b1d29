"""A GAN in training: its steps, its record, its pictures, and what is said when it fails."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trained_runs import train_in

from genlab import cli
from genlab.errors import REFUSED, ConfigError, TrainingError
from genlab.modules.gan import GANModule
from genlab.runs.run import Run
from genlab.training.load import load

TINY = [
    *("model=gan", "trainer=smoke", "logger=none", "callbacks=none", "data.batch_size=16"),
    *("data.eval_batch_size=20", "trainer.log_every_n_steps=1"),
    *("model.net.generator.channels=[8]", "model.net.discriminator.channels=[8]"),
]


def train(folder: Path, *overrides: str) -> Run:
    return train_in(folder, *TINY, *overrides)


def rows(run: Run, split: str) -> list[dict[str, Any]]:
    return [row for row in run.metrics() if any(name.startswith(f"{split}/") for name in row)]


def state(run: Run) -> dict[str, Tensor]:
    return torch.load(run.checkpoints / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    pictures = ["callbacks=default", "callbacks.video_prior_walk.seconds=1"]
    return train(tmp_path_factory.mktemp("gan"), "model.conditional=true", *pictures)


def test_a_batch_is_a_step_and_all_is_logged(trained: Run) -> None:
    assert trained.result is not None and trained.result["steps"] == 4
    training = rows(trained, "train")
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    losses = ("generator_loss", "discriminator_loss", "real_score", "fake_score", "r1", "r2")
    for row in training:
        assert {f"train/{name}" for name in (*losses, "learning_rate")} <= row.keys()
        assert "train/loss" not in row and row["train/images_per_second"] > 0
    measured = {"energy_score", "discriminator_accuracy", "diversity", "real_score", "fake_score"}
    assert {f"test/{name}" for name in measured} == trained.result["metrics"].keys()
    assert trained.result["verdict"] == "mode collapse"  # after four steps all samples are alike


def test_samples_and_a_walk_are_drawn_without_a_word_of_gans(trained: Run) -> None:
    assert [path.name for path in trained.pictures.glob("*-final.png")] == ["samples-final.png"]
    assert list((trained.path / "videos").glob("prior_walk-final.*"))


def test_the_steps_of_a_training_are_batches_whatever_each_network_takes(tmp_path: Path) -> None:
    ratio = ["model.module.discriminator_steps=2", "model.module.discriminator_lr_ratio=3"]
    end = ["trainer.max_epochs=9", "trainer.max_steps=5", "model.optimizer.lr=0.002"]
    run = train(tmp_path, *ratio, *end, "model.penalty.every=2")
    training = rows(run, "train")
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5]
    assert all({"train/generator_loss", "train/r1"} <= row.keys() for row in training)
    content: Any = state(run)
    assert content["global_step"] == 5
    generator, discriminator = content["optimizer_states"]
    assert {int(s["step"]) for s in generator["state"].values()} == {2}
    assert {int(s["step"]) for s in discriminator["state"].values()} == {5}
    assert generator["param_groups"][0]["lr"] == pytest.approx(0.002)
    assert discriminator["param_groups"][0]["lr"] == pytest.approx(0.006)


def test_learning_rate_schedules_of_both_networks_end_with_the_training(tmp_path: Path) -> None:
    run = train(tmp_path, "model/lr_schedule=warmup_cosine", "model.lr_schedule.warmup_steps=0")
    content: Any = state(run)
    assert [schedule["last_epoch"] for schedule in content["lr_schedulers"]] == [4, 4]
    rates = [optimizer["param_groups"][0]["lr"] for optimizer in content["optimizer_states"]]
    assert rates == pytest.approx([0, 0], abs=1e-12)


def test_averaged_weights_are_those_that_are_evaluated(tmp_path: Path) -> None:
    run = train(tmp_path, "ema_decay=0.9", "evaluate=last")
    content: Any = state(run)
    average, raw = content["state_dict"], content["raw_weights"]
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    assert {name.split(".")[1] for name in raw} == {"generator", "discriminator"}
    loaded = load(run.path, "last")
    name = "generator.layers.0.weight"
    assert torch.equal(loaded.state_dict()[name], average[f"model.{name}"])


def test_training_in_bf16_uses_the_weights_of_the_last_step(tmp_path: Path) -> None:
    """Autocast would go on with its copies; a large step shows which weights were used."""
    chosen = ["trainer.precision=bf16-mixed", "model.optimizer.lr=0.02"]
    run = train(tmp_path / "kept", *chosen)
    torch.set_autocast_cache_enabled(False)
    try:
        reference = train(tmp_path / "not", *chosen)
    finally:
        torch.set_autocast_cache_enabled(True)
    for ours, theirs in zip(rows(run, "train"), rows(reference, "train"), strict=True):
        for name in ("train/generator_loss", "train/discriminator_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=0.03)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.module.discriminator_steps=0", r"^model\.module\.discriminator_steps=0: "),
        ("model.module.discriminator_lr_ratio=0", r"^model\.module\.discriminator_lr_ratio=0\.0: "),
        ("model.penalty.r1=-1", r"^model\.penalty\.r1=-1\.0: give a finite number, at least 0"),
        ("model.latent_dim=0", r"^model\.latent_dim=0: "),
        ("trainer.gradient_clip_val=1", r"^trainer\.gradient_clip_val=1: GANModule steps its"),
        ("trainer.accumulate_grad_batches=2", r"^trainer\.accumulate_grad_batches=2: GANModule "),
    ],
)
def test_a_value_that_is_none_is_refused_before_any_work(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, override)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_the_training_and_is_named(tmp_path: Path) -> None:
    message = r"is not finite \(.*\): lower model\.optimizer\.lr=1e\+30, or raise the weight of"
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, "model.optimizer.lr=1e30", "trainer.limit_train_batches=8")


COLLAPSED = ["model.net.generator._target_=planted.Collapsed"]
SATURATED = [
    *("model.latent_dim=49", "model.net.generator._target_=planted.Blocks"),
    "model.net.discriminator._target_=planted.Certain",
]


@pytest.mark.parametrize(
    ("fault", "verdict"), [(COLLAPSED, "mode collapse"), (SATURATED, "saturated discriminator")]
)
def test_a_planted_instability_is_detected_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: list[str], verdict: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="genlab"):
        run = train(tmp_path, "trainer.max_epochs=3", *fault)
    assert run.result is not None and run.result["verdict"] == verdict
    told = [r.getMessage() for r in caplog.records if r.name == GANModule.__module__]
    assert len(told) == 1 and told[0].startswith(f"step 4: {verdict} (")


MEASURED = [
    *("callbacks=quality", "callbacks.quality.features.steps=60", "callbacks.quality.samples=200"),
    *("callbacks.quality.samples_in_training=200", "callbacks.quality.every_n_epochs=1"),
    *("data.eval_batch_size=200", "trainer.limit_test_batches=2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generator", "conditional", "verdict"),
    [
        ("OneClass", False, "mode collapse"),
        ("OneClass", True, "mode collapse"),
        ("OnePerClass", True, "mode collapse"),
        ("AllClasses", False, ""),
        ("AnyOfClass", True, ""),
    ],
)
def test_missing_classes_and_an_ignored_noise_are_a_collapse(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    generator: str,
    conditional: bool,
    verdict: str,
) -> None:
    """Real images of one digit vary enough for the diversity, and so do ten different ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    planted = [f"model.net.generator._target_=planted.{generator}"]
    with caplog.at_level(logging.WARNING, logger="genlab"):
        run = train(tmp_path, *MEASURED, *planted, f"model.conditional={conditional}")
    assert run.result is not None and run.result["verdict"] == verdict
    told = [r.getMessage() for r in caplog.records if r.name == GANModule.__module__]
    assert len(told) == bool(verdict)
    assert all(f": {verdict} (" in line and "class_distance_" in line for line in told)
    metrics = run.result["metrics"]
    (distance,) = (v for name, v in metrics.items() if "class_distance" in name)
    one_class, ignored = generator == "OneClass", generator == "OnePerClass"
    assert distance > 0.7 if one_class else distance < 0.25
    assert metrics["test/diversity"] < 0.01 if ignored else metrics["test/diversity"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "RUN", "--sampler", "ddim"], "--sampler: RUN is a GAN, which has no such"),
        (["sample", "RUN", "--guidance", "2"], "--guidance: RUN is a GAN, which has no such"),
        (["sample", "RUN", "--trajectory"], "--trajectory: RUN is a GAN, which has no such"),
        (["sample", "RUN", "--class", "ten"], "--class ten: there is no such class"),
        (["forecast", "model=gan"], "model=gan: a GAN has no KL weight; give model=vae"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_command_for_other_families_refuses_it_in_one_sentence(
    trained: Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(trained.path)
    assert cli.main([word.replace("RUN", path) for word in arguments]) == REFUSED
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {message.replace('RUN', path)}")
