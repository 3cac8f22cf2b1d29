"""The first lines of a run say what is not the default in it, and where it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from genlab import cli
from genlab.config.compose import compose
from genlab.runs.run import find_runs
from genlab.training.changes import changes
from genlab.training.run_config import RunConfig


def changed(*overrides: str) -> list[str]:
    cfg = compose(overrides, with_hydra=True)
    chosen = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    choices = {str(k): str(v) for k, v in chosen.items() if v and not str(k).startswith("hydra/")}
    with open_dict(cfg):
        del cfg["hydra"]
    return changes(dataclasses.asdict(RunConfig.of(cfg)), choices, overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["runs_dir=elsewhere", "group=mine", "launcher=process"], []),
        (["model.kl_weight=4", "trainer=smoke"], ["trainer=smoke", "model.kl_weight=4.0"]),
        (["model=vae", "model/likelihood=bernoulli"], []),
        (["model=ddpm", "model/net=unet_small"], ["model=ddpm", "model/net=unet_small"]),
        (["model/likelihood=gaussian"], ["model/likelihood=gaussian"]),
        (["logger=[csv,tensorboard]"], ["logger=[csv,tensorboard]"]),
        (["~metrics", "+metrics={}"], ["~metrics", "+metrics={}"]),
        (["tags=[a,b]", "notes='a, b'"], ['tags=["a", "b"]', "notes=a, b"]),
        (
            [
                *("model=ddpm", "model/parameterization=v"),
                *("model/noise_schedule=zero_terminal_snr",),
                "model/noise_schedule@model.noise_schedule.schedule=cosine",
            ],
            [
                *("model=ddpm", "model/parameterization=v"),
                *("model/noise_schedule=zero_terminal_snr",),
                "model/noise_schedule@model.noise_schedule.schedule=cosine",
            ],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_differs_from_the_defaults_is_named_once(
    overrides: list[str], expected: list[str]
) -> None:
    assert sorted(changed(*overrides)) == sorted(expected)


def test_an_experiment_is_shown_with_its_values_as_they_are_now() -> None:
    told = changed("experiment=vae/kl_weight", "trainer.max_epochs=2")
    assert told[:1] == ["experiment=vae/kl_weight"]
    assert "trainer.max_epochs=2" in told
    plain = [text for text in told if text.startswith("trainer.max_epochs=")]
    assert len(plain) == 1


@pytest.mark.slow
def test_a_run_begins_with_few_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ["model.kl_weight=4", "trainer=smoke", "logger=none", "callbacks=none"]
    code = cli.main(["train", *asked, "experiment=vae/kl_weight", f"runs_dir={tmp_path}"])
    assert code == 0
    lines = capfd.readouterr().out.splitlines()
    before = lines[: next(i for i, line in enumerate(lines) if line.startswith("epoch"))]
    assert len(before) < 12
    (trained,) = find_runs(tmp_path)
    assert before[0] == f"run    {trained.path}"
    said = [line for line in before if line.startswith(("set ", "       "))]
    assert all(len(line) <= 80 for line in said)
    assert "model.kl_weight=4.0" in " ".join(said)
    # the whole config is in the run's directory, and in its log
    assert "resolved config" in trained.log_path.read_text(encoding="utf-8")
