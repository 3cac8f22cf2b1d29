"""State the result of a sweep in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from genlab.report.collect import MODEL, Record, swept_keys
from genlab.report.findings import LIKELIHOOD, Finding, best
from genlab.report.naming import KL_WEIGHT, data_name, run_label, sort_key, sweep_names
from genlab.report.samplers import about_samplers, is_of_samplers
from genlab.report.weights import about_weights
from genlab.runs.points import short_names, without_seed


def answer(records: Sequence[Record]) -> str:
    """State the result of a sweep in a few sentences.

    For a sweep of KL weights: the effect of the largest weight on the latent units and on the
    reconstruction, and whether the linear forecast predicted it. For any other sweep: the best and
    the worst, and, where their errors are known, whether they differ. For models of several
    classes: the best of each in bits/dim, then the same for each class. For several sweeps of one
    class: the sweep with the lowest neg_elbo, then the same for each sweep.
    """
    sweeps = sweep_names(records)
    if len(sweeps) > 1 and len({record.family for record in records if record.config}) == 1:
        return " ".join(_about_sweeps(records, sweeps))
    swept = without_seed(swept_keys(records))
    finished = [r for r in records if r.metric("test/reconstruction") is not None]
    counts = Counter(record.state for record in records if record not in finished)
    rest = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    if not finished:
        return f"No run has a result yet ({rest or 'there are no runs'})."
    findings = _findings(finished, swept)
    families: dict[str, list[Finding]] = {}
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


def _findings(records: Sequence[Record], swept: Sequence[str]) -> list[Finding]:
    """Group the runs with a result by setting, in the order of what was swept."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: [sort_key(r.flat.get(key)) for key in swept]):
        if record.metric("test/reconstruction") is not None:
            groups.setdefault(run_label(record, swept) or record.run_id, []).append(record)
    return [Finding(label, runs) for label, runs in groups.items()]


def _describe(finding: Finding) -> str:
    terms = [
        f"{name} {finding.text(f'test/{name}')}"
        for name in ("reconstruction", "kl", "neg_elbo")
        if finding.metric(f"test/{name}") is not None
    ]
    error = "" if finding.error is None else f" +- {finding.error:.1f}"
    where = f"nats per image on {data_name(finding.records[0])}"
    return f"{finding.label}: {', '.join(terms)}{error} {where}."


def _about_settings(findings: Sequence[Finding], swept: Sequence[str]) -> list[str]:
    if is_of_samplers(findings, swept):
        return about_samplers(findings)
    if list(swept) != [KL_WEIGHT]:
        return _about_extremes(findings, swept)
    sentences, lowest = about_weights(findings), best(findings)
    if lowest.metric("test/neg_elbo") is not None:
        nats = lowest.text("test/neg_elbo")
        sentences.append(f"The lowest neg_elbo is that of {lowest.label}: {nats} nats.")
    return sentences


def _about_sweeps(records: Sequence[Record], sweeps: Mapping[Path, str]) -> list[str]:
    """Compare the lowest bound of each sweep, then state the result of each on its own."""
    lowest, sentences = [], []
    for sweep, name in sweeps.items():
        runs = [record for record in records if record.sweep == sweep]
        findings = _findings(runs, without_seed(swept_keys(runs)))
        known = [f for f in findings if f.metric("test/neg_elbo") is not None]
        if known:
            finding = best(known)
            lowest.append((finding.metric("test/neg_elbo"), finding, name))
        sentences.append(f"{name}: {answer(runs)}")
    if len(lowest) > 1:
        lowest.sort(key=lambda entry: entry[0] or 0.0)
        found = [f"{f.text('test/neg_elbo')} nats in {name} ({f.label})" for _, f, name in lowest]
        obstacle = _obstacle([record for _, f, _ in lowest for record in f.records])
        caveat = f"; these do not compare, since {obstacle}" if obstacle else ""
        sentences.insert(0, f"The lowest neg_elbo is {', '.join(found)}{caveat}.")
    return sentences


def _about_families(families: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Compare the best run of each model class in bits/dim, then state the result of each class."""
    known = {
        family: best(findings)
        for family, findings in families.items()
        if any(f.bits_per_nat is not None for f in findings)
    }
    ranked = sorted(known.values(), key=lambda finding: finding.bits("neg_elbo"))
    sentences = [_compare(ranked, families)] if len(ranked) > 1 else []
    for family, findings in families.items():
        if len(findings) > 1:
            swept = swept_keys([record for finding in findings for record in finding.records])
            first, *others = _about_settings(findings, without_seed(swept))
            sentences += [f"Among the {family} runs: {first}", *others]
        elif len(ranked) < 2:
            sentences.append(_describe(findings[0]))
    return sentences


def _compare(ranked: Sequence[Finding], families: Mapping[str, Sequence[Finding]]) -> str:
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


def _verdict(lower: Finding, higher: Finding) -> str:
    """State the difference between the best of two classes, or why they are not comparable."""
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
    """State why the bits/dim of these runs are not of the same images; empty if they are."""
    data = sorted({data_name(record) for record in records})
    if len(data) > 1:
        return f"they are about different data, {' and '.join(data)}"
    levels = sorted({str(record.flat.get("data.binarisation")) for record in records})
    if len(levels) > 1:
        return f"they differ in data.binarisation, {' and '.join(levels)}"
    kinds = {
        (r.family, r.flat.get(LIKELIHOOD), r.flat.get("model.likelihood.scale")) for r in records
    }
    for record in records if len(kinds) > 1 else ():
        likelihood = str(record.flat.get(LIKELIHOOD) or "Discretized").rpartition(".")[2]
        if not likelihood.startswith("Discretized"):
            return (
                f"the {record.family}'s likelihood, {likelihood}, gives no probability of 8-bit "
                "pixels; model/likelihood=discretized_logistic does"
            )
    return ""


def _about_extremes(findings: Sequence[Finding], swept: Sequence[str]) -> list[str]:
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


def _about_errors(ranked: Sequence[Finding], key: str) -> list[str]:
    """State whether findings, sorted by their bounds, differ by more than their errors."""
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
            f"They differ by {margin}: the {len(ranked)} settings of {key} agree within the error "
            "(two standard errors)."
        )
    seeds = " and seeds" if all(len(f.records) > 1 for f in ranked) else ""
    basis = (
        f"The error is that of independent runs, sqrt(se1^2 + se2^2) over test images{seeds}: too "
        "large where all runs see the same images, as in a sweep"
    )
    return [outcome, basis + ("." if seeds else "; other seeds are not in it.")]


def _difference(one: Finding, other: Finding) -> tuple[float, float]:
    """Return the difference of two bounds in nats, and its standard error as if independent."""
    before, after = one.metric("test/neg_elbo") or 0.0, other.metric("test/neg_elbo") or 0.0
    return after - before, math.hypot(one.error or 0.0, other.error or 0.0)


def _agree(one: Finding, other: Finding) -> bool:
    difference, error = _difference(one, other)
    return abs(difference) <= 2 * error
