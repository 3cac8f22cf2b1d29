"""State which settings differ over the seeds that they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from genlab.metrics.names import describe
from genlab.report.differences import MOST_SEEDS, MOST_SETTINGS, Difference, differences
from genlab.report.findings import Finding
from genlab.report.naming import number_text

# Settings that a sentence names.
_MOST_NAMED = 4


def about_seeds(findings: Sequence[Finding], metric: str) -> list[str]:
    """State which settings differ from the best one by a metric; nothing without common seeds.

    All pairs of settings are accounted for, also those that are not named.
    """
    name = describe(metric)
    if name.better == "":
        return []
    sign = 1 if name.better == "lower" else -1
    values = [finding.by_seed(metric) for finding in findings]
    if len(values) > MOST_SETTINGS and any(len(seeds) > 1 for seeds in values):
        return [
            f"No two of these {len(values)} settings are compared over their seeds, which is done "
            f"for {MOST_SETTINGS} at most: give the report the runs of fewer."
        ]
    best = min(range(len(findings)), key=lambda i: sign * (findings[i].metric(metric) or 0.0))
    pairs = [pair for pair in differences(values) if best in (pair.first, pair.second)]
    if not pairs:
        return []
    seeds = sorted({pair.n for pair in pairs})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    compared = pairs[0].comparisons
    how = "" if compared == 1 else f" in {compared} comparisons together (Holm)"
    apart = [pair for pair in pairs if pair.is_decided]
    others = [pair for pair in pairs if not pair.is_decided]
    word = "lower" if sign == 1 else "higher"
    heading = name.heading or name.name
    start = f"Over {count} common seeds, {findings[best].label} has"
    sentences = []
    if apart:
        listed = _listed(
            [f"{_label(p, best, findings)} ({_size(p, name.decimals)})" for p in apart]
        )
        sentences.append(
            f"{start} a {word} {heading} than {listed} at p <= 0.05{how}; +- is half of the 95 % "
            "interval of the paired difference."
        )
    if others:
        listed = _listed(
            [f"{_label(p, best, findings)} ({_size(p, name.decimals)}{_more(p)})" for p in others]
        )
        sentences.append(
            f"Not settled by {count} common seeds: {findings[best].label} against {listed}."
        )
    return sentences


def _label(pair: Difference, best: int, findings: Sequence[Finding]) -> str:
    return findings[pair.second if pair.first == best else pair.first].label


def _size(pair: Difference, decimals: int) -> str:
    """Write the size of a mean difference, with half of its interval."""
    half = (pair.high - pair.low) / 2
    return f"{number_text(abs(pair.mean), decimals)} +- {number_text(half, decimals)}"


def _more(pair: Difference) -> str:
    more = pair.more_seeds
    if more is None:
        return f"; more than {MOST_SEEDS} further seeds would be needed"
    return f"; about {more} more {'seed' if more == 1 else 'seeds'} would settle it"


def _listed(texts: Sequence[str]) -> str:
    shown = list(texts[:_MOST_NAMED])
    more = len(texts) - len(shown)
    return ", ".join([*shown, *([f"and {more} more settings"] if more else [])])
