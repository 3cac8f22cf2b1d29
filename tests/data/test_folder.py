"""Image folders: formats, sizes, damaged files, and a cache that is right or made again."""

from __future__ import annotations

import io
import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.data import cache as cache_module
from genlab.data import filling as filling_module
from genlab.data import folder as folder_module
from genlab.data.datamodule import ImageData
from genlab.data.decoding import Decoder
from genlab.data.sources import ImageFolder
from genlab.errors import DataError


@pytest.fixture
def root(tmp_path) -> Path:
    """train and test, red and blue squares of 10 x 10 in PNG, JPEG and WebP."""
    for split, number in (("train", 6), ("test", 3)):
        for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            for i in range(number):
                save(tmp_path / "tree" / split / name / f"{i}{SUFFIXES[i % 4]}", colour)
    return tmp_path / "tree"


SUFFIXES = (".png", ".jpg", ".webp", ".JPEG")


def save(path: Path, colour, size=(10, 10), mode="RGB", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def source(root, **options) -> ImageFolder:
    return ImageFolder(
        str(root), **({"image_size": 8, "cache_dir": str(root.parent / "c")} | options)
    )


def test_every_format_is_decoded_and_labelled(root):
    folder = source(root)
    assert folder.spec.shape == (3, 8, 8) and folder.spec.classes == ("blue", "red")
    assert source(root / "elsewhere").spec.classes == ()
    for split, number in (("train", 6), ("test", 3)):
        pixels, labels = folder.load(Path(), split)
        assert labels.tolist() == [0] * number + [1] * number
        expected = np.where(labels[:, None] == 1, [[200, 0, 0]], [[0, 0, 200]])
        # JPEG and WebP are lossy.
        np.testing.assert_allclose(
            pixels, np.broadcast_to(expected[:, :, None, None], pixels.shape), atol=6
        )


def test_the_pixels_are_a_memory_map_that_nobody_can_write_to(root):
    pixels = source(root).load(Path(), "train").pixels
    assert isinstance(pixels, np.memmap) and pixels.dtype == np.uint8 and not pixels.flags.writeable


def test_a_png_of_the_right_size_is_kept_bit_for_bit(tmp_path):
    original = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for i, pixels in enumerate(original):
        Image.fromarray(pixels).save(tmp_path / "tree" / "a" / f"{i:02}.png")
    folder = source(tmp_path / "tree", fit="exact", test_fraction=0.25)
    train, test = (folder.load(Path(), split).pixels for split in ("train", "test"))
    assert len(train) == 9 and len(test) == 3
    found = {p.tobytes() for p in (*train, *test)}
    assert found == {p.transpose(2, 0, 1).tobytes() for p in original}


def test_the_test_part_is_fixed(tmp_path):
    for i in range(20):
        save(tmp_path / "tree" / "ab"[i % 2] / f"{i}.png", (i, i, i))
    first = source(tmp_path / "tree").load(Path(), "test").pixels[:, 0, 0, 0].tolist()
    again = source(tmp_path / "tree", cache_dir=str(tmp_path / "d")).load(Path(), "test")
    assert len(first) == 2 and again.pixels[:, 0, 0, 0].tolist() == first


def test_the_centre_is_cut_out_or_the_whole_stretched(tmp_path):
    # Three squares beside each other: green, white, green.
    image = Image.new("RGB", (48, 16), (0, 255, 0))
    image.paste((255, 255, 255), (16, 0, 32, 16))
    for i in range(4):
        (tmp_path / "tree" / "a").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "tree" / "a" / f"{i}.png")
    crop, stretch = (
        source(tmp_path / "tree", fit=fit, test_fraction=0.5).load(Path(), "train").pixels[0, 0]
        for fit in ("crop", "stretch")
    )
    assert crop[:, 1:-1].min() > 230
    assert stretch[:, [0, -1]].max() < 25 and stretch[:, 4].min() > 230


def test_grey_is_the_luminance_and_the_camera_is_held_upright(tmp_path):
    upright = Image.new("RGB", (8, 8), (255, 0, 0))
    upright.paste((0, 0, 0), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3
    for i in range(2):
        (tmp_path / "tree" / "a").mkdir(parents=True, exist_ok=True)
        upright.rotate(180).save(tmp_path / "tree" / "a" / f"{i}.png", exif=exif)
    pixels = source(tmp_path / "tree", channels=1, test_fraction=0.5).load(Path(), "train").pixels
    assert pixels.shape == (1, 1, 8, 8)
    # ITU-R 601: Y = .299 R.
    assert (pixels[0, 0, :4] == 0).all() and (pixels[0, 0, 4:] == 76).all()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "it is empty"), (b"no image", "cannot identify"), (None, "truncated")],
)
def test_an_unreadable_image_is_named_or_skipped(root, caplog, content, complaint):
    path = root / "train" / "red" / "2.webp"
    if content is None:
        path = root / "train" / "red" / "0.png"
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:-2000]
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} cannot be read .*{complaint}.*skip"):
        source(root).prepare(Path())
    assert list((root.parent / "c" / "folder").iterdir()) == []
    folder = source(root, unreadable="skip")
    folder.prepare(Path())
    images = folder.load(Path(), "train")
    assert images.labels.tolist() == [0] * 6 + [1] * 5 and len(images.pixels) == 11
    assert "1 unreadable images skipped" in caplog.text and str(path) in caplog.text


