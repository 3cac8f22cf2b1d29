"""What the numbers of a sweep say, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from genlab.report.collect import MODEL, Record, swept_keys
from genlab.report.naming import (
    KL_WEIGHT,
    data_name,
    number_text,
    run_label,
    short_names,
    sort_key,
)

_LIKELIHOOD = "model.likelihood._target_"


@dataclass(frozen=True)
class _Finding:
    """The runs of one setting, averaged over seeds."""

    label: str
    records: list[Record]

    def metric(self, name: str) -> float | None:
        values = [value for r in self.records if (value := r.metric(name)) is not None]
        return fmean(values) if values else None

    def text(self, name: str, decimals: int) -> str:
        return number_text(self.metric(name), decimals)

    @property
    def family(self) -> str:
        return self.records[0].family

    @property
    def error(self) -> float | None:
        """Standard error of neg_elbo in nats, over the test images and, of several runs, them."""
        found = [(r.metric("test/neg_elbo"), r.metric("test/neg_elbo_se")) for r in self.records]
        known = [(nats, error) for nats, error in found if nats is not None and error is not None]
        if len(known) < len(found):
            return None
        # All seeds see the same images, so that their number makes that part no smaller.
        over_images = fmean(error**2 for _, error in known)
        over_seeds = variance(nats for nats, _ in known) / len(known) if len(known) > 1 else 0.0
        return math.sqrt(over_images + over_seeds)

    @property
    def bits_per_nat(self) -> float | None:
        return next((b for r in self.records if (b := r.bits_per_nat) is not None), None)

    def bits(self, name: str) -> float:
        return (self.metric(f"test/{name}") or 0.0) * (self.bits_per_nat or 0.0)


def answer(records: Sequence[Record]) -> str:
    """What the numbers of a sweep say, in a few sentences.

    Of a sweep of KL weights: what the largest weight does to the latent units and to the
    reconstruction, and whether the linear forecast said so. Of any other: the best and the worst,
    and, where their errors are known, whether they differ. Of models of several classes: the best
    of each in bits/dim, then the same for each class.
    """
    swept = [key for key in swept_keys(records) if key != "seed"]
    finished = sorted(
        (r for r in records if r.metric("test/reconstruction") is not None),
        key=lambda record: [sort_key(record.flat.get(key)) for key in swept],
    )
    counts = Counter(record.state for record in records if record not in finished)
    rest = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    if not finished:
        return f"No run has a result yet ({rest or 'there are no runs'})."
    groups: dict[str, list[Record]] = {}
    for record in finished:
        groups.setdefault(run_label(record, swept) or record.run_id, []).append(record)
    findings = [_Finding(label, runs) for label, runs in groups.items()]
    families: dict[str, list[_Finding]] = {}
    for finding in findings:
        families.setdefault(finding.family, []).append(finding)
    if len(findings) == 1:
        sentences = [_describe(findings[0])]
    elif MODEL in swept and len(families) > 1:
        sentences = _about_families(families)
    else:
        sentences = _about_settings(findings, swept)
    if rest:
        sentences.append(f"Without a result, and so left out: {rest}.")
    return " ".join(sentences)


def _describe(finding: _Finding) -> str:
    terms = [
        f"{name} {finding.text(f'test/{name}', decimals)}"
        for name, decimals in (("reconstruction", 1), ("kl", 2), ("neg_elbo", 1))
        if finding.metric(f"test/{name}") is not None
    ]
    error = "" if finding.error is None else f" +- {finding.error:.1f}"
    where = f"nats per image on {data_name(finding.records[0])}"
    return f"{finding.label}: {', '.join(terms)}{error} {where}."


def _about_settings(findings: Sequence[_Finding], swept: Sequence[str]) -> list[str]:
    if list(swept) != [KL_WEIGHT]:
        return _about_extremes(findings, swept)
    sentences, best = _about_weights(findings), _best(findings)
    if best.metric("test/neg_elbo") is not None:
        lowest = best.text("test/neg_elbo", 1)
        sentences.append(f"The lowest neg_elbo is that of {best.label}: {lowest} nats.")
    return sentences


def _about_families(families: Mapping[str, Sequence[_Finding]]) -> list[str]:
    """The best of each model's class in bits/dim, then what the runs of each class say."""
    known = {
        family: _best(findings)
        for family, findings in families.items()
        if any(f.bits_per_nat is not None for f in findings)
    }
    ranked = sorted(known.values(), key=lambda finding: finding.bits("neg_elbo"))
    sentences = [_compare(ranked, families)] if len(ranked) > 1 else []
    for family, findings in families.items():
        if len(findings) > 1:
            swept = swept_keys([record for finding in findings for record in finding.records])
            first, *others = _about_settings(findings, [key for key in swept if key != "seed"])
            sentences += [f"Among the {family} runs: {first}", *others]
        elif len(ranked) < 2:
            sentences.append(_describe(findings[0]))
    return sentences


