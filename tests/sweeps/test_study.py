"""A study is its points times its seeds; a dry run leaves nothing; a search does nothing twice."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy import stats

from genlab.config import compose as composition
from genlab.errors import ConfigError
from genlab.report import Record
from genlab.report.replicates import Estimate, has_replicates, rows, summarise, to_csv, to_text
from genlab.runs.manifest import Manifest
from genlab.runs.run import find_runs
from genlab.sweeps.request import expand, request
from genlab.sweeps.study import Study, StudyJob, value_as_override

ROOT = Path(__file__).parents[2]
TINY = [
    *("trainer=smoke", "trainer.max_epochs=1", "data.train_images=512"),
    *("callbacks=none", "logger=none"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]", "launcher=basic"),
]

names = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3, unique=True)
lists = st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True)


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "sweep.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )


@given(keys=names, data=st.data(), seeds=st.lists(st.integers(0, 9), max_size=3, unique=True))
def test_the_jobs_are_the_product_with_every_seed(
    keys: list[str], data: st.DataObject, seeds: list[int]
) -> None:
    grid = {key: data.draw(lists) for key in keys}
    rows = data.draw(st.integers(1, 3))
    block = {"x": list(range(rows)), "y": [f"v{i}" for i in range(rows)]}
    study = Study(
        params={key: as_typed(values) for key, values in grid.items()},
        zip=[{key: as_typed(values) for key, values in block.items()}],
        points=[{"z": 1}],
        seeds=seeds,
    )
    jobs = study.jobs()
    points = math.prod(map(len, grid.values())) * rows + 1
    assert len(jobs) == points * max(1, len(seeds))
    assert len({str(job) for job in jobs}) == len(jobs)
    assert all(job.point["y"] == f"v{job.point['x']}" for job in jobs if "x" in job.point)
    assert all("seed" not in job.point for job in jobs)
    # whole replicates, one after the other, each with the same points in the same order
    by_seed = [[job.point for job in jobs[i : i + points]] for i in range(0, len(jobs), points)]
    assert all(found == by_seed[0] for found in by_seed)
    assert [job.seed for job in jobs[::points]] == (seeds or [None])
    assert study.swept == [*keys, "x", "y", "z", *(["seed"] if len(seeds) > 1 else [])]


def as_typed(values: list[Any]) -> str:
    return ",".join(map(str, values))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(values)
def test_a_value_survives_the_command_line(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={value_as_override(value)}")
    assert not override.is_sweep_override()
    assert override.value() == value


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"zip": [{"a": "1,2", "b": "1"}]}, r"zip: .*a has 2, b has 1"),
        ({"params": {"a": 1}, "zip": [{"a": 1}]}, "zip: a has its values in two places"),
        ({"params": {"a": []}}, r"a=\[\]: write values as on the command line"),
        ({"params": {"a": [1, "x y"]}}, r"a: 1,'x y'"),
        ({"params": {"a": "1,,2"}}, "a='1,,2': a value, or values such as"),
        ({"params": {"a": "interval(0,1)"}}, "search.space of its file"),
        ({"params": [1]}, r"params=\[1\]: a mapping"),
        ({"params": {"seed": "0,1"}}, r"params\.seed: seeds are replicates"),
        ({"points": [{"seed": 1}]}, r"points\[0\]\.seed: seeds are replicates"),
        ({"points": [3]}, r"points\[0\]=3: a mapping"),
        ({"points": 3}, "points=3: a list is needed"),
        ({"seeds": [-1]}, r"seeds=-1: give a whole number"),
        ({"seeds": [0.5]}, r"seeds\[0\]=0.5: a whole number"),
        ({"parms": {"a": 1}}, r"sweep\.parms=.*: there is no such key; did you mean params"),
        ({"search": {"metric": "m"}}, "missing a required argument: 'space'"),
        ({"search": {"metric": "m", "space": {}}}, r"search\.space=\{\}: give at least one key"),
        ({"search": {"metric": "m", "space": {"a": {"low": 1}}}}, "give {low, high}"),
        ({"search": {"metric": "m", "space": {"a": {"low": 2, "high": 1}}}}, "low must be below"),
        (
            {"search": {"metric": "m", "space": {"a": {"low": 0, "high": 1, "log": True}}}},
            "a low above 0",
        ),
        (
            {"search": {"metric": "m", "space": {"a": {"choices": [1]}}}, "params": {"b": 1}},
            "leave out params",
        ),
        ({"search": {"metric": "m", "space": {"a": {"choices": []}}}}, "nothing to choose from"),
        (
            {"search": {"metric": "m", "direction": "up", "space": {"a": {"choices": [1]}}}},
            "choose one of minimize, maximize",
        ),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(content: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Study.of("s", content)


CONTENT = {
    "params": {"model.kl_weight": "0,1,30"},
    "zip": [{"model.latent_dim": "2,20", "trainer.max_epochs": "1,2"}],
    "seeds": [0, 1],
}


def test_the_command_line_replaces_and_fixes_the_settings_of_a_study() -> None:
    same = request("s", CONTENT, ["sweep=s", "data.batch_size=64"])
    assert len(same.study.jobs()) == 3 * 2 * 2 and same.overrides == ["data.batch_size=64"]

    other = request("s", CONTENT, ["model.kl_weight=2,4.5", "seed=7,8,9"]).study
    assert {job.point["model.kl_weight"] for job in other.jobs()} == {2, 4.5}
    assert {job.seed for job in other.jobs()} == {7, 8, 9}

    fixed = request("s", CONTENT, ["model.kl_weight=4", "seed=3"])
    assert fixed.overrides == ["model.kl_weight=4"]
    assert [job.seed for job in fixed.study.jobs()] == [3, 3]
    assert fixed.study.swept == ["model.latent_dim", "trainer.max_epochs"]

    more = request("s", CONTENT, ["model/net=mlp,conv", "model.latent_dim=5"]).study
    assert more.swept == ["model.kl_weight", "model/net", "trainer.max_epochs", "seed"]
    search = {"search": {"metric": "m", "space": {"a": {"choices": [1]}}}}
    with pytest.raises(ConfigError, match=r"sweep\.search\.space=\{\}: give at least one key"):
        request("s", search, ["a=3"])
    with pytest.raises(ConfigError, match=r"sweep\.search\.trials=0: 1 or more"):
        Study.of("s", search).with_trials(0)
    with pytest.raises(ConfigError, match="seed='x': give a whole number"):
        request("s", {}, ["seed=0,x"])
    with pytest.raises(ConfigError, match="model.latent_dim has 3, trainer.max_epochs has 2"):
        request("s", CONTENT, ["model.latent_dim=1,2,3"])
    with pytest.raises(ConfigError, match="give one value to fix it"):
        request("s", {"points": [{"a": 1}, {"a": 2}]}, ["a=3,4"])
    assert request("s", {"points": [{"a": 1}, {"a": 2}]}, ["a=3"]).study.jobs() == [
        StudyJob({}, None)
    ]
    assert request("s", {}, ["model/sampler=glob(*,exclude=[d*,e*,u*])"]).study.all_points() == [
        {"model/sampler": "ancestral"},
        {"model/sampler": "heun"},
    ]
    assert request("s", {}, ["a=range(0,3)"]).study.all_points() == [{"a": i} for i in range(3)]
    both = {"params": {"a": "1,2", "b": 3}, "points": [{"a": 1, "b": 4}]}
    merged = request("s", both, ["b=9"]).study
    assert [job.point for job in merged.jobs()] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", composition.options("sweep"))
def test_every_study_composes_and_every_job_of_it_is_one(name: str) -> None:
    arguments = expand([f"sweep={name}", "logger=none"])
    overrides = [a for a in arguments if not a.startswith(("-", "hydra.", "sweep="))]
    content = composition.compose(arguments, "sweep", with_hydra=True).hydra.sweeper
    asked = request(name, OmegaConf.to_container(content.study), overrides, content.first)  # type: ignore[arg-type]
    assert asked.study.question is not None and asked.study.question.endswith("?")
    for part in filter(None, (asked, asked.first)):
        assert f"group={name}" in part.overrides
        jobs = part.study.jobs()
        for job in (job for job in jobs if job.seed == jobs[0].seed):  # a seed is but a number
            composition.compose([*part.overrides, *job.overrides()], "sweep")


def test_whoever_asks_has_the_last_word() -> None:
    assert "trainer.max_epochs=10" in expand(["sweep=kl_weight"])
    assert "trainer.max_epochs=10" not in expand(["sweep=kl_weight", "trainer.max_epochs=2"])
    assert "group=kl_weight" in expand(["sweep=kl_weight"])
    assert "group=kl_weight" not in expand(["sweep=kl_weight", "group=mine"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "sweep=null: name a study; choose one of"),
        (["sweep=kl_wieght"], "there is no such study; did you mean kl_weight"),
        (["sweep=kl_weight", "model.kl_wieght=1,2"], "did you mean model.kl_weight"),
        (["sweep=kl_weight", "model.kl_weight=0,-1"], "model.kl_weight=-1"),
        (["sweep=kl_weight", "trials=3"], "is no search"),
        (["sweep=samplers"], "no value for init_from"),
        (["sweep=kl_weight", "launcher=nowhere"], "launcher=nowhere"),
    ],
    ids=str,
)
@pytest.mark.slow
def test_what_cannot_be_run_is_refused_before_anything_is(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    launcher = [] if any(a.startswith("launcher=") for a in arguments) else ["launcher=basic"]
    outcome = sweep(*arguments, *launcher, f"runs_dir={tmp_path}/runs")
    assert outcome.returncode == 2, outcome.stdout + outcome.stderr
    assert complaint in outcome.stderr and "Traceback" not in outcome.stderr
    assert not find_runs(tmp_path)


def record(value: float, seed: int, **metrics: float) -> Record:
    return Record(
        path=Path(f"r{value}-{seed}"),
        run_id=f"r{value}-{seed}",
        group="g",
        state="completed",
        config={"model": {"kl_weight": value}, "seed": seed},
        result={"metrics": metrics},
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=15))
def test_the_interval_is_that_of_student(found: list[float]) -> None:
    estimate = Estimate.of(found)
    n, spread = len(found), stdev(found)
    assert estimate.mean == pytest.approx(sum(found) / n, abs=1e-9)
    assert estimate.deviation == pytest.approx(spread, abs=1e-9)
    half = stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n)
    assert estimate.half_width == pytest.approx(half, rel=1e-3, abs=1e-9)


def test_seeds_are_replicates_of_a_point() -> None:
    records = [
        record(30.0, 0, **{"test/kl": 1.0}),
        record(0.0, 0, **{"test/kl": 80.0}),
        record(0.0, 1, **{"test/kl": 90.0}),
    ]
    points = summarise(records, ["model.kl_weight", "seed"])
    assert [(point.point, point.runs) for point in points] == [
        ({"model.kl_weight": 0.0}, 2),
        ({"model.kl_weight": 30.0}, 1),
    ]
    assert points[0].estimates["test/kl"].mean == 85
    assert points[1].estimates["test/kl"] == Estimate(1, 1.0, None, None, None)
    assert has_replicates(points) and not has_replicates(summarise(records[:2], ["seed"])[:0])
    assert "85.00 +- 63.53 (7.07)" in to_text(points)
    header, *_, last = to_csv(rows(points)).splitlines()
    assert last == "30.0,test/kl,1,1.0" + "," * (header.count(",") - 3)


def test_a_dry_run_tells_the_jobs_and_leaves_nothing(tmp_path: Path) -> None:
    asked = ["sweep=kl_weight", *TINY, "seed=0,1", "model.kl_weight=0,30", "dry=true"]
    outcome = sweep(*asked, f"runs_dir={tmp_path}/runs")
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert sum(f"{tmp_path}/runs/kl_weight/vae-kl_weight_" in line for line in lines) == 4
    assert sum(" new " in line for line in lines) == 4
    assert "4 jobs; to do: 16 steps" in outcome.stdout
    assert "measured on 4 steps of the first such job" in outcome.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_study_is_run_compared_and_known(tmp_path: Path) -> None:
    asked = ["sweep=kl_weight", *TINY, "seed=0,1", "model.kl_weight=0,30", f"runs_dir={tmp_path}"]
    outcome = sweep(*asked)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    folder = tmp_path / "kl_weight"
    runs = find_runs(folder)
    assert len(runs) == 4 and all(run.is_completed for run in runs)
    manifest = Manifest.read(folder)
    assert manifest is not None and manifest.swept == ("model.kl_weight", "seed")
    assert {job.run_id for job in manifest.jobs} == {run.name for run in runs}
    assert [dict(job.point) for job in manifest.jobs] == 2 * [
        {"model.kl_weight": 0},
        {"model.kl_weight": 30},
    ]
    assert manifest.command == ("sweep.py", *asked)
    assert manifest.question is not None and manifest.question in outcome.stdout
    assert "95 % interval" in outcome.stdout
    assert (folder / "by_point.csv").read_text().count("test/neg_elbo,2") == 2

    again = sweep(*asked[:-1], f"runs_dir={tmp_path}", "dry=true")
    assert again.stdout.count("completed") >= 4 and "to do: 0 steps" in again.stdout
    more = sweep(*asked[:-1], f"runs_dir={tmp_path}", "trainer.limit_train_batches=1", "dry=true")
    assert "from 4 completed runs" in more.stdout
    assert len(find_runs(folder)) == 4


@pytest.mark.slow
def test_a_search_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    asked = ["sweep=search_kl_weight", *TINY, f"runs_dir={tmp_path}"]
    first = sweep(*asked, "trials=2")
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "search_kl_weight"
    storage = f"sqlite:///{folder}/optuna.db"

    def trials() -> list[Any]:
        return optuna.load_study(study_name=folder.name, storage=storage).get_trials()

    told = [(trial.params, trial.value) for trial in trials()]
    stamps = {run.path: run.metrics_path.stat().st_mtime_ns for run in find_runs(folder)}
    assert len(told) == len(stamps) == 2
    best = min(value for _, value in told)
    assert f"best of 2: test/neg_elbo {best:.6g}" in first.stdout

    manifest = Manifest.read(folder)
    assert manifest is not None
    replace(manifest, created="2020-01-02T03:04:05+00:00").write(folder)

    # a trial of which nobody was told, as a killed launcher leaves it: its run is there already
    study = optuna.load_study(study_name=folder.name, storage=storage)
    study.enqueue_trial(told[0][0])
    study.ask(
        {
            "model.kl_weight": FloatDistribution(0.1, 10.0, log=True),
            "model.latent_dim": CategoricalDistribution((5, 10, 20, 40)),
        }
    )
    second = sweep(*asked, "trials=4")
    assert second.returncode == 0, second.stdout + second.stderr
    after = trials()
    assert [(trial.params, trial.value) for trial in after[:2]] == told
    assert after[2].value == told[0][1] and len(after) == 4
    assert second.stdout.count("completed before") == 1
    for path, stamp in stamps.items():
        assert (path / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert len(find_runs(folder)) == 3

    later = Manifest.read(folder)
    assert later is not None and later.created == "2020-01-02T03:04:05+00:00"
    assert {job.run_id for job in later.jobs} == {run.name for run in find_runs(folder)}

    other = sweep(*asked, "trials=5", "model.latent_dim=5")
    assert other.returncode == 2 and "give group=NAME for a new one" in other.stderr


@pytest.mark.parametrize("text", ["0,00", "0,-1", "0,1.5", "0,yes"])
def test_a_wrong_seed_is_named_by_the_key_that_was_typed(text: str) -> None:
    study = Study.of("s", {"params": {"model.kl_weight": "0,1"}})
    with pytest.raises(ConfigError, match="^seed="):
        study.with_values("seed", text)
