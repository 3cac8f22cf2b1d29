"""Reports on runs, made from their directories alone; nothing here needs torch."""

from genlab.report.answer import answer
from genlab.report.collect import Record, collect, swept_keys
from genlab.report.curves import bound_by_log_snr_png
from genlab.report.plots import rate_distortion_png
from genlab.report.sweep import print_sweep, write_sweep
from genlab.report.tables import Table, sweep_table

__all__ = [
    "Record",
    "Table",
    "answer",
    "bound_by_log_snr_png",
    "collect",
    "print_sweep",
    "rate_distortion_png",
    "sweep_table",
    "swept_keys",
    "write_sweep",
]
