"""The search for a learning rate finds where the loss falls, and changes nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from trained_runs import logged, train_in

from genlab.callbacks.learning_rate import LearningRateSearch
from genlab.errors import ConfigError

QUICK = [
    *("logger=none", "forecast=false", "trainer=smoke", "data.batch_size=32"),
    *("trainer.limit_train_batches=30", "trainer.log_every_n_steps=1"),
]
MODELS = {
    "vae": ["model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"],
    "ddpm": [
        *("model=ddpm", "model.net.channels=8", "model.net.multipliers=[1]", "model.steps=20"),
        *("model.net.attention=[]", "model.sampler.steps=5", "model.test_draws=1"),
        *("model/time_sampler=importance", "model.time_sampler.bins=4"),
        *("model.time_sampler.history=2", "ema_decay=0.9", "data.eval_batch_size=20"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_search_names_a_rate_and_leaves_the_training_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    plain = train_in(tmp_path / "plain", *QUICK, *MODELS[model], "callbacks=none")
    capsys.readouterr()
    search = ["callbacks=lr_find", "callbacks.lr_find.steps=30"]
    searched = train_in(tmp_path / "searched", *QUICK, *MODELS[model], *search)
    printed = capsys.readouterr()
    said = re.search(r"lr_find  the loss falls fastest at (\S+), of 1e-06 to 0.1", printed.out)
    assert said is not None and 1e-6 < float(said[1]) < 0.1
    assert "Finding" not in printed.err
    ours, theirs = (
        torch.load(run.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
        for run in (searched, plain)
    )
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    rows = [
        {
            key: v
            for key, v in logged(run.metrics()).items()
            if not key[1].endswith(("per_second", "mfu"))
        }
        for run in (searched, plain)
    ]
    assert rows[0] == rows[1]
    assert not list(searched.path.glob(".lr_find*"))


def test_a_training_too_short_for_a_search_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["trainer.limit_train_batches=5", "callbacks=lr_find"]
    assert train_in(tmp_path, *QUICK, *MODELS["vae"], *few).is_completed
    assert "lr_find  nothing: the training has 5 steps" in capsys.readouterr().out


def test_a_rate_at_which_the_loss_is_not_finite_is_told(tmp_path: Path) -> None:
    absurd = ["callbacks=lr_find", "callbacks.lr_find.min_lr=1e25"]
    absurd += ["callbacks.lr_find.max_lr=1e30", "model/optimizer=sgd"]
    with pytest.raises(ConfigError, match=r"callbacks.lr_find.max_lr=1e\+30"):
        train_in(tmp_path, *QUICK, *MODELS["vae"], *absurd)


@pytest.mark.parametrize("wrong", [{"min_lr": 0.0}, {"max_lr": 1e-7}, {"steps": 19}])
def test_a_value_outside_its_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LearningRateSearch(**wrong)  # type: ignore[arg-type]
