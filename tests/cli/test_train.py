"""The command line of `genlab train` and `genlab sweep`: options, choices, help."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genlab import cli
from genlab.cli import train_help
from genlab.config.compose import compose, options
from genlab.errors import ConfigError
from genlab.runs.identity import flatten
from genlab.training import run
from genlab.training.outcome import Outcome
from genlab.training.run_config import RunConfig

SWEPT = "model.kl_weight=0,1"


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The KL weights of the runs that a command starts, none of which trains."""
    started: list[float] = []

    def train(cfg: Any) -> Outcome:
        started.append(cfg.model.kl_weight)
        return Outcome(0)

    monkeypatch.setattr(run, "train", train)
    return started


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "trainer=smoke", SWEPT],
        ["trainer=smoke", "-m", SWEPT],
        ["trainer=smoke", SWEPT, "--multirun"],
        ["-m", "trainer=smoke", "-cd", ".", SWEPT],
    ],
    ids=" ".join,
)
def test_options_may_stand_anywhere(
    arguments: list[str], weights: list[float], tmp_path: Path
) -> None:
    assert cli.main(["train", *arguments, f"runs_dir={tmp_path}"]) == 0
    assert weights == [0, 1]


def test_a_value_alone_is_a_single_run(weights: list[float], tmp_path: Path) -> None:
    assert cli.main(["train", f"runs_dir={tmp_path}", "model.kl_weight=4"]) == 0
    assert weights == [4]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config-name", "foo"], r"^--config-name foo: there is no foo\.yaml .*sweep, train$"),
        (["--config-name", "foo", "--help"], "^--config-name foo: there is no foo.yaml"),
        (["model=foo"], "^model=foo: there is no such file; choose one of ddpm, gan, vae$"),
        (["--cfg", "job", "-m"], "^-m and --cfg: give one of them"),
        (["--experimental-rerun", "x.pickle"], "^--experimental-rerun: it reads a pickle"),
        (["--resolve"], "^--resolve: .*--cfg job"),
        (["--shell-completion"], "^--shell-completion: give install=bash"),
        (["--config-dir", "nowhere"], "^--config-dir nowhere: there is no such folder$"),
        (["kl_weight"], "^kl_weight: this is not key=value$"),
        (["model.kl_wieght=1", "--help"], "did you mean model.kl_weight"),
        (["--config-path", "nowhere"], "'.*/nowhere' exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        cli.main(["train", *arguments])


def test_a_config_of_ones_own_takes_the_place_of_the_main_one(
    tmp_path: Path, weights: list[float]
) -> None:
    own = "defaults:\n  - train\n  - _self_\nmodel:\n  kl_weight: 7\n"
    (tmp_path / "mine.yaml").write_text(own)
    arguments = ["train", "--config-dir", str(tmp_path), "--config-name", "mine"]
    assert cli.main([*arguments, f"runs_dir={tmp_path}"]) == 0
    assert weights == [7]


def test_the_version_is_that_of_genlab(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--version"]) == 0
    said = capsys.readouterr().out
    assert said == f"genlab {importlib.metadata.version('genlab')}\n"
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == said


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The help of a command for a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def help_of(*arguments: str) -> str:
        assert cli.main([*arguments, "--help"]) == 0
        return capsys.readouterr().out

    return help_of


def rows(text: str) -> dict[str, str]:
    """The rows of a help: the first column, and the whole second one."""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("options,")[2].splitlines():
        if match := re.match(r"  (\S.*?)(?:  +(.*))?$", line):
            name = match[1]
            found[name] = match[2] or ""
        elif line.startswith("   "):
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def choices(row: str) -> list[str]:
    return row.rpartition(" (")[0].split(", ")


@pytest.mark.parametrize("chosen", [["model=vae"], ["model=ddpm", "launcher=process"]])
def test_the_help_explains_every_key(told: Callable[..., str], chosen: list[str]) -> None:
    text = told("train", *chosen)
    assert max(map(len, text.splitlines())) <= 80
    explained = {key.partition("=")[0]: comment for key, comment in rows(text).items()}
    config = flatten(RunConfig.of(compose(chosen)).__dict__)
    keys = {key for key, value in config.items() if "._" not in key and value != {}} - {"launcher"}
    assert keys <= explained.keys()
    assert not [key for key in keys if not explained[key]]
    assert ("hydra.launcher.slots" in explained) == ("launcher=process" in chosen)


@pytest.mark.parametrize("model", ["vae", "ddpm"])
def test_the_help_lists_the_choices_that_are_taken(told: Callable[..., str], model: str) -> None:
    listed = choices(rows(told("train", f"model={model}"))["model/net"])
    for name in options("model/net"):
        cfg = compose([f"model={model}", f"model/net={name}"])
        if name in listed:
            RunConfig.of(cfg)
        else:
            with pytest.raises(ConfigError, match=r"^model\.net"):
                RunConfig.of(cfg)


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_the_help_lists_no_file_that_is_no_choice(told: Callable[..., str], name: str) -> None:
    found = rows(told(name))
    assert ("sweep" in found) == (name == "sweep")
    assert "wandb_sweep" not in found
    assert "_base" not in found["data"]
    for launcher in choices(found["launcher"]):
        compose([f"launcher={launcher}"], with_hydra=True)
    for group in ("data", "experiment", "debug", "trainer"):
        left_out = set(options(group)) - set(choices(found[group]))
        assert left_out <= {"huggingface"}  # whose extra may not be installed
        assert set(choices(found[group])) <= set(options(group))  # which tests/config composes


def test_a_choice_whose_package_is_missing_is_not_listed(
    told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "mlflow" in choices(rows(told("train"))["logger"])

    def version(name: str) -> str:
        if name == "mlflow-skinny":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(train_help.importlib.metadata, "version", version)
    listed = choices(rows(told("train"))["logger"])
    assert "mlflow" not in listed and "tensorboard" in listed


def test_the_help_shows_the_choices_and_values_that_were_given(told: Callable[..., str]) -> None:
    found = rows(told("train", "data=folder", "model.kl_weight=4", "seed=0,1"))
    assert found["data"].endswith("(now folder)")
    assert found["model.kl_weight=4"].startswith("weight of the KL term")
    assert found["data.source.root=(needed)"].startswith("the tree of images")
    assert "seed=0" in found
    assert rows(told("sweep", "sweep=kl_weight", "dry=true"))["sweep"].endswith("(now kl_weight)")
