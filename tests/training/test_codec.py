"""A run that takes the VAE of another run: refused, resolved, complete by itself, encoded once."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from trained_runs import load_with_data, train_in

from genlab.config.build import build
from genlab.config.check import from_yaml, resolve, to_yaml
from genlab.config.compose import compose
from genlab.data.batches import Batches
from genlab.data.datamodule import ImageData
from genlab.data.order import BatchIndex
from genlab.errors import ConfigError, DataError, RunDirectoryError
from genlab.modules.ddpm import DDPMModule
from genlab.runs.files import write_atomically
from genlab.runs.run import Run
from genlab.seeding import BatchNoise
from genlab.tensors import to_unit_interval
from genlab.training import codec as codec_of_run
from genlab.training import planning
from genlab.training.flops import FlopCount
from genlab.training.kept_inputs import batches, kept_inputs
from genlab.training.load import load

QUICK = ["trainer=smoke", "callbacks=none", "logger=none", "forecast=false", "data.val_images=50"]
QUICK += ["data.train_images=300", "data.batch_size=50", "data.eval_batch_size=50"]
QUICK += ["trainer.limit_test_batches=1"]
VAE = [
    *QUICK,
    *("model/likelihood=discretized_logistic", "model/net=conv_4x", "model.latent_dim=98"),
    *("model.net.encoder.channels=[8,8]", "model.net.decoder.channels=[8,8]"),
]
DDPM = [
    *QUICK,
    *("model=ddpm", "model/codec=vae", "model/net=unet_latents", "model.net.channels=8"),
    *("model.steps=10", "model.sampler.steps=3", "ema_decay=0.9"),
]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.manual_seed(0)
    return train_in(tmp_path_factory.mktemp("vae"), *VAE)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "genlab" / "inputs"


def copy_of(vae: Run, folder: Path) -> Run:
    return Run(shutil.copytree(vae.path, folder / vae.name))


def latent_run(folder: Path, vae: Run, *overrides: str) -> Run:
    return train_in(folder / "runs", *DDPM, f"model.codec.run={vae.path}", *overrides)


def unfinished(run: Run) -> None:
    """Leave a run as if it was stopped after its last step, before its test."""
    run.result_path.unlink()
    write_atomically(run.status_path, {"state": "preempted"})


def test_the_operations_of_a_training_are_those_of_its_steps_on_kept_latents(
    vae: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = DDPMModule.training_step, []

    def training_step(self: DDPMModule, batch: Any, batch_idx: int) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH), FlopCount() as count:
            loss = step(self, batch, batch_idx)
            loss.backward()
        self.zero_grad()
        done.append(count.total)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DDPMModule, "training_step", training_step)
    result = latent_run(tmp_path, vae).result
    assert result is not None and len(done) == result["steps"]
    assert result["training_flops"] == sum(done) > 0


def test_a_run_is_complete_without_the_run_of_its_vae(vae: Run, tmp_path: Path) -> None:
    source = copy_of(vae, tmp_path)
    done = latent_run(tmp_path, source)
    metrics = (done.result or {})["metrics"]
    parts = [metrics[f"test/{name}"] for name in ("log_posterior", "latent_nll")]
    assert metrics["test/kl"] == pytest.approx(sum(parts))
    own = load(source.path)
    samples = load(done.path).sample(3)
    shutil.rmtree(source.path)

    moved = shutil.move(done.path, tmp_path / "elsewhere")
    model = load(moved)
    assert torch.equal(model.sample(3), samples) and samples.shape == (3, 1, 28, 28)
    for name, weight in own.state_dict().items():
        assert torch.equal(model.codec.vae.state_dict()[name], weight), name
    x = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        bound = model.bound(x, BatchNoise(4, 1))
    assert set(bound) == {"reconstruction", "kl"}

    # it goes on as well: with the path of a run that is gone
    Path(shutil.move(moved, done.path))
    unfinished(done)
    again = latent_run(tmp_path, source)
    assert again.path == done.path
    assert (again.result or {})["metrics"] == metrics


def test_a_run_goes_on_with_its_own_copy(
    vae: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = copy_of(vae, tmp_path)
    done = latent_run(tmp_path, source)
    metrics = (done.result or {})["metrics"]
    unfinished(done)
    assert (latent_run(tmp_path, source).result or {})["metrics"] == metrics
    assert "has changed" not in caplog.text

    unfinished(done)
    for path in source.checkpoints.glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["state_dict"] = {k: v + 1 for k, v in content["state_dict"].items()}
        torch.save(content, path)
    with caplog.at_level(logging.WARNING):
        again = latent_run(tmp_path, source)
    assert "has changed since this run began, which goes on with its own copy" in caplog.text
    assert again.path == done.path and (again.result or {})["metrics"] == metrics


def test_a_start_from_the_latents_of_another_vae_is_refused(vae: Run, tmp_path: Path) -> None:
    """It would train on the latents of the one, and be named by the other."""
    start = latent_run(tmp_path, vae)
    other = copy_of(vae, tmp_path / "other")
    for path in other.checkpoints.glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["state_dict"] = {k: 1.01 * v for k, v in content["state_dict"].items()}
        torch.save(content, path)
    longer = "trainer.max_epochs=2"
    for key in ("init_from", "continue_from"):
        with pytest.raises(ConfigError) as refused:
            latent_run(tmp_path, other, f"{key}={start.path}", longer)
        assert f"{key}={start.path}: it was trained on the latents of another" in str(refused.value)
        assert latent_run(tmp_path, vae, f"{key}={start.path}", longer).is_completed


def test_the_identity_is_that_of_the_vae_and_not_its_place(vae: Run, tmp_path: Path) -> None:
    def path(source: object, *overrides: str) -> Path:
        asked = [*DDPM, "runs_dir=runs", f"model.codec.run={source}", *overrides]
        return planning.plan(compose(asked), asked).path

    here, there = path(vae.path), path(copy_of(vae, tmp_path).path)
    assert here == there and str(tmp_path) not in str(here)
    other = copy_of(vae, tmp_path / "other")
    other.path.rename(other.path.with_name("vae-00000000"))
    assert path(other.path.with_name("vae-00000000")) != here


def test_inputs_are_kept_once_and_train_as_images_do(
    vae: Run, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = latent_run(tmp_path, vae)
    (file,) = cache.iterdir()
    changed = file.stat().st_mtime_ns
    latent_run(tmp_path, vae, "seed=1")
    assert [f.stat().st_mtime_ns for f in cache.iterdir()] == [changed]
    # the same training on images alone gives the same weights
    monkeypatch.setattr(Batches, "__getitem__", _without_inputs(Batches.__getitem__))
    again = latent_run(tmp_path / "again", vae)
    kept, recomputed = (load(r.path, "last").state_dict() for r in (first, again))
    for name, weight in kept.items():
        torch.testing.assert_close(weight, recomputed[name], rtol=1e-4, atol=1e-6)


def _without_inputs(getitem: Any) -> Any:
    def changed(self: Batches, index: BatchIndex) -> Any:
        batch = getitem(self, index)
        batch.pop("inputs", None)
        return batch

    return changed


@pytest.mark.parametrize("flip", [False, True])
def test_the_loss_of_kept_inputs_is_that_of_the_images(
    vae: Run, tmp_path: Path, flip: bool
) -> None:
    done = latent_run(tmp_path, vae, f"data.flip={flip}")
    model, data = load_with_data(done.path)
    data.prepare_data()
    data.setup("fit")
    inputs = kept_inputs(model, data, "these")
    assert inputs is not None and inputs.shape == (1 + flip, 300, 2, 2, 7, 7)
    data.flip = not flip  # other inputs of the same images
    others = kept_inputs(model, data, "these")
    assert others is not None and len(others) == 2 - flip
    data.flip = flip
    data.train_inputs = inputs
    batch = next(iter(data.train_dataloader()))
    x = to_unit_interval(batch["image"])
    with torch.no_grad():
        loss = model.loss(x, noise=BatchNoise(len(x), 7))["loss"]
        same = model.loss_of_inputs(batch["inputs"], None, None, BatchNoise(len(x), 7))["loss"]
    assert float(same) == pytest.approx(float(loss), rel=1e-6)
    # drawn anew: another noise gives other latents
    other = model.loss_of_inputs(batch["inputs"], None, None, BatchNoise(len(x), 8))["loss"]
    assert float(other) != pytest.approx(float(loss), rel=1e-6)
    # and of unit variance, as measured on these inputs
    drawn = torch.cat(
        [model.codec.draw(part, BatchNoise(len(part), 1)) for part in batches(inputs)]
    )
    if not flip:
        std = drawn.transpose(0, 1).flatten(1).std(1)
        torch.testing.assert_close(std, torch.ones_like(std), atol=0.02, rtol=0)


def refused(vae: os.PathLike[str], *overrides: str) -> str:
    asked = [*DDPM, "runs_dir=runs", f"model.codec.run={os.fspath(vae)}", *overrides]
    with pytest.raises(ConfigError) as caught:
        planning.plan(compose(asked), asked)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("model.codec.run=")
    return message


def test_a_run_that_is_no_trained_vae_of_these_images_is_refused(vae: Run, tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert "this folder is no run directory" in refused(tmp_path)
    source = copy_of(vae, tmp_path)
    unfinished(source)
    assert "this run is preempted, not completed; let it end first" in refused(source)
    told = refused(vae.path, "data=fashion_mnist")
    assert "other images (MNISTMini, val_images 50" in told and "FashionMNIST" in told
    assert "val_images 60" in refused(vae.path, "data.val_images=60")
    assert "train_images 299" in refused(vae.path, "data.train_images=299")
    assert "binarisation static" in refused(vae.path, "data.binarisation=static")
    told = refused(vae.path, "data.binarisation=dynamic")
    assert "data.binarisation=dynamic changes it in every epoch; give static" in told
    asked = [*DDPM, "runs_dir=runs"]
    with pytest.raises(ConfigError, match=r"no value for model\.codec\.run"):
        planning.plan(compose(asked), asked)


def test_a_run_of_another_model_or_likelihood_is_refused(vae: Run, tmp_path: Path) -> None:
    def assembled(source: Run) -> str:
        asked = [*DDPM, "runs_dir=runs", f"model.codec.run={source.path}"]
        with pytest.raises(ConfigError) as caught:
            planning.assemble(planning.plan(compose(asked), asked))
        return str(caught.value)

    source = copy_of(vae, tmp_path)
    text = source.config_text or ""
    grey = text.replace("DiscretizedLogisticLikelihood", "Bernoulli")
    source.config_path.write_text(grey)
    assert "model.codec" in (told := assembled(source)) and "is no density" in told
    ddpm = compose([*QUICK, "model=ddpm"])
    source.config_path.write_text(to_yaml(resolve(ddpm)))
    assert "a DDPM has no latents; give a VAE" in assembled(source)
    # what a run directory may not say is not built
    source.config_path.write_text(text.replace("genlab.nets.vae.MapEncoder", "os.system"))
    assert "is refused" in refused(source)


def test_images_that_changed_since_the_vae_are_refused(vae: Run, tmp_path: Path) -> None:
    source = copy_of(vae, tmp_path)
    write_atomically(source.data_path, {"files": "then", "images": {}, "source": "", "times": ""})
    asked = [*DDPM, "runs_dir=runs", f"model.codec.run={source.path}"]
    planned = planning.plan(compose(asked), asked)
    with pytest.raises(ConfigError, match="the images have changed since this run"):
        codec_of_run.refuse_other_images(planned.config, {"files": "now"})


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    vae: Run, tmp_path: Path
) -> None:
    source = copy_of(vae, tmp_path)
    shutil.rmtree(source.checkpoints)
    with pytest.raises(RunDirectoryError, match=r"model\.codec\.run=.*no such checkpoint"):
        latent_run(tmp_path, source)
    assert not (tmp_path / "runs").exists()


def test_a_vae_far_larger_than_its_checkpoint_is_refused_before_it_is_built(
    vae: Run, tmp_path: Path
) -> None:
    source = copy_of(vae, tmp_path)
    text = source.config_text or ""
    source.config_path.write_text(text.replace("latent_dim: 98", f"latent_dim: {98 * 10**9}"))
    assert "the model is far larger than its checkpoint" in refused(source)
    # so is the copy of a run that goes on
    done = latent_run(tmp_path, vae)
    text = done.config_text or ""
    done.config_path.write_text(text.replace("latent_dim: 98", f"latent_dim: {98 * 10**9}"))
    with pytest.raises(ConfigError, match=r"model\.codec\.run=.* far larger than its checkpoint"):
        latent_run(tmp_path, vae)
    done.config_path.write_text("model: {_target_: genlab.vae.model.VAE}")
    with pytest.raises(ConfigError, match=r"no model\.codec\.vae, with which this run began"):
        codec_of_run.with_vae(resolve(compose([*DDPM, f"model.codec.run={vae.path}"])), done.path)


class Doubled(nn.Module):
    """A model whose inputs are the images, twice."""

    keeps_inputs = True

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, x], 1)

    def loss_of_inputs(self, inputs: object, labels: object, step: object, noise: object) -> None:
        raise AssertionError("nothing is trained here")


@pytest.fixture(scope="module")
def data() -> ImageData:
    found: ImageData = build(resolve(compose(QUICK))["data"], "data")
    found.prepare_data()
    found.setup("fit")
    return found


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_pickle(path: Path) -> None:
    np.save(path, np.array([Path()], dtype=object))


def write_fewer(path: Path) -> None:
    np.save(path, np.load(path)[:, :-1])


def write_wider(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


DAMAGES = [write_empty, write_half, write_pickle, write_fewer, write_wider, put_fifo, put_link]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: str(damage.__name__))
def test_kept_inputs_that_are_damaged_are_named(
    data: ImageData, cache: Path, damage: Callable[[Path], None]
) -> None:
    inputs = kept_inputs(Doubled(), data, "these")
    assert inputs is not None and inputs.shape == (1, 300, 2, 1, 28, 28)
    (path,) = cache.iterdir()
    inputs = np.array(inputs)  # no longer of the file, which is cut
    damage(path)
    told = re.escape(str(path)) + r" cannot be read \(.*\): delete it, and it is made again"
    with pytest.raises(DataError, match=told):
        kept_inputs(Doubled(), data, "these")
    path.unlink()
    again = kept_inputs(Doubled(), data, "these")
    assert again is not None and np.array_equal(again, inputs)


def test_a_place_where_no_inputs_can_be_kept_is_named(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\).*XDG_CACHE_HOME"):
        kept_inputs(Doubled(), data, "these")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    told = r"the 1,881,600 bytes of .* \(No space left on device\): make room"
    with pytest.raises(DataError, match=told):
        kept_inputs(Doubled(), data, "these")


def test_latents_that_are_not_finite_are_refused(vae: Run, tmp_path: Path) -> None:
    source = copy_of(vae, tmp_path)
    for path in source.checkpoints.glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["state_dict"]["model.encoder.6.weight"][0] = torch.nan
        torch.save(content, path)
    with pytest.raises(ConfigError, match=r"latents are not finite in the channels 0; give a VAE"):
        latent_run(tmp_path, source)


def test_a_channel_that_collapsed_is_refused_on_demand(vae: Run, tmp_path: Path) -> None:
    source = copy_of(vae, tmp_path)
    for path in source.checkpoints.glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        name = "model.encoder.6.weight"
        content["state_dict"][name][:2] = 0  # the means of both channels
        torch.save(content, path)
    with pytest.raises(ConfigError, match=r"model\.codec\.collapsed=refuse: the channels 0, 1 say"):
        latent_run(tmp_path, source, "model.codec.collapsed=refuse")


def test_the_config_of_a_run_holds_that_of_its_vae(vae: Run, tmp_path: Path) -> None:
    done = latent_run(tmp_path, vae)
    config = from_yaml(done.config_text or "", "config.yaml")
    own = from_yaml(vae.config_text or "", "config.yaml")["model"]
    inside = config["model"]["codec"]["vae"]
    assert inside.pop("_partial_") is True
    assert inside == {name: own[name] for name in inside}
    assert not {"optimizer", "lr_schedule", "module"} & inside.keys()
    # the trained weights alone are averaged, and the codec's are in the checkpoint
    content = torch.load(done.checkpoints / "last.ckpt", weights_only=True)
    assert any(name.startswith("model.codec.vae.") for name in content["state_dict"])
    assert all(name.startswith("model.net.") for name in content["raw_weights"])
    trained = sum(weight.numel() for weight in content["raw_weights"].values())
    assert (done.result or {})["parameters"] == trained
