"""Test each promise of SECURITY.md with a planted attack.

Beside these: planted targets and YAML tags in tests/config/test_configs.py, pickles of every
kind in tests/training/test_bad_input.py, members of archives that leave their folder in
tests/data/test_download.py, markup in every name that a report shows, in a browser, in
tests/report/test_html.py; and a million damaged files by `make fuzz`.
"""

from __future__ import annotations

import ctypes
import html
import html.parser
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from trained_runs import train_in
from watched import watched

import genlab
from genlab import cli
from genlab.cli import workspace
from genlab.config.check import resolve, to_yaml
from genlab.config.compose import compose
from genlab.errors import DONE, REFUSED, ConfigError, RunDirectoryError
from genlab.media import pictures
from genlab.report import collect, write_sweep
from genlab.runs import files
from genlab.runs.directory import RunDirectory
from genlab.runs.files import refuse_foreign, refuse_links
from genlab.runs.locks import Lock
from genlab.runs.manifest import FILE_NAME, Job, Manifest
from genlab.runs.run import Run
from genlab.sweeps import job
from genlab.training import console, planning, run
from genlab.training.weights import read

ROOT = Path(__file__).parent.parent
QUICK = [
    *("trainer=smoke", "callbacks=none", "logger=none", "forecast=false", "data.batch_size=32"),
    *("model/net=linear", "model.latent_dim=2"),
]


def train(runs_dir: Path, *overrides: str) -> Path:
    return train_in(runs_dir, *QUICK, *overrides).path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run in a sweep's directory."""
    return train(tmp_path_factory.mktemp("trained"), "callbacks=pictures", "group=sweep")


@pytest.fixture
def received(trained: Path, tmp_path: Path) -> Path:
    """Copy a trained run, as if received from a stranger."""
    path = tmp_path / "received" / "sweep" / trained.name
    shutil.copytree(trained, path)
    return path


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """A file that is there if an attack succeeded."""
    return tmp_path / "owned"


