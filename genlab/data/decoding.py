"""Decode an image file, of any kind that is safe to open, to pixels of one size and mode."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from genlab.errors import whole
from genlab.protocols import ImageSpec
from genlab.runs.reading import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Fit = Literal["crop", "stretch", "exact"]
Rule = Literal["alpha", "depth", "frames"]

#: Increase it when the rules below change: it is part of the key of every cache.
RULES = 2

# Recognised by content, whatever the name, and decoded by Pillow itself. Others that Pillow opens
# start programs or open further files (EPS, WMF, FITS, IPTC, GRIB), have no signature (TGA), or are
# rare. Each is a parser that a stranger's file reaches, so the list is in SECURITY.md as well.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "avif"),
    )
)


class Decoded(NamedTuple):
    """The pixels (C, H, W) of a file, and the rules, of `Decoder.explain`, that changed them."""

    pixels: npt.NDArray[np.uint8]
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Decoder:
    """Decodes files to uint8 (C, H, W): the first frame, upright, opaque, 8 bits, of one size.

    Args:
        height, width: in pixels.
        channels: 1 for grey, 3 for colour.
        fit: "crop" resizes until the image covers the size and cuts out the centre, "stretch"
            resizes both sides, "exact" refuses any other size.
        background: colour that is seen through transparent pixels: a name, "#rrggbb" or "rgb(...)".

    Raises:
        ValueError: if a value is out of range.
    """

    height: int
    width: int
    channels: int
    fit: Fit
    background: str

    def __post_init__(self) -> None:
        from PIL import ImageColor

        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: give 1 (grey) or 3 (colour)")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit={self.fit}: give one of {', '.join(get_args(Fit))}")
        try:
            ImageColor.getcolor(self.background, "RGB")
        except ValueError as error:
            raise ValueError(
                f"background={self.background!r}: give a colour such as white, '#ff8000' or "
                "'rgb(255, 128, 0)'"
            ) from error

    def spec(self, classes: tuple[str, ...]) -> ImageSpec:
        """Return the spec of the images that it makes, with the names of their classes."""
        return ImageSpec(self.channels, self.height, self.width, classes=classes)

    def __call__(self, content: Path | bytes) -> Decoded | str:
        """Return the image in a file or in its bytes, or a description of the error."""
        from PIL import Image, UnidentifiedImageError

        try:
            if (len(content) if isinstance(content, bytes) else content.stat().st_size) == 0:
                return "it is empty"
            with _stream(content) as data, Image.open(data, formats=FORMATS) as opened:
                return self.convert(opened)
        # Pillow's decoders raise many kinds of exceptions on a damaged file.
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                return "it was removed meanwhile"
            if isinstance(error, UnidentifiedImageError):
                return f"cannot identify it as one of {', '.join(FORMATS)}"
            return str(error) or type(error).__name__

    def explain(self, rule: Rule, count: int) -> str:
        """Return the sentence on a rule that changed `count` images."""
        images = "1 image" if count == 1 else f"{count:,} images"
        return {
            "alpha": f"{images} with transparent pixels: composited on {self.background} "
            "(data.source.background)",
            "depth": f"{images} of 16 bits per value: the upper 8 are kept",
            "frames": f"{images} of several frames: the first is taken",
        }[rule]

    def convert(self, opened: PILImage) -> Decoded | str:
        """Return the pixels of an image of Pillow's, or why it has none."""
        from PIL import Image, ImageColor, ImageOps

        # Pillow gives grey of 16 bits in 32 for some formats, and colour always cut to 8.
        is_wide_grey = opened.mode == "I" and opened.format in ("PNG", "PPM")
        is_deep = is_wide_grey or ";16" in str(getattr(opened, "tile", ())[:1])
        rules: list[Rule] = ["frames"] if getattr(opened, "is_animated", False) else []
        rules += ["depth"] if is_deep else []
        opened.load()
        image: PILImage = _upright(opened)
        if is_wide_grey or image.mode.startswith("I;16"):
            image = _upper_8_bits(image)
        if image.mode in ("I", "F"):
            return f"its pixels are 32-bit numbers, mode {image.mode}"
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            if rgba.getchannel("A").getextrema()[0] != 255:
                rules.append("alpha")
            image = Image.new("RGB", rgba.size, ImageColor.getcolor(self.background, "RGB"))
            image.paste(rgba, mask=rgba)
        image = image.convert("L" if self.channels == 1 else "RGB")
        size = (self.width, self.height)
        if image.size != size:
            if self.fit == "exact":
                return f"it has {image.width} x {image.height} pixels, not {size[0]} x {size[1]}"
            if self.fit == "crop":
                image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
            else:
                image = image.resize(size, Image.Resampling.LANCZOS)
        pixels = np.asarray(image, dtype=np.uint8)
        pixels = pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)
        return Decoded(pixels, tuple(rules))


def _stream(content: Path | bytes) -> BinaryIO:
    return io.BytesIO(content) if isinstance(content, bytes) else open_regular(content.resolve())


def is_image(path: Path) -> bool:
    """Return whether a file is an image: by its suffix, or by its content if that says nothing."""
    if path.suffix.lower() in SUFFIXES:
        return True
    from PIL import Image

    try:
        with _stream(path) as data, Image.open(data, formats=FORMATS):
            return True
    except Exception:  # as in Decoder
        return False


@contextmanager
def warnings_of_pillow() -> Iterator[None]:
    """Make the warning about too many pixels an error, and drop all others."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright(image: PILImage) -> PILImage:
    """Turn the image as its EXIF orientation says; damaged EXIF data says nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of many kinds
        return image


def _upper_8_bits(image: PILImage) -> PILImage:
    """Reduce a grey image of 16 bits as Pillow does colour: the upper 8 are kept."""
    from PIL import Image

    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return both sides of a size, which may be given as one number.

    Raises:
        ValueError: if it is neither a number of pixels nor two.
    """
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size={sides}: give one number, or height and width")
    height, width = (whole("image_size", side, 1) for side in sides)
    return height, width
