"""A measurement of samples: resumed bit for bit, kept, and read back as from a stranger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from genlab.errors import ConfigError, DataError, RunDirectoryError
from genlab.metrics import names, quality, rows
from genlab.metrics.features.base import Features
from genlab.metrics.quality import Reference
from genlab.protocols import ImageSpec
from genlab.runs.run import Run
from genlab.seeding import numpy_generator

SPEC = ImageSpec(1, 3, 3, classes=("a", "b", "c"))


class Nine(nn.Module):
    """The pixels themselves; the class of an image is told by its first two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def classes(self, features: Tensor) -> Tensor:
        return (features[:, 0] > 0.5).long() + (features[:, 1] > 0.9).long()


def drawn(name: str, n: int) -> Any:
    return numpy_generator(0, name).integers(256, size=(n, 1, 3, 3)).astype(np.uint8)


class Images:
    def pixels(self, split: str) -> Any:
        return drawn(split, {"train": 600, "val": 300, "test": 300}[split])

    def labels(self, split: str) -> Any:
        return np.zeros(len(self.pixels(split)), dtype=np.int64)


def draw(ranges: Sequence[range]) -> Iterator[Tensor]:
    """Sample i is a function of i."""
    for part in ranges:
        yield torch.from_numpy(np.concatenate([drawn(f"sample {i}", 1) for i in part]))


