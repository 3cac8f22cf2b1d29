"""A dry run of many jobs composes, builds and reads as little as their differences need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from genlab.config.check import resolve
from genlab.config.compose import directory
from genlab.data.datamodule import ImageData
from genlab.runs.run import Run
from genlab.sweeps import cost
from genlab.sweeps.freeze import resolved_jobs
from genlab.sweeps.study import Study, StudyJob
from genlab.training import planning


class Loader:
    """Hydra's, counting what it composes."""

    def __init__(self) -> None:
        self.hydras = GlobalHydra.instance().config_loader()
        self.composed: list[list[str]] = []
        self.listed: list[str] = []

    def load_sweep_config(self, config: DictConfig, overrides: list[str]) -> DictConfig:
        self.composed.append(overrides)
        return self.hydras.load_sweep_config(config, overrides)

    def get_group_options(self, key: str) -> list[str]:
        self.listed.append(key)
        return self.hydras.get_group_options(key)

    def alone(self, config: DictConfig, overrides: list[str]) -> Any:
        """The config as Hydra composes it for this job alone."""
        cfg = self.hydras.load_sweep_config(config, overrides)
        return resolve(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))


@pytest.fixture
def loader() -> Iterator[Loader]:
    with initialize_config_dir(str(directory()), version_base="1.3"):
        yield Loader()


@pytest.fixture
def config(loader: Loader) -> DictConfig:
    return compose("sweep", overrides=["sweep=kl_weight"], return_hydra_config=True)


COMMON = ["sweep=kl_weight", "trainer=smoke", "logger=none", "group=g"]


def test_jobs_that_differ_in_values_are_composed_once(loader: Loader, config: DictConfig) -> None:
    jobs = [StudyJob({"model.kl_weight": w}, s).overrides() for w in range(10) for s in range(30)]
    found = resolved_jobs(loader, config, COMMON, jobs)
    assert len(found) == 300
    assert len(loader.composed) == 1 and len(loader.listed) == 2
    for job in (0, 1, 31, 299):
        assert found[job].config == loader.alone(config, [*COMMON, *jobs[job]])
        assert found[job].overrides == [*COMMON, *jobs[job]]
    assert found[299].config["data"]["seed"] == 29  # references follow
    assert len({str(one.config) for one in found}) == 300


@pytest.mark.slow
def test_every_way_to_differ_gives_the_config_that_hydra_gives(
    loader: Loader, config: DictConfig
) -> None:
    jobs = [
        ["model.kl_weight=1", "seed=0"],
        ["model=ddpm", "seed=0"],
        ["model=ddpm", "seed=1"],
        ["model.kl_weight=2", "model/likelihood=gaussian"],
        ["model/likelihood=gaussian", "model.kl_weight=3"],
        ["model.net.encoder.hidden=[16,8]", "seed=3"],
        ["model.net.encoder.hidden=[4]", "seed=3"],
        ["model.net.encoder={act: gelu}", "seed=3"],
        ["model.net.encoder={dropout: 0.1}", "seed=3"],
        ["+model.net.encoder.more=0.5", "seed=4"],
        ["++model.kl_weight=5", "seed=4"],
        ["~model.likelihood.colour_targets", "seed=4"],
        ["data.seed=7", "seed=5"],
        ["data.seed=${seed}", "seed=6"],
        ["seed=7"],
        [],
    ]
    together = resolved_jobs(loader, config, COMMON, jobs)
    for one, job in zip(together, jobs, strict=True):
        assert one.config == loader.alone(config, [*COMMON, *job]), job


def test_a_value_that_does_not_fit_meets_hydras_own_error(
    loader: Loader, config: DictConfig
) -> None:
    with pytest.raises(HydraException, match="Could not override"):
        resolved_jobs(loader, config, COMMON, [["model.nothing=1"], ["model.nothing=2"]])


