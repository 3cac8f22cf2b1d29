"""A multirun with a failure ends with exit code 1 or 2 and the true reason, whatever raises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from disks import mounted
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf

import genlab.report
from genlab.cli import main
from genlab.config import hydra_job
from genlab.config.secrets import refuse_secrets, refuse_typed
from genlab.errors import REFUSED, ConfigError, RunDirectoryError
from genlab.runs.locks import Lock
from genlab.runs.run import find_runs
from genlab.sweeps.run_progress import RunProgress
from genlab.sweeps.supervisor import _record
from genlab.training import run
from genlab.training.outcome import Outcome

ROOT = Path(__file__).parents[2]
QUICK = [
    *("trainer=smoke", "callbacks=none", "logger=none", "forecast=false", "data.batch_size=32"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"),
]
FULL = OSError(28, "No space left on device", "/disk/summary.csv")

#: What the comparison at the end raises, and what is told of it.
RAISED = {
    "full": (FULL, "/disk/summary.csv (No space left on device): make room", 1),
    "damaged": (ValueError("a torn picture"), "ValueError: a torn picture", 1),
    "manifest": (RunDirectoryError("manifest.json is no manifest"), "is no manifest", 2),
    "memory": (MemoryError(), "out of memory", 1),
}


def ended(path: Path, launcher: str = "hydra._internal.core_plugins.basic_launcher.B") -> Any:
    """Hydra's callbacks, as it calls them, and the config of a multirun below `path`."""
    node = {"_target_": "genlab.sweeps.SweepSummary"}
    hydra = {
        "callbacks": {"sweep": node},
        "sweep": {"dir": str(path)},
        "launcher": {"_target_": launcher},
        "overrides": {"task": ["seed=0,1"]},
    }
    config = OmegaConf.create({"hydra": hydra, "notes": None})
    return Callbacks(config), config


@pytest.mark.parametrize(("error", "told", "code"), RAISED.values(), ids=RAISED)
def test_a_comparison_that_raises_is_no_success(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    told: str,
    code: int,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(genlab.report, "collect", fail)
    callbacks, config = ended(tmp_path)
    for failed in (Outcome(1, tmp_path / "a", message="x"), Outcome(2, None, message="no GPU")):
        returned = SimpleNamespace(_return_value=failed)
        callbacks.on_job_end(config=config, job_return=returned)
    with pytest.raises(SystemExit) as end:
        callbacks.on_multirun_end(config=config)
    assert end.value.code == code
    output = capsys.readouterr()
    assert "refused: no GPU" in output.out
    (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert told in line


def test_a_launcher_of_others_whose_jobs_left_nothing_has_failed(tmp_path: Path) -> None:
    callbacks, config = ended(tmp_path, "hydra_plugins.hydra_joblib_launcher.joblib_launcher.J")
    with pytest.raises(SystemExit) as end:
        callbacks.on_multirun_end(config=config)
    assert end.value.code == 1


def test_a_refused_job_of_such_a_launcher_is_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = OmegaConf.create({"traceback": False, "seed": -1})
    monkeypatch.setattr(hydra_job, "is_multirun", lambda: True)
    monkeypatch.setattr(hydra_job, "must_raise_refusals", lambda: False)
    assert run.train(cfg).exit_code == 2
    monkeypatch.setattr(hydra_job, "must_raise_refusals", lambda: True)
    with pytest.raises(ConfigError):
        run.train(cfg)


def test_a_full_disk_does_not_end_the_supervision_of_the_other_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FULL

    monkeypatch.setattr("genlab.sweeps.supervisor.record_end", fail)
    _record(tmp_path, "failed", message="killed")


def test_a_run_that_was_moved_does_not_end_the_others(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"pid": 7, "total_steps": 3}')
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "moved")
    progress = RunProgress(tmp_path, 7)
    progress._read_metrics(tmp_path / "metrics.jsonl")
    assert progress.step is None


@pytest.mark.parametrize("number", [28, 122, 27])
def test_a_full_disk_is_told_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(RunDirectoryError, match="make room, or set runs_dir to where") as told:
        Lock(tmp_path / "runs").open()
    assert "writable" not in str(told.value)


def command(script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if not key.startswith("GENLAB_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], *told: str) -> None:
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for text in told:
        assert text in line


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "process"])
@pytest.mark.parametrize("options", ["ro", "size=16k"], ids=["read-only", "full"])
def test_a_multirun_on_a_bad_disk_says_so_in_one_sentence(
    tmp_path: Path, launcher: str, options: str
) -> None:
    with mounted(tmp_path / "disk", options) as done:
        if not done:
            pytest.skip("only root can mount a disk")
        place = tmp_path / "disk"
        if options != "ro":
            with (place / "filling").open("wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(512))
        chosen = ["-m", *QUICK, f"launcher={launcher}", "seed=0,1", f"runs_dir={place}/runs"]
        outcome = command("train.py", *chosen)
        reason = "Read-only file system" if options == "ro" else "No space left on device"
        assert_one_sentence(outcome, reason)
        assert ("writable" in outcome.stderr) == (options == "ro")


#: Python runs this at its start: the comparison meets a full disk, or a picture that was torn.
FAULTY_REPORT = """
import genlab.report
def fail(*_):
    raise OSError(28, "No space left on device", "summary.csv")
genlab.report.collect = fail
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "process"])
def test_two_failed_jobs_and_no_room_for_the_comparison_are_exit_code_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTY_REPORT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    chosen = ["-m", *QUICK, f"launcher={launcher}", "model.optimizer.lr=1e30", "seed=0,1"]
    done = command("train.py", *chosen, f"runs_dir={tmp_path / 'runs'}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "nothing more can be written at summary.csv (No space left on device)" in done.stderr
    assert [there.state for there in find_runs(tmp_path / "runs")] == ["failed", "failed"]
    assert "the same command again does only what is missing" in done.stdout


EXITING = """
import sys
import lightning.pytorch as pl
class Exiting(pl.Callback):
    def on_train_start(self, trainer, module):
        if module.seed == 0:
            sys.exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "process"])
