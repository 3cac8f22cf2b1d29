"""A user's own dataset of torch: each item once, every usual kind of item, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import KINDS, Levels
from torch.utils.data import Dataset, IterableDataset

from genlab.data.datamodule import ImageData
from genlab.data.sources import TorchDataset
from genlab.errors import DataError


def source(train, **options) -> TorchDataset:
    return TorchDataset(train, **({"image_size": [4, 6], "channels": 1} | options))


class Items(Dataset):
    """The same item 20 times."""

    def __init__(self, item) -> None:
        self.item = item

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index):
        return self.item


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("item", ["pair", "dict"])
def test_every_kind_of_item_gives_the_same_images_each_read_once(kind, item):
    train = Levels(40, kind, item)
    data = ImageData(source(train, fit="exact"), 4, 5, 6, 0, "x")
    assert data.spec.classes == ("even", "odd")
    seen = {}
    for split, number in (("train", 30), ("val", 6), ("test", 4)):
        levels = data.pixels(split)[:, 0, 0, 0].tolist()
        assert len(levels) == number and data.pixels(split).shape == (number, 1, 4, 6)
        seen |= dict(zip(levels, data.labels(split).tolist(), strict=True))
    assert seen == {i: i % 2 for i in range(40)} and train.read == list(range(40))


def test_each_split_has_its_own_dataset():
    data = ImageData(source(Levels(10), val=Levels(4), test=Levels(6)), 4, 5, 1000, 0, "x")
    for split, number in (("train", 10), ("val", 4), ("test", 6)):
        assert data.pixels(split)[:, 0, 0, 0].tolist() == list(range(number))


def test_the_fingerprint_is_the_number_of_images_and_reads_none():
    train = Levels(10)
    assert source(train, test=Levels(6)).fingerprint(Path()).images == {"train": 10, "test": 6}
    assert train.read == []


def test_without_labels_there_are_no_classes():
    images = source(Levels(item="image"), classes=[])
    assert images.spec.classes == () and set(images.load(Path(), "train").labels) == {0}


def test_the_rules_of_image_folders_hold(caplog):
    from PIL import Image

    clear = source(Items(Image.new("RGBA", (20, 20))), background="#808080")
    assert (clear.load(Path(), "test").pixels == 128).all()
    assert "20 images with transparent pixels: composited on #808080" in caplog.text


@pytest.mark.parametrize(
    ("item", "options", "message"),
    [
        ("a.png", {}, "image 0 of Items (train) is a str: give an image of Pillow, an array"),
        ({"pixels": 1}, {}, "is a NoneType: give an image of Pillow"),
        (torch.randn(3, 4, 6), {}, "has real pixels outside [0, 1]: leave out what normalises"),
        (torch.full((3, 4, 6), torch.nan), {}, "has real pixels outside [0, 1]"),
        (np.zeros((3, 4, 6), np.uint8), {}, "has the shape (3, 4, 6) and the type uint8: give"),
        (torch.zeros(4, 6, 3), {}, "has the shape (4, 6, 3) and the type torch.float32: give"),
        (np.zeros((4, 6), np.int64), {}, "has the shape (4, 6) and the type int64: give uint8"),
        (np.zeros((4, 6), np.uint8), {"image_size": 4, "fit": "exact"}, "6 x 4 pixels, not 4 x 4"),
        ((np.zeros((4, 6)), 2), {"classes": ["a", "b"]}, "has the label 2: give whole numbers"),
        (
            np.zeros((4, 6)),
            {"classes": ["a"]},
            "has the label None: give whole numbers",
        ),
        ((np.zeros((4, 6)), 0), {"classes": ["a", "b"]}, "the class b has no training image"),
    ],
)
def test_an_item_that_does_not_fit_is_refused_by_its_number(item, options, message):
    with pytest.raises(DataError) as caught:
        source(Items(item), **options).load(Path(), "train")
    assert message in str(caught.value)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train": Stream()}, "train=Stream: give a subclass of torch.utils.data.Dataset"),
        ({"train": [1, 2]}, "train=list: give a subclass"),
        ({"test": 3}, "test=int: give a subclass"),
        ({"test_fraction": 0.0}, "test_fraction=0.0"),
        ({"channels": 2}, "channels=2"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_a_wrong_value_is_refused(options, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        source(**({"train": Levels()} | options))
