"""`genlab workspace`: make the dashboard on W&B that compares the runs of a sweep."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genlab.cli.parsing import add_command
from genlab.errors import DONE, RunDirectoryError, is_full
from genlab.runs.files import write_atomically
from genlab.runs.reading import RESULT, read_json
from genlab.runs.text import printable

if TYPE_CHECKING:
    from genlab.report import Record
    from genlab.tracking.workspace import Comparison, Setting

#: File in a sweep's directory with the addresses of its W&B views, by entity and project.
_VIEWS = "wandb_views.json"
#: Ratio of the largest to the smallest value of a setting from which its axis is logarithmic.
_WIDE = 50


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "workspace",
        "make a dashboard on W&B that compares the runs of a sweep",
        "Build a W&B workspace that shows the runs of a sweep alone, by the setting "
        "that it varies: reconstruction against KL, the negative ELBO, the quality of samples, "
        "curves over training, pictures and videos side by side. The same command again updates "
        "it. Without a W&B key it is kept as JSON in the sweep's directory.",
        "genlab workspace runs/vae-kl_weight --report",
        "genlab workspace runs/vae-kl_weight --dry",
    )
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="a sweep's directory")
    parser.add_argument(
        "--entity",
        metavar="NAME",
        help="user or team on W&B (default: that of the runs, or of your key)",
    )
    parser.add_argument(
        "--project", metavar="NAME", help="project on W&B (default: that of the runs)"
    )
    parser.add_argument(
        "--report", action="store_true", help="make a W&B report of the same panels too"
    )
    parser.add_argument(
        "--dry", action="store_true", help="send nothing: keep what would be sent as JSON"
    )
    parser.set_defaults(command=send_workspace)


def send_workspace(
    directory: Path, entity: str | None, project: str | None, report: bool, dry: bool
) -> int:
    """Build the workspace of a sweep and send it, or keep it as JSON."""
    from dataclasses import replace

    from genlab.report import answer, collect
    from genlab.runs.manifest import Manifest
    from genlab.tracking import workspace

    workspace.require()
    records = collect(directory)
    manifest = Manifest.read(directory)
    sweep = comparison(records, directory, project, entity)
    keep, why = dry, "nothing was sent"
    if not keep and not _has_key():
        keep, why = True, "no W&B key is configured (`wandb login` makes one), so nothing was sent"
    if not keep:
        sweep = replace(sweep, entity=sweep.entity or workspace.default_entity())
    question = manifest.question if manifest is not None else None
    views: dict[str, Any] = {"workspace": workspace.build_workspace(sweep)}
    if report:
        # Without an entity the client does not query a server for the project.
        of = replace(sweep, entity="") if keep else sweep
        views["report"] = workspace.build_report(of, question, answer(records))
    where = f"{sweep.entity}/{sweep.project}"
    addresses = _addresses(directory)
    for name, view in views.items():
        if keep:
            path = directory / f"wandb_{name}.json"
            _write(path, workspace.spec_of(view))
            print(printable(f"{name:<10} {path} ({why})"))
        else:
            mine = addresses.setdefault(where, {})
            mine[name], became = workspace.save(view, mine.get(name))
            _write(directory / _VIEWS, addresses)
            print(printable(f"{name:<10} {mine[name]} ({became})"))
    return DONE


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of the sweep's directory.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        remedy = "make room there" if is_full(error) else "make that directory writable"
        raise RunDirectoryError(f"{path} cannot be written ({error.strerror}): {remedy}") from error


def _has_key() -> bool:
    """Return whether W&B has a key, without the `wandb/settings` of the working directory.

    W&B reads its settings once, here; those of a stranger could send the key to another server.
    """
    from genlab.tracking.account import key_is_configured

    with contextlib.chdir(Path.home()):
        return key_is_configured()


def _addresses(directory: Path) -> dict[str, dict[str, str]]:
    """Read the addresses of earlier views: by entity and project, then workspace or report."""
    try:
        content = read_json(directory / _VIEWS, RESULT) or {}
    except RunDirectoryError:  # damaged: then the views are created again
        return {}
    return {
        where: {name: url for name, url in views.items() if isinstance(url, str)}
        for where, views in content.items()
        if isinstance(views, dict)
    }


def comparison(
    records: Sequence[Record],
    directory: Path,
    project: str | None = None,
    entity: str | None = None,
) -> Comparison:
    """Describe a sweep for its workspace: settings, metrics and media that its runs have.

    The settings are the swept keys of a report of these runs.

    Raises:
        RunDirectoryError: there are no runs.
    """
    from genlab.metrics.names import describe, ordered
    from genlab.report import swept_keys
    from genlab.runs.points import without_seed
    from genlab.tracking.workspace import COMPARED, Comparison

    if not records:
        raise RunDirectoryError(f"{directory} holds no runs: give the directory of a sweep")
    keys = swept_keys(records)
    settings = _settings(records, keys)
    logger = {
        key: next((v for r in records if (v := r.flat.get(f"logger.wandb.{key}"))), "")
        for key in ("project", "entity")
    }
    metrics = [m for m in COMPARED if any(r.metric(f"test/{m}") is not None for r in records)]
    logged = {name for r in records for name in r.result.get("metrics", {})}
    tested = [name.removeprefix("test/") for name in logged if name.startswith("test/")]
    points = [tuple(str(r.flat.get(key)) for key in without_seed(keys)) for r in records]
    return Comparison(
        name=records[0].group,
        project=project or os.environ.get("WANDB_PROJECT") or str(logger["project"] or "genlab"),
        entity=entity or str(logger["entity"]),
        settings=settings,
        metrics=metrics or ("reconstruction", "kl", "neg_elbo", "bits_per_dim"),
        pictures=_media(records, "pictures", ".png"),
        videos=_media(records, "videos", ".mp4"),
        has_replicates=len(set(points)) < len(points),
        quality=ordered(metric for metric in tested if describe(metric).is_quality),
    )


def _settings(records: Sequence[Record], keys: Sequence[str]) -> list[Setting]:
    from genlab.runs.points import column_names
    from genlab.tracking.workspace import Setting

    return [
        Setting(column, _axis([r.flat.get(key) for r in records]))
        for key, column in column_names(keys).items()
    ]


def _axis(values: Sequence[Any]) -> Literal["linear", "logarithmic", "words"]:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return "words"
    is_wide = min(numbers) > 0 and max(numbers) >= _WIDE * min(numbers)
    return "logarithmic" if is_wide else "linear"


def _media(records: Sequence[Record], folder: str, ending: str) -> list[str]:
    """Return the keys under which the runs logged the files of one of their folders."""
    found = (path for record in records for path in record.files(f"{folder}/*-final{ending}"))
    return sorted({f"{folder}/{path.name.removesuffix(f'-final{ending}')}" for path in found})
