"""The runs of a sweep as a table, for a notebook."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from typing import Any, Literal

from genlab.report import replicates
from genlab.report.collect import collect, swept_keys
from genlab.report.groups import groups, in_order
from genlab.report.tables import sweep_table


def compare(
    sweep: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    by: Literal["run", "setting"] = "run",
) -> Any:
    """Return a table with a row for each run, sorted by the values in which the runs differ.

    The columns are those of summary.csv: the run, its state, the keys that differ, and every metric
    of the test under its full name, such as `test/neg_elbo`; None where there is no value. By
    setting, they are those of by_point.csv: for each setting and metric the mean over seeds with
    its 95 % interval, and the paired difference from the best setting over their common seeds. The
    column `comparable` names the group of runs that a row may be compared with.

    Args:
        sweep: a sweep's directory, or any that holds runs; or several run directories.
        by: a row for each run, or for each setting and metric.

    Returns:
        A pandas `DataFrame` if pandas is installed, otherwise a list of dictionaries.

    Raises:
        RunDirectoryError: there are no runs.
        ValueError: `by` is neither.
    """
    if by not in ("run", "setting"):
        raise ValueError(f"by={by!r}: it is run or setting")
    is_named = not isinstance(sweep, str | os.PathLike)
    records = collect(sweep)
    if by == "run":
        titles = {id(r): g.title for g in groups(records, is_named) for r in g.records}
        found = zip(in_order(records), sweep_table(records).rows, strict=True)
        table = [row | {"comparable": titles[id(record)]} for record, row in found]
    else:
        table = [
            row | {"comparable": group.title}
            for group in groups(records, is_named)
            for row in replicates.rows(
                replicates.summarise(group.records, swept_keys(group.records))
            )
        ]
    if importlib.util.find_spec("pandas") is None:
        return table
    import pandas as pd

    return pd.DataFrame(table)
