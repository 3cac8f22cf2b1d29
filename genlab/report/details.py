"""Build the last sections of a page: configurations, environment, runs without a result."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from genlab.errors import RunDirectoryError
from genlab.report.collect import MOST_KEYS, Record, comparable, differs, is_ignored, one_line
from genlab.report.figures import ShownRun
from genlab.report.markup import Markup, element, join
from genlab.report.naming import setting_text
from genlab.runs.manifest import Manifest
from genlab.runs.points import short_names
from genlab.runs.reading import ENV, read_end, read_json
from genlab.runs.run import Run
from genlab.runs.text import printable

log = logging.getLogger(__name__)

_LAST_LINES = 12
_LOG_BYTES = 20_000


def unfinished_section(records: Sequence[Record]) -> Markup | None:
    """List every run without a result, with its error and the last lines that it printed."""
    items = []
    for record in records:
        if record.state == "completed" and record.error is None:
            continue
        last = _last_lines(record)
        items.append(
            element(
                "li",
                element("strong", record.run_id),
                " ",
                element("span", record.state, class_=f"state {record.state}"),
                element("p", record.error or "it has not ended yet"),
                element("details", element("summary", "last lines"), element("pre", last))
                if last
                else None,
            )
        )
    return element("ul", *items, class_="unfinished") if items else None


def configs_section(runs: Sequence[ShownRun]) -> Markup | None:
    """List the keys in which runs differ, by setting, and the shared keys in a collapsed block."""
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
    rows = []
    for run, seeds in settings.values():
        flat = run.record.flat
        chips = [
            element("code", f"{named[key]}={setting_text(key, flat.get(key))}", title=key)
            for key in varied[:MOST_KEYS]
            if flat.get(key) is not None
        ]
        if len(varied) > MOST_KEYS:
            chips.append(element("span", f"and {len(varied) - MOST_KEYS} more keys"))
        rows.append(
            element(
                "tr",
                element("th", run.point, scope="row"),
                element("td", *chips, class_="chips"),
                element("td", ", ".join(dict.fromkeys(seeds))),
            )
        )
    head = element(
        "tr", *(element("th", text, scope="col") for text in ("setting", "differs in", "seeds"))
    )
    table = element("table", element("thead", head), element("tbody", *rows))
    return join(
        element("div", table, class_="scroll", tabindex="0", role="region", aria_label="settings"),
        element(
            "details",
            element("summary", f"What all runs share ({len(shared)} keys)"),
            element("pre", _yaml(_nested(shared))),
        ),
    )


def environment_section(
    records: Sequence[Record], manifests: Mapping[Path, Manifest | None]
) -> Markup | None:
    """List each distinct set of packages and hardware, and the commands of the sweeps."""
    kinds: dict[str, tuple[dict[str, Any], list[Record]]] = {}
    for record in records:
        content = _environment(record)
        if content:
            kinds.setdefault(json.dumps(content), (content, []))[1].append(record)
    parts = [
        element("p", element("code", printable(" ".join(manifest.command))))
        for manifest in manifests.values()
        if manifest is not None and manifest.command
    ]
    for content, runs in kinds.values():
        count = f"{len(runs)} of {len(records)} runs" if len(kinds) > 1 else "All runs"
        where = element("summary", count, element("span", _summary(content), class_="faint"))
        parts.append(element("details", where, element("pre", _yaml(content))))
    return join(*parts) if parts else None


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