def _compare(ranked: Sequence[_Finding], families: Mapping[str, Sequence[_Finding]]) -> str:
    parts = []
    for finding in ranked:
        name = f"the {finding.family}"
        if len(families[finding.family]) > 1:
            setting = finding.label.removeprefix(f"{finding.family}, ")
            name = f"the best {finding.family} ({setting})"
        error = finding.error
        margin = "" if error is None else f" +- {error * (finding.bits_per_nat or 0.0):.3f}"
        parts.append(
            f"{name} reaches {finding.bits('neg_elbo'):.3f}{margin} bits/dim (reconstruction "
            f"{finding.bits('reconstruction'):.3f}, kl {finding.bits('kl'):.3f})"
        )
    shown = " and ".join(parts)
    return f"{shown[0].upper()}{shown[1:]}: {_verdict(*ranked[:2])}."


def _verdict(lower: _Finding, higher: _Finding) -> str:
    """How far apart the best of two classes are, or why that cannot be said."""
    obstacle = _obstacle([*lower.records, *higher.records])
    if obstacle:
        return f"these do not compare, since {obstacle}"
    difference = higher.bits("neg_elbo") - lower.bits("neg_elbo")
    errors = {
        f.family: f.error * (f.bits_per_nat or 0.0) for f in (lower, higher) if f.error is not None
    }
    error = math.hypot(*errors.values())
    margin = f" +- {error:.3f}" if errors else ""
    if len(errors) == 1:
        margin += f" (the error of the {next(iter(errors))} alone)"
    if errors and difference <= 2 * error:
        return f"they differ by {difference:.3f}{margin} and so agree within two standard errors"
    return f"the {lower.family} is lower by {difference:.3f}{margin}"


def _obstacle(records: Sequence[Record]) -> str:
    """Why the bits/dim of these runs are not those of the same images; empty if they are."""
    data = sorted({data_name(record) for record in records})
    if len(data) > 1:
        return f"they are about different data, {' and '.join(data)}"
    levels = sorted({str(record.flat.get("data.binarisation")) for record in records})
    if len(levels) > 1:
        return f"they differ in data.binarisation, {' and '.join(levels)}"
    for record in records:
        likelihood = str(record.flat.get(_LIKELIHOOD) or "Discretized").rpartition(".")[2]
        if not likelihood.startswith("Discretized"):
            return (
                f"the {record.family}'s likelihood, {likelihood}, gives no probability of 8-bit "
                "pixels; model/likelihood=discretized_logistic does"
            )
    return ""


def _about_weights(findings: Sequence[_Finding]) -> list[str]:
    """Findings in the order of their weights."""
    highest = findings[-1]
    reference = next((f for f in findings[:-1] if _weight(f) == 1), _best(findings[:-1]))
    before = reference.metric("test/reconstruction") or 0.0
    after = highest.metric("test/reconstruction") or 0.0
    kl = highest.metric("test/kl")
    in_nats = "" if kl is None else f" (kl {number_text(kl, 2)} nats)"
    change = "raises" if after > before else "lowers"
    sentence = (
        f"{highest.label} {_units(highest)}{in_nats} and {change} the reconstruction term from "
        f"{before:.1f} ({reference.label}) to {after:.1f} nats per image"
    )
    sentences = [sentence + _forecast(highest) + "."]
    lowest = findings[0]
    rate = lowest.metric("test/kl")
    if _weight(lowest) == 0 and lowest is not reference and rate is not None:
        sentences.append(
            f"{lowest.label} reaches {lowest.text('test/reconstruction', 1)}, at the price of a "
            f"rate of {number_text(rate, 1)} nats that nothing holds down."
        )
    return sentences


