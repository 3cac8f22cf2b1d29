"""Trees of images: splits, classes, files that are left out, refusals."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.data.datamodule import ImageData
from genlab.data.sources import ImageFolder
from genlab.data.tree import describe_left_out, find_images, read_layout
from genlab.errors import DataError


def images(folder: Path, number: int, suffix: str = ".png", level: int = 90) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.new("L", (8, 8), level + i).save(folder / f"{i}{suffix}")


def source(root: Path, **options) -> ImageFolder:
    given = {"image_size": 8, "channels": 1, "cache_dir": str(root.parent / "cache")} | options
    return ImageFolder(str(root), **given)


def counts(folder: ImageFolder) -> dict[str, dict[int, int]]:
    """The number of images of each label in each split."""
    found = {split: folder.load(Path(), split).labels for split in folder.splits(Path())}
    return {split: dict(Counter(labels.tolist())) for split, labels in found.items()}


def refused(root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        source(root, **options).prepare(Path())
    return str(caught.value)


def test_a_class_in_another_format_is_read(tmp_path):
    images(tmp_path / "t/a", 10)
    images(tmp_path / "t/b", 10, ".bmp")
    found = counts(source(tmp_path / "t"))
    assert Counter(found["train"]) + Counter(found["test"]) == {0: 10, 1: 10}


def test_what_is_no_image_is_told_by_suffix_and_number_at_every_start(tmp_path, caplog):
    images(tmp_path / "t/a", 10)
    for name in ("a/0.txt", "a/1.TXT", "a/sub/2.txt", "a/photo.heic", "a/LICENSE"):
        (tmp_path / "t" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "t" / name).write_text("P5 is no picture")
    (tmp_path / "t/a/gone.png").symlink_to(tmp_path / "nowhere.png")
    images(tmp_path / "t", 1)
    (tmp_path / "t/readme.txt").write_text("not among the images")
    for _ in range(2):
        caplog.clear()
        folder = source(tmp_path / "t")
        folder.prepare(Path())
        assert sum(len(folder.load(Path(), split).labels) for split in ("train", "test")) == 10
        assert [record.getMessage() for record in caplog.records] == [
            f"left out of {tmp_path / 't'}: 3 .txt, 1 .heic, 1 .png beside the class folders, "
            "1 links to nothing, 1 without a suffix"
        ]


@pytest.mark.parametrize("depth", ["", "a/", "a/deep/"])
def test_what_systems_leave_behind_is_no_image_and_no_class_at_any_depth(tmp_path, caplog, depth):
    images(tmp_path / "t/a", 5)
    images(tmp_path / "t/a/deep", 5)
    images(tmp_path / "t/b", 10)
    before = counts(source(tmp_path / "t"))
    for name in (
        *(".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", "#recycle"),
        *("$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"),
    ):
        images(tmp_path / "t" / depth / name, 2)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".hidden.png", "Icon\r"):
        (tmp_path / "t" / depth / name).write_bytes(b"\0\5\x16\7")
    folder = source(tmp_path / "t", cache_dir=str(tmp_path / "other"))
    assert counts(folder) == before and folder.spec.classes == ("a", "b")
    assert not caplog.records


def test_a_tree_below_a_hidden_folder_is_read(tmp_path):
    images(tmp_path / ".cache/__MACOSX/t/a", 10)
    assert source(tmp_path / ".cache/__MACOSX/t").spec.classes == ("a",)
    assert counts(source(tmp_path / ".cache/__MACOSX/t"))["train"] == {0: 9}


@pytest.mark.parametrize(
    ("content", "among"),
    [({}, ""), ({"x.tga": b"a", "y.tga": b"b", "z.txt": b"c"}, " among 2 .tga, 1 .txt")],
)
def test_an_empty_class_is_refused_by_name(tmp_path, content, among):
    images(tmp_path / "t/a", 10)
    (tmp_path / "t/c/.ipynb_checkpoints").mkdir(parents=True)
    for name, data in content.items():
        (tmp_path / "t/c" / name).write_bytes(data)
    assert refused(tmp_path / "t").startswith(f"{tmp_path}/t/c has no image{among}: put images")


def test_a_class_that_loses_its_images_to_the_test_part_or_to_damage_is_refused(tmp_path):
    images(tmp_path / "t/a", 1)
    images(tmp_path / "t/b", 1)
    message = refused(tmp_path / "t", test_fraction=0.5)
    assert "has no training image left" in message
    images(tmp_path / "u/train/a", 3)
    images(tmp_path / "u/test/a", 3)
    (tmp_path / "u/train/b").mkdir()
    (tmp_path / "u/train/b/0.png").write_bytes(b"damaged")
    assert "the class b has no training image left" in refused(tmp_path / "u", unreadable="skip")


@pytest.mark.parametrize("number", [1, 4])
def test_too_few_images_for_a_test_part_are_told_as_such(tmp_path, number):
    images(tmp_path / "t/a", number)
    assert refused(tmp_path / "t").startswith(
        f"data.source.test_fraction=0.1 of {number} images leaves 0 to test and {number} to train"
    )
    assert f"leaves {number} to test and 0 to train" in refused(tmp_path / "t", test_fraction=0.9)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("train/a train/b test", "t/test has no class folders, but {t}/train has a, b: put"),
        ("train/a train/b val", "t/val has no class folders, but {t}/train has a, b: put"),
        ("train test/a", "t/test/a is a class without a folder in {t}/train"),
        ("train/a test/a test/z", "t/test/z is a class without a folder in {t}/train"),
        ("train bus", "t/train is named like a split, but stands beside bus and has no class"),
        ("TEST bus", "t/TEST is named like a split, but there is no folder train beside it"),
        ("val/a test/a", "t/test is named like a split, but there is no folder train beside"),
        ("Train/a train/a", "t has the folders Train and train, both of the train images"),
        ("train/a val/a valid/a", "t has the folders val and valid, both of the val images"),
    ],
)
def test_folders_that_contradict_each_other_are_told_by_name(tmp_path, folders, message):
    for folder in folders.split():
        images(tmp_path / "t" / folder, 3)
    assert refused(tmp_path / "t").startswith(f"{tmp_path}/" + message.format(t=tmp_path / "t"))


def test_a_split_without_images_is_told_by_name(tmp_path):
    images(tmp_path / "t/train/a", 3)
    (tmp_path / "t/test/a").mkdir(parents=True)
    assert refused(tmp_path / "t").startswith(f"{tmp_path}/t/test has no image")
    (tmp_path / "u").mkdir()
    assert refused(tmp_path / "u").startswith(f"{tmp_path}/u has no image: put images (PNG, JPEG,")


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "VALID", "Test"), ("TRAIN", "Validation", "TEST")]
)
def test_splits_are_found_in_any_case(tmp_path, names):
    for name, number in zip(names, (5, 3, 2), strict=True):
        images(tmp_path / "t" / name / "a", number)
        images(tmp_path / "t" / name / "b", number)
    assert counts(source(tmp_path / "t")) == {
        split: {0: number, 1: number}
        for split, number in zip(("train", "val", "test"), (5, 3, 2), strict=True)
    }


def test_a_split_may_lack_a_class_but_keeps_the_labels(tmp_path):
    for name in "abc":
        images(tmp_path / "t/train" / name, 4)
    images(tmp_path / "t/test/c", 4)
    assert counts(source(tmp_path / "t"))["test"] == {2: 4}


def test_a_folder_beside_the_splits_is_told(tmp_path, caplog):
    images(tmp_path / "t/train/a", 20)
    images(tmp_path / "t/unlabelled", 5)
    source(tmp_path / "t").prepare(Path())
    assert f"left out of {tmp_path / 't'}: unlabelled/ beside train/" in caplog.text


def test_names_cannot_write_to_the_terminal(tmp_path, caplog):
    images(tmp_path / "t/a", 20)
    (tmp_path / "t/a/x.\x1b[31mred").write_text("no image")
    (tmp_path / "t/a/y\x1b[31m.png").write_text("no image")
    os.close(os.open(os.fsencode(tmp_path / "t/a") + b"/z.\xff", os.O_CREAT))
    source(tmp_path / "t", unreadable="skip").prepare(Path())
    assert "left out of" in caplog.text and "1 unreadable images skipped" in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_images_without_class_folders_have_no_classes(tmp_path):
    images(tmp_path / "t", 20)
    folder = source(tmp_path / "t")
    assert folder.spec.classes == () and counts(folder) == {"train": {0: 18}, "test": {0: 2}}
    for split in ("train", "val", "test"):
        images(tmp_path / "u" / split, 4)
    folder = source(tmp_path / "u")
    assert folder.spec.classes == ()
    assert counts(folder) == {"train": {0: 4}, "val": {0: 4}, "test": {0: 4}}


def test_links_to_folders_are_followed_unless_they_lead_back(tmp_path):
    images(tmp_path / "elsewhere/deep", 6)
    images(tmp_path / "t/a", 4)
    (tmp_path / "t/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t/a/loop").symlink_to(tmp_path / "t")
    (tmp_path / "t/c").symlink_to(tmp_path)
    (tmp_path / "t/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/ping").symlink_to(tmp_path / "t/b")
    layout = read_layout(tmp_path / "t")
    found = find_images(layout)
    labels = Counter(file.label for file in found.images["train"])
    assert layout.classes == ("a", "b") and labels == {0: 10, 1: 6}
    assert describe_left_out(layout, found.left_out) == ""


def test_sides_may_differ(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (10, 4, 12), dtype=np.uint8)
    (tmp_path / "t/a").mkdir(parents=True)
    for i, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(tmp_path / f"t/a/{i}.png")
    folder = source(tmp_path / "t", image_size=[4, 12], fit="exact")
    assert folder.spec.shape == (1, 4, 12)
    found = {p.tobytes() for s in ("train", "test") for p in folder.load(Path(), s).pixels}
    assert found == {p.tobytes() for p in drawn}
    assert "12 x 4 pixels, not 4 x 12" in refused(tmp_path / "t", image_size=[12, 4], fit="exact")


@pytest.mark.parametrize("binarisation", ["none", "static", "dynamic"])
def test_validation_is_on_the_images_of_val(tmp_path, binarisation, caplog):
    caplog.set_level("INFO")
    for split, level in (("train", 10), ("val", 100), ("test", 200)):
        images(tmp_path / "t" / split / "a", 6, level=level)
    data = ImageData(source(tmp_path / "t"), 4, 5, 1000, 0, "x", binarisation=binarisation)
    data.setup()
    assert [data.size(split) for split in ("train", "val", "test")] == [6, 6, 6]
    assert "validation: the 6 images of the data set's own" in caplog.text
    if binarisation == "none":
        assert data.pixels("val")[:, 0, 0, 0].tolist() == [*range(100, 106)]
        assert data.pixels("train")[:, 0, 0, 0].tolist() == [*range(10, 16)]
    else:
        assert set(data.pixels("val").flat) == {0, 255}
    (batch,) = [b["image"].shape for b in data.val_dataloader()][:1]
    assert batch == (5, 1, 8, 8)


def test_the_bits_of_val_are_drawn_once_whatever_those_of_training(tmp_path):
    for split in ("train", "val", "test"):
        images(tmp_path / "t" / split / "a", 6)
    bits = []
    for binarisation in ("static", "dynamic"):
        data = ImageData(source(tmp_path / "t"), 4, 5, 3, 0, "x", binarisation=binarisation)
        bits.append(data.pixels("val").copy())
    assert (bits[0] == bits[1]).all()


def test_no_validation_stays_none_and_training_is_limited_as_ever(tmp_path):
    for split in ("train", "val", "test"):
        images(tmp_path / "t" / split / "a", 6)
    data = ImageData(source(tmp_path / "t"), 4, 5, 0, 0, "x", train_images=5)
    assert data.val_dataloader() == [] and data.size("val") == 0 and data.size("train") == 5
