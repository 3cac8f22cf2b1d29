"""State the result of a sweep in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from genlab.metrics.names import NATS, describe, ordered
from genlab.report.collect import Record, comparable, swept_keys
from genlab.report.endings import command_of, reason, short_id, state_text
from genlab.report.findings import Finding, best
from genlab.report.groups import apart, columns, groups
from genlab.report.models import about_models
from genlab.report.naming import KL_WEIGHT, data_name, run_label, sort_key, sweep_names
from genlab.report.quality import about_quality
from genlab.report.samplers import about_samplers, is_of_samplers
from genlab.report.seeds import about_seeds
from genlab.report.weights import about_weights
from genlab.runs.points import short_names, without_seed

BOUND = "test/neg_elbo"
#: The terms that settings are ranked by, the first that all of them have.
TERMS = (BOUND, "test/reconstruction")
# Metrics of quality that an answer names.
_MOST_NAMED = 3


def answer(records: Sequence[Record], as_one: bool = False) -> str:
    """State the result of runs in a few sentences, for each group of comparable runs its own.

    Args:
        records: the runs.
        as_one: as for `groups`.
    """
    found = groups(records, as_one)
    if len(found) < 2:
        return about(records)
    return " ".join([apart(found), *(f"{g.title}: {about(g.records)}" for g in found)])


def about(records: Sequence[Record]) -> str:
    """State the result of comparable runs in a few sentences.

    For a sweep of KL weights: the effect of the largest weight on the latent units and on the
    reconstruction, and whether the linear forecast predicted it. For any other sweep: the best and
    the worst, and, where their errors are known, whether they differ. For models of several
    classes: the best of each in bits/dim, then the same for each class. For several sweeps that
    have a setting in common: the sweep with the lowest neg_elbo, then the same for each sweep.
    Where quality was measured: the settings that it chooses, and the one that the bound chooses;
    of several models at the same settings, only this.
    """
    swept = without_seed(swept_keys(records))
    keys = without_seed(columns(records)[0])
    sweeps = sweep_names(records)
    families = {record.family for record in records if record.config}
    if len(sweeps) > 1 and len(families) == 1 and _share_a_setting(records, swept):
        return " ".join(_about_sweeps(records, sweeps))
    finished = [r for r in records if is_finished(r)]
    counts = Counter(state_text(record) for record in records if record not in finished)
    rest = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    if not finished:
        if len(records) == 1:
            return _about_unfinished(records[0])
        return f"No run has a result yet ({rest or 'there are no runs'})."
    findings = _findings(finished, swept, keys)
    by_family: dict[str, list[Finding]] = {}
    for finding in findings:
        by_family.setdefault(finding.family, []).append(finding)
    if len(findings) == 1:
        sentences = [_describe(findings[0])]
    elif len(by_family) > 1:
        sentences = about_models(finished) or _about_families(by_family)
    else:
        sentences = _about_settings(findings, swept)
        sentences += [told] if (told := about_quality(finished)) else []
    if rest:
        sentences.append(f"Without a result, and so left out: {rest}.")
    return " ".join(sentences)


def is_finished(record: Record) -> bool:
    """Return whether a run has a result that can be compared."""
    metrics = record.result.get("metrics")
    tested = [name for name in metrics if name.startswith("test/")] if metrics else []
    return not record.is_diverged and any(record.metric(name) is not None for name in tested)


def _share_a_setting(records: Sequence[Record], swept: Sequence[str]) -> bool:
    """Return whether runs of two sweeps have the same setting."""
    homes: dict[str, set[Path]] = {}
    for record in records:
        values = str([comparable(record.flat.get(key)) for key in swept])
        homes.setdefault(values, set()).add(record.sweep)
    return any(len(places) > 1 for places in homes.values())


def _about_unfinished(record: Record) -> str:
    """State why one run has no result, and how to go on."""
    command = command_of(record)
    remedy = f"; go on with `{command}`" if command else ""
    return f"No run has a result yet (1 {state_text(record)}): {reason(record)}{remedy}."


def _findings(
    records: Sequence[Record], swept: Sequence[str], keys: Sequence[str]
) -> list[Finding]:
    """Group runs with a result by the values of `swept`, and name each setting by `keys`."""
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: [sort_key(r.flat.get(key)) for key in swept]):
        values = str([comparable(record.flat.get(key)) for key in swept]) if swept else ""
        found.setdefault(values or record.run_id, []).append(record)
    labels = [run_label(runs[0], keys) or runs[0].run_id for runs in found.values()]
    return [
        Finding(label if labels.count(label) == 1 else f"{label} ({short_id(runs[0])})", runs)
        for label, runs in zip(labels, found.values(), strict=True)
    ]


def _describe(finding: Finding) -> str:
    terms = [
        f"{name} {finding.text(f'test/{name}')}"
        for name in ("reconstruction", "kl", "neg_elbo")
        if finding.metric(f"test/{name}") is not None
    ]
    error = "" if finding.error is None else f" (standard error {finding.error:.1f})"
    data = data_name(finding.records[0])
    if terms:
        return f"{finding.label}: {', '.join(terms)} nats per image{error} on {data}."
    others = [
        f"{describe(m).heading} {finding.text(m)}" for m in qualities([finding])[:_MOST_NAMED]
    ]
    return f"{finding.label}: {', '.join(others) or 'no metric that is compared'} on {data}."


def _about_settings(findings: Sequence[Finding], swept: Sequence[str]) -> list[str]:
    if is_of_samplers(findings, swept):
        return about_samplers(findings)
    if list(swept) != [KL_WEIGHT]:
        return _about_extremes(findings, swept)
    sentences = about_weights(findings)
    if all(f.metric(BOUND) is not None for f in findings):
        lowest = best(findings)
        nats = lowest.text(BOUND)
        sentences.append(f"The lowest neg_elbo is that of {lowest.label}: {nats} nats.")
        sentences += about_seeds(findings, BOUND)
    return sentences


def _about_sweeps(records: Sequence[Record], sweeps: Mapping[Path, str]) -> list[str]:
    """Compare the lowest bound of each sweep, then state the result of each on its own."""
    lowest, sentences = [], []
    for sweep, name in sweeps.items():
        runs = [record for record in records if record.sweep == sweep]
        finished = [record for record in runs if is_finished(record)]
        keys = without_seed(columns(runs)[0])
        findings = _findings(finished, without_seed(swept_keys(runs)), keys)
        known = [f for f in findings if f.metric(BOUND) is not None]
        if known:
            finding = best(known)
            lowest.append((finding.metric(BOUND), finding, name))
        sentences.append(f"{name}: {about(runs)}")
    if len(lowest) > 1:
        lowest.sort(key=lambda entry: entry[0] or 0.0)
        found = [f"{f.text(BOUND)} nats in {name} ({f.label})" for _, f, name in lowest]
        sentences.insert(0, f"The lowest neg_elbo is {', '.join(found)}.")
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
    unbounded = [
        family
        for family, findings in families.items()
        if all(finding.metric(BOUND) is None for finding in findings)
    ]
    everything = [finding for findings in families.values() for finding in findings]
    if unbounded:
        sentences.append(
            f"The {' and the '.join(unbounded)} {'have' if len(unbounded) > 1 else 'has'} no bound "
            "on the likelihood, and so no place in the rate-distortion plane."
        )
        for metric in qualities(everything)[:_MOST_NAMED]:
            sentences += _about_quality(everything, metric)
    for family, findings in families.items():
        if len(findings) > 1:
            swept = swept_keys([record for finding in findings for record in finding.records])
            first, *others = _about_settings(findings, without_seed(swept))
            sentences += [f"Among the {family} runs: {first}", *others]
        elif len(ranked) < 2 and not (unbounded and qualities(everything)):
            sentences.append(_describe(findings[0]))
    return sentences


def qualities(findings: Sequence[Finding]) -> list[str]:
    """Return the metrics, apart from the bound, that all findings have and that can be better."""
    names = dict.fromkeys(n for f in findings for r in f.records for n in r.result["metrics"])
    return [
        name
        for name in ordered(names)
        if name.startswith("test/")
        and (about := describe(name)).better
        and about.heading
        and not about.is_part
        and about.unit not in (NATS, "bits")
        and all(finding.metric(name) is not None for finding in findings)
    ]


def _about_quality(findings: Sequence[Finding], metric: str) -> list[str]:
    """Name the best and the worst of findings by a metric other than the bound."""
    about = describe(metric)
    is_lower = about.better == "lower"
    ranked = sorted(findings, key=lambda f: f.metric(metric) or 0.0, reverse=not is_lower)
    first, last = ("lowest", "highest") if is_lower else ("highest", "lowest")
    return [
        f"The {first} {about.heading} is that of {ranked[0].label}: {ranked[0].text(metric)}; the "
        f"{last} that of {ranked[-1].label}: {ranked[-1].text(metric)}.",
        *about_seeds(findings, metric),
    ]


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
    """State the difference between the best of two classes."""
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


def _about_extremes(findings: Sequence[Finding], swept: Sequence[str]) -> list[str]:
    term = next((m for m in TERMS if all(f.metric(m) is not None for f in findings)), None)
    if term is None:
        found = qualities(findings)[:_MOST_NAMED]
        return [s for m in found for s in _about_quality(findings, m)] or [
            "No metric is known of all settings, so that none is compared."
        ]
    ranked = sorted(findings, key=lambda f: f.metric(term) or 0.0)
    name = term.removeprefix("test/")
    sentences = [
        f"The lowest {name} is that of {_describe(ranked[0])}",
        f"The highest is that of {_describe(ranked[-1])}",
    ]
    over_seeds = about_seeds(findings, term)
    if not over_seeds and all(f.error is not None for f in findings):
        return sentences + _about_errors(ranked, " and ".join(short_names(swept).values()))
    return sentences + over_seeds


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
