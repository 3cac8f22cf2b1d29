"""The record of a run's images in data.json, by which a change of them is noticed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genlab.config.build import build
from genlab.config.check import Config
from genlab.data.datamodule import ImageData
from genlab.errors import DataError
from genlab.runs.identity import identity
from genlab.runs.manifest import FILE_NAME
from genlab.runs.run import Run, find_runs
from genlab.training.planning import Plan

log = logging.getLogger(__name__)


def data_record(config: Config, data: ImageData) -> dict[str, Any]:
    """Build the content of data.json; empty for data that cannot change.

    Raises:
        DataError: the files of the images cannot be listed.
    """
    found = data.source.fingerprint(data.data_dir)
    if found is None:
        return {}
    return {"source": identity({"data": {"source": config["data"]["source"]}}), **found._asdict()}


def data_key(node: Mapping[str, Any], files: object) -> str:
    """Return 16 hex digits of a config of data and of its images, for what is cached about them.

    Args:
        node: the value of `data` in a config.
        files: as in data.json; None for data that cannot change.
    """
    drawn = node.get("binarisation", "none") != "none"
    source = node.get("source")
    known = [
        identity({"data": {"source": source if isinstance(source, Mapping) else {}}}),
        files,
        *(node.get(key) for key in ("val_images", "train_images", "binarisation")),
        node.get("seed") if drawn else None,
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def refuse_changed_since(planned: Plan) -> None:
    """Refuse the result of a completed run whose images have changed since.

    Images that are gone have not changed: the result stands without them.

    Raises:
        DataError, RunDirectoryError: as `refuse_changed`.
    """
    if Run(planned.path).data is None:
        return
    data: ImageData = build(planned.config["data"], "data")
    try:
        record = data_record(planned.config, data)
    except DataError:
        return
    refuse_changed(planned.path, record)


def refuse_changed(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse to go on if the images differ from those of the run at `path` or of its sweep.

    Raises:
        DataError: with the numbers of images then and now.
        RunDirectoryError: a data.json cannot be read.
    """
    for run, before in _of_the_same_source(path, record):
        if before.get("files") != record["files"] or before.get("images") != record["images"]:
            whose = "this run" if run.path == path else f"{run.name} of this sweep"
            raise DataError(
                f"{path}: the images are not those of {whose}, which had {_told(before)}; now "
                f"there are {_told(record)}: put back what was there, or give another group=NAME, "
                "or set overwrite=true to train anew with what is there now"
            )
        if before.get("times") != record["times"] and run.path == path:
            log.warning(
                "the files of the images have other times than when this run began; their names "
                "and sizes are the same"
            )


def difference(run: Run, data: ImageData) -> str:
    """Return a sentence if these are not the images of the run; empty if they are, or may be.

    Raises:
        DataError, RunDirectoryError: the images cannot be listed, or data.json cannot be read.
    """
    before, now = run.data, data.source.fingerprint(data.data_dir)
    if before is None or now is None or before.get("files") == now.files:
        return ""
    return f"these {_told(now._asdict())} are not those of the run, which had {_told(before)}"


def _of_the_same_source(
    path: Path, record: Mapping[str, Any]
) -> Iterator[tuple[Run, Mapping[str, Any]]]:
    """Yield the records of the run itself, and of the runs of its sweep on the same images."""
    of_sweep = find_runs(path.parent) if (path.parent / FILE_NAME).exists() else []
    for run in [Run(path), *(run for run in of_sweep if run.path != path)]:
        before = run.data
        if before is not None and before.get("source") == record["source"]:
            yield run, before


def _told(record: Mapping[str, Any]) -> str:
    counts = record.get("images")
    known = counts if isinstance(counts, Mapping) else {}
    parts = [f"{known[split]} {split}" for split in ("train", "val", "test") if split in known]
    return f"{' and '.join(parts) or 'other'} images"
