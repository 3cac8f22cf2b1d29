"""Pictures: batches of images as grids with labels and a caption, and PNG files.

A batch is a uint8 array (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3; where both
readings of four axes are possible, (N, C, H, W) is meant. A picture is (H, W) for grey and
(H, W, 3) for colour. The font has only Latin letters: write `sigma`, not the Greek letter.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from genlab.errors import RunDirectoryError
from genlab.runs.files import write_atomically
from genlab.runs.reading import PICTURE, read_bytes

Pixels = npt.NDArray[np.uint8]

_CELL = 56
_GAP = 2
_MARGIN = 6
#: Smallest height of text in pixels, and its share of a picture's width: pictures of 700 pixels are
#: shown at half of that beside others, where their text must still be readable.
_FONT_SIZE, _FONT_SHARE = 14, 1 / 30
_NARROWEST_CAPTION = 280
_PAPER, _INK = 255, 32
#: Most pixels of a picture that is read.
_PIXELS = 1 << 25


def grid(
    images: npt.ArrayLike,
    columns: int | None = None,
    caption: str | None = None,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
) -> Pixels:
    """Arrange images in rows of `columns`, by default about a square; empty cells are white.

    Each pixel becomes `scale` x `scale` pixels, by default as many as make a cell 56 pixels high.

    Raises:
        ValueError: the images are not such a batch, or there is not one label for each row.
    """
    batch = _as_batch(images)
    n, height, width, channels = batch.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns={columns}: a grid has at least 1")
    scale = max(1, math.ceil(_CELL / height)) if scale is None else scale
    if scale < 1:
        raise ValueError(f"scale={scale}: a pixel is enlarged at least 1 time")
    n_rows = math.ceil(n / columns)
    if row_labels is not None and len(row_labels) != n_rows:
        raise ValueError(f"{len(row_labels)} row_labels for {n_rows} rows: give one for each")

    cell_height, cell_width = height * scale, width * scale
    picture = np.full(
        (n_rows * (cell_height + _GAP) - _GAP, columns * (cell_width + _GAP) - _GAP, channels),
        _PAPER,
        np.uint8,
    )
    for i, image in enumerate(batch.repeat(scale, axis=1).repeat(scale, axis=2)):
        top, left = i // columns * (cell_height + _GAP), i % columns * (cell_width + _GAP)
        picture[top : top + cell_height, left : left + cell_width] = image
    if row_labels is not None:
        picture = _with_row_labels(picture, row_labels, cell_height + _GAP)
    if caption or row_labels is not None:
        picture = np.pad(
            picture, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), constant_values=_PAPER
        )
    if caption:
        picture = captioned(picture, caption)
    return picture[:, :, 0] if channels == 1 else picture


def rows(
    batches: Sequence[npt.ArrayLike],
    labels: Sequence[str] | None = None,
    caption: str | None = None,
    scale: int | None = None,
) -> Pixels:
    """Arrange one row for each batch, for instance inputs above their reconstructions.

    Raises:
        ValueError: the batches differ in number or size of images, or the labels in number.
    """
    if not batches:
        raise ValueError("batches=[]: at least one row is needed")
    checked = [_as_batch(batch) for batch in batches]
    if len({batch.shape[:3] for batch in checked}) > 1:
        shapes = ", ".join(str(batch.shape) for batch in checked)
        raise ValueError(f"rows of {shapes}: all need the same number of images of the same size")
    channels = max(batch.shape[3] for batch in checked)
    stacked = np.concatenate(
        [np.broadcast_to(batch, (*batch.shape[:3], channels)) for batch in checked]
    )
    # Four axes with channels last could be read as channels first, so grid gets channels first.
    return grid(stacked.transpose(0, 3, 1, 2), len(checked[0]), caption, scale, labels)


def stack(shown: Sequence[npt.ArrayLike]) -> Pixels:
    """Stack pictures (H, W, 3) vertically; narrower ones are padded with white.

    Raises:
        ValueError: no pictures.
    """
    if not shown:
        raise ValueError("shown=[]: at least one picture is needed")
    arrays = [np.asarray(picture) for picture in shown]
    width = max(array.shape[1] for array in arrays)
    wide = [
        np.pad(a, ((0, _MARGIN), (0, width - a.shape[1]), (0, 0)), constant_values=_PAPER)
        for a in arrays
    ]
    return np.concatenate(wide)


def heading(text: str, width: int) -> Pixels:
    """Draw text for a heading above a picture, wrapped at its width: grey, (h, width, 1)."""
    size = _font_size(width)
    font = ImageFont.load_default(size)
    lines = _wrap(text, font, width - 2 * _MARGIN)
    line_height = size + 4
    canvas = Image.new("L", (width, len(lines) * line_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, i * line_height + _MARGIN), line, _INK, font)
    return np.asarray(canvas)[..., None]


def _font_size(width: int) -> int:
    return max(_FONT_SIZE, round(_FONT_SHARE * width))


def captioned(picture: Pixels, caption: str) -> Pixels:
    """Put a text above a picture (H, W, C), which is widened as far as the caption needs."""
    strip = heading(caption, max(picture.shape[1], _NARROWEST_CAPTION))
    right = ((0, 0), (0, strip.shape[1] - picture.shape[1]), (0, 0))
    picture = np.pad(picture, right, constant_values=_PAPER)
    return np.concatenate([np.broadcast_to(strip, (*strip.shape[:2], picture.shape[2])), picture])


def open_picture(path: str | os.PathLike[str], formats: tuple[str, ...] = ("PNG",)) -> Image.Image:
    """Open a picture that may come from a stranger, of one of these formats of Pillow's.

    Raises:
        OSError: it is absent, torn, or of another format.
        RunDirectoryError: it is no regular file, or has too many bytes.
        ValueError: it has too many pixels.
    """
    data = io.BytesIO(read_bytes(path, PICTURE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
        try:
            picture = Image.open(data, formats=formats)
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
    if picture.width * picture.height > _PIXELS:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels: at most {_PIXELS:,} in all are read"
        )
    return picture


def read_png(path: str | os.PathLike[str], widest: int | None = None) -> Pixels:
    """Read a picture from a PNG, (H, W, 3), made smaller if it is wider than `widest`.

    Raises:
        RunDirectoryError: it cannot be read.
    """
    try:
        with open_picture(path) as opened:
            picture = opened.convert("RGB")
    # Pillow's decoders raise many kinds of exceptions on a damaged file.
    except Exception as error:
        raise RunDirectoryError(f"{path} cannot be read as a picture ({error})") from error
    if widest is not None and picture.width > widest:
        height = max(1, round(picture.height * widest / picture.width))
        picture = picture.resize((widest, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def size_of_png(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the width and the height of a PNG, which takes no time even where its pixels do.

    Raises:
        RunDirectoryError: it cannot be read.
    """
    try:
        with open_picture(path) as opened:
            return opened.size
    except Exception as error:
        raise RunDirectoryError(f"{path} cannot be read as a picture ({error})") from error