def test_replicates_are_built_and_read_once(
    loader: Loader, config: DictConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: list[int] = []
    read: list[int] = []
    assemble, prepare = planning.assemble, ImageData.prepare_data

    def counted(plan: planning.Plan) -> Any:
        built.append(plan.run_config.seed)
        return assemble(plan)

    def reading(data: ImageData) -> None:
        read.append(data.seed)
        prepare(data)

    monkeypatch.setattr(planning, "assemble", counted)
    monkeypatch.setattr(ImageData, "prepare_data", reading)
    monkeypatch.setattr(cost, "measure", lambda plan: cost.Pace(1.0, 1.0, 1.0, "guessed"))
    study = Study.of("s", {"params": {"model.kl_weight": "0,1,30"}, "seeds": list(range(20))})
    jobs = study.jobs()
    common = [*COMMON, f"runs_dir={tmp_path}"]
    composed = resolved_jobs(loader, config, common, [job.overrides() for job in jobs])
    cost.print_plan(study, jobs, composed, 1)
    assert len(jobs) == 60 and len(built) == 3 + 1 and len(read) == 1


def completed(folder: Path, steps: int, training: float, whole: float) -> tuple[str, Run]:
    """A completed run of a kind: what it says of its time."""
    folder.mkdir()
    started = datetime(2026, 1, 1, tzinfo=UTC)
    status = {
        "state": "completed",
        "started": started.isoformat(),
        "heartbeat": (started + timedelta(seconds=whole)).isoformat(),
    }
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "result.json").write_text(json.dumps({"steps": steps, "wall_seconds": training}))
    return "kind", Run(folder)


def test_the_fixed_costs_of_a_completed_run_are_no_rate(tmp_path: Path) -> None:
    runs = [completed(tmp_path / "a", steps=1000, training=10, whole=15)]
    for steps in (1000, 2000, 10_000):
        pace = cost._known_pace("kind", cost.Work(steps, 0, 0, 0), runs)
        assert pace is not None
        assert pace.seconds(cost.Work(steps, 0, 0, 0)) == pytest.approx(steps / 100 + 5)
        # what is left of an interrupted job includes all of what comes after the training
        left = pace.seconds(cost.Work(steps, 0, 0, 0), done=steps // 2)
        assert left == pytest.approx(steps / 200 + 5)


def test_a_smoke_test_says_nothing_of_the_pace_of_a_long_job(tmp_path: Path) -> None:
    """4 steps in 2 s are mostly the start: 2,000 steps are not 1,000 s."""
    runs = [completed(tmp_path / "a", steps=4, training=2, whole=12)]
    assert cost._known_pace("kind", cost.Work(2000, 0, 0, 0), runs) is None
    assert cost._known_pace("kind", cost.Work(4, 0, 0, 0), runs) is not None


def test_jobs_for_a_gpu_are_listed_without_times_where_there_is_none(
    config: DictConfig,
    loader: Loader,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The case of a dry run on the login node of a cluster."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    jobs = Study.of("s", {"params": {"model.kl_weight": "0,1"}}).jobs()
    common = ["sweep=kl_weight", "trainer=gpu", "logger=none", f"runs_dir={tmp_path}"]
    composed = resolved_jobs(loader, config, common, [job.overrides() for job in jobs])
    cost.print_plan(Study(name="s"), jobs, composed, slots=2)
    shown = capsys.readouterr().out
    assert shown.count(" ? ") == 2
    assert "Time: unknown, since the jobs need a GPU" in shown
    assert "one after another" not in shown


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"steps": "1000"}, {}),
        ({"steps": [1000]}, {}),
        ({"steps": True}, {}),
        ({"steps": -1000}, {}),
        ({"wall_seconds": {"a": 1}}, {}),
        ({"wall_seconds": "10"}, {}),
        ({"wall_seconds": -10}, {}),
        ({}, {"heartbeat": None}),
        ({}, {"heartbeat": "yesterday"}),
        ({}, {"heartbeat": "2026-01-01T00:00:15"}),  # without a zone
        ({}, {"heartbeat": ["2026"]}),
    ],
)
def test_a_run_that_says_nonsense_of_its_time_tells_nothing(
    tmp_path: Path, result: dict[str, Any], status: dict[str, Any]
) -> None:
    kind, run = completed(tmp_path / "a", steps=1000, training=10, whole=15)
    for path, changes in ((run.result_path, result), (run.status_path, status)):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert cost._known_pace(kind, cost.Work(1000, 0, 0, 0), [(kind, run)]) is None


@pytest.mark.parametrize(
    "text", ["trainer: [1]", "trainer: {}\nmodel: {net: {1: a, b: c}}\ndata: {}"]
)
def test_a_run_with_another_config_is_of_no_kind(tmp_path: Path, text: str) -> None:
    _, run = completed(tmp_path / "a", steps=1000, training=10, whole=15)
    run.config_path.write_text(text)
    assert len(list(cost._completed(tmp_path))) <= 1
