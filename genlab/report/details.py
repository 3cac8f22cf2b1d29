"""The last sections of a page: configurations, environments, runs without a result."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from genlab.errors import RunDirectoryError
from genlab.report.collect import MOST_KEYS, Record, comparable, differs, is_ignored, one_line
from genlab.report.naming import setting_text
from genlab.report.shown import ShownRun
from genlab.runs.points import short_names
from genlab.runs.reading import ENV, read_end, read_json
from genlab.runs.run import Run

log = logging.getLogger(__name__)

_LAST_LINES = 12
_LOG_BYTES = 20_000


class Unfinished(NamedTuple):
    """A run without a result, with the last lines that it printed."""

    record: Record
    lines: str


def unfinished(records: Sequence[Record]) -> list[Unfinished]:
    """Return every run without a result, with the last lines that it printed."""
    return [
        Unfinished(record, _last_lines(record))
        for record in records
        if record.state != "completed" or record.error is not None
    ]


def configurations(runs: Sequence[ShownRun]) -> dict[str, Any] | None:
    """Return the keys in which settings differ, and as YAML the keys that all runs share.

    Of each setting: a run, its keys as pairs of a full name and a short text, the number of keys
    that are left out, and its seeds.
    """
    flats = [run.record.flat for run in runs if run.record.config]
    if not flats:
        return None
    keys = sorted({key for flat in flats for key in flat})
    differing = [key for key in keys if not is_ignored(key) and differs(key, flats)]
    shared = {key: flats[0].get(key) for key in keys if _is_shared(key, flats)}
    named = short_names(differing)
    columns = {key: [comparable(flat.get(key)) for flat in flats] for key in differing}
    varied = [key for key in differing if columns[key] != columns.get("seed")]
    settings: dict[str, tuple[ShownRun, list[str]]] = {}
    for run in runs:
        flat = run.record.flat
        values = json.dumps([comparable(flat.get(key)) for key in varied])
        settings.setdefault(values, (run, []))[1].append(setting_text("seed", flat.get("seed")))
    rows = [
        {
            "run": run,
            "keys": [
                (key, f"{named[key]}={setting_text(key, run.record.flat.get(key))}")
                for key in varied[:MOST_KEYS]
                if run.record.flat.get(key) is not None
            ],
            "more": max(0, len(varied) - MOST_KEYS),
            "seeds": list(dict.fromkeys(seeds)),
        }
        for run, seeds in settings.values()
    ]
    return {"rows": rows, "shared": _yaml(_nested(shared)), "count": len(shared)}


def environments(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return each distinct set of packages and hardware: its summary, its YAML, its runs."""
    kinds: dict[str, tuple[dict[str, Any], int]] = {}
    for record in records:
        content = _environment(record)
        if content:
            key = json.dumps(content)
            kinds[key] = (content, kinds.get(key, (content, 0))[1] + 1)
    return [
        {"summary": _summary(content), "text": _yaml(content), "runs": count}
        for content, count in kinds.values()
    ]


def _summary(content: Mapping[str, Any]) -> str:
    found = content.get("gpus")
    gpus = found if isinstance(found, list) else []
    versions = content.get("versions")
    torch = versions.get("torch") if isinstance(versions, dict) else None
    known = [content.get("processor"), *gpus, torch and f"torch {torch}", content.get("git_commit")]
    return ", ".join(str(part) for part in known if part)


def _environment(record: Record) -> dict[str, Any]:
    try:
        return (record.is_readable and read_json(Run(record.path).env_path, ENV)) or {}
    except RunDirectoryError as error:
        log.warning("left out: the environment of %s: %s", record.run_id, one_line(str(error)))
        return {}


def _last_lines(record: Record) -> str:
    """Read the last lines that its process printed, from the sweep's log or its own."""
    own = [Run(record.path).log_path] if record.is_readable else []
    for path in (record.sweep / "jobs" / f"{record.path.name}.log", *own):
        try:
            lines = read_end(path, _LOG_BYTES).decode(errors="replace").splitlines()
        except (OSError, RunDirectoryError):
            continue
        shown = ["".join(c for c in line if c.isprintable() or c == "\t") for line in lines]
        if any(shown):
            return "\n".join(shown[-_LAST_LINES:])
    return ""


def _is_shared(key: str, flats: Sequence[Mapping[str, Any]]) -> bool:
    return not is_ignored(key) and not differs(key, flats)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):  # a key that has a point in its name
                node, last = nested, key
                break
        node[last] = value
    return nested


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=88)
