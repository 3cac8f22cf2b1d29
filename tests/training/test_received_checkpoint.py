"""A checkpoint from a stranger is checked; what it may not say is refused in one sentence."""

from __future__ import annotations

import io
import math
import os
import pickle
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import assert_same, send, within_step
from torch import Tensor, nn

import genlab
from genlab.config.compose import compose
from genlab.diffusion.variances import Optimal
from genlab.errors import REFUSED, ConfigError, GenlabError, RunDirectoryError
from genlab.runs.run import Run, find_runs
from genlab.training import run, weights
from genlab.training.signals import Stopped

#: The third of its five validations is the best.
OPTIONS = [
    *("callbacks=none", "logger=none", "forecast=false", "trainer=cpu", "trainer.max_epochs=5"),
    *("data=gaussian", "data.source.train_images=300", "data.source.test_images=50"),
    *("data.val_images=50", "data.batch_size=50", "trainer.log_every_n_steps=1"),
    *("model/likelihood=gaussian", "model/net=linear", "model.latent_dim=2"),
    *("model.optimizer.lr=0.5", "ema_decay=0.9", "early_stopping_epochs=4"),
]
STEPS_PER_EPOCH = 5
OWN = [
    "+callbacks.own._target_=lightning.pytorch.callbacks.ModelCheckpoint",
    "+callbacks.own.monitor=val/loss",
]
Change = Callable[[dict[str, Any]], object]


def train(runs_dir: Path, *overrides: str, options: list[str] = OPTIONS) -> Run:
    run.run(compose([*options, f"runs_dir={runs_dir}", *overrides]))
    (found,) = find_runs(runs_dir)
    return found


def stopped_in_epoch_4(runs_dir: Path, *overrides: str, options: list[str] = OPTIONS) -> Run:
    stop = within_step(3 * STEPS_PER_EPOCH + 2, lambda: send(signal.SIGTERM))
    with stop, pytest.raises(Stopped):
        train(runs_dir, *overrides, options=options)
    (found,) = find_runs(runs_dir)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return stopped_in_epoch_4(tmp_path_factory.mktemp("stopped"))


@pytest.fixture
def received(stopped: Run, tmp_path: Path) -> Path:
    """The last checkpoint of a stopped run that was moved below `tmp_path / "runs"`."""
    path = tmp_path / "runs" / stopped.path.parent.name / stopped.name
    shutil.copytree(stopped.path, path)
    (path / "checkpoints" / "last.before.ckpt").unlink(missing_ok=True)
    return path / "checkpoints" / "last.ckpt"


def changed(path: Path, change: Change) -> None:
    content = torch.load(path, weights_only=True)
    replaced = change(content)
    torch.save(replaced if isinstance(replaced, list) else content, path)


def refusal(action: Callable[[], object]) -> str:
    """The sentence by which genlab refuses."""
    with pytest.raises(GenlabError) as caught:
        action()
    message = str(caught.value)
    assert caught.value.exit_code == REFUSED
    assert message and "\n" not in message and len(message) < 800
    return message


def test_a_moved_run_goes_on_as_if_it_had_not_been_stopped(
    stopped: Run, undisturbed: Run, tmp_path: Path
) -> None:
    losses = [row["val/loss"] for row in undisturbed.metrics() if "val/loss" in row]
    assert (
        losses.index(min(losses)) == 2
    )  # so that a best score that is forgotten changes best.ckpt
    elsewhere = tmp_path / "elsewhere" / stopped.path.parent.name
    elsewhere.parent.mkdir()
    shutil.copytree(stopped.path.parent, elsewhere)
    assert_same(train(tmp_path / "elsewhere"), undisturbed)


