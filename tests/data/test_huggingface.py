"""Data sets of the `datasets` library: the same pixels and labels, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.data.datamodule import ImageData
from genlab.data.sources import HuggingFace
from genlab.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")

DRAWN = np.random.default_rng(0).integers(0, 256, (40, 4, 6), dtype=np.uint8)
LABELS = [i % 2 for i in range(40)]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """The library's own cache of this test alone, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(start: int = 0, stop: int = 40, **columns):
    rows = {"image": [{"bytes": png(p), "path": None} for p in DRAWN[start:stop]]}
    features = {"image": datasets.Image()}
    if "label" not in columns:
        rows["label"] = LABELS[start:stop]
        features["label"] = datasets.ClassLabel(names=["cat", "dog"])
    for name, (values, feature) in columns.items():
        if feature is not None:
            rows[name], features[name] = values, feature
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def source(path: Path, **options) -> HuggingFace:
    given = {"image_size": [4, 6], "channels": 1, "fit": "exact"} | options
    return HuggingFace(str(path), cache_dir=str(path.parent / "cache"), **given)


@pytest.mark.parametrize("kind", ["save_to_disk", "save_to_disk, no splits", "parquet", "folder"])
def test_every_kind_of_data_set_gives_the_same_images(tmp_path, kind):
    path = tmp_path / "set"
    if kind == "save_to_disk":
        datasets.DatasetDict({"train": table()}).save_to_disk(str(path))
    elif kind == "save_to_disk, no splits":
        table().save_to_disk(str(path))
    elif kind == "parquet":
        path.mkdir()
        table().to_parquet(str(path / "train.parquet"))
    else:
        for i, pixels in enumerate(DRAWN):
            (path / "train" / ("cat", "dog")[LABELS[i]]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path / "train" / ("cat", "dog")[LABELS[i]] / f"{i:02}.png")
    found = source(path)
    assert found.spec.shape == (1, 4, 6) and found.spec.classes == ("cat", "dog")
    seen = {
        pixels.tobytes(): int(label)
        for split in ("train", "test")
        for pixels, label in zip(*found.load(Path(), split), strict=True)
    }
    assert seen == {p.tobytes(): label for p, label in zip(DRAWN, LABELS, strict=True)}
    assert len(found.load(Path(), "test").pixels) == 4


def test_the_splits_are_those_of_the_data_set(tmp_path):
    bounds = {"train": (0, 20), "validation": (20, 30), "test": (30, 40)}
    splits = {split: table(*bound) for split, bound in bounds.items()}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    data = ImageData(source(tmp_path / "set"), 4, 5, 1000, 0, "x")
    for split, (start, stop) in zip(("train", "val", "test"), bounds.values(), strict=True):
        assert (data.pixels(split)[:, 0] == DRAWN[start:stop]).all()
        assert data.labels(split).tolist() == LABELS[start:stop]


def test_images_without_labels_have_no_classes(tmp_path):
    table(label=(None, None)).save_to_disk(str(tmp_path / "set"))
    assert source(tmp_path / "set").spec.classes == ()
    assert set(source(tmp_path / "set").load(Path(), "train").labels) == {0}


def test_the_cache_is_used_until_the_data_or_a_setting_changes(tmp_path, monkeypatch):
    filled = []
    fill = HuggingFace._fill
    monkeypatch.setattr(
        HuggingFace, "_fill", lambda self, writer: filled.append(1) or fill(self, writer)
    )

    def fills(name: str = "set", **options) -> int:
        filled.clear()
        source(tmp_path / name, **options).prepare(Path())
        return len(filled)

    table().save_to_disk(str(tmp_path / "set"))
    assert [fills(), fills(), fills(test_fraction=0.5), fills(background="black")] == [1, 0, 1, 1]
    table(0, 30).save_to_disk(str(tmp_path / "other"))
    (tmp_path / "set").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "set")
    assert fills() == 1


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    table().save_to_disk(str(tmp_path / "set"))
    first = source(tmp_path / "set").fingerprint(Path())
    assert first.images == {"train": 36, "test": 4}
    (tmp_path / "set").rename(tmp_path / "moved")
    assert source(tmp_path / "moved").fingerprint(Path()).files == first.files
    table(0, 30).save_to_disk(str(tmp_path / "set"))
    other = source(tmp_path / "set").fingerprint(Path())
    assert other.files != first.files and other.images == {"train": 27, "test": 3}


def test_the_rules_of_image_folders_hold(tmp_path, caplog):
    clear = io.BytesIO()
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(clear, "PNG")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n%%EOF\n"
    for content in (clear.getvalue(), eps):
        rows = {"image": [{"bytes": content, "path": None}] * 20}
        features = datasets.Features({"image": datasets.Image()})
        path = tmp_path / f"set{len(content)}"
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
        if content is eps:
            with pytest.raises(DataError, match="image 0 of train in .* cannot be read .*identify"):
                source(path).prepare(Path())
        else:
            source(path).prepare(Path())
            assert (source(path).load(Path(), "train").pixels == 255).all()
            assert "20 images with transparent pixels: composited on white" in caplog.text


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    def refused(error: type[Exception], name: str, **options) -> str:
        with pytest.raises(error) as caught:
            source(tmp_path / name, **options).prepare(Path())
        return str(caught.value)

    assert f"data.source.path={tmp_path}/none: " in refused(DataError, "none")
    text = datasets.Dataset.from_dict({"text": ["a"] * 20})
    text.save_to_disk(str(tmp_path / "text"))
    assert "has no column of images, but text" in refused(DataError, "text")
    datasets.DatasetDict({"extra": table()}).save_to_disk(str(tmp_path / "extra"))
    assert "has no split train, but extra" in refused(DataError, "extra")
    table(other=(LABELS, datasets.ClassLabel(names=["x", "y"]))).save_to_disk(str(tmp_path / "two"))
    message = "data.source.label={}: give a column of the type ClassLabel, of label, other"
    assert message.format("null") in refused(ConfigError, "two")
    assert message.format("lable") in refused(ConfigError, "two", label="lable")
    assert source(tmp_path / "two", label="other").spec.classes == ("x", "y")
    three = datasets.ClassLabel(names=["x", "y", "z"])
    table(label=(LABELS, three)).save_to_disk(str(tmp_path / "empty"))
    assert "the class z has no training image left" in refused(DataError, "empty")
    table(label=([None, *LABELS[1:]], three)).save_to_disk(str(tmp_path / "null"))
    assert "has no label: set data.source.label" in refused(DataError, "null")
    table(0, 4).save_to_disk(str(tmp_path / "four"))
    assert "test_fraction=0.1 of 4 images" in refused(DataError, "four")
