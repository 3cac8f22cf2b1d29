"""Embed pictures and videos in a page as base64 text, within a budget."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from genlab.report.collect import Record

#: Bytes before base64, which turns three bytes into four.
PICTURE_BUDGET = 7_000_000
VIDEO_BUDGET = 24_000_000

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
_TITLES = {"samples_aggregate": "samples from a fitted q(z)"}
# More pictures are embedded smaller: (largest count, largest width in pixels, WebP quality).
_LEVELS = ((60, 800, 82), (300, 560, 76), (10**9, 400, 68))


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
        """Embed pictures as WebP, in order, until the budget is used up."""
        width, quality = next((w, q) for most, w, q in _LEVELS if len(paths) <= most)
        self._add(((path, "image/webp", _webp(path, width, quality)) for path in paths), budget)

    def add_videos(self, paths: Iterable[Path], budget: int = VIDEO_BUDGET) -> None:
        """Embed videos unchanged, in order, until the budget is used up."""
        mimes = {".mp4": "video/mp4", ".webp": "image/webp"}
        self._add(((path, mimes[path.suffix], _content(path)) for path in paths), budget)

    def _add(self, files: Iterable[tuple[Path, str, bytes | None]], budget: int) -> None:
        for path, mime, content in files:
            if content is None:
                self.broken.append(path)
            elif len(content) > budget:
                self.too_large.append(path)
            else:
                budget -= len(content)
                self.embedded[path] = (mime, base64.b64encode(content).decode())


def picture_kinds(records: Sequence[Record]) -> list[Kind]:
    """Return the final pictures of all runs by kind, the most informative kind first."""
    found: dict[str, dict[int, Path]] = {}
    for i, record in enumerate(records):
        for path in sorted((record.path / "pictures").glob("*-final.png")):
            found.setdefault(path.stem.removesuffix("-final"), {})[i] = path
    return [Kind(name, False, found[name]) for name in _in_order(found, _PICTURES)]


def video_kinds(records: Sequence[Record], directory: Path) -> list[Kind]:
    """Return the final videos of all runs, and those of several runs in the report's directory."""
    found: dict[str, dict[int, Path]] = {}
    for path in _videos(directory / "videos", "*"):
        found.setdefault(path.stem, {})[-1] = path
    for i, record in enumerate(records):
        for path in _videos(record.path / "videos", "*-final"):
            found.setdefault(path.stem.removesuffix("-final"), {})[i] = path
    return [Kind(name, True, found[name]) for name in _in_order(found, _VIDEOS)]


def relative_url(path: Path, directory: Path) -> str:
    """Return the relative URL of a file for a page in `directory`."""
    return quote(os.path.relpath(path, directory.absolute()))


def _videos(folder: Path, pattern: str) -> list[Path]:
    """List the MP4 files, and an animated WebP where there is no MP4."""
    films = {
        path.stem: path for suffix in (".webp", ".mp4") for path in folder.glob(pattern + suffix)
    }
    return [films[name] for name in sorted(films)]


def _in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    return sorted(
        names, key=lambda name: (first.index(name) if name in first else len(first), name)
    )


def _webp(path: Path, width: int, quality: int) -> bytes | None:
    buffer = io.BytesIO()
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
            if picture.width > width:
                height = max(1, round(picture.height * width / picture.width))
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)
            picture.save(buffer, "webp", quality=quality, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return buffer.getvalue()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