def test_an_image_of_another_size_is_refused_if_sizes_are_exact(root):
    with pytest.raises(DataError, match="10 x 10 pixels, not 8 x 8"):
        source(root, fit="exact").prepare(Path())


def test_the_cache_is_used_again_until_something_changes(root, monkeypatch):
    decoded = []
    decode = Decoder.__call__
    monkeypatch.setattr(
        Decoder, "__call__", lambda self, file: decoded.append(file) or decode(self, file)
    )

    def decodes(**options) -> int:
        decoded.clear()
        source(root, **options).prepare(Path())
        return len(decoded)

    assert decodes() == 18
    assert decodes() == 0
    assert decodes(image_size=6) == 18
    assert decodes(channels=1) == 18
    assert decodes(fit="stretch") == 18
    assert decodes(background="black") == 18
    monkeypatch.setattr(folder_module, "RULES", -1)
    assert decodes() == 18
    assert decodes() == 0
    changed = root / "test" / "red" / "0.png"
    save(changed, (1, 2, 3))
    os.utime(changed, ns=(1, 1))
    assert decodes() == 18
    save(root / "test" / "red" / "new.png", (1, 2, 3))
    assert decodes() == 19
    (root / "test" / "red" / "new.png").unlink()
    assert decodes() == 0


def test_the_cache_notices_a_file_rewritten_with_the_same_size(root):
    path = root / "train" / "red" / "0.png"
    save(path, (200, 0, 0), compress_level=0)
    before = path.stat()
    assert source(root).load(Path(), "train").pixels[6, :, 0, 0].tolist() == [200, 0, 0]
    save(path, (0, 150, 0), compress_level=0)
    # a hundredth of a second later
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10_000_000))
    assert path.stat().st_size == before.st_size
    assert source(root).load(Path(), "train").pixels[6, :, 0, 0].tolist() == [0, 150, 0]


def test_an_interrupted_decoding_leaves_no_cache(root, monkeypatch):
    def interrupted(self, file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decoder, "__call__", interrupted)
        source(root).prepare(Path())
    assert list((root.parent / "c" / "folder").iterdir()) == []
    assert len(source(root).load(Path(), "train").pixels) == 12


def test_many_images_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(filling_module, "_CHUNK", 7)
    for i in range(30):
        save(tmp_path / "tree" / "train" / "a" / f"{i:02}.png", (i, i, i))
    save(tmp_path / "tree" / "test" / "a" / "0.png", (0, 0, 0))
    pixels = source(tmp_path / "tree").load(Path(), "train").pixels
    assert pixels[:, 0, 0, 0].tolist() == list(range(30))


