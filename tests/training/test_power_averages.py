"""Averages of any length, made after the training, are those that were tracked in it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import send, within_step
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trained_runs import train_in

from genlab import cli
from genlab.errors import DONE, REFUSED, ConfigError, GenlabError
from genlab.runs.run import Run, find_runs
from genlab.tensors import to_pixels
from genlab.training import weights
from genlab.training.interrupts import Stopped
from genlab.training.load import load
from genlab.training.power_averages import KeptAverages, PowerAverages
from genlab.training.power_profiles import WIDEST, Profile, combination, gamma_of, width_of

SMALL = [
    *("logger=none", "callbacks=averages", "forecast=false", "data.batch_size=32", "seed=3"),
    *("data.eval_batch_size=30", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("trainer.limit_train_batches=40", "trainer.max_epochs=2"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]", "model.latent_dim=2"),
]


@pytest.mark.parametrize("width", [1e-4, 0.003, 0.05, 0.1, 0.2, 0.288])
def test_width_and_exponent_are_inverse(width: float) -> None:
    assert width_of(gamma_of(width)) == pytest.approx(width, rel=1e-12)
    if width == 0.1:
        assert gamma_of(width) == pytest.approx(6.94, abs=0.005)  # table in section 3 of the paper


def test_the_width_is_the_deviation_of_the_profile() -> None:
    assert gamma_of(math.nextafter(WIDEST, 0)) == pytest.approx(0, abs=1e-6)
    tau = (np.arange(200_000) + 0.5) / 200_000
    for gamma in (0.0, 3.0, 16.97):
        density = (gamma + 1) * tau**gamma
        mean = np.mean(density * tau)
        assert math.sqrt(np.mean(density * (tau - mean) ** 2)) == pytest.approx(width_of(gamma))


def test_inner_products_are_the_integrals_of_the_products() -> None:
    n = 200_000
    for first, second in [
        (Profile(50, 3.0), Profile(80, 7.0)),
        (Profile(80, 0.0), Profile(3, 17.0)),
    ]:
        end = min(first.steps, second.steps)
        tau = (np.arange(n) + 0.5) / n * end
        product = np.ones(n)
        for one in (first, second):
            product *= (one.gamma + 1) * tau**one.gamma / one.steps ** (one.gamma + 1)
        integral = product.mean() * end
        assert first.inner_product(second) == pytest.approx(integral, rel=1e-7)
        assert second.inner_product(first) == pytest.approx(integral, rel=1e-7)
    # and of steps and exponents at which the powers themselves overflow
    assert math.isfinite(Profile(10**9, 9000.0).inner_product(Profile(10**8, 9000.0)))


def test_the_average_has_the_shares_that_the_profile_gives_each_step() -> None:
    averages = PowerAverages([0.1, 0.25])
    module = nn.Linear(8, 1, bias=False)
    track(averages, module, [torch.eye(8)[i : i + 1] for i in range(8)])
    for one, width in zip(averages.state_dict()["averages"], [0.1, 0.25], strict=True):
        edges = (torch.arange(9, dtype=torch.float64) / 8) ** (gamma_of(width) + 1)
        torch.testing.assert_close(one["weight"][0].double(), edges.diff(), rtol=1e-5, atol=1e-9)


class Trainer:
    """A trainer, as far as a callback of averages asks it."""

    is_global_zero = True

    def __init__(self, steps: int) -> None:
        self.estimated_stepping_batches, self.global_step = steps, 0


def track(
    averages: PowerAverages, module: nn.Module, path: list[torch.Tensor], planned: int | None = None
) -> None:
    trainer: Any = Trainer(planned or len(path))
    averages.setup(trainer, module, "fit")  # type: ignore[arg-type]
    averages.on_train_start(trainer, module)  # type: ignore[arg-type]
    for weight in path:
        trainer.global_step += 1
        with torch.no_grad():
            next(module.parameters()).copy_(weight)
        averages.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    averages.on_train_end(trainer, module)  # type: ignore[arg-type]


def test_a_training_that_ends_early_keeps_its_last_averages(tmp_path: Path) -> None:
    averages = PowerAverages([0.1], every_n_steps=4, run=tmp_path)
    path = [torch.full((1, 2), float(i)) for i in range(5)]
    track(averages, nn.Linear(2, 1, bias=False), path, planned=10)
    kept = load_file(tmp_path / "checkpoints" / "averages.5.safetensors")
    (average,) = averages.state_dict()["averages"]
    torch.testing.assert_close(kept["0.weight"], average["weight"])
    assert len([*(tmp_path / "checkpoints").iterdir()]) == 2


WIDTHS = (0.03, 0.05, 0.08, 0.1, 0.15, 0.2)


def test_an_average_made_afterwards_is_one_that_was_tracked(tmp_path: Path) -> None:
    # a path that settles, and the noise of the steps around it, which falls with the learning rate
    steps, size = 800, 500
    time = torch.linspace(0, 1, steps)[:, None]
    start, end = torch.randn(2, size)
    noise = torch.randn(steps, size).cumsum(0) * 0.01 + 0.3 * torch.randn(steps, size) * (1 - time)
    path = list(start + (end - start) * (1 - torch.exp(-5 * time)) + noise)
    tracked, line = PowerAverages(WIDTHS), nn.Linear(size, 1, bias=False)
    module = nn.ModuleDict({"model": line})  # as in a LightningModule
    track(tracked, module, path)
    track(PowerAverages([0.05, 0.1], 20, tmp_path), module, path)
    kept = KeptAverages(tmp_path, line)
    assert kept.steps == list(range(20, 801, 20))
    for width, one in zip(WIDTHS, tracked.state_dict()["averages"], strict=True):
        kept.load(width)
        error = (line.weight - one["model.weight"]).norm() / one["model.weight"].norm()
        assert error < 1e-3, (width, error)


def test_weights_that_do_not_move_are_averaged_exactly() -> None:
    kept = [Profile(steps, gamma_of(width)) for steps in (100, 200) for width in (0.05, 0.1)]
    for width in (0.04, 0.15, 0.25):
        found = combination(kept, Profile(200, gamma_of(width)))
        assert sum(found.shares) == pytest.approx(1, abs=1e-12)
    exact = combination(kept, Profile(200, gamma_of(0.1)))
    assert exact.shares == pytest.approx([0, 0, 0, 1], abs=1e-6) and exact.error < 1e-6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_in(
        tmp_path_factory.mktemp("runs"), *SMALL, f"callbacks.averages.widths={[*WIDTHS]}"
    )


def test_averages_of_a_real_training_agree_with_those_tracked_in_it(
    trained: Run, tmp_path: Path
) -> None:
    few = train_in(tmp_path, *SMALL, "callbacks.averages.every_n_steps=5")
    # the training itself does not know of them
    ends = [weights.read(run.checkpoints / "last.ckpt")["state_dict"] for run in (trained, few)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    model = load(few.path, "last")
    kept = KeptAverages(few.path, model)
    assert kept.steps == list(range(5, 81, 5))
    tracked = load_file(trained.checkpoints / "averages.80.safetensors")
    for number, width in enumerate(WIDTHS):
        kept.load(width)
        pairs = [
            (found.detach(), tracked[f"{number}.model.{name}"])
            for name, found in model.named_parameters()
        ]
        error = sum((found - there).square().sum() for found, there in pairs)
        norm = sum(there.square().sum() for _, there in pairs)
        assert error / norm < 1e-6, (width, error / norm)


#: Of seconds; five steps an epoch.
OPTIONS = [
    *("callbacks=averages", "logger=none", "forecast=false", "trainer=cpu", "trainer.max_epochs=4"),
    *("data=gaussian", "data.source.train_images=300", "data.source.test_images=50"),
    *("data.val_images=50", "data.batch_size=50", "model/likelihood=gaussian", "model/net=linear"),
    *("model.latent_dim=2", "model.optimizer.lr=0.1", "callbacks.averages.every_n_steps=4"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_in(tmp_path_factory.mktemp("undisturbed"), *OPTIONS)


def snapshots(run: Run) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.checkpoints.glob("averages.*")}


@pytest.mark.parametrize("step", [7, 8, 20])
def test_a_stopped_run_goes_on_with_the_same_averages(
    undisturbed: Run, tmp_path: Path, step: int
) -> None:
    with within_step(step, lambda: send(signal.SIGTERM)), pytest.raises(Stopped):
        train_in(tmp_path, *OPTIONS)
    (stopped,) = find_runs(tmp_path)
    assert len(snapshots(stopped)) < 5 or step == 20
    assert snapshots(train_in(tmp_path, *OPTIONS)) == snapshots(undisturbed)
    assert len(snapshots(undisturbed)) == 5


def test_the_averages_of_a_checkpoint_are_checked(undisturbed: Run, tmp_path: Path) -> None:
    with within_step(7, lambda: send(signal.SIGTERM)), pytest.raises(Stopped):
        train_in(tmp_path, *OPTIONS)
    (run,) = find_runs(tmp_path)
    last = run.checkpoints / "last.ckpt"
    content = last.read_bytes()
    changes: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda state: state["averages"].pop(), "a list of 2 values"),
        (lambda state: state["averages"][0].popitem(), "is missing"),
        (lambda state: state.update(widths=[0.05, 0.2]), "widths"),
        (lambda state: state.update(steps=-1), "steps=-1"),
        (lambda state: state["averages"].__setitem__(0, state["averages"][0] | WRONG), "floating"),
    ]
    for change, words in changes:
        last.write_bytes(content)
        held = torch.load(last, weights_only=True)
        WRONG.update(
            {name: w[:1] for name, w in held["callbacks"]["PowerAverages"]["averages"][0].items()}
        )
        change(held["callbacks"]["PowerAverages"])
        torch.save(held, last)
        with pytest.raises(GenlabError, match=words):
            train_in(tmp_path, *OPTIONS)


WRONG: dict[str, Tensor] = {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("widths=[0.05,0.5]", ["widths", "0.5", "below 0.2887"]),
        ("widths=[0]", ["widths", "at least 0.0001"]),
        ("widths=[]", ["widths", "give 1 to 8"]),
        ("widths=[0.1,0.1]", ["widths", "different"]),
        ("widths=[.nan]", ["widths", "nan"]),
        ("every_n_steps=0", ["every_n_steps=0", "at least 1"]),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    tmp_path: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        train_in(tmp_path, *OPTIONS, f"callbacks.averages.{override}")
    assert all(word in str(refused.value) for word in ["callbacks.averages", *words])


def copied(run: Run, folder: Path) -> Path:
    shutil.copytree(run.path, folder / "run")
    return folder / "run"


def test_each_width_is_evaluated_and_they_are_a_curve(
    undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(undisturbed, tmp_path)
    widths = "0.05,0.1,0.15"
    assert cli.main(["evaluate", str(run), "data=gaussian", "--ema", widths]) == DONE
    shown = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(shown) if line.split()[:2] == ["width", "neg_elbo"])
    records = [json.loads(p.read_text()) for p in (run / "evaluations").glob("*.json")]
    found = {record["ema"]: record["metrics"]["test/neg_elbo"] for record in records}
    assert list(map(float, widths.split(","))) == sorted(found)
    for line, width in zip(shown[start + 1 :], sorted(found), strict=False):
        assert line.split()[0] == f"{width:g}"
        assert float(line.split()[1]) == pytest.approx(found[width], abs=0.005)
    assert (run / "evaluations" / "averages.png").stat().st_size > 1000
    # an average that was tracked has the bound of its own weights
    model = load(run, "last")
    KeptAverages(run, model).load(0.1)
    tracked = load_file(run / "checkpoints" / "averages.20.safetensors")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), tracked[f"1.model.{name}"])


def test_the_samples_of_each_width_are_measured(
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = copied(trained, tmp_path)
    command = ["evaluate", str(run), "data=mnist_mini", "data.train_images=300", "--quality"]
    command += ["--features", "pixels", "--samples", "40", "--device", "cpu"]
    assert cli.main([*command, "--ema", "0.05,0.1"]) == DONE
    found = Run(run).quality
    assert [record["settings"]["ema"] for record in found] == [0.05, 0.1]
    assert len({record["settings"]["model"] for record in found}) == 2
    out = capsys.readouterr().out
    assert "average of width 0.05" in out and "FID∞" in out.splitlines()[-4]
    assert (run / "evaluations" / "averages.png").stat().st_size > 1000


def test_an_average_is_exported_drawn_and_filmed(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was tracked has the weights of the last snapshot, and draws with them."""
    run = copied(trained, tmp_path)
    assert cli.main(["export", str(run), "--ema", "0.1"]) == DONE
    (exported,) = (run / "exports").iterdir()
    assert exported.name == "ema_0.1-safetensors"
    assert "averaged with relative width 0.1" in (exported / "README.md").read_text()
    tracked = load_file(run / "checkpoints" / "averages.80.safetensors")
    model = load(exported)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), tracked[f"{WIDTHS.index(0.1)}.model.{name}"])

    drawn = {}
    for width in ("0.1", "0.2"):
        assert cli.main(["sample", str(run), "--n", "2", "--ema", width]) == DONE
        with np.load(run / "samples" / f"n2-seed0-ema{width}" / "samples.npz") as content:
            drawn[width], told = content["images"], float(content["ema"])
        assert told == float(width)
    ours = to_pixels(model.sample(2, seed=0)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(drawn["0.1"], ours) and not np.array_equal(drawn["0.2"], ours)
    film = ["--kind", "prior_walk", "--n", "1", "--seconds", "0.1", "--ema", "0.1"]
    assert cli.main(["video", str(run), *film]) == DONE

    for command in ("sample", "export", "video"):
        for asked, words in (
            (["--ema", "0.3"], ["--ema 0.3", "below 0.2887"]),
            (["--ema", "x"], ["--ema x", "numbers"]),
            (["--ema", "0.1,0.2"], ["--ema 0.1,0.2", "one width"]),
            (["--ema", "0.1", "--checkpoint", "best"], ["--checkpoint best", "--ema"]),
        ):
            capsys.readouterr()
            assert cli.main([command, str(run), *asked]) == REFUSED
            (line,) = capsys.readouterr().err.splitlines()
            assert all(word in line for word in words), line


def test_what_cannot_be_evaluated_is_refused_in_one_line(
    undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(undisturbed, tmp_path)
    last = run / "checkpoints" / "averages.20.safetensors"
    content = load_file(last)
    name = next(name for name in content if name.startswith("0."))
    wrong: dict[str, tuple[dict[str, Tensor], str]] = {
        "nothing": ({}, "steps: 20"),
        "other steps": (content | {"steps": torch.tensor(19)}, "steps: 20"),
        "no widths": ({n: w for n, w in content.items() if n != "widths"}, "widths"),
        "a strange width": (content | {"widths": torch.tensor([0.1, 7.0]).double()}, "widths: 7"),
        "other widths": (content | {"widths": torch.tensor([0.1] * 9).double()}, "widths"),
        "nan": (
            content | {name: torch.full_like(content[name], math.nan)},
            "not finite; remove it",
        ),
        "another shape": (content | {name: content[name][:1].clone()}, "architecture"),
        "integers": (content | {name: content[name].long()}, "integer"),
        "one more": (content | {"x": torch.zeros(1)}, "'x'"),
        "one less": ({n: w for n, w in content.items() if n != name}, "architecture"),
    }
    cases = [("x", ["--ema x", "numbers"]), ("0.3", ["--ema 0.3", "below 0.2887"])]
    cases += [("nan", ["--ema nan"]), ("0.001", ["--ema 0.001", "snapshots", "give 0.0"])]
    for text, words in cases:
        refused_line(capsys, run, text, words)
    for held, word in wrong.values():
        save_file(held, last)
        refused_line(capsys, run, "0.1", ["averages.20.safetensors", word])
    last.write_bytes(b"x" * 100)
    refused_line(capsys, run, "0.1", ["averages.20.safetensors", "made of the other snapshots"])
    last.unlink()
    os.mkfifo(last)
    refused_line(capsys, run, "0.1", ["FIFO"])
    last.unlink()
    last.symlink_to("/etc/passwd")
    refused_line(capsys, run, "0.1", ["averages.20.safetensors", "link"])
    for path in run.glob("checkpoints/averages.*"):
        path.unlink()
    refused_line(capsys, run, "0.1", ["no snapshots", "callbacks=[default,averages]"])


def refused_line(
    capsys: pytest.CaptureFixture[str], run: Path, widths: str, words: list[str]
) -> None:
    assert cli.main(["evaluate", str(run), "data=gaussian", "--ema", widths]) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
