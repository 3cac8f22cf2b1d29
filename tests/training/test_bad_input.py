"""Bad input is refused before training, in one sentence that names the remedy."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genlab import cli
from genlab.config.compose import compose
from genlab.data.sources import CIFAR10, MNIST
from genlab.errors import REFUSED, ConfigError, DataError, GenlabError, RunDirectoryError
from genlab.runs.run import Run
from genlab.training import planning, run
from genlab.training.weights import read

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "genlab" / "data" / "mnist_mini"
QUICK = ["trainer=smoke", "callbacks=none", "logger=none", "forecast=false"]
GAUSSIAN = [
    *QUICK,
    "data=gaussian",
    "data.source.train_images=300",
    "data.source.test_images=50",
    "data.val_images=50",
    "data.batch_size=50",
    "model/likelihood=gaussian",
    "model/net=linear",
    "model.latent_dim=2",
]


def train(runs_dir: Path, *overrides: str) -> run.Outcome:
    return run.run(compose([*overrides, f"runs_dir={runs_dir}"]))


def refusal(runs_dir: Path, *overrides: str, kind: type[GenlabError] = ConfigError) -> str:
    """Return the message that refuses a run; nothing was trained, and it is one sentence."""
    with pytest.raises(kind) as caught:
        train(runs_dir, *overrides)
    message = str(caught.value)
    assert caught.value.exit_code == REFUSED
    assert message and "\n" not in message and "object at 0x" not in message
    assert not list(runs_dir.rglob("*.ckpt"))
    return message


WRONG_SETTINGS = [
    # the KL weight
    (["model.kl_weight=-1"], ["model.kl_weight=-1", "at least 0"]),
    (["model.kl_weight=much"], ["model.kl_weight='much'", "a number"]),
    (["model.kl_weight=nan"], ["model.kl_weight=nan", "finite"]),
    (["model.kl_weight=inf"], ["model.kl_weight=inf", "finite"]),
    (["model.kl_weight=null"], ["model.kl_weight=null", "a number"]),
    (["model.kl_weight=true"], ["model.kl_weight=true", "a number"]),
    (["model.kl_weight=[1]"], ["model.kl_weight=[1]", "a number"]),
    # its convention
    (
        ["model.kl_convention={}"],
        ["model.kl_convention.error is not stated", "squared, cross_entropy"],
    ),
    (
        ["model.kl_convention={error: squared, kl: sum}"],
        ["model.kl_convention.reconstruction is not stated", "sum, half_sum, mean"],
    ),
    (
        ["model.kl_convention={error: squared, reconstruction: mean}"],
        ["model.kl_convention.kl is not stated", "sum, mean"],
    ),
    (
        ["model/kl_convention=mean_squared_error", "model.kl_convention.kl=max"],
        ["model.kl_convention.kl='max'", "sum, mean"],
    ),
    (
        ["model/kl_convention=mean_squared_error", "model/likelihood=bernoulli", "data=mnist_mini"],
        ["model.kl_convention.error='squared'", "is Bernoulli", "use model/likelihood=gaussian"],
    ),
    (
        ["model/kl_convention=mean_cross_entropy"],
        ["model.kl_convention.error='cross_entropy'", "use model/likelihood=bernoulli"],
    ),
    (
        ["model.kl_convention=mean_squared_error"],
        ["model/kl_convention=NAME", "mean_squared_error"],
    ),
    # components
    (["model/likelihood=bernouli"], ["model/likelihood=bernouli", "did you mean bernoulli?"]),
    (["model.likelihood=poisson"], ["model.likelihood='poisson'", "model/likelihood=NAME"]),
    (["model.likelihood=null"], ["model.likelihood=null", "model/likelihood=NAME", "bernoulli"]),
    (["model.kl_schedule=linear"], ["model.kl_schedule='linear'", "model/kl_schedule=NAME"]),
    (["model.prior=vamp"], ["model.prior='vamp'", "model/prior=NAME"]),
    (["model.net=mlp"], ["model.net='mlp'", "model/net=NAME"]),
    (["model.net.encoder=mlp"], ["model.net.encoder='mlp'", "_target_"]),
    (["model.optimizer=adam"], ["model.optimizer='adam'", "model/optimizer=NAME", "adamw"]),
    (["model.free_bits=0.5"], ["model.free_bits=0.5", "keys, kind, nats"]),
    (["data=imagenet"], ["data=imagenet", "mnist_mini"]),
    (["experiment=kl_weight"], ["experiment=kl_weight", "did you mean vae/kl_weight?"]),
    (["trainer=null"], ["trainer=null", "cpu, ddp, fsdp, gpu, smoke"]),
    (["model/likelyhood=gaussian"], ["model/likelyhood", "did you mean model/likelihood?"]),
    # sizes and settings
    (["model.latent_dim=0"], ["model.latent_dim=0", "at least 1"]),
    (["model.latent_dim=2.5"], ["model.latent_dim=2.5", "a whole number"]),
    (["model.latent_dim=nan"], ["model.latent_dim=nan", "a whole number"]),
    (["model.net.encoder.hidden=[0]"], ["model.net.encoder.hidden=[0]", "start at 1"]),
    (["model/net=conv", "model.net.encoder.channels=[]"], ["channels=[]", "at least one"]),
    (["model/net=conv", "model.net.decoder.blocks=-1"], ["decoder.blocks=-1", "at least 0"]),
    (["model.free_bits.kind=some"], ["model.free_bits.kind='some'", "per_dimension"]),
    (["model.free_bits.nats=x"], ["model.free_bits.nats='x'", "a number"]),
    (["model.free_bits.nats=-1"], ["model.free_bits.nats=-1", "at least 0"]),
    (["model.log_var_range=[1,0]"], ["model.log_var_range=[1.0, 0.0]", "low, then high"]),
    (["model.optimizer.lr=-1"], ["model.optimizer.lr=-1", "Invalid learning rate"]),
    (["model.optimizer.eps=nan"], ["model.optimizer.eps=nan", "Invalid epsilon"]),
    (
        ["model.optimizer.weight_decay=nan"],
        ["model.optimizer.weight_decay=nan", "Invalid weight_decay"],
    ),
    (["model.lr_schedule.cosine=x"], ["model.lr_schedule.cosine='x'", "true or false"]),
    (["seed=-1"], ["seed=-1", "0 or more"]),
    (["seed=x"], ["seed='x'", "a whole number"]),
    (["seed=9223372036854775808"], ["seed=9223372036854775808", "below 2^63"]),
    (["ema_decay=1"], ["ema_decay=1.0", "between 0 and 1"]),
    (["early_stopping_epochs=0"], ["early_stopping_epochs=0", "1 or more"]),
    (["early_stopping_epochs=3", "data.val_images=0"], ["early_stopping_epochs=3", "val_images"]),
    (["checkpoint_every_n_steps=0"], ["checkpoint_every_n_steps=0", "1 or more"]),
    (["matmul_precision=low"], ["matmul_precision='low'", "highest, high, medium"]),
    (["evaluate=first"], ["evaluate='first'", "best, last"]),
    (["overwrite=yes"], ["overwrite='yes'", "true or false"]),
    (["group=.."], ["group='..'", "a name"]),
    (["group=a/b"], ["group='a/b'", "letters"]),
    (["runs_dir="], ["runs_dir=''", "a folder"]),
    (["tags=new"], ["tags='new'", "a list"]),
    (["callbacks=pictures", "callbacks.samples.images=0"], ["samples", "images=0", "at least 1"]),
    (["+callbacks.mine=3"], ["callbacks.mine=3", "Callback", "_target_"]),
    # the trainer
    (["trainer.max_epochs=0"], ["trainer.max_epochs=0", "1 or more"]),
    (["trainer.precision=16-true"], ["trainer.precision=16-true", "bf16-mixed or 16-mixed"]),
    (["trainer.precision=bf16-true"], ["trainer.precision=bf16-true", "32-true"]),
    (["trainer.precision=64-true"], ["trainer.precision=64-true", "32-true"]),
    (["trainer.limit_train_batches=0.001"], ["limit_train_batches=0.001", "less than one batch"]),
    (["trainer.limit_val_batches=0.1"], ["trainer.limit_val_batches=0.1", "of 1 this is less"]),
    (["trainer.max_epochs=null"], ["trainer.max_epochs=null", "trainer.max_steps"]),
    (["trainer.max_steps=0"], ["trainer.max_steps=0", "1 or more"]),
    (["trainer.limit_train_batches=0"], ["trainer.limit_train_batches=0", "1 or more"]),
    (["trainer.limit_test_batches=0"], ["trainer.limit_test_batches=0", "1 or more"]),
    (["trainer.check_val_every_n_epoch=0"], ["check_val_every_n_epoch=0", "1 or more"]),
    (["trainer.log_every_n_steps=0"], ["trainer.log_every_n_steps=0", "1 or more"]),
    (["trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches=0", "1 or more"]),
    (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1", "0 or more"]),
    (["trainer.precision=8"], ["trainer.precision=8", "bf16-mixed"]),
    (["trainer.precision=fp16"], ["trainer.precision=fp16", "bf16-mixed or 16-mixed"]),
    (["trainer.accelerator=abacus"], ["trainer", "accelerator='abacus'", "cpu"]),
    # the data's own
    (["data.batch_size=251"], ["data.batch_size=251", "250 training images", "at most 250"]),
    (["data.batch_size=0"], ["data.batch_size=0", "at least 1"]),
    (["data.val_images=300"], ["data.val_images=300", "at most 299"]),
    (["data.train_images=251"], ["data.train_images=251", "there are 250"]),
    (["data.binarisation=static"], ["data.binarisation=static", "real numbers", "give none"]),
    (["data.binarisation=maybe"], ["data.binarisation='maybe'", "none, static, dynamic"]),
    (["data.source.eigenvalues=[1]"], ["data.source.eigenvalues=[1.0]", "give 8"]),
    (["data.source=mnist"], ["data.source='mnist'", "ImageSource"]),
    # a likelihood that does not fit
    (["model/likelihood=bernoulli"], ["model.likelihood: bernoulli", "real numbers", "gaussian"]),
    (["model/likelihood=discretized_logistic"], ["8-bit pixels", "use gaussian"]),
    (["model/likelihood=continuous_bernoulli"], ["on [0, 1]", "use gaussian"]),
    # keys
    (["model.kl_wieght=3"], ["model.kl_wieght=3", "did you mean model.kl_weight?"]),
    (["+model.kl_wieght=3"], ["model.kl_wieght=3", "did you mean kl_weight?"]),
    (["kl_weight=3"], ["kl_weight=3", "did you mean model.kl_weight?"]),
    (["max_epochs=3"], ["max_epochs=3", "did you mean trainer.max_epochs?"]),
    (["modle.kl_weight=3"], ["modle.kl_weight=3", "did you mean model.kl_weight?"]),
    (["sede=3"], ["sede=3", "did you mean seed?"]),
    (["+sede=3"], ["sede=3", "did you mean seed?"]),
    (
        ["callbacks=[default,quality]", "callbacks.quality.smaples=50"],
        ["callbacks.quality.smaples=50", "did you mean callbacks.quality.samples?"],
    ),
    (["model.likelihood.sclae=3"], ["sclae=3", "did you mean model.likelihood.scale?"]),
    (["model.likelihood={sclae: 3}"], ["model.likelihood.sclae", "likelihood.scale?"]),
    (["+model.free_bits.nat=1"], ["model.free_bits.nat=1", "did you mean nats?"]),
    (["+model.net.middle=1"], ["model.net.middle=1", "decoder, encoder"]),
    (["model.kl_schedule.steps=3"], ["model.kl_schedule.steps=3", "there is no such key"]),
    (["~model", "data=mnist_mini"], ["no value for model"]),
    (["~model", "data=mnist_mini", "model/prior=vamp"], ["model/prior=vamp", "no such part"]),
    (["~model.kl_weight"], ["model", "kl_weight"]),
    (["data=folder", "group=???"], ["no value for data.source.root, group"]),
    (["notes=${nothing}"], ["nothing", "not found"]),
    (["model.kl_weight"], ["model.kl_weight", "key=value"]),
    (["init_from=runs/a=b"], ["init_from=runs/a=b", "'init_from=\"runs/a=b\"'"]),
]


@pytest.mark.parametrize(
    ("overrides", "said"),
    WRONG_SETTINGS,
    ids=[" ".join(overrides) for overrides, _ in WRONG_SETTINGS],
)
def test_a_wrong_setting_is_refused_by_name(
    tmp_path: Path, overrides: list[str], said: list[str]
) -> None:
    base = [] if any(o.startswith("data=") for o in overrides) else GAUSSIAN
    if overrides[0].startswith("runs_dir"):
        with pytest.raises(ConfigError) as caught:
            run.run(compose(overrides))
        message = str(caught.value)
    else:
        message = refusal(tmp_path, *base, *overrides)
    for part in said:
        assert part in message
    assert len(message) < 500


CONTINUOUS = ["model/noise_schedule=linear_log_snr", "model.steps=null", "model.test_draws=4"]
WRONG_DIFFUSION = [
    # steps and schedules
    (["model.steps=0"], ["model.steps=0", "a whole number of at least 1"]),
    (["model.steps=2.5"], ["model.steps=2.5", "a whole number"]),
    (
        ["model/noise_schedule=linear_betas", "model.noise_schedule.beta_end=1.5"],
        ["model.noise_schedule.beta_end=1.5", "above 0 and below 1"],
    ),
    (
        ["model/noise_schedule=scaled_linear_betas", "model.noise_schedule.beta_start=0"],
        ["model.noise_schedule.beta_start=0", "above 0 and below 1"],
    ),
    (
        ["model/noise_schedule=linear_betas", "model.steps=10"],
        ["beta_end=0.02", "rescaled by 1000/steps=100 it is 2", "more steps", "such as linear"],
    ),
    (
        ["model/noise_schedule=cosine_betas", "model.noise_schedule.max_beta=1"],
        ["model.noise_schedule.max_beta=1", "below 1"],
    ),
    (["model.noise_schedule.beta_max=0.01"], ["beta_max=0.01", "at least 0.1"]),
    (
        ["model/noise_schedule=linear_log_snr", "model.noise_schedule.log_snr_max=-10"],
        ["log_snr_max=-10.0, log_snr_min=-9.0", "falls from data to noise"],
    ),
    (
        ["model.log_snr_min=-30"],
        ["model.log_snr_min=-30", "runs from inf to -10.05", "between, or null"],
    ),
    (["model/noise_schedule=cosin"], ["model/noise_schedule=cosin", "did you mean cosine?"]),
    (["model.noise_schedule=cosine"], ["model/noise_schedule=NAME", "cosine_betas", "sigmoid"]),
    (
        ["model/noise_schedule=learned"],
        ["model.noise_schedule: one that is learned", "model/weighting=vlb", "model.steps=null"],
    ),
    # what is predicted
    (
        ["model/noise_schedule=zero_terminal_snr"],
        ["model.parameterization: Epsilon", "SNR of 0", "model/parameterization=v"],
    ),
    (
        ["model/noise_schedule=cosine", "model.noise_schedule.log_snr_min=null"],
        ["model.parameterization: Epsilon", "log_snr_min, for instance -20"],
    ),
    # continuous time
    (["model.steps=null"], ["model.test_draws=null", "for instance 64"]),
    (
        ["model.steps=null", "model.test_draws=4"],
        ["model.steps=null", "from inf to -10.05", "log_snr_max", "model.steps, for instance"],
    ),
    (
        [*CONTINUOUS, "model.sampler.steps=null"],
        ["model.sampler.steps=null", "model.steps=null", "give a number"],
    ),
    (
        [*CONTINUOUS, "model/reverse_variance=learned"],
        ["model.reverse_variance: learned", "set model.steps", "reverse_variance=fixed_large"],
    ),
    # samplers and variances
    (["model.steps=20"], ["model.sampler.steps=50", "model.steps=20", "give at most 20"]),
    (["model.sampler.steps=1001"], ["model.sampler.steps=1001", "give at most 1000"]),
    (["model.sampler.grid=even"], ["model.sampler.grid='even'", "uniform, quadratic, log_snr"]),
    (["model.sampler.eta=2"], ["model.sampler.eta=2", "at most 1"]),
    (
        ["model.steps=1", "model.sampler.steps=1", "model/reverse_variance=fixed_small"],
        ["reverse_variance: fixed_small", "model.steps=1", "reverse_variance=fixed_large"],
    ),
    (["model.val_draws=0"], ["model.val_draws=0", "at least 1"]),
    (["model.test_draws=0"], ["model.test_draws=0", "at least 1"]),
    (["model.variance_loss_weight=-1"], ["model.variance_loss_weight=-1", "at least 0"]),
    (
        ["model/weighting=min_snr", "model.weighting.gamma=0"],
        ["model.weighting.gamma=0", "above 0"],
    ),
    # classes
    (
        ["model.guidance=2"],
        ["model.guidance=2", "model.conditional=true", "model.label_drop=0.1"],
    ),
    (
        ["model.guidance=2", "model.conditional=true", "model.label_drop=0"],
        ["model.guidance=2", "with and without their class", "model.label_drop=0.1"],
    ),
    (["model.guidance=-1"], ["model.guidance=-1", "at least 0"]),
    (["model.guidance=1e308"], ["model.guidance=1e+308", "at most 1000"]),
    (["model.label_drop=1.5"], ["model.label_drop=1.5", "at most 1"]),
    # data that the bound is not for
    (
        ["data.binarisation=static"],
        ["data.binarisation", "256 levels", "set data.binarisation=none"],
    ),
    (["data=gaussian"], ["real numbers", "256 levels", "data=mnist"]),
    # a training that is too short for its history
    (
        ["model/time_sampler=importance"],
        ["bins=100", "history=10", "at least 1000 images", "sees 512", "low_discrepancy"],
    ),
    # parts of another model
    (
        ["model/net=mlp"],
        ["model.net={encoder: ..., decoder: ...}", "model/net=NAME, of denoiser_mlp, unet_"],
    ),
    (["model=vae", "model/net=unet_tiny"], ["UNet'", "model/net=NAME, of conv, conv_4x"]),
    (["model/likelihood=gaussian"], ["model/likelihood=gaussian", "no such part"]),
    (["model.kl_weight=3"], ["model.kl_weight=3", "there is no such key"]),
    (["model.net.attention=[5]"], ["model.net.attention=[5]", "28, 14, 7"]),
    (["callbacks=pictures", "callbacks.forward.steps=1"], ["forward.steps=1", "at least 2"]),
]


@pytest.mark.parametrize(
    ("overrides", "said"), WRONG_DIFFUSION, ids=[" ".join(o) for o, _ in WRONG_DIFFUSION]
)
def test_a_diffusion_model_that_cannot_be_is_refused_by_name(
    tmp_path: Path, overrides: list[str], said: list[str]
) -> None:
    base = [] if overrides[0].startswith("model=") else ["model=ddpm"]
    message = refusal(tmp_path, *QUICK, *base, *overrides)
    for part in said:
        assert part in message
    assert len(message) < 500


def test_a_schedule_that_ends_too_early_is_warned_of_by_how_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model.net.channels=8", "model.net.attention=[]", "model.test_draws=1"]
    few = ["data.batch_size=8", "data.eval_batch_size=8", "model.steps=100"]
    table = ["model/noise_schedule=linear_betas", "model.noise_schedule.rescale=false"]
    assert train(tmp_path, *QUICK, "model=ddpm", *small, *few, *table).exit_code == 0
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if "warning" in line)
    # alpha-bar and the prior term of pixels of mean square 1: -ln(1 - 0.364) / 2 nats
    for part in ("ends too early", "alpha-bar is 0.364", "0.326 bits/dim, 326 times the 0.001"):
        assert part in warning
    assert train(tmp_path, *QUICK, "model=ddpm", *small, *few, table[0]).exit_code == 0
    assert "warning" not in capsys.readouterr().out


def test_bernoulli_takes_colour_by_binarisation_or_as_a_stated_choice(tmp_path: Path) -> None:
    grey_levels = ["data=cifar10", f"data.data_dir={tmp_path}", "model/likelihood=bernoulli"]
    message = refusal(tmp_path, *grey_levels)
    assert message.startswith("model.likelihood: bernoulli: 3 channels of 256 levels")
    for remedy in ("data.binarisation=static", "model.likelihood.colour_targets=true"):
        assert remedy.removeprefix("model.likelihood.") in message
        planning.assemble(planning.plan(compose([*grey_levels, remedy]), []))


def command(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def no_network(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("Name or service not known")


@pytest.fixture
def script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str]]:
    """`train.py` as a script of this process: its exit code, and what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # so that it does not stay set
    monkeypatch.setattr(urllib.request, "urlopen", no_network)

    def execute(*overrides: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *QUICK, *overrides])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        output = capsys.readouterr()
        assert "Traceback" not in output.out
        assert not list(tmp_path.rglob("*.ckpt"))
        return caught.value.code, output.err

    return execute


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.kl_wieght=3"], "model.kl_wieght=3: .*did you mean model.kl_weight?"),
        (["model.kl_weight=-1"], "model.kl_weight=-1"),
        (["model/likelihood=bernouli"], "did you mean bernoulli"),
        (["data=mnist", "data.data_dir=empty"], "train-images-idx3-ubyte .*data.data_dir"),
        (["data=cifar10", "data.binarisation=static"], "cifar-10.* could not be downloaded"),
        (
            ["model.net.encoder._target_=os.system"],
            "model.net.encoder._target_='os.system': this is",
        ),
        (["data=folder"], "no value for data.source.root"),
        (["trainer=null"], "trainer=null: a choice is needed"),
        (["model=ddpm", "model.steps=0"], "model.steps=0: give a whole number of at least 1"),
        (["model=ddpm", "model.steps=20"], "model.sampler.steps=50: .*give at most 20"),
        (["model.latent_dim=0", "+seed=1"], "'seed'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_ends_with_one_line_and_exit_code_2(
    script: Callable[..., tuple[Any, str]], overrides: list[str], said: str
) -> None:
    code, written = script(*overrides)
    (line,) = written.splitlines()
    assert code == REFUSED and line.startswith("error: ") and re.search(said, line)


