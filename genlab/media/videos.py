"""Videos: frames tiled, labelled and captioned, as H.264 in MP4 and as animated WebP.

Frames are a uint8 array (T, H, W) for grey or (T, H, W, 3) for colour. MP4 is written and read by
PyAV, which brings its own codecs. Without it only WebP is written.
"""

from __future__ import annotations

import functools
import io
import itertools
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from genlab.errors import ConfigError, GenlabError, RunDirectoryError
from genlab.media.pictures import Pixels, heading, open_picture
from genlab.runs.files import write_atomically
from genlab.runs.reading import VIDEO, read_bytes

log = logging.getLogger(__name__)

FPS = 20.0

_WEBP_FPS = 10.0
_CELL = 84
_GAP, _WIDE_GAP = 2, 12
_PAPER = 255
# x264 works on blocks of 16 pixels, and fills a partial block from uninitialised memory, so that
# equal frames would sometimes give different files.
_BLOCK = 16
# Largest difference between the channels of grey after compression.
_GREY = 8
#: Largest size in memory of a video that is read, or of all that are combined into one.
MOST_BYTES = 2**30
_INSTALL = "pip install genlab[video]"


@dataclass(frozen=True)
class Probe:
    """The properties of a video file."""

    codec: str
    pixel_format: str
    frames: int
    width: int
    height: int
    fps: float
    title: str


def panels(
    images: npt.ArrayLike, labels: Sequence[str] | None = None, columns: int | None = None
) -> Pixels:
    """Arrange images (T, N, C, H, W) as T frames of N enlarged panels, by default about a square.

    Raises:
        ValueError: they are not uint8 of that shape with C = 1 or 3.
    """
    batch = np.asarray(images)
    if batch.dtype != np.uint8 or batch.ndim != 5 or batch.shape[2] not in (1, 3):
        raise ValueError(
            f"images of {batch.dtype} {batch.shape}: uint8 (T, N, C, H, W) with C = 1 or 3 is "
            "needed"
        )
    scale = math.ceil(_CELL / batch.shape[3])
    large = batch.transpose(1, 0, 3, 4, 2).repeat(scale, axis=2).repeat(scale, axis=3)
    return tile(list(large), labels, columns, _GAP)


def tile(
    films: Sequence[npt.ArrayLike],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    gap: int = _WIDE_GAP,
    margin: int = 0,
    most_bytes: float = math.inf,
) -> Pixels:
    """Combine several videos into one, each below its label; a shorter one keeps its last frame.

    Raises:
        ValueError: there are no videos, or not one label for each, or together they take more
            bytes than these.
    """
    if not films or (labels is not None and len(labels) != len(films)):
        raise ValueError(f"{len(films)} films, {len(labels or ())} labels: give one for each")
    arrays = [_with_channels(film) for film in films]
    length, height, width, channels = (max(a.shape[i] for a in arrays) for i in range(4))
    columns = math.ceil(math.sqrt(len(arrays))) if columns is None else columns
    rows = math.ceil(len(arrays) / columns)
    strips = [heading(label, width) for label in labels or ()]
    top = max((strip.shape[0] for strip in strips), default=0)
    cell_height, cell_width = top + height, width
    shape = (
        length,
        rows * (cell_height + gap) - gap + 2 * margin,
        columns * (cell_width + gap) - gap + 2 * margin,
        channels,
    )
    _limit(math.prod(shape), most_bytes)
    made = np.full(shape, _PAPER, np.uint8)
    for i, film in enumerate(arrays):
        y = margin + i // columns * (cell_height + gap)
        x = margin + i % columns * (cell_width + gap)
        if strips:
            made[:, y : y + len(strips[i]), x : x + cell_width] = strips[i]
        y += top
        place = made[:, y : y + film.shape[1], x : x + film.shape[2]]
        place[: len(film)] = film
        place[len(film) :] = film[-1]
    return made[..., 0] if channels == 1 else made


def captioned(frames: npt.ArrayLike, captions: Sequence[str]) -> Pixels:
    """Put a line of text above each frame, for instance its time.

    Raises:
        ValueError: there is not one caption for each frame.
    """
    film = _with_channels(frames)
    if len(captions) != len(film):
        raise ValueError(f"{len(captions)} captions for {len(film)} frames: give one for each")
    strips = {text: heading(text, film.shape[2]) for text in captions}
    top = max(len(strip) for strip in strips.values())
    made = np.pad(film, ((0, 0), (top, 0), (0, 0), (0, 0)), constant_values=_PAPER)
    for frame, text in zip(made, captions, strict=True):
        frame[: len(strips[text])] = strips[text]
    return made[..., 0] if made.shape[3] == 1 else made


