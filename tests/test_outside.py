"""Every kind of part can come from a package outside genlab, `tests/outside/mylab`.

It lies in a temporary folder and is named by no environment variable: each part is one class and
one YAML, and a model family is one module, its LightningModule and one YAML.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from trained_runs import logged

from genlab.runs.run import Run, find_runs

# each test is a process that imports everything anew
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SEARCH = "hydra.searchpath=[pkg://mylab.conf]"
SMALL = [
    *("data=discs", "data.val_images=64", "data.batch_size=32", "data.eval_batch_size=50"),
    *("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "callbacks=none", "logger=none"),
    "runs_dir=runs",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that holds the package."""
    folder = tmp_path_factory.mktemp("home")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests/outside/mylab", folder / "mylab", ignore=ignored)
    return folder


def start(home: Path, *command: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GENLAB")}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=home,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(home: Path, *command: str) -> str:
    process = start(home, *command)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def train(home: Path, group: str, *overrides: str) -> Run:
    finish(home, str(ROOT / "train.py"), SEARCH, *SMALL, f"group={group}", *overrides)
    (run,) = find_runs(home / "runs" / group)
    return run


@pytest.fixture(scope="module")
def vae(home: Path) -> Run:
    """A VAE on a source, with every part that a VAE admits, from outside."""
    return train(
        home,
        "vae",
        *("model/kl_schedule=quadratic", "model.kl_schedule.steps=6", "model.kl_weight=4"),
        *("model/likelihood=laplace", "model/net=identity", "model.latent_dim=2"),
        *("model/optimizer=sign", "model/lr_schedule=halving", "metrics=own"),
        *("callbacks=own", "logger=[lines,csv]", "forecast=false"),
    )


def test_a_kl_schedule_and_a_likelihood_from_outside_make_the_loss(vae: Run) -> None:
    rows = [row for row in vae.metrics() if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row in rows:
        # a row carries the number of steps taken, so its own step was the one before
        weight = 4 * min(1.0, (row["step"] - 1) / 6) ** 2
        assert row["train/kl_weight"] == pytest.approx(weight)
        loss = row["train/reconstruction"] + weight * row["train/kl"]
        assert row["train/loss"] == pytest.approx(loss, rel=1e-5)


def test_an_optimizer_and_a_learning_rate_schedule_from_outside_are_used(vae: Run) -> None:
    rows = [row for row in vae.metrics() if "train/loss" in row]
    rates = [1e-3 * 0.5 ** (step // 3) for step in range(12)]
    assert [row["train/learning_rate"] for row in rows] == pytest.approx(rates)


def test_metrics_of_torchmetrics_and_from_outside_are_measured(vae: Run) -> None:
    assert vae.result is not None
    metrics = vae.result["metrics"]
    assert 0 < metrics["test/error"] < metrics["test/worst_pixel"]
    assert any("val/worst_pixel" in row for row in vae.metrics())


def test_callbacks_of_lightning_and_from_outside_see_the_run(vae: Run) -> None:
    assert (vae.pictures / "epochs.txt").read_text() == "2"
    rows = vae.metrics()
    assert [row["val/epochs_so_far"] for row in rows if "val/epochs_so_far" in row] == [0, 1]
    assert any(name.startswith("lr-") for row in rows for name in row)  # LearningRateMonitor


def test_loggers_of_lightning_and_from_outside_hold_what_the_record_holds(vae: Run) -> None:
    record = logged(vae.metrics())
    lines = [json.loads(line) for line in (vae.path / "lines.jsonl").read_text().splitlines()]
    assert logged(lines) == record
    (table,) = vae.path.glob("csv/*/metrics.csv")
    with table.open() as file:
        cells = {
            (int(row["step"]), name): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in ("step", "epoch")
        }
    assert cells == pytest.approx(record)
    assert json.loads((vae.path / "hyperparameters.json").read_text())["seed"] == 0


def test_a_noise_schedule_a_sampler_a_network_and_sgd_make_a_ddpm(home: Path) -> None:
    run = train(
        home,
        "ddpm",
        *("model=ddpm", "model/noise_schedule=root", "model.noise_schedule.height=9"),
        *("model/sampler=renoise", "model/net=plain", "model/optimizer=sgd", "model.steps=20"),
        *("callbacks=pictures", "model/lr_schedule=constant"),
    )
    assert run.bound is not None
    expected = [9 * (1 - 2 * (i / 20) ** 0.5) for i in range(1, 21)]
    assert run.bound["log_snr"] == pytest.approx(expected)
    assert list(run.pictures.glob("samples-*.png"))
    config = yaml.safe_load(run.config_text or "")
    assert config["model"]["optimizer"]["_target_"] == "torch.optim.SGD"
    finish(home, *("-m", "genlab", "sample", str(run.path), "--n", "2", "--trust", "mylab"))
    assert list(run.path.glob("samples/*/grid.png"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.optimizer._target_=mylab.parts.Discs", "model.optimizer._target_"),
        ("+callbacks.x._target_=mylab.parts.Discs", "callbacks.x._target_"),
        ("+metrics.x._target_=torch.nn.Linear", "metrics.x._target_"),
        ("+metrics.kl._target_=torchmetrics.MeanSquaredError", "metrics.kl"),
        ("+logger.x._target_=mylab.parts.Root", "logger.x._target_"),
        ("model.kl_schedule._target_=mylab.parts.Root", "model.kl_schedule._target_"),
    ],
)
def test_a_class_of_another_kind_is_refused_before_data_is_read(
    home: Path, override: str, message: str
) -> None:
    process = start(home, str(ROOT / "train.py"), SEARCH, *SMALL, "group=refused", override)
    output, _ = process.communicate()
    assert process.returncode == 2, output
    (line,) = output.strip().splitlines()
    assert line.startswith(f"error: {message}")
    assert not (home / "runs/refused").exists()


FAMILY = ["model=autoregressive", "data.binarisation=static"]


@pytest.fixture(scope="module")
def family(home: Path) -> Run:
    return train(home, "family", *FAMILY)


def test_a_family_from_outside_trains_with_its_exact_likelihood(home: Path, family: Run) -> None:
    assert family.result is not None
    metrics = family.result["metrics"]
    assert metrics["test/kl"] == 0
    for name in ("test/reconstruction", "test/loss"):
        assert metrics["test/neg_elbo"] == pytest.approx(metrics[name], rel=1e-6)
    assert metrics["test/neg_elbo"] < 144 * 0.6932  # of a fair coin for each pixel
    assert metrics["test/weight_norm"] > 0


def test_a_family_from_outside_resumes_bit_for_bit(home: Path, family: Run) -> None:
    command = [
        *(str(ROOT / "train.py"), SEARCH, *SMALL, *FAMILY, "group=killed"),
        "checkpoint_every_n_steps=1",
    ]
    process = start(home, *command)
    while process.poll() is None:
        if any(p.read_bytes().count(b"\n") >= 5 for p in home.glob("runs/killed/*/metrics.jsonl")):
            process.kill()
            break
        time.sleep(0.002)
    process.communicate()
    finish(home, *command)
    (run,) = find_runs(home / "runs/killed")
    ours, theirs = (
        torch.load(r.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
        for r in (run, family)
    )
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_a_family_from_outside_samples_where_its_package_is_trusted(
    home: Path, family: Run
) -> None:
    command = ["-m", "genlab", "sample", str(family.path), "--n", "4"]
    process = start(home, *command)
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "mylab.autoregressive.Autoregressive" in output and "--trust" in output
    finish(home, *command, "--trust", "mylab")
    assert list(family.path.glob("samples/*/grid.png"))


def test_a_family_from_outside_exports_its_networks_to_onnx(home: Path, family: Run) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    command = ["-m", "genlab", "export", str(family.path), "--format", "onnx", "--out", "onnx"]
    finish(home, *command, "--trust", "mylab")
    session = onnxruntime.InferenceSession((home / "onnx/pixels.onnx").read_bytes())
    state = torch.load(family.checkpoints / "best.ckpt", weights_only=True)["state_dict"]
    weight, bias = state["model.weight"], state["model.bias"]
    for n in (1, 5):
        x = torch.rand(n, 144)
        (logits,) = session.run(None, {"x": x.numpy()})
        expected = (x.double() @ weight.double().tril(-1).T + bias).float()
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5)
    card = (home / "onnx/README.md").read_text()
    assert "`pixels.onnx` maps pixels x (B, D) to the log-odds" in card


def test_a_family_from_outside_is_compared_with_a_vae_on_one_plane(home: Path) -> None:
    output = finish(
        home,
        *(str(ROOT / "train.py"), "-m", SEARCH, *SMALL, "data.binarisation=static"),
        *("group=compared", "model=autoregressive,vae"),
    )
    assert "Autoregressive" in output and "VAE" in output
    folder = home / "runs/compared"
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    kls = {row["model._target_"].rpartition(".")[2]: float(row["test/kl"]) for row in rows}
    assert kls["Autoregressive"] == 0 and kls["VAE"] > 0
    assert (folder / "rate_distortion.png").exists()
    page = (folder / "report.html").read_text()
    assert "Autoregressive" in page


@pytest.fixture(scope="module")
def in_turn(home: Path) -> Run:
    """A family of two optimizers and without a bound."""
    return train(home, "in_turn", "model=templates", "model.optimizer.lr=0.01")


def test_a_family_with_two_optimizers_counts_a_step_for_each_batch(in_turn: Run) -> None:
    assert in_turn.result is not None
    assert in_turn.result["steps"] == 2 * ((256 - 64) // 32)
    steps = [row["step"] for row in in_turn.metrics() if "train/of_templates" in row]
    assert steps == list(range(1, 13))


def test_a_family_names_the_metric_of_its_best_checkpoint(in_turn: Run) -> None:
    distances = [row["val/distance"] for row in in_turn.metrics() if "val/distance" in row]
    best = torch.load(in_turn.checkpoints / "best.ckpt", weights_only=True)
    assert best["global_step"] == 6 * (1 + distances.index(min(distances)))
    assert in_turn.result is not None and in_turn.result["evaluated"] == "best"


def test_a_family_without_a_bound_shows_what_it_measures(home: Path, in_turn: Run) -> None:
    command = [str(ROOT / "train.py"), SEARCH, *SMALL, "group=in_turn", "model=templates"]
    assert "test   distance 0." in finish(home, *command, "model.optimizer.lr=0.01")
    assert in_turn.result is not None
    assert not [name for name in in_turn.result["metrics"] if "neg_elbo" in name]


@pytest.mark.parametrize(
    "override", ["trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2"]
)
def test_what_lightning_does_not_do_with_two_optimizers_is_refused(
    home: Path, override: str
) -> None:
    command = [str(ROOT / "train.py"), SEARCH, *SMALL, "group=refused", "model=templates"]
    process = start(home, *command, override)
    output, _ = process.communicate()
    assert process.returncode == 2, output
    (line,) = output.strip().splitlines()
    assert line.startswith(f"error: {override}") and "TemplatesModule" in line
    assert not (home / "runs/refused").exists()


def test_a_family_that_knows_classes_draws_those_that_are_asked_for(
    home: Path, in_turn: Run
) -> None:
    command = ["-m", "genlab", "sample", str(in_turn.path), "--n", "4", "--trust", "mylab"]
    for name, label in (("small", 0), ("1", 1)):
        finish(home, *command, "--class", name, "--out", f"drawn-{name}")
        with np.load(home / f"drawn-{name}" / "samples.npz") as drawn:
            assert drawn["labels"].tolist() == [label] * 4
    process = start(home, *command, "--sampler", "ddim")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "--sampler: " in output and "is a Templates, which has no such choice" in output
