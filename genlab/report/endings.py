"""State for each run without a usable result why it has none, and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath

from genlab.report.collect import Record, by_sweep, manifest_of, one_line
from genlab.report.groups import columns
from genlab.report.naming import run_label, sweep_names
from genlab.runs.text import printable

_PROGRAMS = ("train.py", "sweep.py")


def is_lacking(record: Record) -> bool:
    """Return whether a run has no result, or one of a training that diverged."""
    return record.state != "completed" or bool(record.error) or record.is_diverged


def state_text(record: Record) -> str:
    """Return the state of a run in one word: `diverged` for one whose result says so."""
    return "diverged" if record.is_diverged else record.state


def reason(record: Record) -> str:
    """State in one line why a run has no usable result; empty if it has one."""
    if record.is_diverged:
        rate = record.flat.get("model.optimizer.lr")
        lower = f"lower model.optimizer.lr={rate:g}" if isinstance(rate, int | float) else ""
        remedy = " or set ".join(filter(None, [lower, "trainer.gradient_clip_val"]))
        return f"its training diverged, so that its numbers are left out: {remedy}"
    if record.error or not is_lacking(record):
        return one_line(record.error or "")
    return "it has not ended yet" if record.state == "running" else "no reason was recorded"


def endings(records: Sequence[Record]) -> list[str]:
    """Return a line for each run without a usable result, and the commands that finish them."""
    lacking = [record for record in records if is_lacking(record)]
    keys, _ = columns(records)
    lines = []
    for record in lacking:
        is_known = record.is_readable and bool(record.flat)
        name = (run_label(record, keys) if is_known else record.run_id) or short_id(record)
        lines.append(one_line(f"{name} ({state_text(record)}): {reason(record)}"))
    names = sweep_names(lacking)
    for sweep, runs in by_sweep(
        r for r in lacking if r.state not in ("running", "pending")
    ).items():
        manifest = manifest_of(sweep)
        command = command_text(manifest.command) if manifest is not None else ""
        if command and any(record.point and not record.is_diverged for record in runs):
            where = f" of {names[sweep]}" if len(names) > 1 else ""
            lines.append(f"to do what is missing{where}: {command}")
        lines += [
            f"to go on with {short_id(record)}: {command}"
            for record in runs
            if not record.point and not record.is_diverged and (command := command_of(record))
        ]
    return lines


def command_of(record: Record) -> str:
    """Return the command line that made a run, or goes on with it; empty if it is not known."""
    return command_text(record.command)


def command_text(command: Sequence[str]) -> str:
    """Write a recorded command of genlab for a prompt; empty if it is of another program.

    `overwrite` is left out, with which the command would start anew in place of going on.
    """
    program, *given = command or ("",)
    arguments = [argument for argument in given if not argument.startswith("overwrite=")]
    name = PurePath(program).name
    if name not in (*_PROGRAMS, "genlab"):
        return ""
    return printable(shlex.join([*(["python"] if name in _PROGRAMS else []), name, *arguments]))


def short_id(record: Record) -> str:
    """Return the digits at the end of a run's name, which no other run has; else the name."""
    name, _, digits = record.run_id.rpartition("-")
    return digits if len(digits) == 8 and name else record.run_id
