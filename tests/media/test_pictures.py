from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genlab.media import pictures

GAP = 2


def images(n: int, height: int, width: int, channels: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(N, C, H, W)"""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, channels, height, width), np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    channels=st.sampled_from([1, 3]),
    columns=st.integers(1, 5),
    scale=st.integers(1, 3),
)
def test_every_image_can_be_cut_out_of_the_grid(
    n: int, height: int, width: int, channels: int, columns: int, scale: int
) -> None:
    batch = images(n, height, width, channels)
    picture = pictures.grid(batch, columns, scale=scale)
    if channels == 1:
        picture = picture[..., None]
    for i, image in enumerate(batch):
        top = i // columns * (height * scale + GAP)
        left = i % columns * (width * scale + GAP)
        cell = picture[top : top + height * scale, left : left + width * scale]
        np.testing.assert_array_equal(cell[::scale, ::scale].transpose(2, 0, 1), image)
        np.testing.assert_array_equal(cell[scale - 1 :: scale, ::scale].transpose(2, 0, 1), image)
    rows = -(-n // columns)
    assert picture.shape[:2] == (
        rows * (height * scale + GAP) - GAP,
        columns * (width * scale + GAP) - GAP,
    )


def test_the_three_layouts_give_one_picture() -> None:
    grey, colour = images(5, 8, 8, 1), images(5, 8, 8, 3)
    np.testing.assert_array_equal(pictures.grid(grey), pictures.grid(grey[:, 0]))
    np.testing.assert_array_equal(pictures.grid(grey), pictures.grid(grey.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(
        pictures.grid(colour), pictures.grid(colour.transpose(0, 2, 3, 1))
    )


@pytest.mark.parametrize(("size", "cell"), [(28, 56), (32, 64), (64, 64), (8, 56), (96, 96)])
def test_small_images_are_enlarged_until_a_person_can_see_them(size: int, cell: int) -> None:
    assert pictures.grid(images(1, size, size, 1)).shape == (cell, cell)


def test_rows_put_the_same_column_below_itself_and_mix_grey_with_colour() -> None:
    above, below = images(4, 28, 28, 1), images(4, 28, 28, 3, seed=1)
    picture = pictures.rows([above, below], ["input", "reconstruction"], caption="kl_weight 1")
    assert picture.shape[2] == 3
    left = picture.shape[1] - pictures.rows([above, below]).shape[1] - 6
    bottom = picture.shape[0] - 6
    np.testing.assert_array_equal(
        picture[bottom - 56 : bottom : 2, left : left + 56 : 2], below[0].transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(
        picture[bottom - 114 : bottom - 58 : 2, left : left + 56 : 2, 1], above[0, 0]
    )
    labels = picture[bottom - 114 : bottom, : left - 2, 0]
    assert (labels[:56] < 128).any() and (labels[58:] < 128).any()


def test_a_caption_is_ink_above_the_images_and_longer_ones_take_more_lines() -> None:
    batch = images(3, 28, 28, 1)
    plain = pictures.grid(batch, 3)
    short = pictures.grid(batch, 3, "kl_weight 30")
    long = pictures.grid(batch, 3, "a caption that says much more than fits on one line " * 2)
    height, width = plain.shape
    for picture in (short, long):
        bottom = picture.shape[0] - 6
        np.testing.assert_array_equal(picture[bottom - height : bottom, 6 : 6 + width], plain)
        assert (picture[: bottom - height] < 100).sum() > 50
    assert short.shape[0] < long.shape[0]


def test_a_png_gives_back_its_pixels(tmp_path: Path) -> None:
    for picture in (pictures.grid(images(4, 8, 8, 1)), pictures.grid(images(4, 8, 8, 3))):
        path = pictures.save_png(tmp_path / "pictures" / "a.png", picture)
        with Image.open(path) as read:
            np.testing.assert_array_equal(np.asarray(read), picture)
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 8, 8), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((2, 4, 8, 8), np.uint8),
        np.zeros((0, 8, 8), np.uint8),
        np.zeros((2, 1, 8, 8, 1), np.uint8),
    ],
)
def test_what_is_no_batch_of_images_is_refused(bad: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"images of (dtype|shape)"):
        pictures.grid(bad)


def test_refusals_name_the_value() -> None:
    batch = images(4, 8, 8, 1)
    with pytest.raises(ValueError, match="columns=0"):
        pictures.grid(batch, 0)
    with pytest.raises(ValueError, match="scale=0"):
        pictures.grid(batch, scale=0)
    with pytest.raises(ValueError, match="1 row_labels for 2 rows"):
        pictures.grid(batch, 2, row_labels=["a"])
    with pytest.raises(ValueError, match="same number of images"):
        pictures.rows([batch, batch[:2]])
    with pytest.raises(ValueError, match="batches"):
        pictures.rows([])
    with pytest.raises(ValueError, match="a picture of float64"):
        pictures.save_png("unused.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="a picture of uint8"):
        pictures.save_png("unused.png", np.zeros((2, 2, 4), np.uint8))
