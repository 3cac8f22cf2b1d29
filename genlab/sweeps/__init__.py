"""What a Hydra multirun needs: names, jobs that survive, and a comparison at the end."""

from genlab.sweeps.naming import announce, group_name, swept_keys
from genlab.sweeps.summary import SweepSummary

__all__ = ["SweepSummary", "announce", "group_name", "swept_keys"]