@pytest.mark.parametrize("overrides", [[], OWN], ids=["genlab's callbacks", "a user's too"])
def test_no_path_in_a_checkpoint_is_used(tmp_path: Path, overrides: list[str]) -> None:
    run_directory = stopped_in_epoch_4(tmp_path / "runs", *overrides)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").touch()
    last = run_directory.checkpoints / "last.ckpt"

    def plant(content: dict[str, Any]) -> None:
        states = content["callbacks"]
        for name in ("ModelCheckpoint", _OF_LIGHTNING, *states):
            if not name.startswith("ModelCheckpoint"):
                continue
            for path in (f"local://{victim}", str(victim)):
                states[name] = {
                    "dirpath": str(run_directory.checkpoints),
                    **states.get(name, {}),
                    "best_k_models": {path: torch.tensor(math.inf)},
                    "kth_best_model_path": path,
                    "kth_value": torch.tensor(math.inf),
                    "best_model_path": path,
                    "best_model_score": torch.tensor(math.inf),
                    "last_model_path": path,
                }

    changed(last, plant)
    train(tmp_path / "runs", *overrides)
    assert (victim / "file").exists()
    assert "victim" not in str(torch.load(last, weights_only=True)["callbacks"])


_OF_LIGHTNING = (
    "ModelCheckpoint{'monitor': 'val/loss', 'mode': 'min', 'every_n_train_steps': 0, "
    "'every_n_epochs': 1, 'train_time_interval': None}"
)


def at(*keys: Any) -> Callable[[Any], Change]:
    """Return the function that makes a change of one entry; the value may be a function."""

    def make(value: Any) -> Change:
        def change(content: dict[str, Any]) -> None:
            part: Any = content
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = value(part.get(keys[-1])) if callable(value) else value

        return change

    return make


def without(*keys: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        part: Any = content
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]

    return change


def sparse(weight: Tensor) -> Tensor:
    return weight.to_sparse()


def meta(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="meta")


def expanded(weight: Tensor) -> Tensor:
    return torch.zeros(1).expand(weight.shape)


def nested(_: Any) -> Any:
    value: list[Any] = []
    for _ in range(300):
        value = [value]
    return value


def aliased(_: Any) -> Any:
    value: list[Any] = ["x"]
    for _ in range(35):
        value = [value] * 10
    return value


def cyclic(_: Any) -> Any:
    value: list[Any] = []
    value.append(value)
    return value


WEIGHT = "model.decoder.0.weight"
EARLY = "EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}"
FIT = ("loops", "fit_loop")
ADAM = ("optimizer_states", 0, "state", 0)
GROUP = ("optimizer_states", 0, "param_groups", 0)

WEIGHTS: dict[str, tuple[Change, str]] = {
    "a list": (lambda content: [1, 2], "no state_dict"),
    "no weights": (without("state_dict"), "no state_dict"),
    "weights that are a list": (at("state_dict")([]), "no state_dict"),
    "a weight is missing": (without("state_dict", WEIGHT), WEIGHT),
    "a weight too many": (at("state_dict", "\x1b[2Jx")(torch.zeros(1)), "x1b[2Jx"),
    "a name is a number": (at("state_dict", 5)(torch.zeros(1)), "5 is in the checkpoint alone"),
    "a weight is a number": (at("state_dict", WEIGHT)(1.0), f"state_dict.{WEIGHT}"),
    "a weight is a list": (at("state_dict", WEIGHT)([1.0]), f"state_dict.{WEIGHT}"),
    "sparse": (at("state_dict", WEIGHT)(sparse), f"state_dict.{WEIGHT}"),
    "meta": (at("state_dict", WEIGHT)(meta), f"state_dict.{WEIGHT}"),
    "expanded": (at("state_dict", WEIGHT)(expanded), f"state_dict.{WEIGHT}"),
    "integers": (at("state_dict", WEIGHT)(Tensor.long), f"state_dict.{WEIGHT}"),
    "complex": (at("state_dict", WEIGHT)(lambda w: w + 0j), f"state_dict.{WEIGHT}"),
    "another shape": (at("state_dict", WEIGHT)(lambda w: w.T.clone()), WEIGHT),
    "a tensor with attributes": (
        at("state_dict", WEIGHT)(lambda w: _with_attribute(w)),
        f"state_dict.{WEIGHT}",
    ),
    "nested": (at("x")(nested), "x"),
    "aliased": (at("x")(aliased), "x"),
    "cyclic": (at("x")(cyclic), "x"),
    "a huge whole number": (at("x")(10**400), "x"),
    "an expanded tensor somewhere": (at("x")(torch.zeros(1).expand(2**40)), "x"),
    "one tensor many times": (at("x")([torch.zeros(1000)] * 1000), "x"),
}


