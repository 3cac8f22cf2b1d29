"""Image files of many kinds become the same pixels: formats, alpha, depth, orientation."""

from __future__ import annotations

import io
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from genlab.data.decoding import FORMATS, Decoded, Decoder, is_image, warnings_of_pillow


def decoder(channels: int = 3, size: int = 8, background: str = "white") -> Decoder:
    return Decoder(size, size, channels, "crop", background)


def decoded(path: Path, **options) -> Decoded:
    result = decoder(**options)(path)
    assert isinstance(result, Decoded), result
    return result


def squares() -> Image.Image:
    """8 x 8, red and blue halves, which no codec mixes in the outer columns."""
    image = Image.new("RGB", (8, 8), (200, 0, 0))
    image.paste((0, 0, 200), (4, 0, 8, 8))
    return image


KINDS = {
    "bmp": {},
    "gif": {},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
    "ppm": {},
    "pgm": {},
    "png": {},
    "apng": {"format": "PNG"},
    "jpg": {},
    "jfif": {"format": "JPEG"},
    "mpo": {"format": "JPEG"},
    "webp": {"lossless": True},
    "avif": {"quality": 100},
    "img": {"format": "PNG"},
    "": {"format": "PNG"},
}


@pytest.mark.parametrize("suffix", KINDS)
def test_a_format_is_recognised_by_its_content_and_decoded(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"image{suffix and '.'}{suffix}"
    image = squares().convert("L") if suffix == "pgm" else squares()
    image.save(path, **KINDS[suffix])
    assert is_image(path)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)[:, :, [0, -1]]
    found = decoded(path).pixels
    assert found.shape == (3, 8, 8) and found.dtype == np.uint8
    np.testing.assert_allclose(found[:, :, [0, -1]].astype(int), expected, atol=40)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_mode_of_eight_bits_gives_its_colours(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    assert (decoded(path).pixels >= 254).all() and decoded(path).rules == ()


def test_nothing_that_starts_a_program_is_opened(tmp_path, monkeypatch):
    """EPS goes to Ghostscript, IPTC opens whatever is in it."""
    started: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", started.append)
    monkeypatch.setattr(subprocess, "Popen", started.append)
    contents = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
        "pdf": b"%PDF-1.4\n",
        "fits": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "iim": b"\x1c\x03\x3c\x00\x01\x00" * 8,
        "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for suffix, content in contents.items():
        for name in (f"a.{suffix}", f"{suffix}.png"):
            (tmp_path / name).write_bytes(content)
            assert "cannot identify" in decoder()(tmp_path / name)
        assert not is_image(tmp_path / f"a.{suffix}")
    assert not started
    assert not {"EPS", "FITS", "IPTC", "WMF", "GRIB", "BUFR", "HDF5", "PSD"} & set(FORMATS)


@pytest.mark.parametrize("background", ["white", "black", "#ff8000", "rgb(1, 2, 3)"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "colour key", "grey key"])
def test_transparent_pixels_show_the_background(tmp_path, background, mode):
    image = Image.new("RGBA", (8, 8), (90, 90, 90, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 4))
    options = {}
    if mode == "P":
        image = image.quantize(4)
    elif mode == "colour key":
        image, options = image.convert("RGB"), {"transparency": (0, 0, 0)}
    elif mode == "grey key":
        image, options = image.convert("L"), {"transparency": 0}
    else:
        image = image.convert(mode)
    path = tmp_path / "logo.png"
    image.save(path, **options)
    found = decoded(path, background=background)
    seen = Image.new("RGB", (1, 1), background).getpixel((0, 0))
    assert (found.pixels[:, :4] == np.array(seen)[:, None, None]).all()
    assert (found.pixels[:, 4:] == 90).all() and found.rules == ("alpha",)


def test_half_a_transparency_is_half_a_background_also_after_resizing(tmp_path):
    path = tmp_path / "half.png"
    Image.new("RGBA", (20, 20), (0, 0, 0, 128)).save(path)
    assert set(decoded(path).pixels.flat) == {127}
    Image.new("RGBA", (8, 8), (7, 7, 7, 255)).save(path)
    assert decoded(path).rules == ()


def png_of_16_bits(path: Path, values: np.ndarray, kind: int) -> None:
    """Write (H, W, C) uint16 as PNG of colour type 0 grey, 2 RGB, 4 grey and alpha or 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, _ = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(("kind", "values"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_every_kind_of_16_bits_keeps_its_upper_8(tmp_path, kind, values):
    drawn = np.random.default_rng(0).integers(0, 1 << 16, (8, 8, values), dtype=np.uint16)
    if kind >= 4:
        drawn[..., -1] = 65535
    png_of_16_bits(tmp_path / "deep.png", drawn, kind)
    found = decoded(tmp_path / "deep.png")
    expected = np.broadcast_to(drawn[..., :-1] if kind >= 4 else drawn, (8, 8, 3)) >> 8
    assert (found.pixels == expected.transpose(2, 0, 1)).all() and found.rules == ("depth",)


def test_16_bits_of_tiff_and_pgm_keep_their_upper_8(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(values).save(tmp_path / "deep.tif")
    (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    for name in ("deep.tif", "deep.pgm"):
        found = decoded(tmp_path / name, channels=1)
        assert (found.pixels[0] == values >> 8).all() and found.rules == ("depth",)


def test_numbers_of_32_bits_are_refused(tmp_path):
    Image.new("F", (8, 8), 0.5).save(tmp_path / "f.tif")
    Image.new("I", (8, 8), 70000).save(tmp_path / "i.tif")
    for name, mode in (("f.tif", "F"), ("i.tif", "I")):
        assert decoder()(tmp_path / name) == f"its pixels are 32-bit numbers, mode {mode}"


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_the_first_of_several_frames_is_taken_and_said(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (level, level, level)) for level in (40, 200)]
    path = tmp_path / f"film.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    found = decoded(path)
    np.testing.assert_allclose(found.pixels, 40, atol=2)
    assert found.rules == ("frames",)
    assert decoder().explain("frames", 1) == "1 image of several frames: the first is taken"


# An IFD that is cut, a value that lies outside, more entries than bytes, an offset beyond the end.
DAMAGED_EXIF = {
    "cut": b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0",
    "outside": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x09\0\0\0\xff\xff\xff\x7f\0\0\0\0",
    "many": b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" * 3,
    "beyond": b"II*\0\xff\0\0\0",
    "no header": b"garbage",
    "text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("damage", DAMAGED_EXIF)
def test_damaged_exif_data_leaves_the_pixels_alone_and_warns_of_nothing(tmp_path, suffix, damage):
    path = tmp_path / f"photo.{suffix}"
    Image.new("RGB", (8, 8), (90, 90, 90)).save(path, exif=b"Exif\0\0" + DAMAGED_EXIF[damage])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with warnings_of_pillow():
            found = decoded(path)
    assert not told
    np.testing.assert_allclose(found.pixels, 90, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turn[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    assert (decoded(tmp_path / "photo.png", channels=1).pixels[0] == upright).all()


def test_a_damaged_file_is_described_and_never_raises(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        whole = bytearray(buffer.getvalue())
        random = np.random.default_rng(1)
        with warnings_of_pillow():
            for _ in range(100):
                data = whole.copy()
                for at in random.integers(0, min(len(data), 80), 3):
                    data[at] = random.integers(256)
                (tmp_path / "damaged").write_bytes(data[: random.integers(1, len(data))])
                assert isinstance(decoder()(tmp_path / "damaged"), Decoded | str)