@pytest.mark.parametrize("override", ["model.kl_weight=-1", "model.kl_wieght=1"])
def test_a_traceback_is_shown_where_it_is_asked_for(
    script: Callable[..., tuple[Any, str]], override: str
) -> None:
    code, written = script(override, "traceback=true")
    assert code == REFUSED and written.startswith("Traceback")
    assert written.splitlines()[-1].startswith(f"error: {override}")


def test_the_process_itself_exits_so(tmp_path: Path) -> None:
    done = command(*QUICK, "model.kl_wieght=3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert done.stderr == (
        "error: model.kl_wieght=3: there is no such key; did you mean model.kl_weight?\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_job_that_its_images_refuse_leaves_the_others_whole(tmp_path: Path) -> None:
    done = command("-m", *GAUSSIAN, "data.batch_size=99999999,16", "group=two", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error: data.batch_size=99999999 is more than") == 1
    (trained,) = (p for p in (tmp_path / "runs/two").iterdir() if p.is_dir())
    assert Run(trained).is_completed
    table = done.stdout[done.stdout.rindex("--- job 1") :]
    assert "neg_elbo" in table and trained.name in table
    assert "refused: data.batch_size=99999999" in table
    assert {p.name for p in (tmp_path / "runs/two").glob("summary.*")} == {
        "summary.csv",
        "summary.md",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["forecast", "model.kl_weight=much"], "model.kl_weight=much"),
        (["forecast", "model.kl_weight=-1"], "model.kl_weight=-1"),
        (["forecast", "model.kl_wieght=1"], "did you mean model.kl_weight?"),
        (["forecast", "data=gaussian"], "model.likelihood: bernoulli"),
        (["forecast", "model=ddpm"], "model=ddpm: a DDPM has no KL weight; give model=vae"),
        (["report", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_genlab_command_refuses_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


Damage = Callable[[Path], None]


def planted_digits(data_dir: Path) -> Path:
    """The embedded digits where MNIST is looked for."""
    folder = data_dir / "mnist"
    folder.mkdir(parents=True)
    for file in DIGITS.glob("*-ubyte*"):
        shutil.copy(file, folder)
    return folder


def edited(change: Callable[[bytearray], Any]) -> Callable[[Path], None]:
    """A change to the uncompressed content of a file, compressed again."""

    def apply(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        change(content)
        path.write_bytes(gzip.compress(bytes(content), 1))

    return apply


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("train-images", lambda path: path.write_bytes(path.read_bytes()[:-5000]), "truncated"),
        ("train-images", lambda path: path.write_bytes(b""), "not an IDX file"),
        ("train-images", lambda path: path.write_bytes(b"<html>"), "not an IDX file"),
        ("train-images", edited(lambda content: content.pop()), "is truncated"),
        ("train-images", edited(lambda content: content.append(0)), "is longer than"),
        ("train-images", edited(lambda content: content.__setitem__(5000, 7)), "is altered"),
        ("train-labels", edited(lambda content: content.__setitem__(100, 7)), "is altered"),
        ("t10k-labels", edited(lambda content: content.pop()), "is truncated"),
    ],
)
def test_a_damaged_idx_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, damage: Damage, said: str
) -> None:
    folder = planted_digits(tmp_path / "data")
    trust(folder, monkeypatch)
    (path,) = folder.glob(f"{file}-*")
    damage(path)
    message = refusal(
        tmp_path / "runs", *QUICK, "data=mnist", f"data.data_dir={tmp_path}/data", kind=DataError
    )
    assert str(path) in message and said in message
    assert "replace the file" in message or "delete it and it is downloaded again" in message


def trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files in `folder` for those that were published."""
    digests = {
        path.name.removesuffix(".gz"): hashlib.sha256(gzip.decompress(path.read_bytes()))
        for path in folder.iterdir()
    }
    monkeypatch.setattr(MNIST, "sha256", {name: d.hexdigest() for name, d in digests.items()})


def test_labels_out_of_range_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = planted_digits(tmp_path / "data")
    (path,) = folder.glob("train-labels-*")
    edited(lambda content: content.__setitem__(8 + 42, 10))(path)
    trust(folder, monkeypatch)
    where = f"data.data_dir={tmp_path}/data"
    message = refusal(tmp_path / "runs", *QUICK, "data=mnist", where, kind=DataError)
    assert f"{path}: label 10 of image 42 is out of range, labels go from 0 to 9" in message


def test_colour_records_with_wrong_labels_or_sizes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "records_per_file", 20)
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    records = np.zeros((20, 3073), dtype=np.uint8)
    names = [name for names in CIFAR10.files.values() for name in names]
    for name in names:
        (folder / name).write_bytes(records.tobytes())
    overrides = [*QUICK, "data=cifar10", f"data.data_dir={tmp_path}/data", "data.val_images=20"]
    overrides += ["model/likelihood=gaussian", "data.batch_size=40"]
    records[3, 0] = 200
    (folder / "data_batch_2.bin").write_bytes(records.tobytes())
    message = refusal(tmp_path / "runs", *overrides, kind=DataError)
    assert "data_batch_2.bin: label 200 of image 3 is out of range" in message
    (folder / "data_batch_2.bin").write_bytes(records.tobytes()[:-1])
    message = refusal(tmp_path / "runs", *overrides, kind=DataError)
    assert "data_batch_2.bin has 61,459 bytes instead of 61,460: delete" in message


@pytest.mark.parametrize("content", ["nothing", "another archive"])
def test_an_archive_that_is_not_the_published_one_is_named(tmp_path: Path, content: str) -> None:
    archive = tmp_path / "data" / "cifar10" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    if content == "nothing":
        archive.touch()
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(__file__, arcname="data_batch_1.bin")
    where = [f"data.data_dir={tmp_path}/data", "model/likelihood=gaussian"]
    message = refusal(tmp_path / "runs", *QUICK, "data=cifar10", *where, kind=DataError)
    assert f"{archive} is truncated or altered" in message and "delete it" in message


@pytest.mark.parametrize("content", [b"", b"no image"], ids=["empty", "unreadable"])
def test_a_bad_image_is_refused_or_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for i in range(60):
        Image.new("L", (4, 4), 4 * i).save(tmp_path / "tree" / "a" / f"{i:02}.png")
    bad = tmp_path / "tree" / "a" / "07.png"
    bad.write_bytes(content)
    overrides = [
        *QUICK,
        *("data=folder", f"data.source.root={tmp_path}/tree", "data.source.channels=1"),
        *("data.source.image_size=4", f"data.source.cache_dir={tmp_path}/cache"),
        *("data.val_images=5", "data.batch_size=8", "model/net=linear", "model.latent_dim=2"),
    ]
    message = refusal(tmp_path / "runs", *overrides, kind=DataError)
    assert str(bad) in message and "data.source.unreadable=skip" in message
    outcome = train(tmp_path / "runs", *overrides, "data.source.unreadable=skip")
    assert outcome.exit_code == 0
    assert f"1 unreadable images skipped: {bad}" in caplog.text


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    overrides = ["data=folder", "data.source.root=nowhere", "model/likelihood=gaussian"]
    message = refusal(tmp_path / "runs", *QUICK, *overrides, kind=DataError)
    assert message == "data.source.root=nowhere: there is no such folder"


@pytest.mark.parametrize("place", ["a file", "below a file", "no file system"])
def test_a_run_directory_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    runs_dir = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "runs",
        "no file system": Path("/proc/genlab"),
    }[place]
    message = refusal(runs_dir, *GAUSSIAN, kind=RunDirectoryError)
    assert message.startswith(str(runs_dir)) and "cannot be written" in message
    assert "set runs_dir to a place that is" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run."""
    path = train(tmp_path_factory.mktemp("trained"), *GAUSSIAN).path
    assert path is not None
    return path


@pytest.fixture
def interrupted(trained: Path, tmp_path: Path) -> Path:
    """The same run below `tmp_path`, as if it had been stopped after its last step."""
    path = tmp_path / "single" / trained.name
    shutil.copytree(trained, path)
    (path / "result.json").unlink()
    (path / "status.json").write_text(json.dumps({"state": "preempted"}))
    return path


def resumed_refusal(path: Path) -> str:
    before = sorted(path.rglob("*.ckpt"))
    with pytest.raises((ConfigError, RunDirectoryError)) as caught:
        train(path.parents[1], *GAUSSIAN)
    assert caught.value.exit_code == REFUSED and "\n" not in str(caught.value)
    assert sorted(path.rglob("*.ckpt")) == before
    assert Run(path).state == "failed" and Run(path).status["message"] == str(caught.value)
    return str(caught.value)


def test_an_interrupted_run_goes_on(interrupted: Path, trained: Path) -> None:
    outcome = train(interrupted.parents[1], *GAUSSIAN)
    assert outcome.path == interrupted and outcome.result is not None
    assert outcome.result["metrics"] == (Run(trained).result or {})["metrics"]


@pytest.mark.parametrize("remedy", ["remove it", "overwrite"])
def test_a_truncated_checkpoint_is_named_and_the_remedies_work(
    interrupted: Path, trained: Path, remedy: str
) -> None:
    last = interrupted / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    message = resumed_refusal(interrupted)
    assert message.startswith(f"{last} is no readable checkpoint")
    assert "remove it" in message and "overwrite=true" in message
    if remedy == "remove it":
        last.unlink()
    outcome = train(
        interrupted.parents[1], *GAUSSIAN, *(["overwrite=true"] if remedy == "overwrite" else [])
    )
    assert outcome.result is not None
    assert outcome.result["metrics"] == (Run(trained).result or {})["metrics"]
    assert len(Run(interrupted).metrics()) == len(Run(trained).metrics())
    kept = interrupted.with_name(f"{interrupted.name}.old-1")
    assert kept.exists() is (remedy == "overwrite")


def test_a_checkpoint_of_weights_alone_does_not_resume(interrupted: Path) -> None:
    folder = interrupted / "checkpoints"
    shutil.copy(folder / "best.ckpt", folder / "last.ckpt")
    message = resumed_refusal(interrupted)
    assert "holds weights alone" in message and "init_from=FILE" in message


def test_a_checkpoint_of_another_architecture_does_not_resume(
    interrupted: Path, tmp_path: Path
) -> None:
    other = train(tmp_path / "other", *GAUSSIAN, "model.latent_dim=3").path
    assert other is not None
    shutil.copy(other / "checkpoints" / "last.ckpt", interrupted / "checkpoints" / "last.ckpt")
    message = resumed_refusal(interrupted)
    assert "last.ckpt is of another architecture" in message
    assert "decoder.0.weight has shape (8, 3), the model needs (8, 2)" in message


def quoted(key: str, path: Path) -> str:
    return f"{key}='{path}'"


def test_weights_of_another_architecture_are_refused(tmp_path: Path, trained: Path) -> None:
    start = quoted("init_from", trained)
    message = refusal(tmp_path, *GAUSSIAN, start, "model.latent_dim=3")
    assert message.startswith(f"init_from={trained}")
    assert "decoder.0.weight has shape (8, 2), the model needs (8, 3)" in message
    message = refusal(tmp_path, *GAUSSIAN, start, "model/likelihood=gaussian_learned")
    assert "likelihood.log_scale is in the model alone" in message
    assert "use the config that it was trained with" in message
    assert train(tmp_path, *GAUSSIAN, start).exit_code == 0


class Command:
    """Object whose unpickling runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["nowhere", "empty", "text", "truncated", "tensor", "command"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, trained: Path, kind: str) -> None:
    path = tmp_path / "some.ckpt"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("weights")
    elif kind == "truncated":
        path.write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes()[:-100])
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "command":
        torch.save({"state_dict": {"x": Command(tmp_path / "owned")}}, path)
    message = refusal(
        tmp_path / "runs", *GAUSSIAN, quoted("init_from", path), kind=RunDirectoryError
    )
    assert message.startswith(f"init_from={path}") and len(message) < 400 + 2 * len(str(path))
    assert not (tmp_path / "owned").exists()


def test_a_spoilt_status_is_named_and_overwrite_helps(interrupted: Path) -> None:
    (interrupted / "status.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"status.json cannot be read .*overwrite=true"):
        train(interrupted.parents[1], *GAUSSIAN)
    assert train(interrupted.parents[1], *GAUSSIAN, "overwrite=true").exit_code == 0


def test_a_run_that_is_refused_keeps_what_was_there(interrupted: Path) -> None:
    """`overwrite` sets a run aside only when the new one can begin."""
    with pytest.raises(RunDirectoryError):
        train(interrupted.parents[1], *GAUSSIAN, "overwrite=true", "init_from=nowhere")
    assert (interrupted / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("method", [8, 12, 14, 99], ids=["deflate", "bzip2", "lzma", "unknown"])
def test_a_checkpoint_that_says_it_is_compressed_is_refused(tmp_path: Path, method: int) -> None:
    """torch compresses nothing, so that the bytes behind such a header are none of a compressor."""
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"w": torch.rand(64)}}, path)
    content = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = 0
        while (start := content.find(header, start) + 1) > 0:
            content[start - 1 + offset] = method
    path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="is no readable checkpoint"):
        read(path)