def test_a_job_that_exits_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    (tmp_path / "exiting.py").write_text(EXITING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    chosen = ["-m", *QUICK, f"launcher={launcher}", "+callbacks.own._target_=exiting.Exiting"]
    done = command("train.py", *chosen, "seed=0,1", f"runs_dir={tmp_path / 'runs'}")
    assert done.returncode == 1, done.stdout + done.stderr
    states = [there.state for there in find_runs(tmp_path / "runs")]
    assert sorted(states) == ["completed", "failed"]


RAISING = """import lightning.pytorch as pl

class Halt(BaseException):
    pass

class Halting(pl.Callback):
    def on_train_start(self, trainer, module):
        if module.seed == 0:
            raise Halt("enough")
"""


@pytest.mark.slow
def test_a_class_that_raises_no_exception_but_its_base_ends_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halting.py").write_text(RAISING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    chosen = ["-m", *QUICK, "+callbacks.own._target_=halting.Halting", "seed=0,1"]
    done = command("train.py", *chosen, f"runs_dir={tmp_path / 'runs'}")
    assert done.returncode == 1 and "error: Halt: enough" in done.stderr
    states = [there.state for there in find_runs(tmp_path / "runs")]
    assert sorted(states) == ["completed", "failed"]


SECRET = "0123456789abcdef0123456789abcdef01234567"
TYPED: list[Callable[[str], str]] = [
    lambda key: f"+logger.api_key={key}",
    lambda key: f"+logger.wandb.API_KEY={key}",
    lambda key: f"logger.password={key}",
    lambda key: f"+logger={{_target_: x.Y, token: {key}}}",
    lambda key: f"+logger.x={{'secret':{key}}}",
    lambda key: f"++a.hf_token={key},other",
    lambda key: f"wandb.apikey=({key}",
    lambda key: f"--api-key={key}",
    lambda key: f"--api-key {key}",
    lambda key: f"logger.wandb.api_key:{key}",
    lambda key: f"{{api_key:{key}}}",
    lambda key: f"+logger.wandb.secret_key={key}",
    lambda key: f"+hydra.job.env_set.AWS_SECRET_KEY={key}",
]


@pytest.mark.parametrize("typed", TYPED, ids=range(len(TYPED)))
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["run", "multirun"])
def test_a_typed_secret_is_refused_and_neither_told_nor_kept(
    tmp_path: Path, typed: Callable[[str], str], mode: list[str]
) -> None:
    done = command("train.py", *mode, *QUICK, typed(SECRET), f"runs_dir={tmp_path}", cwd=tmp_path)
    assert_one_sentence(done, "a secret is no setting")
    assert SECRET not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("typed", [[f"--api-key={SECRET}"], ["--token", SECRET]])
@pytest.mark.parametrize("name", ["report", "sample", "workspace"])
def test_a_secret_as_an_option_of_a_command_is_not_echoed(
    capsys: pytest.CaptureFixture[str], name: str, typed: list[str]
) -> None:
    assert main([name, "runs/x", *typed]) == REFUSED
    printed = capsys.readouterr()
    assert "a secret is no setting" in printed.err and SECRET not in printed.err + printed.out


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["-m", "seed=0,1"]], ids=["run", "multirun"])
def test_a_secret_in_a_file_is_refused_too(tmp_path: Path, mode: list[str]) -> None:
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    text = f"comet:\n  _target_: lightning.pytorch.loggers.CSVLogger\n  api_key: {SECRET}\n"
    (tmp_path / "conf" / "logger" / "comet.yaml").write_text(text)
    chosen = ["--config-dir", str(tmp_path / "conf"), *mode, *QUICK, "logger=comet"]
    done = command("train.py", *chosen, f"runs_dir={tmp_path / 'runs'}")
    assert_one_sentence(done, "logger.comet.api_key: a secret is no setting")
    assert SECRET not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


SPELLINGS = (
    *("api_key", "apiKey", "APIKey", "api__key", "api-keys", "secret_key", "accessToken"),
    *("apiToken", "passphrase", "password_", "token2", "token_1", "secret_token_value"),
    *("wandb_key", "encryption_key", "pwd", "Credentials", "hf_token"),
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_secret_is_known_however_it_is_spelled(name: str) -> None:
    with pytest.raises(ConfigError, match=f"logger.x.{name}: a secret is no setting"):
        refuse_typed([f"+logger.x.{name}={SECRET}"])
    with pytest.raises(ConfigError, match=f"logger.{name}: a secret is no setting"):
        refuse_secrets({"logger": {name: SECRET}})


def test_a_key_that_only_sounds_like_a_secret_is_a_setting() -> None:
    refuse_typed(["model.tokens=3", "model.token_dim=3", "+net.cls_token=true", "notes=a token"])
    refuse_typed(["+logger.api_key=null", "logger=none", "-m", "--help"])
    refuse_secrets({"model": {"tokens": "x", "cls_token": True, "api_key": None}, "tags": ["t"]})
