"""Mutations of pictures and videos."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from attack.changes import ESCAPES, FORMULA, MARKUP, MUTATIONS, Mutation, Place, mutation
from fuzz import changed
from PIL import Image


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = data or zlib.compress(bytes(1024))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _chunk_of_text() -> bytes:
    content = b"x\0\0" + zlib.compress(bytes(1 << 26), 9)
    crc = struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return struct.pack(">I", len(content)) + b"zTXt" + content + crc


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def _saved(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


PICTURES: dict[str, Callable[[bytes], bytes]] = {
    "eps_in_a_png": lambda data: EPS,
    "a_torn_picture": lambda data: data[: len(data) * 2 // 3],
    "half_a_header": lambda data: data[:20],
    "a_wrong_checksum": lambda data: data[:-8] + bytes(4) + data[-4:],
    "a_picture_of_179_million_pixels": lambda data: png(13400, 13400),
    "a_picture_of_four_billion_pixels": lambda data: png(65535, 65535),
    "a_picture_without_pixels": lambda data: png(0, 0),
    "a_picture_of_89_million_pixels": lambda data: png(
        89_000_000, 1, zlib.compress(bytes(89_000_001), 9)
    ),
    "a_picture_with_a_bomb_of_text": lambda data: png(8, 8, b"", _chunk_of_text()),
    "a_text_for_a_picture": lambda data: MARKUP.encode(),
    "nothing_for_a_picture": lambda data: b"",
    "a_gif": lambda data: _saved("GIF"),
    "a_tiff": lambda data: _saved("TIFF"),
    "a_pdf": lambda data: _saved("PDF"),
    "a_jpeg": lambda data: _saved("JPEG"),
    "a_wide_picture": lambda data: _saved("PNG", (20000, 2)),
    "a_playlist": lambda data: b"#EXTM3U\n#EXTINF:1,\nhttp://192.0.2.1/x.ts\n#EXT-X-ENDLIST\n",
    "a_list_of_files": lambda data: b"ffconcat version 1.0\nfile http://192.0.2.1/x.mp4\n",
    "a_session_description": lambda data: (
        b"v=0\no=- 0 0 IN IP4 192.0.2.1\ns=x\n"
        b"c=IN IP4 192.0.2.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    ),
}


def _media(place: Place) -> list[Path]:
    return sorted([*place.run.glob("pictures/*-final.png"), *place.run.glob("videos/*-final.*")])


def _picture(name: str, make: Callable[[bytes], bytes]) -> None:
    def change(place: Place, chance: random.Random) -> None:
        there = _media(place)
        for path in there if chance.random() < 0.5 else chance.sample(there, min(2, len(there))):
            path.write_bytes(make(path.read_bytes()))

    MUTATIONS[name] = Mutation("media", change)


for _name, _picture_of in PICTURES.items():
    _picture(_name, _picture_of)


@mutation("media")
def any_bytes_of_media(place: Place, chance: random.Random) -> None:
    for path in _media(place):
        if chance.random() < 0.5:
            path.write_bytes(changed(path.read_bytes(), chance))


@mutation("media")
def media_of_other_names(place: Place, chance: random.Random) -> None:
    names = [MARKUP.replace("/", "_"), FORMULA.replace("/", "_"), ESCAPES, "x\n\n# y", "](http:x)"]
    for path in _media(place):
        name = chance.choice([*names, "x" * 200, os.fsdecode(b"\xff\xfe"), "%2e%2e", ".", "a b"])
        path.rename(path.with_name(f"{name}-final{path.suffix}"))


@mutation("media")
def dozens_of_media(place: Place, chance: random.Random) -> None:
    for path in _media(place)[:1]:
        for number in range(60):
            os.link(path, path.with_name(f"kind{number}-final{path.suffix}"))
