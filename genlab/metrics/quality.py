"""Quality of samples and reconstructions: distances to real images, each with an interval.

Real images are a reference, whose features are computed once and kept in a cache. The features of
samples are written to files of a few hundred rows, so that a measurement that was killed goes on
where it was, and gives the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genlab.errors import ConfigError, RunDirectoryError
from genlab.metrics import distances
from genlab.metrics.features.base import Features, Split, TrainingImages
from genlab.metrics.intervals import Estimate, groups_of, mean
from genlab.metrics.rows import Chunks, Rows
from genlab.runs.files import write_atomically
from genlab.runs.reading import RESULT, read_json
from genlab.runs.run import Layout, Run
from genlab.seeding import numpy_generator

TRAIN: Split = "train"
#: Called with a number of images whenever so many more are done.
Advance = Callable[[int], None]

#: Times d, the samples that the covariance of d features needs.
ENOUGH = 4
#: Images of a split whose features are kept, at most.
_MOST = 60_000
#: Images of which the floor and the distance of the real splits are measured, at most.
_MOST_FLOOR = 10_000
#: Folder of a run in which features are kept until a measurement is done.
FOLDER = "quality"
#: Records that are kept in quality.json.
_MOST_RECORDS = 200


@dataclass(frozen=True)
class Reference:
    """The features of real images, against which samples are measured.

    Attributes:
        features: how they were computed.
        split: of the real images.
        real: features of the images of that split, (N, d).
        train: features of training images, (M, d), all of them up to a number.
        folder: the cache of the data set and these features.
    """

    features: Features
    split: Split
    real: Rows
    train: Rows
    folder: Path

    @classmethod
    def of(
        cls,
        features: Features,
        split: Split,
        images: TrainingImages | None,
        folder: Path,
        advance: Advance = lambda amount: None,
    ) -> Reference:
        """Read the features of a data set from the cache, or compute them and keep them there.

        Args:
            images: None where they are gone: what the cache lacks cannot be had then.
            folder: of the data set in the cache.

        Raises:
            ConfigError: the images are gone, and the cache lacks their features.
            DataError: the images cannot be compared by these features.
            RunDirectoryError: the cache cannot be read or written.
        """
        folder = folder / features.name
        found = {
            name: _kept(folder / name, features, images, name, advance) for name in (split, TRAIN)
        }
        return cls(features, split, found[split], found["train"], folder)

    def enough(self) -> int:
        """Return the number of samples from which on the covariance of the features is sound."""
        return ENOUGH * self.features.dims

    def floor(self, samples: int) -> dict[str, Estimate]:
        """Measure one random half of the training images against the other: what noise gives."""
        order = numpy_generator(0, "floor").permutation(len(self.train))
        half = len(order) // 2
        one = np.sort(order[: min(half, samples, _MOST_FLOOR)])
        other = np.sort(order[half:][:_MOST_FLOOR])
        return self._cached(
            f"floor-{len(one)}",
            lambda: measured(self._some(one), self._some(other), self.features),
        )

    def train_test(self, samples: int) -> dict[str, Estimate]:
        """Measure training images as if they were samples: what a perfect memory would give."""
        order = numpy_generator(0, "floor").permutation(len(self.train))
        chosen = np.sort(order[: min(len(order), samples, _MOST_FLOOR)])
        return self._cached(
            f"train-{self.split}-{len(chosen)}",
            lambda: measured(self._some(chosen), self.real, self.features),
        )

    def nearest(self) -> float:
        """Return the mean distance of a real image of the split to the nearest training image."""
        key = f"nearest-{self.split}"
        found = self._cached(
            key, lambda: {key: mean(distances.nearest_distance(self.real, self.train))}
        )
        return found[key].value

    def _some(self, rows: npt.NDArray[np.integer]) -> Rows:
        return Rows.of(self.train.take(rows))

    def _cached(self, name: str, measure: Callable[[], dict[str, Estimate]]) -> dict[str, Estimate]:
        path = self.folder / f"{name}.json"
        try:
            kept = read_json(path, RESULT)
            if kept is not None:
                return _estimates(kept)
        except (TypeError, RunDirectoryError) as error:
            raise RunDirectoryError(
                f"{path} holds no estimates ({error}): remove it, and it is made again"
            ) from error
        found = measure()
        write_atomically(path, {key: asdict(value) for key, value in found.items()})
        return found


def _kept(
    folder: Path,
    features: Features,
    images: TrainingImages | None,
    split: Split,
    advance: Advance,
) -> Rows:
    """Return the features of a split from the cache, after those that it lacks are computed."""
    size_path = folder / "images.json"
    if images is not None:
        pixels = images.pixels(split)
        chosen = chosen_of(len(pixels))
        chunks = Chunks(folder, len(chosen), features.dims)

        def rows(ranges: Sequence[range]) -> Iterator[Any]:
            for part in ranges:
                batch = torch.from_numpy(np.array(pixels[chosen[part.start : part.stop]]))
                yield features(batch, part.start)
                advance(len(part))

        chunks.fill(rows, advance)
        if not size_path.exists():
            write_atomically(size_path, {"images": len(chosen)})
        return chunks.rows()
    size = (read_json(size_path, RESULT) or {}).get("images")
    if not isinstance(size, int) or size < 1 or Chunks(folder, size, features.dims).missing():
        raise ConfigError(
            f"the images of the run are gone, and the cache has no {split} features of "
            f"{features.name}: give data=NAME with the images of the run"
        )
    return Chunks(folder, size, features.dims).rows()


def chosen_of(images: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the images whose features are kept: all, or a random part of many."""
    order = np.arange(images)
    if images > _MOST:
        order = np.sort(numpy_generator(0, "kept").permutation(images)[:_MOST])
    return order


