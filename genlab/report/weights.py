"""State the result of a sweep of KL weights: the effect of the largest weight, and its cause."""

from __future__ import annotations

from collections.abc import Sequence

from genlab.report.findings import LIKELIHOOD, Finding, best
from genlab.report.naming import KL_WEIGHT, number_text

_ACTIVE = "test/active_units"


def about_weights(findings: Sequence[Finding]) -> list[str]:
    """State the result of findings that are sorted by weight."""
    lowest, highest = findings[0], findings[-1]
    if all(f.metric(_ACTIVE) == 0 for f in findings):
        sentences = [
            f"No latent unit is active at any weight from {_number(lowest)} to {_number(highest)}, "
            "so that the weight is not what switches them off."
        ]
        return sentences
    reference = _reference(findings)
    kl = highest.metric("test/kl")
    in_nats = "" if kl is None else f" (kl {number_text(kl, 2)} nats)"
    before, after = (f.text("test/reconstruction") for f in (reference, highest))
    change = f"leaves the reconstruction term at {after} nats per image, as {reference.label} does"
    if before != after:
        is_more = (highest.metric("test/reconstruction") or 0.0) > (
            reference.metric("test/reconstruction") or 0.0
        )
        change = (
            f"{'raises' if is_more else 'lowers'} the reconstruction term from {before} "
            f"({reference.label}) to {after} nats per image{_ratio(reference, highest)}"
        )
    sentences = [f"{highest.label} {_units(highest)}{in_nats} and {change}{_forecast(highest)}."]
    rate = lowest.metric("test/kl")
    if _weight(lowest) == 0 and lowest is not reference and rate is not None:
        sentences.append(
            f"{lowest.label} reaches {lowest.text('test/reconstruction')}, but its KL is "
            f"{number_text(rate, 1)} nats, because nothing penalises it."
        )
    return sentences


def _reference(findings: Sequence[Finding]) -> Finding:
    """Return the weight that the largest is compared with: 1, if it has latent units, or the best.

    Where weight 1 has none either, it is the largest weight that has some.
    """
    others = [f for f in findings[:-1] if f.metric(_ACTIVE) != 0] or list(findings[:-1])
    one = next((f for f in others if _weight(f) == 1), None)
    has_lost = len(others) < len(findings) - 1
    return one or (others[-1] if has_lost else best(others))


def _number(finding: Finding) -> str:
    weight = _weight(finding)
    return "-" if weight is None else f"{weight:g}"


def _ratio(reference: Finding, highest: Finding) -> str:
    """State the ratio of two errors, where the likelihood defines an error of zero."""
    before, after = _from_zero(reference), _from_zero(highest)
    if (
        before is None
        or after is None
        or before <= 0
        or highest.is_gaussian != reference.is_gaussian
    ):
        return ""
    times = f"{after / before:.2g}"
    what = "the squared error" if highest.is_gaussian else "as many"
    return "" if times == "1" else f", {times} times {what}"


def _from_zero(finding: Finding) -> float | None:
    nats = finding.metric("test/reconstruction")
    if nats is not None and finding.is_gaussian:
        return finding.squared_error(nats)
    likelihood = str(finding.records[0].flat.get(LIKELIHOOD) or "").rpartition(".")[2]
    return nats if likelihood.startswith(("Bernoulli", "Discretized")) else None


def _weight(finding: Finding) -> float | None:
    weight = finding.records[0].flat.get(KL_WEIGHT)
    return float(weight) if isinstance(weight, int | float) else None


def _units(finding: Finding) -> str:
    active = finding.metric("test/active_units")
    total = finding.records[0].flat.get("model.latent_dim")
    if active is None:
        return "holds the rate down"
    if active == 0:
        return f"switches off all {'' if total is None else f'{total} '}latent units"
    return f"leaves {active:g}{'' if total is None else f' of {total}'} latent units active"


def _forecast(finding: Finding) -> str:
    """State whether the forecast for a setting was right, with its reason."""
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
    units = "unit" if expected == 1 else "units"
    outcome = "collapse" if expected == 0 else f"{expected:g} active {units}"
    return f"; the linear forecast had said {outcome}{reason}"
