"""Several processes compute what one does, but for rounding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genlab.runs.run import Run, find_runs

ROOT = Path(__file__).parents[2]
SMALL = [
    *("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true"),
    *("data.batch_size=32", "data.eval_batch_size=100", "data.train_images=320"),
    *("trainer.max_epochs=5", "trainer.limit_val_batches=2", "trainer.log_every_n_steps=1"),
    *("data.val_images=150", "ema_decay=0.9", "checkpoint_every_n_steps=3"),
    *("logger=none", "forecast=false"),
]
MODELS = {
    "vae": [
        *("model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]"),
        *("data.binarisation=dynamic", "data.flip=true", "model.iwae_samples=7"),
        *("trainer.limit_test_batches=3", "callbacks=[default,averages]"),
    ],
    "ddpm": [
        *("model=ddpm", "model.net.channels=8", "model.net.multipliers=[1,2]"),
        *("model.net.attention=[]", "model.steps=50", "model.test_draws=4", "callbacks=none"),
        *("model/time_sampler=importance", "model.time_sampler.bins=10"),
        *("model.time_sampler.history=4", "model/reverse_variance=optimal"),
        *("model.conditional=true", "trainer.limit_test_batches=1"),
    ],
    "gan": [
        *("model=gan", "model.net.generator.channels=[8]", "model.net.discriminator.channels=[8]"),
        *("model/augmentation=differentiable", "model.penalty.every=2", "callbacks=none"),
        *("model.conditional=true", "trainer.limit_test_batches=3"),
        # two networks against each other amplify rounding, twofold in a few steps
        *("trainer.max_epochs=2", "model.optimizer.lr=1e-4"),
    ],
}
#: Those that trainer=fsdp trains as well.
SHARDED = ("vae", "ddpm")


def command(model: str, runs_dir: Path, *overrides: str) -> list[str]:
    return [*SMALL, *MODELS[model], f"runs_dir={runs_dir}", *overrides]


def start(launcher: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, "train.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(model: str, runs_dir: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> Run:
    process = start([*launcher] or [sys.executable], command(model, runs_dir, *overrides))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (run,) = find_runs(runs_dir)
    return run


def assert_close(run: Run, reference: Run) -> None:
    assert run.name == reference.name
    assert [row.keys() for row in run.metrics()] == [row.keys() for row in reference.metrics()]
    results = [json.loads(r.result_path.read_text())["metrics"] for r in (run, reference)]
    rows = [*zip(run.metrics(), reference.metrics(), strict=True), results]
    for ours, theirs in rows:
        for name, value in theirs.items():
            if not name.endswith(("images_per_second", "mfu")):
                assert ours[name] == pytest.approx(value, rel=2e-4, abs=2e-4), name
    bounds = [r.bound or {} for r in (run, reference)]  # a GAN has none
    assert bounds[0].keys() == bounds[1].keys()
    for name, curve in bounds[1].items():
        assert bounds[0][name] == pytest.approx(curve, rel=2e-4, abs=2e-4), name
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (
            torch.load(r.checkpoints / name, weights_only=True)["state_dict"]
            for r in (run, reference)
        )
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=2e-3, atol=2e-4)
    kept = [{p.name: p for p in r.checkpoints.glob("averages.*")} for r in (run, reference)]
    assert kept[0].keys() == kept[1].keys()
    for name, path in kept[1].items():
        ours, theirs = load_file(kept[0][name]), load_file(path)
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a model in one process."""
    return cache(lambda model: finish(model, tmp_path_factory.mktemp(model), "trainer.devices=1"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "trainer"),
    [*((model, "ddp") for model in MODELS), *((model, "fsdp") for model in SHARDED)],
)
def test_two_processes_train_and_test_as_one(
    alone: Callable[[str], Run], tmp_path: Path, model: str, trainer: str
) -> None:
    """The last batch of validation and test is short, and of odd length."""
    two = [f"trainer={trainer}", "trainer.devices=2"]
    assert_close(finish(model, tmp_path, *two), alone(model))