def measured(
    x: Rows,
    y: Rows,
    features: Features,
    reference: Reference | None = None,
    advance: Advance = lambda amount: None,
) -> dict[str, Estimate]:
    """Measure samples against real images, by the names of `genlab.metrics.names`.

    Args:
        x, y: features of the samples and of the real images.
        reference: gives the training images, for `nearest_train`.
    """
    groups, n = groups_of(len(x)), len(x)
    frechet = distances.frechet_distance(x, y, groups)
    found = {"fid": frechet.estimate(n, (0.0, np.inf)), "fid_infinity": frechet.extrapolated(n)}
    kernels = [distances.polynomial, distances.minus_distance]
    kid, energy = distances.discrepancies(x, y, groups, kernels)
    found |= {"kid": kid.estimate(n), "energy_distance": energy.estimate(n)}
    found |= distances.manifolds(x, y)._asdict()
    classes = [_classes(features, rows) for rows in (x, y)]
    if classes[0] is not None and classes[1] is not None:
        histogram = distances.histogram_distance(classes[0], classes[1], groups)
        found["class_distance"] = histogram.estimate(n, (0.0, 1.0))
    if reference is not None and reference.split != TRAIN:  # these have no distance to themselves
        near = distances.nearest_distance(x, reference.train) / reference.nearest()
        found["nearest_train"] = mean(near)
    return found


def reconstructed(x: Rows, y: Rows) -> dict[str, Estimate]:
    """Measure reconstructions x against the images y that they were made from, row by row."""
    frechet = distances.frechet_distance(x, y, groups_of(len(x)), is_paired=True)
    return {
        "rfid": frechet.estimate(len(x), (0.0, np.inf)),
        "rfid_infinity": frechet.extrapolated(len(x)),
    }


def _classes(features: Features, rows: Rows) -> npt.NDArray[np.int64] | None:
    parts = [features.classes(block) for _, block in rows.blocks()]
    return None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Quality:
    """The measurement of one model, in one way to draw from it.

    Attributes:
        features: name of the features.
        split: of the real images.
        samples: number of samples.
        values: estimates by name, of samples and of reconstructions.
        floor: one half of the training images against the other, by name.
        train_test: training images against those of the split, by name.
        notes: sentences that a reader needs to judge the numbers.
        settings: all that the samples depend on, and the accuracy of the classes.
        id: of the settings, the features and the split.
    """

    features: str
    split: str
    samples: int
    values: dict[str, Estimate]
    floor: dict[str, Estimate] = field(default_factory=dict)
    train_test: dict[str, Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    id: str = ""

    def metrics(self) -> dict[str, float]:
        """Return the values under the names that they are logged by.

        For the FID of infinitely many images also the ends of the interval.
        """
        found = {name: estimate.value for name, estimate in self.values.items()}
        for name, estimate in self.values.items():
            if name.endswith("fid_infinity"):
                found |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return {f"{name}_{self.features}": value for name, value in found.items()}

    def record(self) -> dict[str, Any]:
        """Return the content of a record in quality.json."""
        return asdict(self)


def notes(reference: Reference, samples: int) -> tuple[str, ...]:
    """Return what must be said of so many samples in these features."""
    found = []
    enough, name = reference.enough(), reference.features.name
    if samples < enough:
        found.append(
            f"{samples:,} samples are too few for the {reference.features.dims} features of "
            f"{name}: fid is biased and its extrapolation unsound; {enough:,} samples would do"
        )
    if len(reference.real) < enough:
        found.append(
            f"the {len(reference.real):,} {reference.split} images are few for the "
            f"{reference.features.dims} features of {name}: compare with the row of train against "
            "test; " + f"{enough:,} images would do"
        )
    classes = _classes(reference.features, reference.real)
    if classes is not None and reference.features.spec.classes:
        known = reference.features.spec.classes
        lacking = [known[i] for i in sorted(set(range(len(known))) - set(classes.tolist()))]
        if lacking:
            found.append(
                f"no {reference.split} image is of the class {', '.join(lacking[:5])}: "
                "class_distance is about the others"
            )
    return tuple(found)


#: Function that makes the images of these numbers, a tensor (n, C, H, W) for each range.
Make = Callable[[Sequence[range]], Iterable[Tensor]]


def measure(
    reference: Reference,
    samples: int,
    draw: Make,
    reconstruct: Make | None,
    folder: Path,
    settings: Mapping[str, Any],
    advance: Advance = lambda amount: None,
    with_floor: bool = True,
) -> Quality:
    """Draw samples and measure them; go on where an earlier call was stopped.

    Args:
        draw: draws samples by their numbers, uint8 or floats in [0, 1].
        reconstruct: reconstructs the real images of the split by their numbers; None for a model
            that reconstructs nothing.
        folder: of the run, where features are kept until all are there.
        settings: all that the images depend on, plain values; another one is another measurement.
        with_floor: also measure the real images against each other.

    Raises:
        DataError: samples are not finite, or have another shape than the real images.
        RunDirectoryError: the folder cannot be read or written.
    """
    features, name = reference.features, identity(reference, settings)
    drawn = Chunks(folder / FOLDER / name, samples, features.dims)
    _fill(drawn, draw, features, advance)
    values = measured(drawn.rows(), reference.real, features, reference)
    if reconstruct is not None:
        again = Chunks(folder / FOLDER / f"{name}-remade", len(reference.real), features.dims)
        _fill(again, reconstruct, features, advance)
        values |= reconstructed(again.rows(), reference.real)
    return Quality(
        features=features.name,
        split=reference.split,
        samples=samples,
        values=values,
        floor=reference.floor(samples) if with_floor else {},
        train_test=reference.train_test(samples) if with_floor else {},
        notes=notes(reference, samples),
        settings={**settings, "accuracy": features.accuracy},
        id=name,
    )


def identity(reference: Reference, settings: Mapping[str, Any]) -> str:
    """Return 12 hex digits of all that samples and features depend on, but not of their number."""
    whole = {**settings, "features": reference.features.name, "split": reference.split}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]


