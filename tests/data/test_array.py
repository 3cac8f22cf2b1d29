"""Arrays of images: equal pixels for every layout and file, and refusals."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from genlab.data import array as array_module
from genlab.data.datamodule import ImageData
from genlab.data.sources import ArrayFile
from genlab.errors import DataError

DRAWN = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 6), dtype=np.uint8)
LABELS = np.arange(40) % 4


def source(path: Path, **options) -> ArrayFile:
    return ArrayFile(str(path), **({"cache_dir": str(path.parent / "cache")} | options))


def all_images(folder: ArrayFile) -> dict[bytes, int]:
    """The label of every image of training and test."""
    return {
        pixels.tobytes(): int(label)
        for split in ("train", "test")
        for pixels, label in zip(*folder.load(Path(), split), strict=True)
    }


def refused(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        source(path, **options).prepare(Path())
    return str(caught.value)


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        (DRAWN, (3, 4, 6)),
        (DRAWN.transpose(0, 2, 3, 1), (3, 4, 6)),
        (DRAWN[:, 0], (1, 4, 6)),
        (DRAWN[:, :1], (1, 4, 6)),
        (DRAWN[:, :1].transpose(0, 2, 3, 1), (1, 4, 6)),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "compressed", "folder"])
def test_every_layout_and_file_gives_the_same_images(tmp_path, stored, shape, kind):
    stored = np.ascontiguousarray(stored)
    options = {}
    if kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, stored)
        np.save(tmp_path / "l.npy", LABELS)
        options = {"labels": str(tmp_path / "l.npy")}
    elif kind == "folder":
        path = tmp_path / "arrays"
        path.mkdir()
        np.save(path / "X.npy", stored)
        np.save(path / "y.npy", LABELS[:, None])
    else:
        path = tmp_path / "a.npz"
        save = np.savez if kind == "npz" else np.savez_compressed
        save(path, images=stored, labels=LABELS.astype(np.uint8))
    found = source(path, **options)
    assert found.spec.shape == shape and found.spec.classes == ("0", "1", "2", "3")
    expected = {p.tobytes(): int(v) for p, v in zip(DRAWN[:, : shape[0]], LABELS, strict=True)}
    assert all_images(found) == expected
    assert len(found.load(Path(), "test").pixels) == 4
    assert isinstance(found.load(Path(), "train").pixels, np.memmap)


@pytest.mark.parametrize(
    "names",
    [
        "train_images train_labels val_images val_labels test_images test_labels",  # MedMNIST
        "x_train y_train x_val y_val x_test y_test",  # Keras
        "images labels valid_images valid_labels test_images test_labels",
    ],
)
def test_splits_are_found_by_name(tmp_path, names):
    parts = np.split(DRAWN, [20, 30])
    arrays = dict(zip(names.split()[::2], parts, strict=True))
    labels = dict(zip(names.split()[1::2], np.split(LABELS, [20, 30]), strict=True))
    np.savez(tmp_path / "a.npz", **arrays, **labels)
    data = ImageData(source(tmp_path / "a.npz"), 4, 5, 1000, 0, "x")
    for split, part in zip(("train", "val", "test"), parts, strict=True):
        assert (data.pixels(split) == part).all()
    assert data.labels("test").tolist() == LABELS[30:].tolist()


def test_images_without_labels_have_no_classes(tmp_path):
    np.save(tmp_path / "a.npy", DRAWN)
    found = source(tmp_path / "a.npy")
    assert found.spec.classes == () and set(all_images(found).values()) == {0}


def test_a_long_array_is_read_in_pieces_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(array_module, "_CHUNK_BYTES", 7 * DRAWN[0].size)
    np.savez(tmp_path / "a.npz", train_images=DRAWN, test_images=DRAWN[:9])
    found = source(tmp_path / "a.npz")
    assert (found.load(Path(), "train").pixels == DRAWN).all()
    assert (found.load(Path(), "test").pixels == DRAWN[:9]).all()


def test_the_cache_is_used_until_a_file_or_a_setting_changes(tmp_path, monkeypatch):
    filled = []
    fill = ArrayFile._fill
    monkeypatch.setattr(
        ArrayFile, "_fill", lambda self, writer: filled.append(1) or fill(self, writer)
    )
    np.save(tmp_path / "a.npy", DRAWN)
    np.save(tmp_path / "l.npy", LABELS)

    def fills(**options) -> int:
        filled.clear()
        source(tmp_path / "a.npy", **options).prepare(Path())
        return len(filled)

    assert [fills(), fills(), fills(test_fraction=0.5), fills(layout="NCHW")] == [1, 0, 1, 1]
    assert fills(labels=str(tmp_path / "l.npy")) == 1
    np.save(tmp_path / "a.npy", DRAWN[:30])
    assert fills() == 1
    monkeypatch.setattr(array_module, "_RULES", -1)
    assert [fills(), fills()] == [1, 0]


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_the_fingerprint_is_that_of_the_content(tmp_path, suffix):
    def fingerprint(images: np.ndarray):
        (tmp_path / "a").mkdir(exist_ok=True)
        path = tmp_path / "a" / f"a.{suffix}"
        np.save(path, images) if suffix == "npy" else np.savez(path, images=images)
        return source(path).fingerprint(Path())

    large = np.tile(DRAWN, (200, 1, 1, 1))
    first = fingerprint(large)
    assert first.images == {"train": 8000} and fingerprint(large).files == first.files
    assert fingerprint(255 - large).files != first.files
    changed = large.copy()
    changed[-1] = 0
    assert fingerprint(changed).files != first.files
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = source(tmp_path / "moved" / f"a.{suffix}").fingerprint(Path())
    assert moved.files == fingerprint(changed).files
    assert fingerprint(large[:-1]).images == {"train": 7999}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": DRAWN / 255}, "images in {p} has pixels of type float64: save them as uint8"),
        ({"images": DRAWN > 9}, "has pixels of type bool: save them as uint8"),
        ({"images": DRAWN[0, 0]}, "has the shape 4 x 6: give images of N x H x W"),
        ({"images": DRAWN[:, :2]}, "has the shape 40 x 2 x 4 x 6: give images of"),
        ({"images": DRAWN[:0]}, "has the shape 0 x 3 x 4 x 6: give images of"),
        (
            {"images": np.zeros((9, 3, 8, 3), np.uint8)},
            "has the shape 9 x 3 x 8 x 3: set data.source.layout to NHWC or NCHW",
        ),
        ({"pictures": DRAWN}, "has no array named images or train_images (x, x_train, arr_0), but"),
        ({}, "has no array named images or train_images (x, x_train, arr_0), but none"),
        ({"images": DRAWN, "train_images": DRAWN}, "are both train images: keep one"),
        ({"images": DRAWN, "labels": LABELS[:9]}, "labels in {p} has the shape 9 and the type int"),
        ({"images": DRAWN, "labels": np.eye(40)}, "has the shape 40 x 40 and the type float64"),
        ({"images": DRAWN, "labels": LABELS - 1}, "has the label -1: number the classes from 0"),
        ({"images": DRAWN, "labels": LABELS * 2}, "has no image of class 1, but labels up to 6"),
        (
            {"images": DRAWN, "labels": LABELS, "test_images": DRAWN},
            "has labels, but none of its test images",
        ),
        (
            {"images": DRAWN, "y": LABELS, "test_images": DRAWN, "test_labels": LABELS + 1},
            "test_labels in {p} has the label 4, but those of training end at 3",
        ),
        (
            {"images": DRAWN, "test_images": DRAWN[:, :, :3]},
            "has images of 3 x 3 x 6 instead of 3 x 4 x 6",
        ),
        ({"images": DRAWN[:4]}, "data.source.test_fraction=0.1 of 4 images leaves 0 to test"),
        (
            {"images": DRAWN[:6], "y": np.arange(6)},
            "the class 1 has no training image left",
        ),
        ({"images": np.asfortranarray(DRAWN)}, "is stored by columns"),
        ({"images": np.array([[["a"]]], dtype=object)}, "has pixels of type object"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert message.format(p=path) in refused(path)
    assert not list(tmp_path.glob("cache/array/*"))


def test_a_layout_decides_between_two_readings(tmp_path):
    both = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", both)
    assert source(tmp_path / "a.npy", layout="NHWC").spec.shape == (3, 3, 8)
    assert source(tmp_path / "a.npy", layout="NCHW").spec.shape == (3, 8, 3)
    assert "(data.source.layout=NHW)" in refused(tmp_path / "a.npy", layout="NHW")


@pytest.mark.parametrize("kind", ["cut", "no zip", "no npy", "missing", "no labels"])
def test_a_damaged_or_missing_file_is_named(tmp_path, kind):
    path = tmp_path / ("a.npz" if kind == "no zip" else "a.npy")
    np.save(tmp_path / "a.npy", DRAWN)
    options = {}
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "missing":
        path = tmp_path / "b.npy"
    elif kind == "no labels":
        options = {"labels": str(tmp_path / "l.npy")}
    else:
        path.write_bytes(b"something else")
    message = refused(path, **options)
    assert {
        "cut": f"{path} cannot be read (it ends after 0 of 40 rows)",
        "no zip": f"{path} cannot be read (File is not a zip file)",
        "no npy": f"{path} cannot be read (",
        "missing": f"data.source.path={path}: there is no such file or folder",
        "no labels": f"{tmp_path / 'l.npy'} cannot be read (",
    }[kind] in message


def test_no_pickle_is_loaded(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    objects = np.empty(1, dtype=object)
    objects[0] = Attack()
    np.savez(tmp_path / "a.npz", images=DRAWN, labels=objects)
    assert "and the type object" in refused(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", objects, allow_pickle=True)
    assert "has pixels of type object" in refused(tmp_path / "b.npy")
    assert not (tmp_path / "executed").exists()


def test_a_damaged_archive_is_told_and_leaves_no_cache(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=DRAWN)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 4):
            data[at] = random.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            source(path, cache_dir=str(tmp_path / "c")).prepare(Path())
    assert not list(tmp_path.glob("c/array/.*"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"layout": "HWC"}, "layout=HWC: give one of NHW, NHWC, NCHW, or null"),
        ({"test_fraction": 0.0}, r"test_fraction=0\.0"),
        ({"labels": "l.npy"}, r"labels=l\.npy: give it with an \.npy as path"),
    ],
)
def test_a_wrong_value_is_refused(options, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        ArrayFile("a.npz", **options)
