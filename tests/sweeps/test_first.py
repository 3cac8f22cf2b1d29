"""A study whose jobs start from runs of its own: who starts from what, and what a failure stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compared_runs import vae, write
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from genlab.config.compose import compose
from genlab.errors import ConfigError
from genlab.report import collect
from genlab.report.collect import swept_keys
from genlab.report.naming import setting_text
from genlab.report.replicates import summarise
from genlab.runs.manifest import Job, Manifest, point_in_sweep
from genlab.runs.points import Start, point_of
from genlab.runs.run import Run, find_runs
from genlab.sweeps.naming import announce
from genlab.sweeps.request import expand, request
from genlab.sweeps.study import Study
from genlab.training import planning

ROOT = Path(__file__).parents[2]

#: Two VAEs, of which the second fails, and a VAE that starts from the weights of each.
CONTENT = """
# @package hydra.sweeper.study
question: Is a run that fails a failure of those alone that start from it?
base: [{tiny}]
seeds: [0]
first:
  run: init_from
  base: [{tiny}]
  params:
    model.optimizer.lr: 0.001,1e30
"""
TINY = (
    "trainer=smoke, trainer.max_epochs=1, data.train_images=512, callbacks=none, logger=none, "
    'forecast=false, "model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"'
)


@pytest.fixture
def search(tmp_path: Path) -> str:
    """The override by which the study `later` is found."""
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)
    (folder / "later.yaml").write_text(CONTENT.format(tiny=TINY))
    return f"hydra.searchpath=[file://{tmp_path}/conf]"


axes = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
)


@given(first=axes, mine=axes, seeds=st.lists(st.integers(0, 9), max_size=2, unique=True))
def test_a_job_starts_from_the_runs_of_its_seed_and_values(
    first: dict[str, list[int]], mine: dict[str, list[int]], seeds: list[int]
) -> None:
    def typed(values: dict[str, list[int]]) -> dict[str, str]:
        return {key: ",".join(map(str, found)) for key, found in values.items()}

    needed = Study(params=typed(first), seeds=seeds).jobs()
    study = Study(params=typed(mine), seeds=seeds)
    shared = first.keys() & mine.keys()
    if any(set(mine[key]) - set(first[key]) for key in shared):
        with pytest.raises(ConfigError, match="no run has the values"):
            study.jobs_after(needed)
        return
    jobs = study.jobs_after(needed)
    pairs = [(job.needs, job._replace(needs=None)) for job in jobs]
    everything = [(other, job) for other in needed for job in study.jobs()]
    assert sorted(map(str, pairs)) == sorted(
        str(pair) for pair in everything if _is_of(*pair, shared)
    )
    assert all(job.whole_point.keys() == first.keys() | mine.keys() for job in jobs)


def _is_of(other: Any, job: Any, shared: Any) -> bool:
    return other.seed == job.seed and all(other.point[k] == job.point[k] for k in shared)


def test_the_directory_of_a_run_survives_the_command_line() -> None:
    (job,) = Study(params={"a": "1"}).jobs()
    for path in ("runs/a-1.5", "/tmp/it's, [here] = 1/run"):
        after = job.after(Path(path), Start("model.codec.run", None))
        typed = OverridesParser.create().parse_overrides(after.overrides())
        assert {o.key_or_group: o.value() for o in typed} == {"a": 1, "model.codec.run": path}


def test_the_command_line_reaches_the_runs_whose_model_has_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    content: dict[str, Any] = {
        "base": ["model=ddpm", "trainer.max_epochs=7"],
        "params": {"model.sampler.steps": "10,20"},
        "seeds": [0],
        "first": {
            "run": "init_from",
            "base": ["experiment=vae/kl_weight", "trainer.max_epochs=5"],
            "params": {"model.kl_weight": "0,1,30"},
        },
    }
    (folder / "s.yaml").write_text(f"# @package hydra.sweeper.study\n{content}")
    place = f"hydra.searchpath=[file://{tmp_path}]"

    def asked(*given: str) -> Any:
        arguments = expand(["sweep=s", place, *given])
        parsed = {
            o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(arguments)
        }
        mine = [a for a in arguments if not a.startswith("hydra.")]
        return request("s", content, mine, parsed["hydra.sweeper.first"])

    as_written = asked()
    assert len(as_written.study.jobs_after(as_written.first.study.jobs())) == 6
    assert as_written.first.overrides == [
        "group=s",
        "experiment=vae/kl_weight",
        "trainer.max_epochs=5",
    ]
    assert as_written.swept == ["model", "model.kl_weight", "model.sampler.steps"]

    found = asked(
        *("model.kl_weight=0,4", "model.sampler.steps=50", "seed=1,2", "trainer.max_epochs=1"),
        *("model/likelihood=gaussian", "model/sampler=heun", "+model.optimizer.eps=1e-7"),
        *("model.optimizer.lr=0.01", "data.batch_size=8", "+callbacks.mine={_target_: a.B}"),
    )
    both = {"trainer.max_epochs=1", "data.batch_size=8", "+callbacks.mine={_target_: a.B}"}
    both |= {"group=s", "model.optimizer.lr=0.01", "+model.optimizer.eps=1e-7"}
    own = {"experiment=vae/kl_weight", "model/likelihood=gaussian"}
    assert set(found.first.overrides) == both | own
    of_jobs = {"model=ddpm", "model.sampler.steps=50", "model/sampler=heun"}
    assert set(found.overrides) == both | of_jobs
    assert {job.point["model.kl_weight"] for job in found.first.study.jobs()} == {0, 4}
    assert {job.seed for job in found.first.study.jobs()} == {1, 2}
    assert {job.seed for job in found.study.jobs()} == {1, 2}
    # what neither has is refused with the jobs' config
    assert "model.nothing=1" in asked("model.nothing=1").overrides


LATENTS = ["model=ddpm", "model/codec=vae", "model/net=unet_latents", "model.codec.run=not/yet"]
WRONG = {
    "model.net.channels=-1": "model.net.channels=-1: ",
    "model.net.chanels=8": "chanels",
    "model/sampler=anc": "anc",
    "model.sampler.steps=2000": "model.sampler.steps=2000: ",
    "data.val_images=7": "model.codec.run: this run was trained on other images",
    "data.binarisation=dynamic": "model.codec.run: the latents of an image are computed once",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_job_is_checked_before_the_run_that_it_starts_from(wrong: str) -> None:
    start = planning.plan(compose(["experiment=vae/latent_mnist_mini"]), []).config
    if wrong == next(iter(WRONG)):
        planning.rehearse(compose(LATENTS), start)
    with pytest.raises(ConfigError) as refused:
        planning.rehearse(compose([*LATENTS, wrong]), start)
    assert WRONG[wrong] in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("dry", ["false", "true"])
def test_a_job_that_would_be_refused_is_so_before_any_work(dry: str, tmp_path: Path) -> None:
    command = [sys.executable, "sweep.py", "sweep=which_kl_weight", "model.net.channels=-1"]
    done = subprocess.run(
        [*command, f"dry={dry}", f"runs_dir={tmp_path}/runs"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("GENLAB_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "model.kl_weight=0 seed=0: model.net.channels=-1: " in done.stderr
    assert not find_runs(tmp_path / "runs") and "first  21 runs" not in done.stdout


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        ({}, "missing a required argument: 'run'"),
        ({"run": "a", "parms": {}}, r"sweep\.first\.parms=.*did you mean params"),
        ({"run": "a", "params": {"seed": "0,1"}}, r"sweep\.first\.params\.seed: seeds are"),
        ({"run": "a", "zip": [{"a": "1,2", "b": "1"}]}, r"sweep\.first\.zip: .*a has 2, b has 1"),
    ],
    ids=str,
)
def test_first_runs_that_make_no_sense_are_refused(first: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        request("s", {"first": first}, [])


def test_a_run_has_the_values_of_the_model_that_it_keeps() -> None:
    likelihood = {"_target_": "a.b.Gaussian", "scale": 1}
    codec = {"run": "runs/x", "vae": {"kl_weight": 0.1, "likelihood": likelihood}}
    later = {"model": {"steps": 5, "kl_weight": None, "codec": codec}}
    keys = ["model", "model.kl_weight", "model.steps", "model/likelihood", "seed"]
    expected = {"model": "ddpm", "model.kl_weight": 0.1, "model.steps": 5}
    point = point_of(later, {"model": "ddpm"}, keys, "model.codec.vae")
    assert point == {**expected, "model/likelihood": "Gaussian"}
    first = {"model": {"kl_weight": 0.1, "likelihood": likelihood}}
    chosen = {"model": "vae", "model/likelihood": "gaussian"}
    assert point_of(first, chosen, keys, "model.codec.vae") == {
        "model": "vae",
        "model.kl_weight": 0.1,
        "model.steps": None,
        "model/likelihood": "gaussian",
    }


def test_a_job_has_the_settings_of_its_run_that_its_config_does_not_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By them the jobs of several seeds are replicates, though they start from different runs."""
    keys = ("model", "model.kl_weight", "init_from.model.kl_weight")
    for name, value in (("GROUP", "s"), ("KEYS", "[]"), ("START", "")):
        monkeypatch.setenv(f"GENLAB_SWEEP_{name}", value)  # so that they are put back
    announce("s", keys, Start("init_from", None, ("model.kl_weight",)))

    def job(run_id: str, seed: int, weight: float, start: str | None = None) -> Job:
        config = vae(**{"model.kl_weight": weight, "seed": seed, "init_from": start})
        write(tmp_path / run_id, config, 100.0)
        return Job(run_id, (), point_in_sweep(config, {"model": "vae"}, keys[:2]), seed, config)

    first = [job(f"first-{w}-{s}", s, float(w)) for w in (0, 4) for s in (0, 1)]
    Manifest("s", (*keys, "seed"), tuple(first)).write(tmp_path)
    starts = [(w, s) for w in (0, 4) for s in (0, 1)]
    jobs = [job(f"job-{w}-{s}", s, 1.0, str(tmp_path / f"first-{w}-{s}")) for w, s in starts]
    Manifest("s", (*keys, "seed"), (*first, *jobs)).write(tmp_path)
    records = collect(tmp_path)
    assert swept_keys(records) == ["model.kl_weight", "init_from.model.kl_weight", "seed"]
    points = summarise(records, swept_keys(records))
    assert sorted([*map(str, point.point.values()), point.runs] for point in points) == [
        ["0.0", "None", 2],
        ["1.0", "0.0", 2],
        ["1.0", "4.0", 2],
        ["4.0", "None", 2],
    ]
    # so they are beside another sweep, where a run that is named is so by its digits
    write(tmp_path / "beside" / "run", vae(**{"model.kl_weight": 9.0}), 100.0)
    both = collect(tmp_path)
    assert "init_from" not in swept_keys(both)
    assert [p.runs for p in summarise(both, swept_keys(both))].count(2) == 4
    assert setting_text("init_from", "runs/s/vae-kl_weight_4-0123abcd") == "0123abcd"


