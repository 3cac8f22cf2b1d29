"""A continued run equals, bit for bit, a run that was that long from the start."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import without_times
from trained_runs import train_in

from genlab.errors import ConfigError, RunDirectoryError
from genlab.runs.run import Run

SMALL = [
    *("data.batch_size=32", "data.eval_batch_size=100", "data.train_images=320"),
    *("trainer.limit_val_batches=2", "trainer.limit_test_batches=1", "trainer.log_every_n_steps=1"),
    *("model/optimizer=adamw", "callbacks=none", "logger=none", "forecast=false"),
]
MODELS = {
    "vae": [
        *("model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]", "ema_decay=0.9"),
        *("model/likelihood=gaussian_calibrated", "model/lr_schedule=constant"),
        *("model.lr_schedule.warmup_steps=15", "early_stopping_epochs=9"),
    ],
    "vae without averages, by another optimizer": [
        *("model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]"),
        *("model/optimizer=muon", "model/kl_schedule=linear", "model.kl_schedule.steps=30"),
    ],
    "ddpm": [
        *("model=ddpm", "model.steps=20", "model.sampler.steps=5", "model.net.channels=8"),
        *("model.net.multipliers=[1,1]", "model.net.attention=[]", "model.conditional=true"),
        *("model/time_sampler=importance", "model.time_sampler.bins=10", "ema_decay=0.9"),
        *("model.time_sampler.history=4", "model/reverse_variance=optimal"),
    ],
}
#: The optimizer's steps are those of data.train_images, in each epoch.
PER_EPOCH = 10


def train(folder: Path, model: str, epochs: int, *overrides: str) -> Run:
    settings = [*SMALL, *MODELS[model], f"trainer.max_epochs={epochs}", *overrides]
    return train_in(folder, *settings)


def checkpoint(run: Run, name: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run.checkpoints / f"{name}.ckpt", weights_only=True)
    return content


def assert_equal(ours: Any, theirs: Any, place: str = "") -> None:
    assert type(ours) is type(theirs), place
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), place
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(a, b, f"{place}[{i}]")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    else:
        assert ours == theirs, place


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_continued_run_equals_one_that_was_that_long_from_the_start(
    tmp_path: Path, model: str
) -> None:
    whole = train(tmp_path / "whole", model, 4)
    part = train(tmp_path / "part", model, 2)
    run = train(tmp_path / "continued", model, 4, f"continue_from={part.path}")
    for name in ("best", "last"):
        ours, theirs = checkpoint(run, name), checkpoint(whole, name)
        for entry in ("state_dict", "raw_weights", "ema_updates", "optimizer_states"):
            assert_equal(ours.get(entry), theirs.get(entry), f"{name}.{entry}")
        assert ours["global_step"] == theirs["global_step"]
    assert checkpoint(run, "last")["lr_schedulers"] == checkpoint(whole, "last")["lr_schedulers"]
    assert run.result is not None and whole.result is not None
    assert without_times(run.result) == without_times(whole.result)
    assert run.bound == whole.bound
    assert [without_times(row) for row in run.metrics()] == [
        without_times(row) for row in whole.metrics()
    ]
    assert part.result is not None and part.result["epochs"] == 2  # which is as it was


def rates(run: Run) -> dict[int, float]:
    name = "train/learning_rate"
    return {row["step"]: row[name] for row in run.metrics() if name in row}


def test_the_learning_rate_is_as_configured_anew(tmp_path: Path) -> None:
    """A cosine that had come to 0 goes on as if it had been as long as this one all the time."""
    cosine = ["model/lr_schedule=warmup_cosine", "model.lr_schedule.warmup_steps=5"]
    part = train(tmp_path, "vae", 1, *cosine, "model.optimizer.lr=1e-3")
    whole = train(tmp_path, "vae", 3, *cosine, "model.optimizer.lr=2e-3")
    start = [f"continue_from={part.path}", "model.optimizer.lr=2e-3"]
    found, expected = rates(train(tmp_path, "vae", 3, *cosine, *start)), rates(whole)
    for step in range(PER_EPOCH + 1, 3 * PER_EPOCH + 1):
        assert found[step] == expected[step]
    # the rows before are those of the run that it goes on with
    assert [found[step] for step in range(1, PER_EPOCH + 1)] == list(rates(part).values())


def test_a_continued_run_resumes_from_its_own_checkpoint(tmp_path: Path) -> None:
    part = train(tmp_path / "part", "vae", 1)
    start = f"continue_from={part.path}"
    run = train(tmp_path, "vae", 2, start)
    (run.path / "result.json").unlink()
    for file in part.checkpoints.iterdir():
        file.unlink()
    again = train(tmp_path, "vae", 2, start)
    assert again.path == run.path and again.is_completed


@pytest.mark.parametrize("key", ["continue_from", "init_from"])
def test_the_name_and_the_identity_of_a_run_hold_no_path(tmp_path: Path, key: str) -> None:
    part = train(tmp_path / "part", "vae", 1)
    moved = tmp_path / "elsewhere" / part.name
    moved.parent.mkdir()
    shutil.copytree(part.path, moved)
    one, other = (
        train(tmp_path / name, "vae", 2, f"{key}={path}")
        for name, path in (("a", part.path), ("b", moved))
    )
    assert one.name == other.name
    another = train(tmp_path / "part", "vae", 1, "seed=1")
    third = train(tmp_path / "a", "vae", 2, f"{key}={another.path}")
    assert third.name[-8:] != one.name[-8:]


def test_the_words_of_a_name_say_which_run_it_goes_on_with(tmp_path: Path) -> None:
    from genlab.config.compose import compose
    from genlab.training.planning import plan

    run = tmp_path / "vae-kl_weight_1-0123abcd"
    (run / "checkpoints").mkdir(parents=True)
    for key in ("continue_from", "init_from"):
        name = plan(compose([f"{key}={run}"]), [f"{key}={run}"]).path.name
        assert f"{key}_0123abcd" in name and tmp_path.name not in name
    best = f"init_from={run}/checkpoints/best.ckpt"
    assert "init_from_0123abcd_best" in plan(compose([best]), [best]).path.name


@pytest.mark.parametrize(
    ("epochs", "overrides", "words"),
    [
        (1, [], ["it has 1 epochs, 10 steps", "trainer.max_epochs"]),
        (3, ["data.batch_size=16"], ["10 batches in 1 epochs", "20 an epoch", "data.batch_size"]),
        (3, ["ema_decay=null"], ["averaged its weights", "ema_decay"]),
        (3, ["model.latent_dim=3"], ["another architecture"]),
        (3, ["init_from=x"], ["give one of them"]),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_sentence(
    tmp_path: Path, epochs: int, overrides: list[str], words: list[str]
) -> None:
    part = train(tmp_path / "part", "vae", 1)
    with pytest.raises(ConfigError) as refused:
        # tags are no part of the identity
        train(tmp_path, "vae", epochs, f"continue_from={part.path}", *overrides)
    message = str(refused.value)
    assert message.startswith(f"continue_from={part.path}") and "\n" not in message
    assert all(word in message for word in words), message
    assert part.is_completed


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        train(tmp_path, "vae", 2, f"continue_from={tmp_path}/none")
    with pytest.raises(RunDirectoryError, match="there is no such checkpoint"):
        train(tmp_path, "vae", 2, f"continue_from={tmp_path}")