def work(reference: Reference, samples: int, reconstructs: bool) -> int:
    """Return the number of images that `measure` makes."""
    return samples + (len(reference.real) if reconstructs else 0)


def find(
    run: Run, reference: Reference, samples: int, settings: Mapping[str, Any]
) -> Quality | None:
    """Return what was measured before in the same way; None if nothing was."""
    name = identity(reference, settings)
    for record in run.quality:
        if record.get("id") == name and record.get("samples") == samples:
            found = from_record(record, run.quality_path)
            if (found.features, found.split) != (reference.features.name, reference.split):
                raise RunDirectoryError(
                    f"{run.quality_path} names other features or images than its id: remove it"
                )
            return found
    return None


def keep(run: Layout, found: Quality, before: Sequence[Mapping[str, Any]]) -> None:
    """Add a measurement to quality.json, and remove the files of features that it came from.

    Args:
        before: the records of quality.json, of which one of the same measurement is replaced.
    """
    same = (found.id, found.samples)
    others = [r for r in before if (r.get("id"), r.get("samples")) != same]
    records = [*others[1 - _MOST_RECORDS :], found.record()]
    write_atomically(run.quality_path, {"records": records})
    for name in (found.id, f"{found.id}-remade"):
        shutil.rmtree(run.path / FOLDER / name, ignore_errors=True)
    with suppress(OSError):  # another measurement is not done
        (run.path / FOLDER).rmdir()


def from_record(record: Mapping[str, Any], path: Path) -> Quality:
    """Return the measurement of a record of quality.json.

    Raises:
        RunDirectoryError: it is none.
    """
    try:
        known = {f.name for f in fields(Quality)}
        parts = {name: _estimates(record[name]) for name in ("values", "floor", "train_test")}
        if not isinstance(record["settings"], dict):
            raise TypeError("the settings are no JSON object")
        if not isinstance(record["notes"], list | tuple) or not all(
            isinstance(note, str) for note in record["notes"]
        ):
            raise TypeError("the notes are no list of texts")
        return Quality(**{**{k: v for k, v in record.items() if k in known}, **parts})
    except (TypeError, KeyError, AttributeError) as error:
        raise RunDirectoryError(f"{path} holds no measurements ({error}): remove it") from error


def _estimates(kept: Mapping[str, Any]) -> dict[str, Estimate]:
    found = {name: Estimate(**value) for name, value in kept.items()}
    for name, estimate in found.items():
        for number in astuple(estimate):
            if not isinstance(number, int | float) or not np.isfinite(number):
                raise TypeError(f"{name} is {number!r}")
    return found


def _fill(chunks: Chunks, make: Make, features: Features, advance: Advance) -> None:
    def rows(ranges: list[range]) -> Iterator[Any]:
        for part, images in zip(ranges, make(ranges), strict=True):
            yield features(images, part.start)
            advance(len(part))

    chunks.fill(rows, advance)
