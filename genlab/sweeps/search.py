"""A search instead of a grid: Optuna proposes the points, and the launcher runs them.

The trials are stored in `optuna.db` in the sweep's directory. A proposal depends on the seed, its
number and the trials reported before it, so that an interrupted search continues as it would have
without the interruption. The run of a trial that was interrupted is started again, which resumes
it, or returns its result if it has ended meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genlab.errors import ConfigError, RunDirectoryError
from genlab.runs.points import point_text, value_text
from genlab.runs.run import Run
from genlab.sweeps.study import Search, Study, StudyJob
from genlab.training.outcome import Outcome

if TYPE_CHECKING:
    import optuna

Launch = Callable[[Sequence[StudyJob], int], list[JobReturn]]
_FEW_FOR_IMPORTANCE = 10


def run_search(study: Study, launch: Launch, directory: Path, slots: int) -> list[JobReturn]:
    """Run trials, `slots` at a time, until there are as many as the study wants.

    A trial's value is the mean of the metric over the study's seeds; a trial without one failed.

    Raises:
        ConfigError: Optuna is not installed.
        RunDirectoryError: the directory holds a different search.
    """
    asked = study.search
    assert asked is not None
    trials = _trials(asked, directory)
    returns: list[JobReturn] = []
    while batch := _next_batch(trials, asked, slots):
        jobs = [StudyJob(point, seed) for _, point in batch for seed in study.seeds or (None,)]
        returned = launch(jobs, len(returns))
        returns += returned
        replicates = len(jobs) // len(batch)
        for position, (number, _) in enumerate(batch):
            mine = returned[position * replicates : (position + 1) * replicates]
            _tell(trials, asked, number, [_metric(r, asked.metric) for r in mine])
    _print(trials, asked)
    return returns


def _trials(asked: Search, directory: Path) -> optuna.Study:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "sweep search: Optuna is not installed; `pip install genlab[search]` brings it"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "optuna.db"
    trials = optuna.create_study(
        storage=f"sqlite:///{path}",
        study_name=directory.name,
        direction=asked.direction,
        load_if_exists=True,
    )
    mine = {
        "metric": asked.metric,
        "direction": asked.direction,
        "space": {key: dict(range_) for key, range_ in asked.space.items()},
    }
    there = trials.user_attrs.get("search")
    if there is None:
        trials.set_user_attr("search", mine)
    elif there != mine:
        raise RunDirectoryError(
            f"{path} is a search for {there['metric']} over {', '.join(there['space'])} with other "
            "settings: give group=NAME for a new one, or move that file away"
        )
    return trials


def _next_batch(
    trials: optuna.Study, asked: Search, slots: int
) -> list[tuple[int, dict[str, Any]]]:
    """Return numbers and points of the trials that were left running, then of new ones."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    there = trials.get_trials(deepcopy=False)
    left = [trial for trial in there if trial.state is TrialState.RUNNING]
    batch = [(trial.number, _point(trial.params)) for trial in left[:slots]]
    space = {key: _distribution(range_) for key, range_ in asked.space.items()}
    for number in range(len(there), min(asked.trials, len(there) + slots - len(batch))):
        trials.sampler = TPESampler(seed=asked.sampler_seed + number, constant_liar=True)
        trial = trials.ask(space)
        batch.append((trial.number, _point(trial.params)))
    return batch


def _point(params: Mapping[str, Any]) -> dict[str, Any]:
    """Round values to 6 digits, since they become part of a directory's name."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in params.items()}


def _distribution(range_: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if "choices" in range_:
        return CategoricalDistribution(tuple(range_["choices"]))
    low, high, step = range_["low"], range_["high"], range_.get("step")
    log = bool(range_.get("log", False))
    if all(isinstance(n, int) for n in (low, high, 1 if step is None else step)):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _metric(returned: JobReturn, name: str) -> float | None:
    outcome = returned._return_value
    if not isinstance(outcome, Outcome) or outcome.path is None:
        return None
    result = outcome.result or (Run(outcome.path).result if outcome.exit_code == 0 else None) or {}
    value = result.get("metrics", {}).get(name, result.get(name))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _tell(trials: optuna.Study, asked: Search, number: int, values: Sequence[float | None]) -> None:
    from optuna.trial import TrialState

    known = [value for value in values if value is not None]
    if len(known) < len(values):
        trials.tell(number, state=TrialState.FAIL)
        print(f"trial {number}: failed, or without {asked.metric}", flush=True)
        return
    trials.tell(number, fmean(known))
    print(f"trial {number}: {asked.metric} {fmean(known):.6g}", flush=True)


def _print(trials: optuna.Study, asked: Search) -> None:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    done = trials.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    failed = len(trials.get_trials(deepcopy=False, states=[TrialState.FAIL]))
    console = Console(soft_wrap=True, highlight=False)
    console.print()
    if not done:
        console.print(f"no trial of {failed} gave a {asked.metric}", markup=False)
        return
    keys = list(asked.space)
    points = {trial.number: _point(trial.params) for trial in done}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("trial", asked.metric, *keys):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    order = sorted(done, key=lambda t: t.value or 0.0, reverse=asked.direction == "maximize")
    for trial in order[:10]:
        texts = [Text(value_text(points[trial.number].get(key))) for key in keys]
        table.add_row(str(trial.number), f"{trial.value:.6g}", *texts)
    console.print(table)
    best = point_text(points[order[0].number])
    without = f", {failed} without a result" if failed else ""
    console.print(
        f"best of {len(done)}{without}: {asked.metric} {order[0].value:.6g} at {best}", markup=False
    )
    if len(keys) > 1 and len(done) >= _FEW_FOR_IMPORTANCE:
        shares = get_param_importances(trials, evaluator=PedAnovaImportanceEvaluator())
        told = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        console.print(f"importance (PED-ANOVA): {told}", markup=False)
