"""The Python API: train a run, load its model, compare the runs of a sweep."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig

import genlab
from genlab import cli
from genlab.errors import ConfigError, RunDirectoryError
from genlab.protocols import CanDecode, CanEncode, CanReconstruct, CanSample, HasLikelihood
from genlab.runs.run import Run
from genlab.seeding import BatchNoise
from genlab.training import run
from genlab.training.interrupts import Stopped

SMALL = [
    *("trainer=smoke", "callbacks=none", "logger=none", "forecast=false", "data.train_images=64"),
    *("data.batch_size=16", "data.val_images=32", "data.eval_batch_size=16"),
]
VAE = [*SMALL, "model.latent_dim=3", "model.net.encoder.hidden=[8]", "model.net.decoder.hidden=[8]"]
DDPM = [
    *(*SMALL, "model=ddpm", "model.net.channels=8", "model.net.attention=[]", "model.steps=4"),
    "model.sampler.steps=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def vae(folder: Path) -> Run:
    return genlab.train([*VAE, "model.kl_weight=4", "group=ours", f"runs_dir={folder}"])


@pytest.fixture(scope="module")
def ddpm(folder: Path) -> Run:
    return genlab.train([*DDPM, "group=ours", f"runs_dir={folder}"])


def test_importing_genlab_imports_nothing_large() -> None:
    code = (
        "import genlab, sys; assert {'load', 'train', 'compare'} <= {*dir(genlab)};"
        "print(*{'torch', 'hydra', 'lightning', 'numpy', 'rich'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_comparing_imports_no_torch(vae: Run) -> None:
    code = f"import genlab, sys; genlab.compare({str(vae.path)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_run_of_the_api_is_that_of_the_command(
    vae: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vae.state == "completed" and vae.result is not None
    assert vae.result["metrics"]["test/neg_elbo"] > 0
    assert "kl_weight_4" in vae.name
    asked = [*VAE, "model.kl_weight=4", "group=ours", f"runs_dir={folder}"]
    assert cli.main(["train", *asked]) == 0
    assert f"completed before: {vae.path}" in capsys.readouterr().out
    # and the reverse: it is not trained again
    assert genlab.train(asked).path == vae.path
    assert not HydraConfig.initialized()


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model.kl_weight=0,1"], r"^model\.kl_weight=0,1: genlab\.train makes one run"),
        (["model.kl_wieght=0"], "did you mean model.kl_weight"),
        (["model.kl_weight=-1"], "model.kl_weight=-1"),
        (["trainer.devices=2"], r"^trainer\.devices=2: .* use genlab train$"),
        (["-m"], "^-m: this is not key=value"),
    ],
    ids=lambda value: str(value),
)
def test_what_cannot_be_trained_is_refused(
    overrides: list[str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        genlab.train([*overrides, *SMALL, f"runs_dir={tmp_path}"])
    assert not list(tmp_path.iterdir())
    assert not HydraConfig.initialized()


@pytest.mark.parametrize(
    ("signum", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_ends_it_as_python_expects(
    monkeypatch: pytest.MonkeyPatch, signum: int, expected: type[BaseException]
) -> None:
    def stopped(cfg: Any) -> None:
        raise Stopped(signum)

    monkeypatch.setattr(run, "run", stopped)
    with pytest.raises(expected):
        genlab.train(SMALL)
    assert not HydraConfig.initialized()


def test_the_runs_of_a_folder_are_compared(
    vae: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    other = genlab.train([*VAE, "model.kl_weight=0", "group=ours", f"runs_dir={folder}"])
    rows = genlab.compare([vae, other])
    assert [row["model.kl_weight"] for row in rows] == [0.0, 4.0]
    assert [row["run"] for row in rows] == [other.name, vae.name]
    for row, one in zip(rows, (other, vae), strict=True):
        assert one.result is not None
        assert row["test/kl"] == one.result["metrics"]["test/kl"]
    whole = genlab.compare(folder / "ours")
    assert {row["run"] for row in whole} >= {other.name, vae.name}
    assert genlab.compare(str(folder / "ours")) == whole


def test_with_pandas_the_table_is_a_frame(vae: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = types.ModuleType("pandas")
    pandas.__spec__ = importlib.util.spec_from_loader("pandas", None)
    pandas.DataFrame = lambda rows: ("frame", rows)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    kind, rows = genlab.compare([vae])
    assert kind == "frame" and rows[0]["run"] == vae.name


def test_a_frame_of_pandas_has_the_values(vae: Run) -> None:
    pandas = pytest.importorskip("pandas")
    frame = genlab.compare([vae])
    assert isinstance(frame, pandas.DataFrame)
    assert vae.result is not None
    assert frame["test/kl"].tolist() == [vae.result["metrics"]["test/kl"]]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="there are no runs"):
        genlab.compare(tmp_path)


@pytest.mark.parametrize("given", [Path, str, Run])
def test_a_run_is_loaded_however_it_is_given(vae: Run, given: Callable[[Any], Any]) -> None:
    model = genlab.load(given(vae.path))
    assert not model.training


def test_a_vae_encodes_decodes_and_bounds_images_in_the_unit_interval(vae: Run) -> None:
    model, x = genlab.load(vae), torch.rand(5, 1, 28, 28)
    for ability in (CanEncode, CanDecode, CanReconstruct, CanSample, HasLikelihood):
        assert isinstance(model, ability)
    q = model.encode(x)
    assert q.mean.shape == (5, 3)
    images = model.decode(q.mean).mean
    torch.testing.assert_close(images, model.reconstruct(x))
    for found in (images, model.sample(5, seed=1)):
        assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    assert torch.equal(model.sample(5, seed=1)[2:], model.sample(3, seed=1, first=2))
    # more samples tighten the bound on average
    one, many = (model.log_likelihood(x, samples=n).mean() for n in (1, 200))
    assert one < many


def test_a_ddpm_samples_and_bounds_images_in_the_unit_interval(ddpm: Run) -> None:
    model, x = genlab.load(ddpm), torch.rand(5, 1, 28, 28)
    assert isinstance(model, CanSample) and isinstance(model, HasLikelihood)
    images = model.sample(5, seed=1)
    assert images.shape == x.shape and images.min() >= 0 and images.max() <= 1
    nats = model.log_likelihood(x, noise=BatchNoise(5, 7))
    tested = model.evaluate(x, noise=BatchNoise(5, 7), full=True)
    torch.testing.assert_close(nats, -(tested["reconstruction"] + tested["kl"]))
    # fewer draws estimate the same bound
    few = torch.stack([model.log_likelihood(x, draws=1) for _ in range(300)])
    error = few.std(0) / 300**0.5
    assert ((few.mean(0) - nats).abs() < 5 * error + 0.01 * nats.abs()).all()
