"""Run Hydra multiruns: their names, their jobs, and a comparison at the end."""

from genlab.sweeps.naming import announce, group_name, multirun_keys
from genlab.sweeps.summary import SweepSummary

__all__ = ["SweepSummary", "announce", "group_name", "multirun_keys"]
