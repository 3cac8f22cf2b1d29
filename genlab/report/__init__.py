"""Reports on runs, made from their directories alone; nothing here needs torch."""

from genlab.report.answer import answer
from genlab.report.bounds import draw_bounds
from genlab.report.collect import Record, collect, swept_keys
from genlab.report.plane import draw_rate_distortion
from genlab.report.sweep import print_sweep, write_sweep
from genlab.report.tables import Table, sweep_table

__all__ = [
    "Record",
    "Table",
    "answer",
    "collect",
    "draw_bounds",
    "draw_rate_distortion",
    "print_sweep",
    "sweep_table",
    "swept_keys",
    "write_sweep",
]