def test_the_cache_lives_where_xdg_says(root, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ImageFolder(str(root), image_size=8).cache_dir == tmp_path / "xdg" / "genlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ImageFolder(str(root), image_size=8).cache_dir == tmp_path / ".cache" / "genlab"


@pytest.mark.parametrize("binarisation", ["none", "static", "dynamic"])
def test_the_datamodule_reads_a_folder(root, binarisation):
    module = ImageData(source(root), 4, 5, 2, 0, "x", binarisation=binarisation)
    module.setup()
    for split, number in (("train", 10), ("val", 2), ("test", 6)):
        assert len(module.pixels(split)) == len(module.labels(split)) == number
    levels = np.unique(next(iter(module.train_dataloader()))["image"])
    assert binarisation == "none" or set(levels) <= {0, 255}
    assert module.spec.classes == ("blue", "red")


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_an_image_that_vanishes_is_no_fault_of_the_cache(root, unreadable, monkeypatch, caplog):
    gone = root / "train" / "red" / "0.png"
    key = ImageFolder._key

    def vanish(self, splits):
        found = key(self, splits)
        gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(ImageFolder, "_key", vanish)
    folder = source(root, unreadable=unreadable)
    if unreadable == "refuse":
        with pytest.raises(DataError, match=r"red/0.png cannot be read \(it was removed meanwhile"):
            folder.prepare(Path())
        assert list((root.parent / "c" / "folder").iterdir()) == []
    else:
        folder.prepare(Path())
        assert "1 unreadable images skipped" in caplog.text
        assert "red/0.png (it was removed meanwhile)" in caplog.text


def test_an_image_that_vanishes_before_it_is_decoded_is_named(root, monkeypatch):
    scan = ImageFolder._scan

    def vanish(self):
        found = scan(self)
        (root / "train" / "red" / "0.png").unlink()
        return found

    monkeypatch.setattr(ImageFolder, "_scan", vanish)
    with pytest.raises(DataError, match=r"red/0.png cannot be read \(it was removed meanwhile"):
        source(root).prepare(Path())


def test_what_a_killed_process_left_of_a_cache_is_removed(root):
    left = root.parent / "c" / "folder" / ".0123.abcd"
    left.mkdir(parents=True)
    (left / "train_pixels.npy").write_bytes(bytes(100))
    source(root).prepare(Path())
    (cache,) = (root.parent / "c" / "folder").iterdir()
    assert not cache.name.startswith(".")


def test_a_full_disk_for_the_cache_is_told_as_full(root, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_write_header", fail)
    with pytest.raises(DataError, match=r"No space left on device\): make room, or set"):
        source(root).prepare(Path())


def test_a_folder_that_does_not_fit_is_refused(root):
    with pytest.raises(DataError, match="there is no such folder"):
        source(root / "elsewhere").prepare(Path())
    (root.parent / "empty" / "class").mkdir(parents=True)
    with pytest.raises(DataError, match="empty/class has no image: put images"):
        source(root.parent / "empty").prepare(Path())
    save(root / "test" / "green" / "0.png", (0, 200, 0))
    with pytest.raises(DataError, match="green is a class without a folder in"):
        source(root).prepare(Path())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": [8, 0]}, "image_size=0"),
        (
            {"image_size": [8, 8, 3]},
            r"image_size=\[8, 8, 3\]: give one number",
        ),
        ({"channels": 2}, "channels=2"),
        ({"background": "bluish"}, "background='bluish': give a colour"),
        ({"fit": "pad"}, "fit=pad"),
        ({"unreadable": "ignore"}, "unreadable=ignore"),
        ({"test_fraction": 0.0}, r"test_fraction=0\.0"),
        ({"test_fraction": 1.0}, r"test_fraction=1\.0"),
    ],
)
def test_a_wrong_value_is_refused(root, options, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        source(root, **options)


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
showpage
%%EOF
"""


def test_a_file_of_another_format_is_damaged_whatever_its_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would give EPS to Ghostscript."""
    started: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", started.append)
    monkeypatch.setattr(subprocess, "Popen", started.append)
    path = root / "train" / "red" / "0.png"
    icon = io.BytesIO()
    Image.new("RGB", (10, 10)).save(icon, "ico")
    for content in (POSTSCRIPT, icon.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"0\.png cannot be read"):
            ImageFolder(str(root), 10, cache_dir=str(tmp_path / "cache")).prepare(tmp_path)
    assert not started


def test_too_many_pixels_are_refused_before_they_are_decoded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # of which Pillow refuses twice as many
    with pytest.raises(DataError, match="exceeds limit of 60 pixels"):
        ImageFolder(str(root), 10, cache_dir=str(tmp_path / "cache")).prepare(tmp_path)


def test_transparency_and_depth_are_said_once_a_run_also_from_the_cache(tmp_path, caplog):
    for i in range(40):
        save(tmp_path / "t" / "ab"[i % 2] / f"{i}.png", (0, 0, 0, 0), mode="RGBA")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "t" / "a" / "deep.png")
    for _ in range(2):
        caplog.clear()
        module = ImageData(source(tmp_path / "t"), 4, 5, 2, 0, "x")
        module.prepare_data()
        module.setup()
        assert [record.getMessage() for record in caplog.records] == [
            "40 images with transparent pixels: composited on white (data.source.background)",
            "1 image of 16 bits per value: the upper 8 are kept",
        ]
    assert (source(tmp_path / "t").load(Path(), "train").pixels[1:] != 0).any()
    black = source(tmp_path / "t", background="black").load(Path(), "train")
    assert (black.pixels == 0).all()


def test_no_warning_of_pillow_is_shown_even_if_an_image_is_refused(root):
    """Threads that are still decoding when the others have been refused are silent as well."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0"
    for i in range(60):
        save(root / "train" / "red" / f"{i}.jpg", (200, 0, 0), exif=exif)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        source(root, cache_dir=str(root.parent / "d")).prepare(Path())
        (root / "train" / "blue" / "0.png").write_bytes(b"damaged")
        with pytest.raises(DataError):
            source(root).prepare(Path())
    assert not told


@pytest.mark.parametrize("file", ["notes.json", "train_pixels.npy", "train_labels.npy"])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_a_damaged_cache_is_told_with_its_place(root, file, content):
    folder = source(root)
    folder.prepare(Path())
    (cache,) = (root.parent / "c" / "folder").iterdir()
    (cache / file).unlink()
    if content is not None:
        (cache / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"the cache {cache} cannot be read .*: delete it"):
        again = source(root)
        again.prepare(Path())
        again.load(Path(), "train")
