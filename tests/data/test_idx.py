"""IDX files: a round trip, and errors that name the damage."""

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from idx_files import idx_bytes, write_source

from genlab.data.idx import read_idx
from genlab.data.sources import MNIST, FashionMNIST, MNISTMini
from genlab.errors import DataError

ARRAY = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3)), st.booleans())
def test_what_is_written_is_read(tmp_path_factory, array, gzipped):
    path = tmp_path_factory.getbasetemp() / "array"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if gzipped else content)
    digest = hashlib.sha256(content).hexdigest()
    np.testing.assert_array_equal(read_idx(path, 3, digest), array)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"\x80\x04" + bytes(40), "not an IDX file"),
        (idx_bytes(ARRAY[0]), "not an IDX file"),
        (idx_bytes(ARRAY)[:-1], "truncated"),
        (idx_bytes(ARRAY)[:16], "truncated"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12 + bytes(24), "truncated"),
        (bytes((0, 0, 8, 3)) + bytes(4) + b"\xff" * 8, "empty: its header claims 0 x 4294967295"),
        (idx_bytes(ARRAY) + b"\x00", "longer"),
        (idx_bytes(ARRAY)[:-1] + b"\x00", "altered"),
    ],
)
def test_damaged_content_is_refused(tmp_path, content, complaint, gzipped):
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if gzipped else content)
    with pytest.raises(DataError, match=complaint) as caught:
        read_idx(path, 3, hashlib.sha256(idx_bytes(ARRAY)).hexdigest())
    assert str(path) in str(caught.value)


def test_damaged_compression_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    whole = gzip.compress(idx_bytes(ARRAY))
    for damaged in (whole[:-9], whole[:12], whole[:-8] + bytes(8), whole[:10] + b"\xff" * 20):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"images.gz cannot be read \(the gzip stream is"):
            read_idx(path, 3)


def test_a_source_refuses_labels_and_sizes_that_do_not_fit(tmp_path):
    labels = np.array([0, 1, 1, 0], dtype=np.uint8)
    for pixels, wrong, complaint in (
        (ARRAY, np.array([0, 1, 2, 0], dtype=np.uint8), "label 2 of image 2 is out of range"),
        (ARRAY, labels[:3], "3 labels for 4 images"),
        (ARRAY.reshape(4, 3, 2), labels, "3 x 2 pixels instead of 2 x 3"),
    ):
        source = write_source(tmp_path / "small", pixels, wrong)()
        with pytest.raises(DataError, match=complaint):
            source.load(tmp_path, "train")
    source = write_source(tmp_path / "small", ARRAY, labels)()
    images = source.load(tmp_path, "test")
    np.testing.assert_array_equal(images.pixels, ARRAY[:, None])
    assert images.labels.tolist() == labels.tolist() and images.labels.dtype == np.int64


@pytest.mark.parametrize("source", [MNIST(), FashionMNIST()])
def test_a_missing_file_is_named(tmp_path, source):
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing.*data.data_dir"):
        source.load(tmp_path, "train")


def test_the_embedded_digits_are_the_first_of_mnist(tmp_path):
    source = MNISTMini()
    source.prepare(tmp_path)
    train, test = source.load(tmp_path, "train"), source.load(tmp_path, "test")
    assert train.pixels.shape == (10_000, *source.spec.shape)
    assert test.pixels.shape == (2_000, *source.spec.shape)
    # As everybody prints them who opens MNIST.
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert not list(tmp_path.iterdir())
