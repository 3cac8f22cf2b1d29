"""The runs of a sweep as a table, for a notebook."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from typing import Any

from genlab.report.collect import collect
from genlab.report.tables import sweep_table


def compare(sweep: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Any:
    """Return a table with a row for each run, sorted by the values in which the runs differ.

    The columns are those of summary.csv: the run, its state, the keys that differ, and every metric
    of the test under its full name, such as `test/neg_elbo`; None where there is no value.

    Args:
        sweep: a sweep's directory, or any that holds runs; or several run directories.

    Returns:
        A pandas `DataFrame` if pandas is installed, otherwise a list of dictionaries.

    Raises:
        RunDirectoryError: there are no runs.
    """
    rows = sweep_table(collect(sweep)).rows
    if importlib.util.find_spec("pandas") is None:
        return rows
    import pandas as pd

    return pd.DataFrame(rows)
