"""Classes of models under equal budgets: their quality, stability and cost, and what is claimed."""

from __future__ import annotations

import operator
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from genlab.report.claims import (
    Claim,
    Verdict,
    best_rates,
    judged,
    of_means,
    of_shares,
    spreads,
    wilson,
)
from genlab.report.collect import Record, comparable
from genlab.report.groups import terms_of
from genlab.report.intervals import mean_interval, squarable
from genlab.report.naming import number_text
from genlab.report.tables import Column, Table

RATE = "model.optimizer.lr"
#: Keys that say how long a training is.
_LENGTH = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches"),
    *("training_flops", "data.batch_size", "data.train_images"),
)
#: Amounts of a budget that are called equal: it ends at a whole step.
_EQUAL = 0.01
#: A run succeeds up to this multiple of the FID that its class typically has.
_SUCCESS = 2.0
#: Amounts and times are above this, so that they can be divided by.
_LEAST = 1e-100
_BUDGETS = {"images": "equal images", "operations": "equal operations"}
Budget = Literal["images", "operations"]


@dataclass(frozen=True)
class Arm:
    """The runs of one class of models under one budget, over seeds and learning rates.

    Attributes:
        family: the class.
        records: its runs that have ended, those without a result too.
        features: in which quality was measured.
    """

    family: str
    records: tuple[Record, ...]
    features: str

    def by_rate(
        self, value: Callable[[Record], float | None]
    ) -> dict[float, dict[str, float | None]]:
        """Return a value of each run by learning rate and seed."""
        found: dict[float, dict[str, float | None]] = {}
        for record in self.records:
            rate, seed = record.flat.get(RATE), comparable(record.flat.get("seed"))
            key = float(rate) if isinstance(rate, int | float) else 0.0
            found.setdefault(key, {})[seed] = value(record)
        return found

    @cached_property
    def rates(self) -> dict[str, float]:
        """The learning rate of each seed, chosen by the KID of the other seeds."""
        return best_rates(self.by_rate(lambda record: self.measured(record, "kid")))

    def chosen(self, value: Callable[[Record], float | None]) -> dict[str, float]:
        """Return a value by seed, of the run at the seed's learning rate."""
        values = self.by_rate(value)
        found = {seed: values[rate].get(seed) for seed, rate in self.rates.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def quality(self, name: str) -> dict[str, float]:
        """Return a measured quality by seed, at the seed's learning rate."""
        return self.chosen(lambda record: self.measured(record, name))

    def measured(self, record: Record, name: str) -> float | None:
        """Return a quality of the samples of a run; None where there is none, or it diverged."""
        value = squarable(record.metric(f"test/{name}_{self.features}"))
        return None if record.is_diverged else value

    @cached_property
    def successes(self) -> int:
        """The number of runs whose FID is at most twice the typical one of the class."""
        typical = statistics.median(self.quality("fid").values())
        values = (self.measured(record, "fid") for record in self.records)
        return sum(value is not None and value <= _SUCCESS * typical for value in values)

    @property
    def without_result(self) -> int:
        """The number of runs that failed or diverged."""
        return sum(self.measured(record, "fid") is None for record in self.records)

    def spread(self) -> dict[str, float]:
        """Return by seed how far its runs are from the median FID, over all learning rates."""
        values = self.by_rate(lambda record: self.measured(record, "fid"))
        known = {
            rate: {seed: v for seed, v in by_seed.items() if v is not None and v > 0}
            for rate, by_seed in values.items()
        }
        return spreads({rate: by_seed for rate, by_seed in known.items() if by_seed})

    def per_seed(self, value: Callable[[Record], float | None]) -> dict[str, float]:
        """Return the mean of a value over the learning rates, by seed."""
        found: dict[str, list[float]] = {}
        for by_seed in self.by_rate(value).values():
            for seed, known in by_seed.items():
                if known is not None:
                    found.setdefault(seed, []).append(known)
        return {seed: statistics.fmean(values) for seed, values in found.items()}

    def fact(self, name: str) -> float | None:
        """Return a number of result.json, the median of the runs; None where none has it."""
        values = [v for record in self.records if (v := _number(record.result.get(name)))]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """A class with a diffusion process and others under the same budget.

    Attributes:
        budget: what is equal.
        amount: of it.
        diffusion: the class that samples step by step.
        others: the others, each once.
    """

    budget: Budget
    amount: float
    diffusion: Arm
    others: tuple[Arm, ...]


def comparisons(records: Sequence[Record]) -> list[Comparison]:
    """Find the classes whose runs saw as many images as a diffusion model's, or cost as much.

    Each class needs two seeds with a measured quality.
    """
    features = _features(records)
    lengths: dict[Any, list[Record]] = {}
    for record in records:
        if record.family and (record.state == "failed" or record.result):
            terms = terms_of(record)._replace(images=None, unit=None, version=None, shape=None)
            length = tuple(comparable(record.flat.get(key)) for key in _LENGTH)
            lengths.setdefault((record.family, terms, length), []).append(record)
    arms = [
        (terms, Arm(family, tuple(runs), features)) for (family, terms, _), runs in lengths.items()
    ]
    arms = [(terms, arm) for terms, arm in arms if len(arm.quality("kid")) > 1]
    ours = [entry for entry in arms if any(r.is_diffusion for r in entry[1].records)]
    if not ours:
        return []
    terms, diffusion = max(ours, key=lambda entry: len(entry[1].records))
    found = []
    facts: tuple[tuple[Budget, str], ...] = (
        ("images", "training_images"),
        ("operations", "training_flops"),
    )
    for budget, name in facts:
        amount = diffusion.fact(name)
        others: dict[str, Arm] = {}
        for its_terms, arm in arms if amount else ():
            is_other = its_terms == terms and arm.family != diffusion.family
            its = arm.fact(name)
            if is_other and its and amount and abs(its / amount - 1) <= _EQUAL:
                others.setdefault(arm.family, arm)
        if others and amount:
            found.append(Comparison(budget, amount, diffusion, tuple(others.values())))
    return found


def claims(found: Sequence[Comparison]) -> dict[str, list[Claim]]:
    """Judge the claims about diffusion models against each other class.

    They are: better and more diverse samples, a more stable training, and a higher cost of training
    and of sampling. The p-values against one class hold for all of them together.
    """
    families = dict.fromkeys(arm.family for one in found for arm in one.others)
    return {family: judged(list(_claims(found, family))) for family in families}


def _claims(found: Sequence[Comparison], family: str) -> Iterator[Claim]:
    pairs = [
        (one.budget, one.diffusion, arm)
        for one in found
        for arm in one.others
        if arm.family == family
    ]
    qualities: tuple[tuple[str, str, str, Literal[1, -1]], ...] = (
        ("higher quality", "KID", "kid", -1),
        ("higher quality", "FID\N{INFINITY}", "fid_infinity", -1),
        ("better coverage", "coverage", "coverage", 1),
        ("better coverage", "recall", "recall", 1),
    )
    for claim, title, name, expected in qualities:
        for budget, ours, its in pairs:
            compared = of_means(ours.quality(name), its.quality(name))
            yield from _claim(claim, f"{title}, difference", budget, expected, compared)
    for budget, ours, its in pairs:
        shares = [(arm.successes, len(arm.records)) for arm in (ours, its)]
        yield from _claim("more stable", "success, difference", budget, 1, of_shares(*shares))
    for budget, ours, its in pairs:
        compared = of_means(ours.spread(), its.spread())
        yield from _claim("more stable", "spread of log FID, difference", budget, -1, compared)
    for budget, ours, its in pairs:
        if budget == "images":
            compared = _ratio(ours, its, _operations)
            yield from _claim("more compute", "operations, ratio", budget, 1, compared)
    _, ours, its = pairs[0]
    compared = _ratio(ours, its, latency)
    yield from _claim("slower inference", "latency of one image, ratio", None, 1, compared)
    compared = _ratio(ours, its, throughput)
    yield from _claim("slower inference", "images a second, ratio", None, -1, compared)


def _ratio(ours: Arm, its: Arm, value: Callable[[Record], float | None]) -> dict[str, Any] | None:
    return of_means(ours.per_seed(value), its.per_seed(value), is_ratio=True)


def _claim(
    claim: str,
    measure: str,
    budget: Budget | None,
    expected: Literal[1, -1],
    compared: Mapping[str, Any] | None,
) -> Iterator[Claim]:
    if compared is not None:
        yield Claim(claim, measure, _BUDGETS[budget] if budget else "", expected, **compared)


def latency(record: Record) -> float | None:
    """Return the seconds of one image: CPU time for a run on the CPU, else by the clock."""
    return _number(record.metric(f"test/{_clock(record)}"))


def _clock(record: Record) -> str:
    on_cpu = record.flat.get("trainer.accelerator") == "cpu"
    return "latency_cpu" if on_cpu else "latency"


def throughput(record: Record) -> float | None:
    """Return the images that a run draws in a second, in a batch."""
    return _number(record.metric("test/samples_per_second"))


def _operations(record: Record) -> float | None:
    return _number(record.result.get("training_flops"))


def _number(value: Any) -> float | None:
    """Return a positive number; None where a stranger's file has something else."""
    known = squarable(value)
    return known if known is not None and known > _LEAST else None


def _features(records: Sequence[Record]) -> str:
    """Return the features in which most runs were measured."""
    counts: Counter[str] = Counter()
    for record in records:
        for name in record.result.get("metrics") or {}:
            if str(name).startswith("test/kid_") and record.metric(name) is not None:
                counts[str(name).removeprefix("test/kid_")] += 1
    return max(counts, key=lambda name: (counts[name], name)) if counts else ""


def family_tables(found: Sequence[Comparison]) -> list[Table]:
    """Return the tables of the classes under their budgets, of the verdicts, and of the front.

    Empty where no class is compared with a diffusion model.
    """
    if not found:
        return []
    places = [
        {
            "class": row["class"],
            "sampling": row["steps"],
            "latency ms": number_text(1000 * row["seconds"], 2),
            "KID": number_text(row["kid"], 1),
            "95 % interval": f"{row['low']:.1f} to {row['high']:.1f}",
        }
        for row in front(found)
    ]
    facts = [
        {**_facts(arm), "budget": _BUDGETS[one.budget]}
        for one in found
        for arm in (one.diffusion, *one.others)
    ]
    verdicts = [
        {
            "claim": f"{claim.claim} than the {family}",
            "finding": claim.verdict,
            "measure": claim.measure,
            "budget": claim.budget or "either",
            "value": _at(claim, claim.value),
            "95 % interval": f"{_at(claim, claim.low)} to {_at(claim, claim.high)}",
            "p": f"{claim.p:.3f}" if claim.p >= 0.0005 else "<0.001",
            "runs": claim.basis,
        }
        for family, against in claims(found).items()
        for claim in against
    ]
    tables = ((facts, _CAPTION), (verdicts, _NOTE), (places, _FRONT))
    return [_table(rows, caption) for rows, caption in tables if rows]


def front(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the quality and the latency of a diffusion model at numbers of steps, and of the rest.

    A row for each number of steps that was measured in two runs or more, and one for each other
    class: `class`, `steps`, their `label`, `seconds`, `kid` with its 95 % interval `low` and `high`
    over the runs.
    Empty where there are no such numbers.
    """
    if not found:
        return []
    ours = found[0].diffusion
    pattern = re.compile(rf"test/steps_(\d{{1,6}})/kid_{re.escape(ours.features)}")
    names = {str(name) for record in ours.records for name in record.result.get("metrics") or {}}
    steps = sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))
    rows = []
    for number in steps:
        runs = [r for r in ours.records if not r.is_diverged]
        kid = [_at_steps(r, number, f"kid_{ours.features}") for r in runs]
        seconds = [_at_steps(r, number, _clock(r)) for r in runs]
        rows.append(_place(ours.family, f"{number:,} steps", f"{number:,}", kid, seconds))
    for arm in found[0].others:
        seconds = list(arm.per_seed(latency).values())
        kid = list(arm.quality("kid").values())
        rows.append(_place(arm.family, "one pass", arm.family, kid, seconds))
    known = [row for row in rows if row is not None]
    return known if sum(row["class"] == ours.family for row in known) > 1 else []


def _at_steps(record: Record, steps: int, name: str) -> float | None:
    return squarable(record.metric(f"test/steps_{steps}/{name}"))


def _place(
    family: str,
    steps: str,
    label: str,
    kid: Sequence[float | None],
    seconds: Sequence[float | None],
) -> dict[str, Any] | None:
    kids, times = ([v for v in values if v is not None] for values in (kid, seconds))
    if len(kids) < 2 or not times or min(times) <= 0:
        return None
    known = mean_interval(kids)
    ends = {"kid": known.mean, "low": known.low, "high": known.high}
    named = {"class": family, "steps": steps, "label": label}
    return {**named, "seconds": statistics.fmean(times), **ends}


def about_families(found: Sequence[Comparison]) -> str:
    """State the verdicts against each other class in a sentence; empty where there are none.

    A budget is named where the verdict is not the same under the other.
    """
    sentences = []
    for family, against in claims(found).items():
        parts = []
        for verdict in get_args(Verdict):
            told: dict[str, dict[str, None]] = {}
            for claim in against:
                if claim.verdict == verdict:
                    told.setdefault(claim.claim, {})[_measured(claim, against)] = None
            named = [f"{claim} ({', '.join(measures)})" for claim, measures in told.items()]
            parts += [f"{verdict}: {', '.join(named)}"] if named else []
        sentences.append(f"{found[0].diffusion.family} against {family}, {'; '.join(parts)}.")
    return " ".join(sentences)


def _measured(claim: Claim, against: Sequence[Claim]) -> str:
    verdicts = {other.verdict for other in against if other.measure == claim.measure}
    measure = claim.measure.partition(",")[0]
    return measure if len(verdicts) == 1 else f"{measure} at {claim.budget}"


#: Of the tables of `family_tables`.
TITLES = (
    "Classes under each budget",
    "Claims about the diffusion model",
    "Quality against latency",
)
_CAPTION = (
    "means over seeds +- half of the 95 % interval (Student's t), each seed at the learning rate "
    "that is best for the other seeds; success: runs over all seeds and rates whose FID is at most "
    "twice the median of the class; spread: mean distance of log FID from its median; "
    "latency: CPU time of one image where the run was on the CPU"
)
_NOTE = (
    "the value of the diffusion model minus that of the other, or over it; p is adjusted for all "
    "claims against one class (Holm), and a claim is undecided where it is above 0.05"
)
_FRONT = "quality against latency at other numbers of sampling steps; intervals over the runs"


def _facts(arm: Arm) -> dict[str, str]:
    low, high = wilson(arm.successes, len(arm.records))
    return {
        "budget": "",
        "class": arm.family,
        "parameters": _short(arm.fact("parameters")),
        "images": _short(arm.fact("training_images")),
        "operations": _short(arm.fact("training_flops")),
        "training s": _mean(arm.chosen(lambda r: _number(r.result.get("wall_seconds"))), 0),
        "KID": _mean(arm.quality("kid"), 1),
        "FID\N{INFINITY}": _mean(arm.quality("fid_infinity"), 1),
        "recall": _mean(arm.quality("recall"), 3),
        "coverage": _mean(arm.quality("coverage"), 3),
        "success": f"{arm.successes}/{len(arm.records)} ({low:.2f} to {high:.2f})",
        "failed or diverged": str(arm.without_result),
        "spread": _mean(arm.spread(), 2),
        "latency ms": _mean({s: 1000 * v for s, v in arm.per_seed(latency).items()}, 2),
        "images/s": _mean(arm.per_seed(throughput), 0),
    }


def _mean(values: Mapping[str, float], decimals: int) -> str:
    if not values:
        return ""
    known = mean_interval(list(values.values()))
    text = number_text(known.mean, decimals)
    half = (known.high - known.low) / 2
    return f"{text} +- {number_text(half, decimals)}" if len(values) > 1 else text


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value < 1e7 else f"{value:.3g}"


def _at(claim: Claim, value: float) -> str:
    return f"x {value:.3g}" if claim.is_ratio else f"{value:+.3g}"


def _table(rows: Sequence[Mapping[str, str]], caption: str) -> Table:
    columns = [
        Column(name, operator.itemgetter(name), name not in _WORDS, name) for name in rows[0]
    ]
    return Table([dict(row) for row in rows], columns, caption)


_WORDS = ("budget", "class", "claim", "measure", "runs", "sampling", "finding")