def _with_attribute(weight: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(weight.clone())
    parameter.to = 5  # type: ignore[assignment]
    return parameter


@pytest.mark.parametrize("name", WEIGHTS)
def test_odd_weights_are_refused_in_one_sentence(received: Path, name: str) -> None:
    change, entry = WEIGHTS[name]
    best = received.with_name("best.ckpt")
    for path in (best, received):
        changed(path, change)
    runs_dir = received.parents[3]
    start = f"init_from='{best}'"
    for path, action in (
        (best, lambda: genlab.load(best.parents[1])),
        (best, lambda: train(runs_dir / "other", start)),
        (received, lambda: train(runs_dir)),
    ):
        message = refusal(action)
        assert str(path) in message and entry in message


RESUMED: dict[str, tuple[Change, str]] = {
    **{
        f"no {entry}": (without(entry), f"{entry} is missing")
        for entry in ("loops", "callbacks", "lr_schedulers", "epoch", "global_step")
    },
    "no version": (without("pytorch-lightning_version"), "pytorch-lightning_version"),
    "an old version": (at("pytorch-lightning_version")("1.0.0"), "pytorch-lightning_version"),
    "a version of no kind": (at("pytorch-lightning_version")("x"), "pytorch-lightning_version"),
    "loops are a list": (at("loops")([]), "loops"),
    "no loop": (at("loops")({}), "loops.fit_loop"),
    "a loop that is a number": (at("loops", "fit_loop")(3), "loops.fit_loop"),
    "a method in a counter": (at(*FIT, "epoch_progress", "total", "reset")(1), "reset"),
    "a counter is text": (at(*FIT, "epoch_progress", "total", "ready")("1"), "total.ready"),
    "a counter is broken": (at(*FIT, "epoch_progress", "total", "ready")(1.5), "total.ready"),
    "a negative counter": (at(*FIT, "epoch_progress", "current", "processed")(-1), "processed"),
    "a huge counter": (at(*FIT, "epoch_progress", "current", "processed")(2**60), "processed"),
    "after the end": (at(*FIT, "epoch_progress", "current", "processed")(6), "processed=6"),
    "a step of no kind": (at("global_step")(torch.zeros(2)), "global_step"),
    "states of two loaders": (at(*FIT, "state_dict", "combined_loader")([{}, {}]), "combined"),
    "no optimizer": (at("optimizer_states")([]), "optimizer_states"),
    "optimizers are text": (at("optimizer_states")("x"), "optimizer_states"),
    "no groups": (without(*GROUP[:-1]), "optimizer_states.0.param_groups is missing"),
    "a rate of no kind": (at(*GROUP, "lr")("fast"), "param_groups.0.lr"),
    "a rate that is no number": (at(*GROUP, "lr")(math.nan), "param_groups.0.lr"),
    "three betas": (at(*GROUP, "betas")((0.9, 0.9, 0.9)), "param_groups.0.betas"),
    "parameters of no kind": (at(*GROUP, "params")([[], []]), "param_groups.0.params"),
    "a moment of another shape": (at(*ADAM, "exp_avg")(torch.zeros(7, 7)), "optimizer_states.0"),
    "overlapping moments": (
        at(*ADAM, "exp_avg")(lambda m: torch.zeros(100)[-8:].as_strided(m.shape, (0, 1))),
        "exp_avg",
    ),
    "another kernel": (at(*GROUP, "fused")(False), "fused"),
    "another algorithm": (at(*GROUP, "amsgrad")(True), "amsgrad"),
    "a moment is text": (at(*ADAM, "exp_avg")("x"), "optimizer_states.0"),
    "a moment is sparse": (at(*ADAM, "exp_avg")(sparse), "exp_avg"),
    "a moment is meta": (at(*ADAM, "exp_avg")(meta), "exp_avg"),
    "a moment is expanded": (at(*ADAM, "exp_avg")(expanded), "exp_avg"),
    "a moment is missing": (without(*ADAM, "exp_avg"), "optimizer_states.0"),
    "a step is text": (at(*ADAM, "step")("x"), "optimizer_states.0"),
    "no schedule": (at("lr_schedulers")([]), "lr_schedulers"),
    "a method in a schedule": (at("lr_schedulers", 0, "step")(1), "lr_schedulers.0.step"),
    "a schedule's step is text": (at("lr_schedulers", 0, "last_epoch")("x"), "last_epoch"),
    "no early stopping": (without("callbacks", EARLY), "EarlyStopping"),
    "a patience of no kind": (at("callbacks", EARLY, "patience")("x"), "patience"),
    "a best score of no kind": (at("callbacks", EARLY, "best_score")([1]), "best_score"),
    "a best score of two": (at("callbacks", EARLY, "best_score")(torch.zeros(2)), "best_score"),
    "a reason that is none": (at("callbacks", EARLY, "stopping_reason")(99), "EarlyStopping"),
    "seconds are text": (at("callbacks", "LastCheckpoint", "seconds")("1"), "LastCheckpoint"),
    "negative seconds": (at("callbacks", "LastCheckpoint", "seconds")(-1.0), "seconds"),
    "a score of no kind": (at("callbacks", "BestCheckpoint")({"score": "1"}), "BestCheckpoint"),
    "a path beside a score": (
        at("callbacks", "BestCheckpoint")({"score": 1.0, "path": "/"}),
        "BestCheckpoint.path",
    ),
    "states are a list": (at("callbacks")([]), "callbacks"),
    "raw weights are a list": (at("raw_weights")([]), "raw_weights"),
    "a raw weight is missing": (without("raw_weights", WEIGHT), WEIGHT),
    "a raw weight is sparse": (at("raw_weights", WEIGHT)(sparse), f"raw_weights.{WEIGHT}"),
    "no number of averages": (without("ema_updates"), "ema_updates"),
    "a number of averages of no kind": (at("ema_updates")("1"), "ema_updates"),
    "a gradient scale": (at("native_amp_scaling_state")({"scale": "x"}), "native_amp"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_an_odd_state_is_refused_in_one_sentence(received: Path, name: str) -> None:
    change, entry = RESUMED[name]
    changed(received, change)
    before = received.read_bytes()
    message = refusal(lambda: train(received.parents[3]))
    assert str(received) in message and entry in message
    assert received.read_bytes() == before
    assert Run(received.parents[1]).state == "failed"


def compressed(path: Path) -> None:
    content = {name: zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in content.items():
            archive.writestr(name, part)


def repickled(path: Path, data: bytes) -> None:
    content = {name: zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in content.items():
            archive.writestr(name, data if name.endswith("data.pkl") else part)


class Allocation:
    """A tensor of a terabyte that a pickle of a few bytes asks for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.Tensor, (2**38,)


def allocating(path: Path) -> None:
    file = io.BytesIO()
    pickle.Pickler(file, protocol=2).dump({"state_dict": {"x": Allocation()}})
    repickled(path, file.getvalue())


def shifted(path: Path) -> None:
    """Two archives in one file: zipfile corrects the offset of the second, torch does not."""
    path.write_bytes(path.read_bytes()[:1000] + path.read_bytes())


def large(path: Path) -> None:
    os.truncate(path, 2**42)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def deep(path: Path) -> None:
    repickled(path, b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".")


def long_pickle(path: Path) -> None:
    repickled(path, b"\x80\x02" + b"N0" * 2**26 + b".")


@pytest.mark.parametrize(
    "damage", [compressed, allocating, shifted, large, folder, pipe, device, deep, long_pickle]
)
def test_a_file_of_another_kind_is_refused_unread(
    received: Path, damage: Callable[[Path], None]
) -> None:
    best = received.with_name("best.ckpt")
    damage(best)
    message = refusal(lambda: genlab.load(best.parents[1]))
    assert str(best) in message
    if damage is pipe:  # which is refused wherever it is
        best.unlink()
    if damage is not device:  # a link out of a run directory has a sentence of its own
        damage(received)
        assert str(received) in refusal(lambda: train(received.parents[3]))


def test_a_layer_by_several_names_is_no_repetition(tmp_path: Path) -> None:
    layer = nn.Linear(100, 100)
    module = nn.Sequential(*[layer] * 20)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "tied.ckpt")
    weights.load_into(module, tmp_path / "tied.ckpt")


def test_measured_errors_of_two_lengths_are_refused(tmp_path: Path) -> None:
    module = Optimal()
    module.measure(torch.arange(3.0), torch.ones(3))
    state = module.state_dict()
    torch.save({"state_dict": state}, tmp_path / "fits.ckpt")
    weights.load_into(Optimal(), tmp_path / "fits.ckpt")
    torch.save({"state_dict": {**state, "log_snr": torch.zeros(2)}}, tmp_path / "x.ckpt")
    with pytest.raises(RunDirectoryError, match="log_snr and log_squared_error differ in shape"):
        weights.load_into(Optimal(), tmp_path / "x.ckpt")
    torch.save({"state_dict": {**state, "log_snr": torch.zeros(3, 1)}}, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="log_snr has shape"):
        weights.load_into(Optimal(), tmp_path / "x.ckpt")


def replaced(group: str, target: str, **values: Any) -> list[str]:
    """The overrides that put a class of torch in the place of a group of the config."""
    given = ", ".join(f"{key}: {value}" for key, value in values.items())
    return [f"~model/{group}", f"+model.{group}={{_target_: {target}, _partial_: true, {given}}}"]


OPTIMIZERS = {
    "muon": ["model/optimizer=muon"],
    "cosine": ["model/lr_schedule=warmup_cosine"],
    "lbfgs": replaced("optimizer", "torch.optim.LBFGS", lr=0.1),
    "adafactor": replaced("optimizer", "torch.optim.Adafactor", lr=0.1),
    "one cycle": replaced("lr_schedule", "torch.optim.lr_scheduler.OneCycleLR", max_lr=0.1),
    "plateau": replaced("lr_schedule", "torch.optim.lr_scheduler.ReduceLROnPlateau", patience=1),
    "steps": replaced("lr_schedule", "torch.optim.lr_scheduler.MultiStepLR", milestones=[9, 20]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_whatever_optimizes_it(tmp_path: Path, name: str) -> None:
    chosen = OPTIMIZERS[name]
    kept = [o for o in OPTIONS if "optimizer.lr" not in o or name not in ("lbfgs", "adafactor")]
    reference = train(tmp_path / "reference", *chosen, options=kept)
    stopped_in_epoch_4(tmp_path / "runs", *chosen, options=kept)
    assert_same(train(tmp_path / "runs", *chosen, options=kept), reference)


def test_a_checkpoint_that_is_mostly_a_hole_is_refused(received: Path) -> None:
    """Its bytes take no room on the disk, and would in memory."""
    content = torch.load(received, weights_only=True)
    content["callbacks"]["own"] = torch.zeros(1 << 26)
    torch.save(content, received)
    module = weights.read(received)
    assert module["callbacks"]["own"].shape == (1 << 26,)  # zeros that are stored are no hole
    sparse = received.with_name("sparse.ckpt")
    subprocess.run(["cp", "--sparse=always", received, sparse], check=True)
    with pytest.raises(RunDirectoryError, match="the others are a hole"):
        weights.read(sparse)
