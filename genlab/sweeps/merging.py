"""Jobs of a multirun that compute the same are one run: a second one would be no replicate."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_LINES = 5


def firsts(run_ids: Sequence[str], jobs: Sequence[str]) -> list[int]:
    """Return for each job the position of the first one that computes the same, and print them.

    Args:
        run_ids: of the jobs; the digits at their ends are the identities.
        jobs: the overrides by which each job is told apart from the others.
    """
    digits = [run_id.rpartition("-")[2] for run_id in run_ids]
    found = [digits.index(one) for one in digits]
    merged = [(i, first) for i, first in enumerate(found) if i != first]
    for i, first in merged[:_MOST_LINES]:
        print(f"merged: {jobs[i]} is the same run as {jobs[first]}, since it computes the same")
    if len(merged) > _MOST_LINES:
        print(f"merged: and {len(merged) - _MOST_LINES} more jobs")
    return found
