"""The wheel alone, in an environment and a folder of its own, does all that a checkout does."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from trained_runs import logged

import genlab
from genlab.runs.manifest import Manifest
from genlab.runs.reading import RESULT, read_json
from genlab.runs.run import Run, find_runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
OWN = """
from genlab.vae.kl_schedules import KLSchedule

class Halved(KLSchedule):
    def weight(self, step: int) -> float:
        return 0.5
"""
QUICK = ["trainer=smoke", "callbacks=none", "logger=none"]


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that sees neither the checkout nor what genlab reads from the environment."""
    hidden = ("GENLAB", "PYTHONPATH", "PYTHONSAFEPATH")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel, and the packages of this one beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder)]
    built = run(*build, str(ROOT), cwd=folder)
    assert built.returncode == 0, built.stderr
    # as in a project of the user's, whose commit is none of genlab
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init"], [*identity, "commit", "--allow-empty", "--message", "theirs"]):
        run("git", *arguments, cwd=folder)
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python, (wheel,) = environment / "bin/python", folder.glob("*.whl")
    # before this environment's own entry, an editable genlab of which is in a .pth and so not seen
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "beside.pth").write_text(sysconfig.get_path("purelib"))
    into = [*pip[:3], "--python", str(python), *pip[3:], "install", *offline, str(wheel)]
    installed = run(*into, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return environment / "bin"


@pytest.fixture
def command(bin_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """`genlab ...` in an empty folder, which must succeed."""

    def called(*arguments: str) -> str:
        done = run(str(bin_folder / "genlab"), *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return called


def test_it_holds_the_configs_the_data_the_plugins_and_its_types(bin_folder: Path) -> None:
    code = (
        "import genlab, hydra_plugins.genlab as plugins; from genlab.config.compose import *;"
        "print(genlab.__file__, plugins.__file__, directory(), sep='\\n')"
    )
    places = run(str(bin_folder / "python"), "-c", code, cwd=bin_folder).stdout.splitlines()
    site = bin_folder.parent / "lib"
    assert len(places) == 3 and all(Path(place).is_relative_to(site) for place in places)
    package = Path(places[0]).parent
    assert (package / "py.typed").is_file()
    names = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert names == {path.relative_to(places[2]) for path in Path(places[2]).rglob("*.yaml")}


def measured(run: Run) -> dict[tuple[int, str], float]:
    """Return what a run logged, without its speed."""
    speed = ("train/images_per_second", "train/mfu")
    found = {key: v for key, v in logged(run.metrics()).items() if key[1] not in speed}
    assert any(name.startswith("test/") for _, name in found)
    return found


def test_it_trains_what_train_py_trains(
    command: Callable[..., str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    overrides = ["model.kl_weight=4", "trainer=smoke"]
    assert "result runs/single/" in command("train", *overrides)
    (ours,) = find_runs(tmp_path / "runs")
    elsewhere = tmp_path_factory.mktemp("checkout")
    script = [sys.executable, str(ROOT / "train.py")]
    outcome = run(*script, *overrides, cwd=elsewhere)
    assert outcome.returncode == 0, outcome.stderr
    (theirs,) = find_runs(elsewhere / "runs")
    assert ours.name == theirs.name
    assert measured(ours) == measured(theirs)
    assert read_json(ours.env_path, RESULT)["git_commit"] is None  # type: ignore[index]
    # and it is one run, whichever of them is asked for it
    assert "completed before" in command("train", *overrides)
    assert "completed" in command("report", f"runs/single/{ours.name}")
    assert "of 20 active" in command("evaluate", f"runs/single/{ours.name}", "data=mnist_mini")
    assert "model.safetensors" in command("export", f"runs/single/{ours.name}")


@pytest.mark.parametrize("launcher", ["basic", "process"])
def test_it_runs_multiruns_with_a_class_of_the_working_directory(
    command: Callable[..., str], tmp_path: Path, launcher: str
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    own = ["~model.kl_schedule", "+model.kl_schedule={_target_: mine.Halved}"]
    said = command("train", *QUICK, "-m", "model.kl_weight=0,1", *own, f"launcher={launcher}")
    assert "kl_weight 0" in said
    runs = find_runs(tmp_path / "runs")
    assert [run.state for run in runs] == ["completed"] * 2
    assert all("mine.Halved" in str(run.config_text) for run in runs)


def test_it_plans_a_study(command: Callable[..., str], tmp_path: Path) -> None:
    said = command("sweep", "sweep=kl_weight", "dry=true")
    assert "15 jobs" in said and "Nothing was started" in said
    assert not find_runs(tmp_path)


def test_a_sweep_keeps_the_command_as_it_was_typed(
    command: Callable[..., str], tmp_path: Path
) -> None:
    command("sweep", "sweep=kl_weight", "seed=0", "model.kl_weight=0,1", *QUICK)
    assert {run.state for run in find_runs(tmp_path)} == {"completed"}
    manifest = Manifest.read(tmp_path / "runs/kl_weight")
    assert manifest is not None
    assert manifest.command[1:4] == ("sweep", "sweep=kl_weight", "seed=0")


def test_a_module_is_run_as_the_command(bin_folder: Path, tmp_path: Path) -> None:
    for program in (["genlab"], ["python", "-m", "genlab"]):
        asked = [str(bin_folder / program[0]), *program[1:], "--version"]
        assert run(*asked, cwd=tmp_path).stdout == f"genlab {genlab.__version__}\n"
    module = [str(bin_folder / "python"), "-m", "genlab", "train", *QUICK]
    assert run(*module, cwd=tmp_path).returncode == 0
    assert [trained.state for trained in find_runs(tmp_path)] == ["completed"]