def _about_extremes(findings: Sequence[_Finding], swept: Sequence[str]) -> list[str]:
    name = "neg_elbo" if all(f.metric("test/neg_elbo") is not None for f in findings) else ""
    name = name or "reconstruction"
    ranked = sorted(findings, key=lambda f: f.metric(f"test/{name}") or 0.0)
    sentences = [
        f"The lowest {name} is that of {_describe(ranked[0])}",
        f"The highest is that of {_describe(ranked[-1])}",
    ]
    if all(f.error is not None for f in findings):
        sentences += _about_errors(ranked, " and ".join(short_names(swept).values()))
    return sentences


def _about_errors(ranked: Sequence[_Finding], knob: str) -> list[str]:
    """Whether findings in the order of their bounds differ by more than their errors."""
    pairs = ((a, b) for i, a in enumerate(ranked) for b in reversed(ranked[i + 1 :]))
    apart = [pair for pair in pairs if not _agree(*pair)]
    lower, higher = apart[0] if apart else (ranked[0], ranked[-1])
    difference, error = _difference(lower, higher)
    rate = lower.bits_per_nat or 0.0
    margin = (
        f"{difference:.1f} +- {error:.1f} nats per image "
        f"({rate * difference:.3f} +- {rate * error:.3f} bits/dim)"
    )
    if apart:
        close = [f.label for f in ranked if f is not lower and _agree(lower, f)]
        outcome = f"{lower.label} is lower than {higher.label} by {margin}"
        outcome += f"; within two standard errors of it: {', '.join(close)}." if close else "."
    else:
        outcome = (
            f"They differ by {margin}: the {len(ranked)} settings of {knob} agree within the error "
            "(two standard errors)."
        )
    seeds = " and seeds" if all(len(f.records) > 1 for f in ranked) else ""
    basis = (
        f"The error is that of independent runs, sqrt(se1^2 + se2^2) over test images{seeds}: too "
        "large where all runs see the same images, as in a sweep"
    )
    return [outcome, basis + ("." if seeds else "; other seeds are not in it.")]


def _difference(one: _Finding, other: _Finding) -> tuple[float, float]:
    """How much higher the other bound is, in nats, with its standard error if independent."""
    before, after = one.metric("test/neg_elbo") or 0.0, other.metric("test/neg_elbo") or 0.0
    return after - before, math.hypot(one.error or 0.0, other.error or 0.0)


def _agree(one: _Finding, other: _Finding) -> bool:
    difference, error = _difference(one, other)
    return abs(difference) <= 2 * error


def _best(findings: Sequence[_Finding]) -> _Finding:
    known = [f for f in findings if f.metric("test/neg_elbo") is not None]
    return min(known or findings, key=lambda f: f.metric("test/neg_elbo") or 0.0)


def _weight(finding: _Finding) -> float | None:
    weight = finding.records[0].flat.get(KL_WEIGHT)
    return float(weight) if isinstance(weight, int | float) else None


def _units(finding: _Finding) -> str:
    active = finding.metric("test/active_units")
    total = finding.records[0].flat.get("model.latent_dim")
    if active is None:
        return "holds the rate down"
    if active == 0:
        return f"switches off all {'' if total is None else f'{total} '}latent units"
    return f"leaves {active:g}{'' if total is None else f' of {total}'} latent units active"


def _forecast(finding: _Finding) -> str:
    """Whether the forecast for a setting came true, with its reason."""
    expected = finding.metric("forecast/active_units")
    active = finding.metric("test/active_units")
    if expected is None or active is None:
        return ""
    threshold = finding.metric("forecast/collapse_threshold")
    weight = finding.metric("test/beta_effective")
    weight = _weight(finding) if weight is None else weight
    reason = ""
    if threshold is not None and weight is not None:
        relation = "exceeds" if weight > threshold else "does not exceed"
        reason = f": {weight:g} {relation} {threshold:.3g}, above which a linear VAE collapses"
    if (expected == 0) == (active == 0):
        return f"; the linear forecast said so{reason}"
    outcome = "collapse" if expected == 0 else f"{expected:g} active units"
    return f"; the linear forecast had said {outcome}{reason}"