class Planted:
    """A command that a pickle hides."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "sample": lambda path: ["sample", str(path), "--n", "1"],
    "video": lambda path: ["video", str(path), "--kind", "prior_walk", "--seconds", "0.1"],
    "export": lambda path: ["export", str(path)],
    "evaluate": lambda path: ["evaluate", str(path), "data=mnist_mini", "--batches", "1"],
}


@pytest.mark.parametrize("command", [*COMMANDS, "init_from", "continue_from", "resume"])
def test_a_pickle_in_a_checkpoint_is_not_run(
    received: Path, owned: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        path = received / "checkpoints" / name
        content = torch.load(path, weights_only=True)
        torch.save({**content, "planted": Planted(f"touch {owned}")}, path)
    (received / "checkpoints" / "last.before.ckpt").unlink(missing_ok=True)
    if command in COMMANDS:
        assert cli.main(COMMANDS[command](received)) == REFUSED
        assert "more than tensors and plain containers" in capsys.readouterr().err
    elif command in ("init_from", "continue_from"):
        with pytest.raises(RunDirectoryError, match="more than tensors and plain containers"):
            train(received.parents[2] / "runs", f"{command}='{received}'")
    else:
        (received / "status.json").write_text('{"state": "preempted"}')
        with pytest.raises(RunDirectoryError, match="more than tensors and plain containers"):
            train(received.parents[1], "callbacks=pictures", "group=sweep")
    assert not owned.exists()


TARGETS = (
    *("os.system", "builtins.eval", "builtins.exec", "torch.load", "torch.hub.load"),
    *("hydra.utils.get_method", "hydra.utils.instantiate", "subprocess.Popen", "shutil.rmtree"),
    *("genlab.training.run.os.system", "genlab.cli.main", "genlab.runs.files.write_atomically"),
    *(
        "lightning.pytorch.callbacks.LambdaCallback",
        "genlab.modules.vae.VAEModule.load_from_checkpoint",
    ),
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["model", "model.prior", "model.net.encoder"])
def test_a_planted_target_is_not_built(
    received: Path, owned: Path, command: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = received / "config.yaml"
    for target in TARGETS:
        config = yaml.safe_load(path.read_text())
        *parents, last = place.split(".")
        node = config
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = {"_target_": target, "command": f"touch {owned}", "f": str(owned)}
        (received / "config.yaml").write_text(yaml.safe_dump(config))
        assert cli.main(COMMANDS[command](received)) == REFUSED
        assert f"{place}._target_='{target}'" in capsys.readouterr().err
    assert not owned.exists()


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("model.time_sampler", "anything"),  # takes whatever a module takes
        ("model.net.encoder", "hidden"),
        ("model.module", "metrics"),
        ("model", "unknown"),
    ],
)
def test_a_class_with_side_effects_is_not_built_below_a_harmless_one(
    received: Path, owned: Path, place: str, key: str
) -> None:
    """An annotation that leaves the class open changes nothing."""
    path = received / "config.yaml"
    config = yaml.safe_load(path.read_text())
    if place == "model.time_sampler":
        config["model"] = yaml.safe_load(to_yaml(resolve(compose(["model=ddpm"]))))["model"]
    node = config
    for part in place.split("."):
        node = node[part]
    logger = "genlab.tracking.mlflow.MLflowLogger"
    node[key] = {"_target_": logger, "save_dir": str(owned), "experiment_name": "x"}
    path.write_text(yaml.safe_dump(config))
    code = cli.main(["sample", str(received), "--n", "1"])
    assert code == (DONE if place == "model.module" else REFUSED)  # which is not looked at
    assert not owned.exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["file", "key"])
def test_a_class_without_parameters_hides_no_other(
    received: Path, private: Path, command: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """ContinuousBernoulliLikelihood takes `*args, **kwargs`, as every nn.Module does."""
    target = "genlab.vae.likelihoods.ContinuousBernoulliLikelihood"
    hidden = {
        "file": {
            "_target_": "genlab.training.console._LogFile",
            **{"filename": str(private / "notes.txt"), "mode": "w"},
        },
        "key": {
            "_target_": "genlab.tracking.wandb.WandbLogger",
            **{"save_dir": str(private), "project": "p", "entity": "e", "mode": "online"},
        },
    }
    path = received / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["likelihood"] = {"_target_": target, "x": hidden[kind]}
    path.write_text(yaml.safe_dump(config))
    before = contents(private)
    with watched() as events:
        assert cli.main(COMMANDS[command](received)) == REFUSED
    assert "model.likelihood.x" in capsys.readouterr().err
    assert contents(private) == before and not events


#: A package of Python itself, and some that torch and torchmetrics use where they are installed.
SHADOWED = ("multiprocessing", "triton", "tabulate", "colorama", "torchvision", "optree", "gmpy2")
#: The console script, which has the folder of its own at the start of the path.
CONSOLE = (
    f"import sys; sys.path[0] = {str(ROOT)!r}; sys.argv[0] = 'genlab';"
    "from genlab.__main__ import main; sys.exit(main())"
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_in_a_received_run_is_imported_from_within_it(
    received: Path, owned: Path, command: str
) -> None:
    """A stranger's run is entered, and the command used on `.`."""
    for name in SHADOWED:
        package = received / name
        package.mkdir()
        (package / "__init__.py").write_text(f"open({str(owned)!r}, 'a').write({name!r})\n")
    arguments = COMMANDS[command](Path())
    arguments += ["--device", "cpu,cpu"] if command == "sample" else []
    done = subprocess.run(
        [sys.executable, "-c", CONSOLE, *arguments],
        cwd=received,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not owned.exists(), owned.read_text()
    assert done.returncode == DONE, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("group", ["data", "callbacks", "logger", "metrics", "trainer"])
def test_of_a_received_config_only_the_model_is_looked_at(
    received: Path, owned: Path, command: str, group: str
) -> None:
    path = received / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[group] = {
        f"planted_{i}": {"_target_": target, "command": f"touch {owned}", "f": str(owned)}
        for i, target in enumerate(TARGETS)
    }
    path.write_text(yaml.safe_dump(config))
    assert cli.main(COMMANDS[command](received)) == DONE
    assert not owned.exists()


def is_of_network(event: str) -> bool:
    """True but for the name of this machine, which a lock file holds."""
    return "socket" in event and not event.startswith("socket.gethostname")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_received_config_does_not_say_where_to_read_and_write(
    received: Path, tmp_path: Path, command: str
) -> None:
    """It names no images, caches or downloads, and missing ones raise no error."""
    path, chosen = received / "config.yaml", str(tmp_path / "chosen")
    config = yaml.safe_load(path.read_text())
    sources = (
        {"_target_": "genlab.data.sources.ImageFolder", "root": chosen, "image_size": 28},
        {"_target_": "genlab.data.sources.MNIST"},
    )
    for source in sources:
        config["data"] |= {"source": {**source, "cache_dir": chosen}, "data_dir": chosen}
        path.write_text(yaml.safe_dump(config))
        with watched() as events:
            assert cli.main(COMMANDS[command](received)) == DONE
        assert not [event for event in events if chosen in event or is_of_network(event)]
        shutil.rmtree(received / "exports", ignore_errors=True)  # one is not written over
    asked = ["video", str(received), "--kind", "interpolation", "--seconds", "0.1", "--n", "1"]
    with watched() as events:
        assert cli.main([*asked, "data=mnist_mini"]) == DONE
    assert not [event for event in events if chosen in event or is_of_network(event)]
    assert not Path(chosen).exists()


def test_a_run_is_sampled_and_exported_with_its_data_gone(tmp_path: Path) -> None:
    for i in range(12):
        image = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(image)
    path = train(
        tmp_path / "runs",
        *("data=folder", f"data.source.root={tmp_path / 'images'}", "data.val_images=2"),
        *("data.batch_size=2", f"data.source.cache_dir={tmp_path / 'cache'}"),
        *("data.source.image_size=8", "data.source.channels=1"),
    )
    shutil.rmtree(tmp_path / "images")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    model: Any = genlab.load(path)
    assert model.spec.shape == (1, 8, 8) and model.spec.classes == ("a", "b")
    assert cli.main(["sample", str(path), "--n", "2"]) == DONE
    assert cli.main(["export", str(path)]) == DONE
    assert not (tmp_path / "cache").exists()


def test_a_planted_job_of_a_manifest_is_not_run(received: Path, owned: Path) -> None:
    config = to_yaml(resolve(compose(QUICK)))
    planted = yaml.safe_load(config)
    popen = {"_target_": "subprocess.Popen", "args": ["touch", str(owned)]}
    hook = {"_target_": "lightning.pytorch.callbacks.LambdaCallback", "on_fit_start": popen}
    planted["callbacks"] = {"x": hook}
    planted["hydra"] = {"overrides": {"task": []}, "runtime": {"choices": {}}}
    Manifest("s", (), (Job("run", (), {}, 0, planted),)).write(received.parent)
    with pytest.raises(RunDirectoryError, match="started by the launcher of its sweep alone"):
        job.run_job([str(received.parent / FILE_NAME), "run"])
    assert not owned.exists()


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/tmp/x", "..", ".", "", "a b", "~", "$HOME", "x\n"]
)
def test_a_group_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    config = resolve(compose(QUICK))
    with pytest.raises(ConfigError, match="a name of letters, digits"):
        run.RunConfig.of({**config, "group": name})


