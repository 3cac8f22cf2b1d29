"""Reports on runs, made from their directories alone; nothing here needs torch."""

from genlab.report.collect import Record, collect, swept_keys
from genlab.report.plots import rate_distortion_png
from genlab.report.sweep import answer, print_sweep, write_sweep
from genlab.report.tables import Table, sweep_table

__all__ = [
    "Record",
    "Table",
    "answer",
    "collect",
    "print_sweep",
    "rate_distortion_png",
    "sweep_table",
    "swept_keys",
    "write_sweep",
]
