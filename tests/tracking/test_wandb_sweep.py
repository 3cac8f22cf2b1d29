"""A sweep on W&B: its columns, one command that sends it, the dashboard, and W&B's own agent."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_stub import WandbStub

from genlab.cli import main
from genlab.cli.workspace import comparison
from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.config.compose import directory as conf_directory
from genlab.errors import REFUSED, ConfigError
from genlab.report import collect
from genlab.runs import points
from genlab.runs.directory import RunDirectory
from genlab.runs.manifest import Job, Manifest
from genlab.runs.run import find_runs
from genlab.sweeps import announce
from genlab.tracking import workspace
from genlab.training.run_config import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # in wandb-workspaces

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((conf_directory() / "wandb_sweep").glob("*.yaml"))
SMALL = [
    "trainer=smoke",
    "trainer.limit_train_batches=2",
    "trainer.log_every_n_steps=1",
    "data.batch_size=16",
    "data.train_images=64",
    "model.net.encoder.hidden=[16]",
    "model.net.decoder.hidden=[16]",
    "model.latent_dim=2",
    "callbacks=pictures",
    "forecast=false",
]


@pytest.fixture
def server() -> Iterator[WandbStub]:
    with WandbStub() as stub:
        yield stub


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished offline sweep of two weights and two seeds, and what it printed."""
    runs_dir = tmp_path_factory.mktemp("sweep")
    settings = ["model.kl_weight=0,30", "seed=0,1", "group='vae-kl=weights'"]
    done = subprocess.run(
        [sys.executable, "train.py", "-m", *SMALL, *settings, f"runs_dir={runs_dir}"],
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return runs_dir / "vae-kl=weights", done.stdout


def test_a_point_is_named_by_the_shortest_ends_of_its_keys_without_the_seed() -> None:
    config = {
        "seed": 3,
        "model": {"kl_weight": 30.0, "net": {"act": "relu"}, "prior": {"act": None}},
        "data": {"source": {"_target_": "genlab.data.sources.MNIST"}},
    }
    swept = ["model.kl_weight", "model/noise_schedule", "data/source", "seed"]
    point = points.point_of(config, {"model/noise_schedule": "cosine"}, swept)
    assert point == {
        "model.kl_weight": 30.0,
        "model/noise_schedule": "cosine",
        "data/source": "MNIST",
    }
    assert points.point_text(point) == "kl_weight=30, noise_schedule=cosine, source=MNIST"
    point = points.point_of(config, {}, ["model.net.act", "model.prior.act"])
    assert points.point_text(point) == "net.act=relu, prior.act=null"
    assert set(points.columns("s", point)) == {
        "sweep/net/act",
        "sweep/prior/act",
        "sweep/point",
        "sweep/name",
    }


def test_jobs_hear_of_the_keys_that_their_sweep_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GENLAB_SWEEP_GROUP", "GENLAB_SWEEP_KEYS"):
        monkeypatch.setenv(name, "")  # so that what follows is undone
        monkeypatch.delenv(name)
    assert points.announced() is None
    announce("the-sweep", ["model.kl_weight", "seed"])
    assert os.environ["GENLAB_SWEEP_GROUP"] == "the-sweep"
    assert points.announced() == ["model.kl_weight"]


@pytest.mark.slow
def test_the_printed_command_sends_the_whole_sweep_with_its_columns(
    sweep: tuple[Path, str], server: WandbStub, tmp_path: Path
) -> None:
    directory, output = sweep
    (command,) = re.findall(r"`(wandb sync [^`]+)`", output)
    nothing_kept = next(directory.glob("*/wandb")) / "offline-run-20200101_000000-killed-at-once"
    nothing_kept.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        env={**os.environ, **server.variables, "PATH": path},
        check=True,
        capture_output=True,
    )
    nothing_kept.rmdir()
    assert len(server.runs) == 4
    columns = []
    for name, online in server.runs.items():
        assert online.exit_code == 0
        assert online.told("groupName") == "vae-kl=weights"
        assert name == re.sub(r"[^\w-]", "-", f"vae-kl=weights-{online.told('displayName')}")
        assert any(upload.startswith("media/images/pictures/") for upload in online.uploads)
        config = online.config
        columns.append((config["sweep/kl_weight"], config["sweep/point"], config["seed"]))
        assert config["sweep/name"] == "vae-kl=weights"
        assert config["sweep/kl_weight"] == config["model"]["kl_weight"]
    assert sorted(columns) == [
        (0, "kl_weight=0", 0),
        (0, "kl_weight=0", 1),
        (30, "kl_weight=30", 0),
        (30, "kl_weight=30", 1),
    ]


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Section to panels, without the ids that are drawn anew each time."""
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {
        section["name"]: [{"type": p["viewType"], **p["config"]} for p in section["panels"]]
        for section in sections
    }


@pytest.mark.slow
def test_the_workspace_compares_the_setting(sweep: tuple[Path, str], server: WandbStub) -> None:
    directory, _ = sweep
    compared = comparison(collect(directory), directory, "a-project", "me")
    spec = workspace.spec_of(workspace.build_workspace(compared))
    assert (spec["entity"], spec["project"]) == ("me", "a-project")
    shown = panels(spec)
    scatter, bars, parallel = shown["What kl_weight does"]
    assert scatter["type"] == "Scatter Plot"
    assert scatter["xAxis"] == "summary:test/kl"
    assert scatter["yAxis"] == "summary:test/reconstruction"
    assert scatter["zAxis"] == "config:sweep/kl_weight.value"
    assert bars["type"] == "Bar Chart"
    assert bars["metrics"] == ["summary_metrics.test/neg_elbo"]
    assert (bars["groupBy"], bars["groupAgg"]) == ("sweep/point.value", "mean")
    assert parallel["type"] == "Parallel Coordinates Plot"
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:sweep/kl_weight.value",
        "summary:test/reconstruction",
        "summary:test/kl",
        "summary:test/neg_elbo",
        "summary:test/bits_per_dim",
        "summary:test/active_units",
    ]
    curves = shown["Over training"]
    assert [c["metrics"] for c in curves] == [
        [f"val/{m}"] for m in ("reconstruction", "kl", "neg_elbo", "bits_per_dim", "active_units")
    ]
    for curve in curves:
        assert curve["type"] == "Run History Line Plot"
        assert curve["xAxis"] == "trainer/global_step"
        assert (curve["groupBy"], curve["groupAgg"]) == ("sweep/point.value", "mean")
    keys = [key for panel in shown["Pictures"] for key in panel["mediaKeys"]]
    assert {"pictures/reconstructions", "pictures/samples"} <= set(keys)
    for panel in shown["Pictures"]:
        assert panel["type"] == "Media Browser"
        assert panel["gridSettings"] == {"xAxis": "run", "yAxis": "step"}
    (runs,) = spec["spec"]["section"]["runSets"]
    (condition,) = runs["filters"]["filters"]
    assert condition["key"] == {"section": "run", "name": "group"}
    assert (condition["op"], condition["value"]) == ("=", "vae-kl=weights")
    assert runs["grouping"] == [{"section": "config", "name": "sweep/point.value"}]
    (order,) = runs["sort"]["keys"]
    assert order["key"]["name"] == "sweep/kl_weight"
    assert {"config:sweep/kl_weight.value", "summary:test/neg_elbo", "run:state"} <= set(
        runs["runFeed"]["columnOrder"]
    )


def genlab(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "genlab", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_workspace_and_report_are_saved_with_what_the_dry_run_shows(
    sweep: tuple[Path, str], server: WandbStub
) -> None:
    directory, _ = sweep
    dry = genlab("workspace", str(directory), "--report", "--dry")
    assert dry.returncode == 0, dry.stderr
    done = genlab("workspace", str(directory), "--report", **server.variables)
    assert done.returncode == 0, done.stderr
    view, report = server.views
    assert re.search(rf"workspace +{server.url}/me/genlab\?nw=\w+", done.stdout)
    assert re.search(rf"report +{server.url}/me/genlab/reports/", done.stdout)
    shown = json.loads((directory / "wandb_workspace.json").read_text())
    assert view["displayName"] == shown["displayName"] == "vae-kl-weights: comparison"
    assert panels({"spec": json.loads(view["spec"])}) == panels(shown)

    kept = json.loads((directory / "wandb_report.json").read_text())
    sent = json.loads(report["spec"])
    assert report["displayName"] == "vae-kl=weights"
    grids = [block for block in sent["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(panels(shown))
    for grid, drawn in zip(grids, panels(shown).values(), strict=True):
        inside = grid["metadata"]["panelBankSectionConfig"]["panels"]
        assert [{"type": p["viewType"], **p["config"]} for p in inside] == drawn
        (runs,) = grid["metadata"]["runSets"]
        assert runs["filters"]["filters"][0]["value"] == "vae-kl=weights"
        assert runs["project"]["name"] == "genlab"
    assert [block["type"] for block in kept["spec"]["blocks"]] == [
        b["type"] for b in sent["blocks"]
    ]
    assert any("kl_weight" in json.dumps(block) for block in sent["blocks"])


@pytest.mark.slow
def test_the_views_of_a_sweep_are_updated_or_where_they_are_gone_made_anew(
    tmp_path: Path, server: WandbStub
) -> None:
    directory = tmp_path / "schedules"
    noise_schedules(directory)

    def save(*options: str) -> dict[str, tuple[str, str]]:
        done = genlab("workspace", str(directory), *options, **server.variables)
        assert done.returncode == 0, done.stderr
        lines = re.findall(r"^(workspace|report) +(\S+) \((.+)\)$", done.stdout, re.MULTILINE)
        return {name: (url, became) for name, url, became in lines}

    first = save("--report")
    assert {became for _, became in first.values()} == {"new"}
    assert len(server.kept) == 2
    for run in directory.glob("run-*"):
        result = json.loads((run / "result.json").read_text())
        result["metrics"]["test/bits_per_dim"] = 1.5
        (run / "result.json").write_text(json.dumps(result))
    second = save("--report")
    assert second == {name: (url, "updated") for name, (url, _) in first.items()}
    assert len(server.kept) == 2
    assert all("bits_per_dim" in view["spec"] for view in server.kept.values())
    genlab("workspace", str(directory), "--report", "--dry")
    shown = panels(json.loads((directory / "wandb_workspace.json").read_text()))
    (kept,) = [v for v in server.kept.values() if v["type"] == "project-view"]
    assert panels({"spec": json.loads(kept["spec"])}) == shown

    elsewhere = save("--project", "another")
    assert elsewhere["workspace"][1] == "new"
    assert len(server.kept) == 3
    (report,) = [v for v in server.kept.values() if v["type"] == "runs"]
    report["displayName"] = "mine"
    del server.kept[kept["id"]]
    third = save("--report")
    assert third["workspace"][1] == "new: W&B no longer has the one of before"
    assert third["report"][1].startswith("new: the one of before is called 'mine' now")
    assert report["displayName"] == "mine"
    server.kept.clear()
    fourth = save("--report")
    assert {became for _, became in fourth.values()} == {third["workspace"][1]}


def noise_schedules(directory: Path) -> None:
    """Four runs of a sweep of schedules as they are left behind, without training them."""
    jobs = []
    for number, name in enumerate(["linear", "cosine", "sigmoid", "linear_log_snr"]):
        config = {
            "group": directory.name,
            "seed": 0,
            "model": {
                "_target_": "genlab.diffusion.model.DDPM",
                "noise_schedule": {"_target_": f"genlab.diffusion.schedules.Schedule{number}"},
            },
            "logger": {"wandb": {"project": "diffusion"}},
        }
        with RunDirectory(directory / f"run-{name}") as run:
            run.write_config(yaml.safe_dump(config))
            run.write_result({"metrics": {"test/kl": 1.0 + number, "test/reconstruction": 2.0}})
            run.write_status("completed")
        jobs.append(Job(f"run-{name}", (), {"model/noise_schedule": name}, 0, config))
    Manifest(directory.name, ("model/noise_schedule", "seed"), tuple(jobs)).write(directory)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_setting_of_words_has_a_column_but_no_axis_of_numbers(
    tmp_path: Path, with_manifest: bool
) -> None:
    directory = tmp_path / "schedules"
    noise_schedules(directory)
    if not with_manifest:
        (directory / "manifest.json").unlink()
    compared = comparison(collect(directory), directory)
    assert compared.project == "diffusion"
    assert compared.settings == [workspace.Setting("sweep/noise_schedule", "words")]
    assert not compared.has_replicates
    shown = panels(workspace.spec_of(workspace.build_workspace(compared)))
    scatter, parallel = shown["What noise_schedule does"]
    assert "zAxis" not in scatter
    assert parallel["columns"][0]["accessor"] == "config:sweep/noise_schedule.value"


@pytest.mark.slow
def test_measured_quality_has_panels_whatever_the_hash_of_its_features(
    tmp_path: Path, server: WandbStub
) -> None:
    directory = tmp_path / "schedules"
    noise_schedules(directory)
    measured = ["fid_infinity", "rfid_infinity", "kid", "precision", "recall"]
    for run in directory.glob("run-*"):
        result = json.loads((run / "result.json").read_text())
        for stem in (*measured, "fid_infinity_low", "fid", "nearest_train"):
            for features in ("classifier_44d5e5", "pixels_0a1b2c"):
                result["metrics"][f"test/{stem}_{features}"] = 1.0
        (run / "result.json").write_text(json.dumps(result))
    done = genlab("workspace", str(directory), **server.variables)
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    shown = panels({"spec": json.loads(view["spec"])})
    names = [f"{m}_{f}" for m in measured for f in ("classifier_44d5e5", "pixels_0a1b2c")]
    bars = shown["Quality of samples"]
    assert {panel["type"] for panel in bars} == {"Bar Chart"}
    assert [panel["metrics"] for panel in bars] == [[f"summary_metrics.test/{n}"] for n in names]
    curves = [curve["metrics"] for curve in shown["Over training"]]
    assert curves[-len(names) :] == [[f"val/{name}"] for name in names]
    assert bars[0]["chartTitle"] == "FID of infinitely many samples (classifier_44d5e5)"


def test_without_a_key_the_workspace_is_kept_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    noise_schedules(tmp_path / "schedules")
    assert main(["workspace", str(tmp_path / "schedules")]) == 0
    assert "no W&B key" in capsys.readouterr().out
    assert (tmp_path / "schedules" / "wandb_workspace.json").is_file()


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "make room there"), (errno.EACCES, "make that directory")]
)
def test_a_workspace_that_cannot_be_kept_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    remedy: str,
) -> None:
    noise_schedules(tmp_path / "schedules")

    def failing(path: Path, content: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("genlab.runs.files.write_atomically", failing)
    monkeypatch.setattr("genlab.cli.workspace.write_atomically", failing, raising=False)
    assert main(["workspace", str(tmp_path / "schedules"), "--dry"]) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"wandb_workspace.json cannot be written ({os.strerror(code)}): {remedy}" in line


def test_settings_in_a_received_directory_send_no_key_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:1\n")

    def server_after(call: str) -> str:
        code = (
            "from genlab.cli.workspace import _has_key;"
            "from genlab.tracking.account import key_is_configured;"
            f"{call}(); import wandb; print(wandb.setup().settings.base_url)"
        )
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "127.0.0.1" in server_after("key_is_configured")  # W&B alone would go there
    assert "127.0.0.1" not in server_after("_has_key")


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["workspace", str(tmp_path)]) == 2
    assert "holds no runs" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ConfigError, match=r"pip install genlab\[workspace\]"):
        workspace.require()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_a_sweep_of_wandbs_own_agent_turns_real_keys(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["metric"]["name"] == "test/neg_elbo"
    values = {key: given["values"] for key, given in sweep["parameters"].items()}
    before, after = (list(part) for part in split(sweep["command"], "${program}"))
    assert after[-1] == "${args_no_hyphens}"
    (announced,) = [word.partition("=")[2] for word in before if word.startswith("GENLAB_")]
    swept = json.loads(announced)
    assert swept == [key for key in values if key != "seed"]
    for chosen in itertools.product(*values.values()):
        arguments = [f"{key}={value}" for key, value in zip(values, chosen, strict=True)]
        cfg = compose([*after[:-1], *arguments])
        config = resolve(cfg)
        config.pop("hydra", None)
        assert RunConfig.of(config).logger["wandb"]["mode"] == "online"
        assert config["seed"] == chosen[-1]
    if "model.kl_weight" in values:
        assert config["model"]["kl_weight"] == values["model.kl_weight"][-1]


@pytest.mark.slow
def test_wandbs_own_agent_runs_the_points_that_it_is_handed(
    tmp_path: Path, server: WandbStub
) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, **server.variables, "PATH": path, "WANDB_DIR": str(tmp_path)}
    for name in ("WANDB_MODE", "WANDB_SILENT", "GENLAB_SWEEP_KEYS", "GENLAB_SWEEP_GROUP"):
        variables.pop(name, None)

    def client(*words: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("wandb"), *words],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    output = client("sweep", "conf/wandb_sweep/kl_weight.yaml")
    (started,) = re.findall("wandb (agent .+)", output)
    ((name, handed),) = server.sweeps.items()
    assert handed.config == yaml.safe_load((ROOT / "conf/wandb_sweep/kl_weight.yaml").read_text())
    assert started == f"agent me/genlab/{name}"

    here = handed.config["command"].index("${args_no_hyphens}")
    small = [*SMALL, "trainer.max_epochs=1", "callbacks=none", f"runs_dir={tmp_path}/runs"]
    handed.config["command"][here:here] = small  # as `wandb sweep --update` would
    points = [{"model.kl_weight": 0.1, "seed": 2}, {"model.kl_weight": 30, "seed": 0}]
    assert all(point in handed.points for point in points)
    handed.points = [*points, points[0], {"model.kl_weight": 1, "seed": 1}]
    output = client(*started.split(), "--count", "3")

    assert len(handed.agents) == 1
    assert set(server.runs) == set(handed.handed_out)
    assert list(handed.handed_out.values()) == [*points, points[0]]
    assert output.count("completed before") == 1
    directories = {run.path.name: run for run in find_runs(tmp_path / "runs")}
    assert len(directories) == 2
    for run_id, point in handed.handed_out.items():
        online = server.runs[run_id]
        assert online.told("sweep") == name
        assert online.told("groupName") == "vae-kl_weight"
        assert online.exit_code == 0
        config = online.config
        assert config["model"]["kl_weight"] == config["sweep/kl_weight"] == point["model.kl_weight"]
        assert config["sweep/point"] == f"kl_weight={point['model.kl_weight']}"
        assert config["seed"] == config["data"]["seed"] == point["seed"]
        assert online.summary["status"] == "completed"
        run = directories[online.told("displayName")]
        assert run.result is not None
        for metric, value in run.result["metrics"].items():
            assert online.summary[metric] == pytest.approx(value, rel=1e-12)
        assert online.summary["verdict"] == run.result["verdict"]
        (tested,) = [row for row in online.history if "test/neg_elbo" in row]  # what W&B optimises
        assert tested["test/neg_elbo"] == online.summary["test/neg_elbo"]
    directory = tmp_path / "runs" / "vae-kl_weight"
    compared = comparison(collect(directory), directory)
    assert [setting.column for setting in compared.settings] == ["sweep/kl_weight"]


def split(words: list[str], at: str) -> tuple[list[str], list[str]]:
    index = words.index(at)
    return words[:index], words[index + 1 :]