def remake(ranges: Sequence[range]) -> Iterator[Tensor]:
    for part in ranges:
        yield torch.from_numpy(Images().pixels("test")[part.start : part.stop] // 2)


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    return Reference.of(Features(Nine(), SPEC), "test", Images(), tmp_path / "cache")


def test_everything_is_measured_with_its_interval(reference: Reference, tmp_path: Path) -> None:
    found = quality.measure(reference, 500, draw, remake, tmp_path, {"seed": 0})
    assert list(found.values) == [
        *("fid", "fid_infinity", "kid", "energy_distance", "precision", "recall", "density"),
        *("coverage", "class_distance", "nearest_train", "rfid", "rfid_infinity"),
    ]
    for name, estimate in found.values.items():
        assert estimate.low <= estimate.value <= estimate.high, name
        assert names.is_listed(f"test/{name}_{found.features}"), name
    # the samples are drawn as the images are, and reconstructions are half as bright
    assert abs(found.values["fid_infinity"].value) < 0.02
    assert found.values["nearest_train"].value == pytest.approx(1, abs=0.03)
    x = Images().pixels("test").reshape(300, 9) / 255
    assert found.values["rfid"].value > ((x.mean(0) / 2) ** 2).sum() * 0.95
    assert found.train_test.keys() == found.floor.keys() > {"fid", "recall"}
    assert found.notes == ()


def test_a_stopped_measurement_goes_on_and_gives_the_same_bits(
    reference: Reference, tmp_path: Path
) -> None:
    whole = quality.measure(reference, 500, draw, remake, tmp_path / "whole", {"seed": 0})
    for stop_after in (0, 1, 2):

        def killed(ranges: Sequence[range], most: int = stop_after) -> Iterator[Tensor]:
            for i, images in enumerate(draw(ranges)):
                if i == most:
                    raise KeyboardInterrupt
                yield images

        with pytest.raises(KeyboardInterrupt):
            quality.measure(reference, 500, killed, remake, tmp_path / "run", {"seed": 0})
    asked: list[range] = []

    def counted(ranges: Sequence[range]) -> Iterator[Tensor]:
        asked.extend(ranges)
        return draw(ranges)

    found = quality.measure(reference, 500, counted, remake, tmp_path / "run", {"seed": 0})
    assert found == whole
    assert len(asked) == 1  # of 4 files: one and two were there when it was stopped
    asked.clear()
    other = quality.measure(reference, 500, counted, None, tmp_path / "run", {"seed": 1})
    assert len(asked) == 4 and other.id != found.id


def test_features_are_read_in_blocks_that_change_nothing(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = quality.measure(reference, 500, draw, None, tmp_path, {}, with_floor=False)
    monkeypatch.setattr(rows, "BLOCK", 150)
    again = quality.measure(reference, 500, draw, None, tmp_path, {}, with_floor=False)
    for name, estimate in found.values.items():
        assert again.values[name].value == pytest.approx(estimate.value, rel=1e-9, abs=1e-9)


def test_the_reference_needs_no_images_once_it_is_kept(
    reference: Reference, tmp_path: Path
) -> None:
    gone = Reference.of(Features(Nine(), SPEC), "test", None, tmp_path / "cache")
    assert quality.measure(gone, 200, draw, None, tmp_path, {}) == quality.measure(
        reference, 200, draw, None, tmp_path / "other", {}
    )
    with pytest.raises(ConfigError, match=r"images of the run are gone.*val.*give data=NAME"):
        Reference.of(Features(Nine(), SPEC), "val", None, tmp_path / "cache")


def test_training_images_have_no_distance_to_themselves(
    reference: Reference, tmp_path: Path
) -> None:
    same = Reference.of(reference.features, "train", Images(), tmp_path / "cache")
    found = quality.measure(same, 200, draw, None, tmp_path, {})
    assert "nearest_train" not in found.values and "recall" in found.values


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record["values"]["fid"].update(value=None),
        lambda record: record["floor"]["recall"].update(low="0"),
        lambda record: record["train_test"]["kid"].update(high=[1]),
        lambda record: record.update(settings=[]),
        lambda record: record.update(notes=[1]),
        lambda record: record.update(notes="none"),
    ],
)
def test_a_record_that_holds_no_numbers_is_refused(
    reference: Reference, tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    run = Run(tmp_path / "run")
    quality.keep(run, quality.measure(reference, 200, draw, None, run.path, {}), [])
    (record,) = run.quality
    damage(record)
    run.quality_path.write_text(json.dumps({"records": [record]}))
    with pytest.raises(RunDirectoryError, match=r"quality\.json holds no measurements .*remove it"):
        quality.find(run, reference, 200, {})


def test_a_record_with_the_id_of_other_features_is_refused(
    reference: Reference, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    quality.keep(run, quality.measure(reference, 200, draw, None, run.path, {}), [])
    (record,) = run.quality
    for key in ("features", "split"):
        run.quality_path.write_text(json.dumps({"records": [{**record, key: "\x1b[2J"}]}))
        with pytest.raises(RunDirectoryError, match="names other features or images"):
            quality.find(run, reference, 200, {})


def test_a_record_is_kept_found_and_replaced(reference: Reference, tmp_path: Path) -> None:
    run, settings = Run(tmp_path / "run"), {"seed": 0}
    found = quality.measure(reference, 200, draw, remake, run.path, settings)
    assert quality.find(run, reference, 200, settings) is None
    assert (run.path / "quality").is_dir()
    quality.keep(run, found, run.quality)
    assert not (run.path / "quality").exists()
    back = quality.find(run, reference, 200, settings)
    assert back is not None and back.values == found.values and back.floor == found.floor
    quality.keep(run, found, run.quality)
    assert len(run.quality) == 1
    assert quality.find(run, reference, 201, settings) is None
    assert quality.find(run, reference, 200, {"seed": 1}) is None


def test_what_the_numbers_cannot_tell_is_said(tmp_path: Path) -> None:
    class One(Images):
        def pixels(self, split: str) -> Any:
            found = super().pixels(split)[:30]
            found[:, 0, 0, 1] = 0  # no image of class c
            return found

    reference = Reference.of(Features(Nine(), SPEC), "test", One(), tmp_path)
    few, small, lacking = quality.notes(reference, 35)
    assert few.startswith("35 samples are too few for the 9 features of nine_")
    assert few.endswith("36 samples would do")
    assert "the 30 test images are few" in small
    assert lacking == "no test image is of the class c: class_distance is about the others"


def test_a_sample_that_is_not_finite_is_named(reference: Reference, tmp_path: Path) -> None:
    def broken(ranges: Sequence[range]) -> Iterator[Tensor]:
        for part in ranges:
            images = torch.zeros(len(part), 1, 3, 3)
            images[part.index(200) if 200 in part else slice(0)] = torch.nan
            yield images

    with pytest.raises(DataError, match="image 200 holds values that are not finite"):
        quality.measure(reference, 300, broken, None, tmp_path, {})


@pytest.mark.parametrize(
    "content",
    [
        b"no safetensors",
        save({"features": np.zeros((128, 8), np.float32)}),
        save({"features": np.full((128, 9), np.nan, np.float32)}),
        save({"features": np.zeros((128, 9), np.float64)}),
        b"\0" * (1 << 20),
    ],
    ids=["text", "shape", "nan", "kind", "size"],
)
def test_torn_or_planted_features_are_made_anew(
    content: bytes, reference: Reference, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / quality.FOLDER / quality.identity(reference, {})
    folder.mkdir(parents=True)
    (folder / "000000-128.safetensors").write_bytes(content)
    found = quality.measure(reference, 300, draw, None, tmp_path / "run", {})
    assert found == quality.measure(reference, 300, draw, None, tmp_path / "clean", {})


@pytest.mark.parametrize("content", ["x", "[1]", '{"nearest-test": 1}'])
def test_a_damaged_value_of_the_cache_is_named(content: str, reference: Reference) -> None:
    whole = reference.nearest()
    (path,) = reference.folder.glob("nearest-test.json")
    path.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"nearest-test.json .* and it is made again$"):
        reference.nearest()
    path.unlink()
    assert reference.nearest() == whole


def test_a_link_in_the_place_of_features_is_refused(reference: Reference, tmp_path: Path) -> None:
    folder = tmp_path / "run" / quality.FOLDER / quality.identity(reference, {})
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("")
    (folder / "000000-128.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="link"):
        quality.measure(reference, 300, draw, None, tmp_path / "run", {})


@pytest.mark.parametrize(
    "record",
    [{}, {"values": {"fid": 1}}, {"values": {"fid": {"value": 1}}, "floor": {}, "train_test": {}}],
)
def test_a_planted_record_is_refused(
    record: dict[str, Any], reference: Reference, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    record |= {"id": quality.identity(reference, {}), "samples": 100}
    run.quality_path.write_text(json.dumps({"records": [record]}))
    with pytest.raises(RunDirectoryError, match="quality.json holds no measurements"):
        quality.find(run, reference, 100, {})