@pytest.mark.parametrize(
    "name", ["../../x", "/etc", "..", ".", "", "a/b", 3, None, ["x"], "\ud800"]
)
def test_a_run_of_a_manifest_stays_in_its_sweep(received: Path, name: Any) -> None:
    Manifest("s", (), (Job(name, (), {}, 0),)).write(received.parent)
    states = {record.path: (record.state, record.error) for record in collect(received.parent)}
    state, error = states.pop(received.parent / FILE_NAME)
    assert state == "unreadable" and "is no manifest of a sweep" in (error or "")
    assert list(states) == [received]


def test_a_value_cannot_lead_a_run_out_of_its_group(tmp_path: Path) -> None:
    config = {**resolve(compose(QUICK)), "runs_dir": str(tmp_path)}
    for value in ("../../../x", "/etc/passwd", "..", "a\0b", "x\n", "\u202e"):
        path = planning.run_path(config, "group", [f"notes={value}", f"model.x={value}"])
        assert path.parent == tmp_path / "group" and path.name.isprintable()


EVIL = "\"'></script><evil onerror=evil()>&lt;evil&gt;"


def test_markup_in_configs_and_class_names_is_text(received: Path) -> None:
    config = yaml.safe_load((received / "config.yaml").read_text())
    config["model"] |= {"_target_": EVIL, EVIL: EVIL, "label": [EVIL]}
    config["group"] = config["notes"] = EVIL
    (received / "config.yaml").write_text(yaml.safe_dump(config))
    (received / "env.json").write_text(json.dumps({"versions": {EVIL: EVIL}, "gpus": [EVIL]}))
    result = Run(received).result or {}
    result["metrics"] |= {f"test/{EVIL}": 1.0}
    result |= {"verdict": EVIL, "forecast_verdict": EVIL, "units": {EVIL: EVIL}}
    (received / "result.json").write_text(json.dumps(result))
    failed = received.with_name("failed")
    shutil.copytree(received, failed)
    (failed / "status.json").write_text(
        json.dumps({"state": "failed", "type": EVIL, "message": EVIL, "where": EVIL})
    )
    (failed / "train.log").write_text(EVIL)
    write_sweep(collect(received.parent), received.parent)

    tags: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.extend([tag, *(name for name, _ in attrs)])

    page = (received.parent / "report.html").read_text()
    Parser().feed(page)
    assert "evil" in page and "script" in tags
    assert not {"evil", "onerror"} & set(tags)
    assert "Content-Security-Policy" in page and "default-src 'none'" in html.unescape(page)