@pytest.mark.slow
def test_two_processes_measure_the_quality_that_one_does(tmp_path: Path) -> None:
    """In training and in the test; the weights differ by rounding, which turns some pixels."""
    chosen = [
        *("trainer.max_epochs=2", "callbacks=quality", "callbacks.quality.samples=200"),
        *("features@callbacks.quality.features=pixels", "callbacks.quality.every_n_epochs=1"),
        *("callbacks.quality.samples_in_training=150", "model.optimizer.lr=1e-3"),
    ]

    def measured(trainer: str, processes: int) -> list[dict[str, float]]:
        place = [f"trainer={trainer}", f"trainer.devices={processes}"]
        run = finish("vae", tmp_path / f"{trainer}{processes}", *chosen, *place)
        assert run.result is not None
        rows = [*run.metrics(), run.result["metrics"]]
        kept = ({n: v for n, v in row.items() if "_pixels_" in n} for row in rows)
        return [row for row in kept if row]

    alone = measured("ddp", 1)
    assert [len(row) for row in alone] == [15, 15, 15, 15]  # result.json repeats the test's row
    for trainer in ("ddp", "fsdp"):
        for ours, theirs in zip(measured(trainer, 2), alone, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", SHARDED)
def test_spread_weights_are_averaged_also_where_a_validation_does_not_improve(
    tmp_path: Path, model: str
) -> None:
    """Then no checkpoint is written between the validation and the next step."""
    chosen = [
        *("trainer.max_epochs=3", "trainer.limit_train_batches=1", "model.optimizer.lr=1e-12"),
        *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "callbacks=none"),
        *("model.test_draws=1" if model == "ddpm" else "model.iwae_samples=0",),
    ]
    two = finish(model, tmp_path / "two", *chosen, "trainer=fsdp", "trainer.devices=2")
    best = torch.load(two.checkpoints / "best.ckpt", weights_only=True)
    assert best["global_step"] < 3
    assert_close(two, finish(model, tmp_path / "one", *chosen, "trainer.devices=1"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_run_of_two_processes_is_stopped_by_one_signal_and_goes_on_as_one(
    alone: Callable[[str], Run], tmp_path: Path, trainer: str
) -> None:
    two = [f"trainer={trainer}", "trainer.devices=2"]
    process = start([sys.executable], command("vae", tmp_path, *two))
    while not any(p.stat().st_size for p in tmp_path.glob("*/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    (run,) = find_runs(tmp_path)
    assert run.state == "preempted"
    assert_close(finish("vae", tmp_path, "trainer.devices=1"), alone("vae"))


@pytest.mark.slow
def test_a_signal_to_one_process_is_heard_by_all_between_the_terms_of_a_test(
    tmp_path: Path,
) -> None:
    often = tmp_path / "often.py"
    often.write_text(
        "import sys\n"
        "from genlab.__main__ import main\n"
        "from genlab.training.kept_terms import KeptTerms\n"
        "KeptTerms.__init__.__defaults__ = (0.0,)  # written after every term\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    exact = [
        *("trainer.devices=2", "trainer.max_epochs=1", "trainer.limit_train_batches=2"),
        *("trainer.limit_val_batches=1", "model.test_draws=null"),
        *("data.eval_batch_size=50", "trainer.limit_test_batches=2"),
    ]

    def begin(folder: Path) -> subprocess.Popen[str]:
        arguments = command("ddpm", tmp_path / folder, *exact)
        return subprocess.Popen(
            [sys.executable, str(often), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = begin(tmp_path / "stopped")
    while not any(tmp_path.rglob("test.*.1.safetensors")):  # of the second batch
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    done = [load_file(p)["terms"].shape for p in sorted(tmp_path.rglob("test.*.1.safetensors"))]
    assert done[0] == done[1] and 0 < done[0][0] < 50
    for folder in ("stopped", "whole"):
        process = begin(tmp_path / folder)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    (ours,), (theirs,) = find_runs(tmp_path / "stopped"), find_runs(tmp_path / "whole")
    assert ours.result is not None and theirs.result is not None
    assert ours.result["metrics"] == theirs.result["metrics"]
    assert ours.bound == theirs.bound
    assert not any(tmp_path.rglob("test.*.safetensors"))


@pytest.mark.slow
def test_torchrun_restarts_after_a_worker_was_killed_and_ends_equal(
    alone: Callable[[str], Run], tmp_path: Path
) -> None:
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "2", "--max-restarts", "1"),
    ]
    process = start(torchrun, command("vae", tmp_path, "trainer.devices=2"))
    while sum(p.read_bytes().count(b"\n") for p in tmp_path.glob("*/*/metrics.jsonl")) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    (run,) = find_runs(tmp_path)
    os.kill(run.status["pid"], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_close(run, alone("vae"))


@pytest.mark.slow
def test_a_batch_that_cannot_be_dealt_out_is_refused(tmp_path: Path) -> None:
    arguments = command("vae", tmp_path, "trainer.devices=2", "data.batch_size=33")
    process = start([sys.executable], arguments)
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "data.batch_size=33 cannot be dealt out evenly to 2 processes" in output


@pytest.mark.slow
def test_a_gan_is_not_spread(tmp_path: Path) -> None:
    process = start([sys.executable], command("gan", tmp_path, "trainer=fsdp", "trainer.devices=2"))
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert "trainer=fsdp: the networks of a GAN are trained in turn" in output


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.val_images=101", "data.eval_batch_size=100 leaves 1 of the 101 val images"),
        ("model/likelihood=gaussian_learned", "log_scale is trained beside them"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_spread_is_refused(tmp_path: Path, override: str, sentence: str) -> None:
    """Otherwise a process would wait for ever, or a gradient would not be averaged."""
    two = ["trainer=fsdp", "trainer.devices=2"]
    process = start([sys.executable], command("vae", tmp_path, *two, override))
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert sentence in output
