"""Write the videos of a sweep's runs side by side, with the setting above each."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from genlab.errors import RunDirectoryError
from genlab.media import videos
from genlab.report.collect import Record, swept_keys
from genlab.report.naming import apart_by_sweep, run_label
from genlab.report.tables import in_order
from genlab.runs.files import write_atomically
from genlab.runs.points import without_seed
from genlab.runs.reading import DIGEST, VIDEO, read_bytes
from genlab.runs.text import printable

log = logging.getLogger(__name__)

#: Number of panels that a person can follow at once.
MOST = 9
#: Kinds of videos; each takes time.
_MOST_KINDS = 12


def compared(records: Sequence[Record]) -> list[tuple[str, Record]]:
    """Return the runs to put side by side with their labels: one per setting, at most `MOST`.

    Of replicates the first is taken. Further runs are left out evenly, so that both ends of a sweep
    remain.
    """
    keys = without_seed(swept_keys(records))
    done = [record for record in in_order(records) if record.state == "completed"]
    labels = apart_by_sweep([run_label(record, keys) for record in done], done)
    first: dict[str, Record] = {}
    for label, record in zip(labels, done, strict=True):
        first.setdefault(label, record)
    labelled = list(first.items())
    count = min(len(labelled), MOST)
    return [labelled[round(i * (len(labelled) - 1) / max(1, count - 1))] for i in range(count)]


def write_videos(records: Sequence[Record], directory: str | os.PathLike[str]) -> list[Path]:
    """Write `videos/KIND.mp4` and `.webp` for every kind that two runs have, and return the files.

    A file that was already made of the same videos is left as it is. A kind with an unreadable
    video, or with videos too large for the memory, is skipped with a warning.
    """
    chosen = compared(records)
    kinds = {
        path.name.removesuffix("-final.webp")
        for _, record in chosen
        for path in record.files("videos/*-final.webp")
    }
    written: list[Path] = []
    if len(kinds) > _MOST_KINDS:
        log.warning("of %d kinds of videos, %d are put side by side", len(kinds), _MOST_KINDS)
    for kind in sorted(kinds)[:_MOST_KINDS]:
        sources = {
            label: path
            for label, record in chosen
            if (path := _video(record.path / "videos" / f"{kind}-final")) is not None
        }
        try:
            if len(sources) > 1:
                written += _side_by_side(sources, Path(directory) / "videos" / kind)
        except (RunDirectoryError, MemoryError) as error:
            reason = printable(str(error)) or "the memory is full"
            log.warning("no %s videos side by side: %s", printable(kind), reason)
    return written


def _video(stem: Path) -> Path | None:
    """Return the MP4 where it can be read, else the WebP."""
    suffixes = (".mp4", ".webp") if videos.has_av() else (".webp",)
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in suffixes]
    return next((path for path in paths if path.is_file()), None)


def _side_by_side(sources: dict[str, Path], stem: Path) -> list[Path]:
    digest = hashlib.sha256(repr(videos.has_av()).encode())
    for label, path in sources.items():
        digest.update(f"{label}\n{path.suffix}\n".encode() + read_bytes(path, VIDEO))
    made_of = stem.with_name(f".{stem.name}.sha256")
    made = [
        path
        for suffix in (".mp4", ".webp")
        if (path := stem.with_name(stem.name + suffix)).is_file()
    ]
    if made and _known(made_of) == digest.hexdigest():
        return made
    title = f"{stem.name.replace('_', ' ')}: {', '.join(sources)}"
    made = videos.side_by_side(list(sources.values()), list(sources), stem, title)
    write_atomically(made_of, digest.hexdigest())
    return made


def _known(path: Path) -> str:
    """Read the digest that a video was made of; empty where there is none."""
    try:
        return read_bytes(path, DIGEST).decode(errors="replace")
    except (OSError, RunDirectoryError):
        return ""