SECRET = "TOP-SECRET-CONTENT"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of the person who opens what was received."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "notes.txt").write_text(SECRET)
    Image.new("RGB", (8, 8), "red").save(folder / "reconstructions-final.png")
    (folder / "walk-final.mp4").write_text(SECRET)
    return folder


READ = (
    *("config.yaml", "status.json", "metrics.jsonl", "result.json", "bound.json", "env.json"),
    *("train.log", "pictures/reconstructions-final.png", "videos/walk-final.mp4"),
    *("pictures", "videos", "../manifest.json"),
)


def lead_out(path: Path, private: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(private if "." not in path.name else private / "notes.txt")


@pytest.mark.parametrize("name", READ)
def test_a_report_shows_nothing_that_a_link_leads_to(
    received: Path, private: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lead_out(received / name, private)
    assert cli.main(["report", str(received.parent)]) == DONE
    assert "is a link" in capsys.readouterr().out
    shown = workspace._media(collect(received.parent), name.partition("/")[0], ".png")
    assert shown == [] or not name.startswith("pictures")
    for page in received.parent.glob("*.*"):
        assert SECRET not in page.read_text(errors="replace") or page.is_symlink()
    (sent,) = {r.state for r in collect(received.parent) if r.path.name != "manifest.json"}
    assert sent == ("completed" if name == "../manifest.json" else "unreadable")


@pytest.mark.parametrize("name", ["../jobs", "../videos"])
def test_a_report_writes_nothing_that_a_link_leads_to(
    received: Path, private: Path, name: str
) -> None:
    lead_out(received / name, private)
    with pytest.raises(RunDirectoryError, match="is a link to .*private.*remove it"):
        collect(received.parent)
    assert cli.main(["report", str(received.parent)]) == REFUSED
    assert not (received.parent / "report.html").exists()


def test_weights_are_not_read_through_a_link(received: Path, private: Path) -> None:
    (received / "checkpoints" / "best.ckpt").rename(private / "best.ckpt")
    (received / "checkpoints" / "best.ckpt").symlink_to(private / "best.ckpt")
    with pytest.raises(RunDirectoryError, match="init_from=.* is a link to .*private"):
        train(received.parents[2] / "runs", f"init_from='{received}'")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITTEN = (
    *("metrics.jsonl", "train.log", ".lock", "checkpoints/last.ckpt", "pictures/x.png"),
    *("checkpoints", "pictures", "videos", "wandb", "videos/frames"),
)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_training_writes_nothing_that_a_link_leads_to(
    received: Path, private: Path, name: str
) -> None:
    (received / "status.json").write_text('{"state": "preempted"}')
    path = received / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(private if "." not in path.name[1:] else private / "notes.txt")
    before = contents(private)
    with pytest.raises(RunDirectoryError, match="is a link to .*private.*remove it"):
        train(received.parents[1], "callbacks=pictures", "group=sweep")
    assert contents(private) == before


def test_a_run_that_is_a_link_is_not_trained_in(received: Path, private: Path) -> None:
    received.rename(private / received.name)
    received.symlink_to(private / received.name)
    before = contents(private)
    with pytest.raises(RunDirectoryError, match="is a link"):
        RunDirectory(received).open()
    assert contents(private) == before


@pytest.mark.parametrize("name", ["tracker_id", "train.log", "mlflow_run_id", "wandb/x"])
def test_a_training_waits_for_no_fifo(received: Path, name: str) -> None:
    (received / name).parent.mkdir(exist_ok=True)
    (received / name).unlink(missing_ok=True)
    os.mkfifo(received / name)
    with pytest.raises(RunDirectoryError, match="is a FIFO"):
        RunDirectory(received).open()


def test_a_sweep_is_not_begun_where_its_files_are_links(received: Path, private: Path) -> None:
    (received.parent / "multirun.yaml").symlink_to(private / "notes.txt")
    with pytest.raises(RunDirectoryError, match="is a link to"):
        refuse_foreign(received.parent, deep=False)
    (received.parent / "multirun.yaml").unlink()
    os.mkfifo(received.parent / "multirun.yaml")
    with pytest.raises(RunDirectoryError, match="is a FIFO"):
        refuse_foreign(received.parent, deep=False)


@pytest.mark.slow
def test_a_multirun_is_refused_before_hydra_writes(received: Path, private: Path) -> None:
    (received.parent / "multirun.yaml").symlink_to(private / "notes.txt")
    command = [sys.executable, "train.py", "-m", "model.kl_weight=1,2", "trainer=smoke"]
    done = subprocess.run(
        [*command, f"group={received.parent.name}", f"runs_dir={received.parents[1]}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == REFUSED
    assert "is a link to" in done.stderr and "Traceback" not in done.stderr
    assert (private / "notes.txt").read_text() == SECRET


@pytest.mark.parametrize("name", [".lock", "train.log", "checkpoints/last.ckpt"])
def test_a_training_writes_nothing_into_a_file_that_has_another_name(
    received: Path, private: Path, name: str
) -> None:
    (received / name).unlink(missing_ok=True)
    os.link(private / "notes.txt", received / name)
    with pytest.raises(RunDirectoryError, match=r"is a hard link .* put a copy in its place"):
        RunDirectory(received).open()
    assert (private / "notes.txt").read_text() == SECRET


def test_two_names_within_a_run_are_no_attack(received: Path) -> None:
    """A kill while a checkpoint is replaced leaves them."""
    os.link(received / "checkpoints" / "last.ckpt", received / "checkpoints" / ".x.kept.tmp")
    with RunDirectory(received):
        pass


def test_a_result_of_another_kind_is_one_sentence(received: Path) -> None:
    (received / "result.json").write_text('{"metrics": [1]}')
    with pytest.raises(RunDirectoryError, match=r"result\.json holds a list as metrics"):
        train(received.parents[1], "callbacks=pictures", "group=sweep")
    (record,) = collect(received.parent)
    assert record.state == "unreadable" and "holds a list as metrics" in (record.error or "")


def test_what_a_manifest_says_is_shown_escaped(tmp_path: Path) -> None:
    Manifest("s", (), (), code={"git_commit": "\x1b[2J", "digest": "x"}).write(tmp_path)
    found = Manifest.read(tmp_path)
    assert found is not None and found.code["git_commit"] == "\\x1b[2J"


def test_a_warning_about_a_received_file_is_shown_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    console.quieten_libraries()
    logging.getLogger("genlab.x").warning("odd %s; going on from the one before it", "\x1b[2J")
    assert capsys.readouterr().err == "odd \\x1b[2J; going on from the one before it\n"


def test_a_name_that_a_terminal_would_obey_is_no_run(tmp_path: Path) -> None:
    config = {"runs_dir": str(tmp_path), "model": {"_target_": "x.Y"}}
    path = planning.run_path(config, "group", [])
    path.with_name("\x1b]0;owned" + path.name[1:]).mkdir(parents=True)
    assert planning.run_path(config, "group", []) == path
    path.mkdir()
    assert planning.run_path(config, "group", ["model.z=1"]) == path


def test_a_received_result_is_shown_without_what_is_no_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = {"test/kl": "x", "test/reconstruction": None, "test/neg_elbo": 1.0}
    console.show({"metrics": metrics, "verdict": "\x1b[31mred"}, Path("run"))
    shown = capsys.readouterr().out
    assert "neg_elbo 1.00" in shown and "\x1b" not in shown and "kl " not in shown


def test_a_lock_is_no_way_to_empty_a_file(received: Path, private: Path) -> None:
    (received.parent / ".lock").symlink_to(private / "notes.txt")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        Lock(received.parent).open()
    assert (private / "notes.txt").read_text() == SECRET


@pytest.mark.parametrize(
    ("command", "folder"), [("sample", "samples"), ("video", "videos"), ("export", "exports")]
)
def test_a_command_writes_nothing_that_a_link_leads_to(
    received: Path, private: Path, command: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(received / folder, ignore_errors=True)
    (received / folder).symlink_to(private)
    before = contents(private)
    assert cli.main(COMMANDS[command](received)) == REFUSED
    assert "is a link to" in capsys.readouterr().err
    assert contents(private) == before


def test_a_link_that_leads_back_to_itself_is_refused(received: Path) -> None:
    (received / "train.log").unlink()
    (received / "train.log").symlink_to("loop")
    (received / "loop").symlink_to("train.log")
    with (
        pytest.raises(RunDirectoryError, match="is a link that leads back to itself"),
        RunDirectory(received),
    ):
        pass


def test_links_inside_and_the_link_to_a_run_are_no_attack(received: Path, tmp_path: Path) -> None:
    (received / "checkpoints" / "newest.ckpt").symlink_to("last.ckpt")
    (received / "wandb").mkdir()
    (received / "wandb" / "latest-run").symlink_to("/nowhere")
    (tmp_path / "linked").symlink_to(received.parent)
    refuse_links(tmp_path / "linked" / received.name)
    assert [record.state for record in collect(tmp_path / "linked")] == ["completed"]
    with RunDirectory(tmp_path / "linked" / received.name):
        pass


def test_a_replaced_file_takes_the_place_of_a_link(tmp_path: Path, private: Path) -> None:
    (tmp_path / "link").symlink_to(private / "notes.txt")
    files.write_atomically(tmp_path / "link", b"new")
    pictures.save_png(tmp_path / "link", pictures.grid(torch.zeros(1, 4, 4, dtype=torch.uint8)))
    assert (private / "notes.txt").read_text() == SECRET


def no_internet() -> None:
    """In a child: sockets of the internet cannot be made, by it or by whatever it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    load, jump, answer = 0x20, 0x15, 0x06  # of classic BPF: a word, equal to, return
    allow, refuse = 0x7FFF0000, 0x00050000 | 13  # SECCOMP_RET_ALLOW, _ERRNO with EACCES
    number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]  # of the system call socket
    program = [
        (load, 0, 0, 0),  # the number of the call
        (jump, 0, 4, number),
        (load, 0, 0, 16),  # its first argument
        (jump, 1, 0, 2),  # AF_INET
        (jump, 0, 1, 10),  # AF_INET6
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]

    class Instruction(ctypes.Structure):
        _fields_ = (
            ("code", ctypes.c_ushort),
            ("if_true", ctypes.c_ubyte),
            ("if_false", ctypes.c_ubyte),
            ("value", ctypes.c_uint),
        )

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("first", ctypes.POINTER(Instruction)))

    block = (Instruction * len(program))(*program)
    whole = Program(len(program), block)
    new_privileges, seccomp, filtering = 38, 22, 2  # PR_SET_NO_NEW_PRIVS, _SECCOMP, MODE_FILTER
    if libc.prctl(new_privileges, 1, 0, 0, 0) or libc.prctl(
        seccomp, filtering, ctypes.byref(whole), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")


WITNESS = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if not isinstance(address, (str, bytes)) or event.startswith("socket.get"):
            with open(os.environ["WITNESS"], "a") as file:
                file.write(f"{event} {address}\\n")
sys.addaudithook(note)
"""

KEY = "5" * 8 + "planted" + "0" * 25
TOKEN = "planted-token-of-something-else"


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with W&B offline, with secrets about, that cannot reach the internet."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "sitecustomize.py").write_text(WITNESS)
    home = folder / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    environment = {name: v for name, v in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {
        "HOME": str(home),
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": KEY,
        "HF_TOKEN": TOKEN,
        "AWS_SECRET_ACCESS_KEY": TOKEN,
        "PYTHONPATH": str(folder),
        "WITNESS": str(folder / "witness"),
    }
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "-m", *QUICK, "logger=wandb", "callbacks=default"),
            *("model.kl_weight=0,1", f"runs_dir={folder / 'runs'}", "group=sweep"),
        ],
        cwd=ROOT,
        env=environment,
        stdout=(folder / "printed").open("w"),
        stderr=subprocess.STDOUT,
        preexec_fn=no_internet,
        check=False,
    )
    assert done.returncode == 0, (folder / "printed").read_text()
    return folder


@pytest.mark.slow
def test_nothing_is_contacted_unless_asked_for(offline: Path) -> None:
    assert not (offline / "witness").exists(), (offline / "witness").read_text()
    runs = [record.path for record in collect(offline / "runs")]
    assert [Run(path).state for path in runs] == ["completed"] * 2
    for path in runs:
        (log,) = path.glob("wandb/offline-run-*/*.wandb")
        assert b"test/reconstruction" in log.read_bytes()
    assert "W&B is left out" not in (offline / "printed").read_text()


def test_the_witness_and_the_wall_would_have_noticed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITNESS)
    script = (
        "import socket\n"
        "try: socket.create_connection(('192.0.2.1', 80), 1)\n"
        "except OSError as error: print(error.errno)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "WITNESS": str(tmp_path / "witness")},
        preexec_fn=no_internet,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "13\n"
    assert "socket.getaddrinfo 192.0.2.1" in (tmp_path / "witness").read_text()


@pytest.mark.slow
def test_secrets_are_written_nowhere(offline: Path) -> None:
    secrets = [KEY.encode(), TOKEN.encode()]
    looked_at = 0
    for path in offline.rglob("*"):
        if path.is_file() and path.name != ".netrc":
            content = path.read_bytes()
            looked_at += len(content)
            assert not any(secret in content for secret in secrets), path
    assert looked_at > 100_000
    assert not any(
        secret in str(path).encode() for path in offline.rglob("*") for secret in secrets
    )


def test_reports_and_forecasts_import_nothing_that_talks(received: Path) -> None:
    """`genlab report` needs no torch and no W&B, and so has no way to the network."""
    script = (
        "import sys; from genlab import cli; code = cli.main(sys.argv[1:]);"
        "bad = {'torch', 'wandb', 'requests', 'lightning', 'urllib3'} & set(sys.modules);"
        "assert not bad, bad; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "report", str(received.parent)],
        cwd=ROOT,
        capture_output=True,
        preexec_fn=no_internet,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert read(received / "checkpoints" / "best.ckpt")