def save(stem: str | os.PathLike[str], frames: npt.ArrayLike, fps: float, title: str) -> list[Path]:
    """Write `stem`.mp4 and `stem`.webp, making their folder, and return the written files.

    The WebP, for pages that play no video, omits frames down to about 10 per second. The title is
    stored in the MP4's metadata. Equal frames give an identical WebP; an MP4 may differ in a few
    bytes.

    Raises:
        ValueError: no frames, or not uint8 of shape (T, H, W) or (T, H, W, 3).
    """
    film = _with_channels(frames)
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    if has_av():
        written.append(stem.with_name(f"{stem.name}.mp4"))
        write_atomically(written[-1], _mp4(film, fps, title))
    written.append(stem.with_name(f"{stem.name}.webp"))
    stride = max(1, round(fps / _WEBP_FPS))
    write_atomically(written[-1], _webp(film[::stride], fps / stride))
    return written


@functools.cache
def has_av() -> bool:
    """Return whether PyAV is installed, and warn once if it is not."""
    try:
        import av  # noqa: F401
    except ImportError:
        log.warning("videos are written as WebP alone; for MP4 as well: %s", _INSTALL)
        return False
    return True


def read_video(
    path: str | os.PathLike[str], fps: float = FPS, most_bytes: float = MOST_BYTES
) -> Pixels:
    """Read the frames of a file at `fps` for a WebP; (T, H, W) if all are grey.

    Raises:
        ConfigError: PyAV is missing.
        RunDirectoryError: the file cannot be read, or its frames take more than `most_bytes`.
    """
    try:
        if Path(path).suffix == ".webp":
            frames = _read_webp(Path(path), fps, most_bytes)
        else:
            with _open_mp4(path) as container:
                decoded = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
                frames = np.stack(list(_within_budget(decoded, most_bytes)))
    # the decoders of PyAV and of Pillow raise many kinds of exceptions on a damaged file
    except (GenlabError, MemoryError):
        raise
    except Exception as error:
        raise RunDirectoryError(
            f"{path} cannot be read as a video ({error}): remove it, and make it again with "
            "genlab video"
        ) from error
    red, green, blue = np.moveaxis(frames, 3, 0)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    is_grey = spread.max() <= _GREY
    return frames[..., 0] if is_grey else frames


def probe(path: str | os.PathLike[str]) -> Probe:
    """Read the properties of an MP4.

    Raises:
        ConfigError: PyAV is missing.
    """
    with _open_mp4(path) as container:
        stream = container.streams.video[0]
        return Probe(
            stream.codec_context.name,
            stream.codec_context.pix_fmt,
            stream.frames,
            stream.codec_context.width,
            stream.codec_context.height,
            float(stream.average_rate),
            container.metadata.get("title", ""),
        )


def side_by_side(
    sources: Sequence[str | os.PathLike[str]],
    labels: Sequence[str],
    stem: str | os.PathLike[str],
    title: str,
) -> list[Path]:
    """Combine video files into one, each below its label, at their own frame rate; see `save`.

    Raises:
        ConfigError: a source is MP4, and PyAV is missing.
        RunDirectoryError: a source cannot be read, or is too large to be combined with the others.
    """
    films = [read_video(source, most_bytes=MOST_BYTES / len(sources)) for source in sources]
    fps = probe(sources[0]).fps if Path(sources[0]).suffix == ".mp4" else FPS
    return save(stem, beside(films, labels), fps, title)


def beside(films: Sequence[npt.ArrayLike], labels: Sequence[str]) -> Pixels:
    """Combine videos of several runs, each below its label, in one row if there are few.

    Raises:
        RunDirectoryError: together they are too large.
    """
    columns = len(films) if len(films) <= 4 else math.ceil(math.sqrt(len(films)))
    try:
        return tile(films, labels, columns, margin=_WIDE_GAP // 2, most_bytes=2 * MOST_BYTES)
    except ValueError as error:
        raise RunDirectoryError(
            f"{len(films)} videos cannot be put side by side ({error}): take fewer, or shorter or "
            "smaller ones"
        ) from error


def _with_channels(frames: npt.ArrayLike) -> Pixels:
    """Convert frames to (T, H, W, C)."""
    film: npt.NDArray[Any] = np.asarray(frames)
    if film.ndim == 3:
        film = film[..., None]
    if film.dtype != np.uint8 or film.ndim != 4 or film.shape[3] not in (1, 3) or 0 in film.shape:
        raise ValueError(
            f"frames of {film.dtype} {np.shape(frames)}: uint8 (T, H, W) or (T, H, W, 3) with at "
            "least one frame is needed"
        )
    return film


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"videos: MP4 needs the package av, which is missing: {_INSTALL}"
        ) from error
    return av


