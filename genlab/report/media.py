"""Embed pictures and videos in a page as base64 text, within a budget."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from genlab.errors import RunDirectoryError
from genlab.media import pictures
from genlab.report.collect import Record
from genlab.runs import reading
from genlab.runs.reading import read_bytes
from genlab.runs.text import printable

#: Bytes before base64, which turns three bytes into four.
PICTURE_BUDGET = 5_000_000
VIDEO_BUDGET = 24_000_000
#: Pixels of all pictures before they are made smaller, which take time however few their bytes.
PIXEL_BUDGET = 2**28

_PICTURES = (
    "reconstructions",
    "samples",
    "samples_aggregate",
    "interpolation",
    "traversal",
    "latent_map",
    "trajectory",
    "forward",
    "bound",
)
_VIDEOS = ("interpolation", "traversal", "prior_walk", "trajectory", "training")
_MIMES = {".mp4": "video/mp4", ".webp": "image/webp"}
_TITLES = {"samples_aggregate": "samples from a fitted q(z)"}
# More pictures are embedded smaller and with less effort: (largest count, largest width in pixels,
# quality and method of WebP).
_LEVELS = ((60, 800, 82, 4), (200, 560, 76, 1), (10**9, 400, 68, 0))
#: Pictures of a page; each takes milliseconds.
_MOST_PICTURES = 400


@dataclass(frozen=True)
class Kind:
    """One kind of picture or video, of each run that has it.

    Attributes:
        name: the file's, without `-final`.
        files: by position of the run in the report; -1 is the file with all runs side by side.
    """

    name: str
    is_video: bool
    files: dict[int, Path]

    @property
    def title(self) -> str:
        text = _TITLES.get(self.name, self.name.replace("_", " "))
        return text[:1].upper() + text[1:]


@dataclass
class Media:
    """The files that are embedded in a page, by the file that each is made from.

    Attributes:
        embedded: MIME type and base64 text.
        too_large: files that exceeded the budget, which the page links to.
        broken: files that could not be read.
    """

    embedded: dict[Path, tuple[str, str]] = field(default_factory=dict)
    too_large: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)

    def add_pictures(self, paths: Sequence[Path], budget: int = PICTURE_BUDGET) -> None:
        """Embed pictures as WebP, in order, until budget, pixels or their number are used up."""
        pixels = PIXEL_BUDGET
        look = next(look for most, *look in _LEVELS if len(paths) <= most)
        self.too_large += paths[_MOST_PICTURES:]
        paths = paths[:_MOST_PICTURES]
        for i, path in enumerate(paths):
            try:
                pixels -= math.prod(pictures.size_of_png(path))
                content = _webp(path, *look) if pixels >= 0 else b""
            except RunDirectoryError:
                self.broken.append(path)
                continue
            if pixels < 0:
                self.too_large += paths[i:]
                break
            if taken := self._add(path, "image/webp", content, budget):
                budget -= taken
            else:  # encoding hundreds more to see that they do not fit either takes minutes
                self.too_large += paths[i + 1 :]
                break

    def add_videos(self, paths: Iterable[Path], budget: int = VIDEO_BUDGET) -> None:
        """Embed videos unchanged, in order, until the budget is used up."""
        for path in paths:
            try:
                content = read_bytes(path, reading.VIDEO)
            except (OSError, RunDirectoryError):
                self.broken.append(path)
            else:
                budget -= self._add(path, _MIMES[path.suffix], content, budget)

    def _add(self, path: Path, mime: str, content: bytes, budget: int) -> int:
        """Embed a file if it fits into the budget, and return the bytes that it takes."""
        if len(content) > budget:
            self.too_large.append(path)
            return 0
        self.embedded[path] = (mime, base64.b64encode(content).decode())
        return len(content)


def picture_kinds(records: Sequence[Record]) -> list[Kind]:
    """Return the final pictures of all runs by kind, the most informative kind first."""
    found: dict[str, dict[int, Path]] = {}
    for i, record in enumerate(records):
        for path in record.files("pictures/*-final.png"):
            found.setdefault(_kind(path), {})[i] = path
    return [Kind(name, False, found[name]) for name in _in_order(found, _PICTURES)]


def video_kinds(records: Sequence[Record], directory: Path) -> list[Kind]:
    """Return the final videos of all runs, and those of several runs in the report's directory."""
    found: dict[str, dict[int, Path]] = {}
    for path in _videos((directory / "videos").glob("*")):
        found.setdefault(_kind(path), {})[-1] = path
    for i, record in enumerate(records):
        for path in _videos(record.files("videos/*-final.*")):
            found.setdefault(_kind(path), {})[i] = path
    return [Kind(name, True, found[name]) for name in _in_order(found, _VIDEOS)]


def relative_url(path: Path, directory: Path) -> str:
    """Return the relative URL of a file for a page in `directory`."""
    # as bytes, since a name may be no UTF-8
    return quote(os.fsencode(os.path.relpath(path, directory.absolute())))


def _videos(files: Iterable[Path]) -> list[Path]:
    """Return the MP4 films among these files, and an animated WebP where there is no MP4."""
    films = {path.stem: path for path in sorted(files, reverse=True) if path.suffix in _MIMES}
    return [films[name] for name in sorted(films)]


def _kind(path: Path) -> str:
    return printable(path.stem.removesuffix("-final"), kept="")


def _in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    return sorted(
        names, key=lambda name: (first.index(name) if name in first else len(first), name)
    )


def _webp(path: Path, width: int, quality: int, method: int) -> bytes:
    buffer = io.BytesIO()
    picture = pictures.read_png(path, width)
    Image.fromarray(picture).save(buffer, "webp", quality=quality, method=method)
    return buffer.getvalue()