def save_png(path: str | os.PathLike[str], array: npt.ArrayLike) -> Path:
    """Write a picture atomically, making its folder.

    Raises:
        ValueError: the array is not uint8 of shape (H, W) or (H, W, 3).
    """
    picture = np.asarray(array)
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or picture.shape[2:] == (3,)):
        raise ValueError(
            f"a picture of {picture.dtype} {picture.shape}: uint8 (H, W) or (H, W, 3) is needed"
        )
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path


def _as_batch(images: npt.ArrayLike) -> Pixels:
    """Convert any of the layouts to (N, H, W, C)."""
    batch: npt.NDArray[Any] = np.asarray(images)
    if batch.dtype != np.uint8:
        raise ValueError(f"images of dtype {batch.dtype}: uint8 from 0 to 255 is needed")
    if batch.ndim == 3:
        batch = batch[..., None]
    elif batch.ndim == 4 and batch.shape[1] in (1, 3):
        batch = batch.transpose(0, 2, 3, 1)
    if batch.ndim != 4 or batch.shape[3] not in (1, 3) or 0 in batch.shape:
        raise ValueError(
            f"images of shape {np.shape(images)}: (N, H, W), (N, C, H, W) or (N, H, W, C) with "
            f"C = 1 or 3 and at least one image is needed"
        )
    return batch


def _with_row_labels(picture: Pixels, labels: Sequence[str], row_height: int) -> Pixels:
    font = ImageFont.load_default(_font_size(picture.shape[1]))
    margin = math.ceil(max(font.getlength(label) for label in labels)) + 2 * _MARGIN
    canvas = Image.new("L", (margin, picture.shape[0]), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, label in enumerate(labels):
        middle = i * row_height + (row_height - _GAP) / 2
        draw.text((margin - _MARGIN, middle), label, _INK, font, anchor="rm")
    return np.concatenate([_as_channels(canvas, picture), picture], axis=1)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _as_channels(canvas: Image.Image, picture: Pixels) -> Pixels:
    grey = np.asarray(canvas)[..., None]
    return np.broadcast_to(grey, (*grey.shape[:2], picture.shape[2]))