@contextmanager
def _open_mp4(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open an MP4 with H.264 inside, and nothing else that FFmpeg knows.

    FFmpeg would also open playlists, which name other files and addresses. So it is told the
    format, and gets the content in the place of the path.
    """
    with _av().open(io.BytesIO(read_bytes(path, VIDEO)), format="mp4") as container:
        codecs = {stream.codec_context.name for stream in container.streams.video}
        if codecs != {"h264"}:
            raise ValueError(f"its codec is {' and '.join(sorted(codecs)) or 'none'}, not h264")
        yield container


def _within_budget(frames: Iterable[Pixels], most_bytes: float) -> Iterator[Pixels]:
    """Yield frames until they take more bytes than these.

    Raises:
        ValueError: they have.
    """
    taken = 0
    for frame in frames:
        taken += frame.nbytes
        _limit(taken, most_bytes)
        yield frame


def _limit(size: int, most_bytes: float) -> None:
    """Refuse frames that take so many bytes, if these are too many, with a ValueError."""
    if size > most_bytes:
        raise ValueError(f"the frames have more than {most_bytes:.0e} bytes")


def _mp4(film: Pixels, fps: float, title: str) -> bytes:
    av = _av()
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    bt709 = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
    blocks = [-size % _BLOCK for size in film.shape[1:3]]
    around = [*((missing // 2, missing - missing // 2) for missing in blocks), (0, 0)]
    # the index can be written before the frames only in a file that can be read again
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            container.metadata["title"] = title
            stream = container.add_stream(
                "libx264",
                rate=Fraction(fps).limit_denominator(1001),
                options={"crf": "20", "preset": "veryfast", "x264-params": "threads=1"},
            )
            stream.height, stream.width = np.add(film.shape[1:3], blocks).tolist()
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.thread_count = 1
            context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            for frame in film:  # a copy of one at a time: all together may fill the memory
                padded = np.pad(frame, around, constant_values=_PAPER)
                padded = padded.repeat(3 // padded.shape[2], axis=2)
                rgb = av.VideoFrame.from_ndarray(padded, format="rgb24")
                container.mux(stream.encode(rgb.reformat(format="yuv420p", threads=1, **bt709)))
            container.mux(stream.encode())
        return path.read_bytes()


def _webp(film: Pixels, fps: float) -> bytes:
    ends = [round(1000 * (i + 1) / fps) for i in range(len(film))]
    kept: list[Image.Image] = []
    durations: list[int] = []
    for i, (before, frame) in enumerate(itertools.pairwise(itertools.chain([None], film))):
        lasts = ends[i] - (ends[i - 1] if i else 0)
        if before is not None and np.array_equal(before, frame):
            durations[-1] += lasts
        else:
            kept.append(Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame))
            durations.append(lasts)
    buffer = io.BytesIO()
    kept[0].save(
        buffer,
        "webp",
        save_all=True,
        append_images=kept[1:],
        duration=durations,
        loop=0,
        quality=60,
        method=2,
    )
    return buffer.getvalue()


def _read_webp(path: Path, fps: float, most_bytes: float) -> Pixels:
    with open_picture(path, ("WEBP",)) as picture:
        size = getattr(picture, "n_frames", 1) * picture.width * picture.height * 3
        _limit(size, most_bytes)
        frames, durations = zip(*_webp_frames(picture), strict=True)
    ends = np.cumsum(durations)
    count = max(1, round(ends[-1] * fps / 1000))  # a video that never changes has no duration
    _limit(count * frames[0].nbytes, most_bytes)
    seen = np.searchsorted(ends[:-1], np.arange(count) * 1000 / fps, "right")
    return np.stack([frames[i] for i in seen])


def _webp_frames(picture: Image.Image) -> Iterator[tuple[Pixels, int]]:
    for i in range(getattr(picture, "n_frames", 1)):
        picture.seek(i)
        picture.load()
        yield np.asarray(picture.convert("RGB")), int(picture.info.get("duration", 0))