def test_blocked_jobs_are_rows_that_say_why_until_they_can_start(tmp_path: Path) -> None:
    ready = Job("a-00000000", (), {"x": 1}, 0)
    blocked = [Job(f"not-started-{i}", (), {"x": i}, 0, {}, f"not started: {i}") for i in (1, 2)]
    manifest = Manifest("s", ("x",), (ready,))
    manifest.with_blocked(blocked).write(tmp_path)
    assert [(r.state, r.error) for r in collect(tmp_path)][1:] == [
        ("missing", "not started: 1"),
        ("missing", "not started: 2"),
    ]
    there = Manifest.read(tmp_path)
    assert there is not None
    assert there.with_blocked(blocked[1:]).jobs == (ready, blocked[1])
    assert there.with_blocked([]).jobs == (ready,)


LAUNCHERS = {
    "process": ["launcher=process"],
    "joblib": ["launcher=joblib", "hydra.launcher.n_jobs=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_run_stops_only_the_jobs_that_start_from_it(
    launcher: str, tmp_path: Path, search: str
) -> None:
    def sweep(*given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "sweep.py", "sweep=later", search, *given]
        return subprocess.run(
            [*command, f"runs_dir={tmp_path}/runs", *LAUNCHERS[launcher]],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("GENLAB_")},
            capture_output=True,
            text=True,
        )

    folder = tmp_path / "runs" / "later"
    done = sweep()
    assert done.returncode == 1, done.stdout + done.stderr
    states = sorted(Run(run).state for run in find_runs(folder))
    assert states == ["completed", "completed", "failed"], done.stdout
    stamps = {run.path: run.metrics_path.stat().st_mtime_ns for run in find_runs(folder)}
    completed = {run.name: run for run in find_runs(folder) if run.is_completed}
    (start,) = (
        name for name, run in completed.items() if "init_from: null" in str(run.config_text)
    )
    (after,) = (run for name, run in completed.items() if name != start)
    assert f"{folder}/{start}" in str(after.config_text)
    manifest = Manifest.read(folder)
    of_run = "init_from.model.optimizer.lr"  # beside the job's own
    assert manifest is not None and manifest.swept == ("model", "model.optimizer.lr", of_run)
    assert manifest.question is not None
    (row,) = (record for record in collect(folder) if record.state == "missing")
    assert row.error is not None
    assert row.error.startswith("not started, since its run model.optimizer.lr=1e+30 seed=0 has")
    assert row.point[of_run] == 1e30
    (job,) = (job for job in manifest.jobs if job.run_id == after.name)
    assert [job.point[key] for key in manifest.swept[1:]] == [0.001, 0.001]
    assert "not started, since its run" in done.stdout

    # the study without the run that fails: nothing is trained again, and no row is left over
    fewer = sweep("model.optimizer.lr=0.001")
    assert fewer.returncode in (0, 1), fewer.stdout + fewer.stderr
    again = {run.path: run.metrics_path.stat().st_mtime_ns for run in find_runs(folder)}
    assert {path: again[path] for path in stamps} == stamps
    assert [r.state for r in collect(folder) if r.state == "missing"] == []

    # every run fails, so that no job is left to launch
    none = sweep("model.optimizer.lr=1e30", "group=none")
    assert none.returncode == 1, none.stdout + none.stderr
    assert "not started, since its run" in none.stdout and "Traceback" not in none.stderr
