"""`genlab evaluate --quality`: how good the samples and reconstructions of trained models are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genlab.callbacks import quality as drawn
from genlab.cli import averages, trained
from genlab.cli.drawing import Draw, Way, devices, drawing, ways_asked
from genlab.config.build import build
from genlab.config.check import check, from_yaml, need
from genlab.config.compose import directory, options, suggestion
from genlab.data.datamodule import ImageData, SplitName
from genlab.data.progress import progress
from genlab.errors import DONE, ConfigError, DataError, whole
from genlab.metrics import names, quality
from genlab.metrics.features.base import Features, ready
from genlab.metrics.intervals import Estimate
from genlab.protocols import CanSample, ImageSpec
from genlab.runs.files import refuse_foreign
from genlab.runs.run import Run
from genlab.runs.text import printable
from genlab.training import data_record
from genlab.training.evaluation import OfRun
from genlab.training.load import read_config

#: The columns of the table, and the metric of each.
_COLUMNS = {
    "FID": "fid",
    "FID∞": "fid_infinity",
    "rFID∞": "rfid_infinity",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "classes": "class_distance",
    "nearest": "nearest_train",
}


#: Features for images with labels, and for others.
_BY_DEFAULT = ("classifier", "pixels")


@dataclass(frozen=True)
class _Asked:
    """A run, and what is measured of it."""

    run: Run
    model: Any
    checkpoint: str
    ways: list[Way]
    data: ImageData | None
    key: str
    seed: int
    ema: float | None

    def settings(self, way: Way) -> dict[str, Any]:
        """Return all that the images depend on, and what a reader wants to know of them."""
        plain = {
            key: value
            for key, value in way.settings.items()
            if value is None or isinstance(value, bool | int | float | str)
        }
        return {
            **drawn.settings_of(self.model, self.seed),
            **plain,
            "classes": list(way.classes),
            "checkpoint": self.checkpoint,
        } | ({} if self.ema is None else {"ema": self.ema})


def evaluate(
    runs: Sequence[Path],
    of_data: Sequence[str],
    split: SplitName,
    checkpoint: str | None,
    ema: str | None,
    trust: Sequence[str],
    device: str,
    features: str | None,
    samples: int,
    seed: int,
    **choices: Any,
) -> int:
    """Measure runs one after another, write the result into each, and print one table.

    Args:
        of_data: overrides that say where the images are; without them the cache must have them.
        ema: relative widths of averages, each of which is measured; see `averages.ema_widths`.
        choices: of the sampler, as for `drawing.ways_asked`.
    """
    with trained.naming_flags():
        whole("samples", samples, drawn.LEAST, drawn.MOST)
        whole("seed", seed, 0)
    places = devices(device)
    nodes = {name: _features(name) for name in ([features] if features else _BY_DEFAULT)}
    console = Console(soft_wrap=True, highlight=False)
    asked = [  # all of them are looked at before the first is measured
        _asked(path, of_data, checkpoint, width, trust, seed, choices, console)
        for path in runs
        for width in averages.ema_widths(path, ema, trust)
    ]
    prepared: dict[str, Features] = {}
    references: dict[str, quality.Reference] = {}
    for one in asked:
        spec = one.model.spec
        if one.key not in prepared:
            name = features or _BY_DEFAULT[0 if spec.classes else 1]
            module = build(nodes[name], "features")
            folder = drawn.cache(one.key)
            with progress(f"fitting {name}", 100) as advance:
                prepared[one.key] = ready(
                    module,
                    spec,
                    one.data,
                    folder,
                    advance,
                )
            prepared[one.key].module.to(places[0])
            size = _size(one.data, split)
            with progress(f"features of the {split} and train images", size) as advance:
                references[one.key] = quality.Reference.of(
                    prepared[one.key], split, one.data, folder, advance
                )

    found: list[tuple[str, quality.Quality]] = []
    for one in asked:
        reference = references[one.key]
        for way in one.ways:
            words = [one.run.path.resolve().name, *([way.name] if way.name else [])]
            words += [] if one.ema is None else [f"average of width {one.ema:g}"]
            label = ", ".join(words)
            result = _measured(one, way, reference, samples, places, label)
            found.append((label, result))
    _show(console, found)
    for path in dict.fromkeys(one.run.quality_path for one in asked):
        console.print(f"  {printable(str(path))}", markup=False)
    if ema is not None:
        averages.show(console, list(dict.fromkeys(runs)))
    return DONE


def _asked(
    path: Path,
    of_data: Sequence[str],
    checkpoint: str | None,
    ema: float | None,
    trust: Sequence[str],
    seed: int,
    choices: Mapping[str, Any],
    console: Console,
) -> _Asked:
    """Load a model, and look for its images, before any work is done."""
    checkpoint = averages.checkpoint_of(path, checkpoint, ema)
    model: Any = averages.load(path, checkpoint, ema, trust)
    spec: ImageSpec = model.spec
    if not isinstance(model, CanSample):
        raise ConfigError(f"{path}: {type(model).__name__} is a model that draws no images")
    drawn.refuse_real_values(spec)
    ways = ways_asked(path, model, trust, **choices)
    run, own = Run(path), OfRun.of(path)
    data, key = _images(run, spec, of_data, own, console)
    refuse_foreign(path / quality.FOLDER)
    return _Asked(run, model, checkpoint, ways, data, key, seed, ema)


def _images(
    run: Run, spec: ImageSpec, of_data: Sequence[str], own: OfRun, console: Console
) -> tuple[ImageData | None, str]:
    """Return the images of a run, None where they are gone, and their key in the cache."""
    node = read_config(run.path).get("data")
    files = (run.data or {}).get("files")
    of_run = data_record.data_key(node if isinstance(node, dict) else {}, files)
    if not of_data:
        if not drawn.cache(of_run).is_dir():
            raise trained.NoDataError(run.path)
        console.print(
            printable(f"{run.path}: no data is named; the features in the cache are used"),
            markup=False,
        )
        return None, of_run
    given = trained.data_node(of_data, own.data)
    try:
        data = trained.data_for(run.path, spec, of_data, own.data)
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        fingerprint = data.source.fingerprint(data.data_dir)
    except (ConfigError, DataError) as error:
        gone = _why_gone(given) if isinstance(error, ConfigError) else error
        if gone is None or not drawn.cache(of_run).is_dir():
            raise gone or error from error
        console.print(
            printable(f"{run.path}: {gone}; the features in the cache are used instead"),
            markup=False,
        )
        return None, of_run
    if other := data_record.difference(run, data):
        console.print(printable(f"{run.path}: {other}"), markup=False)
    return data, data_record.data_key(given, fingerprint and fingerprint.files)


def _why_gone(node: dict[str, Any]) -> DataError | None:
    """Return why images that have no spec cannot be read; None if they are there.

    The classes of a folder are those of its folders, so that one which is gone has another spec.
    """
    data: ImageData = build(node, "data")
    try:
        data.source.fingerprint(data.data_dir)
    except DataError as error:
        return error
    return None


def _size(data: ImageData | None, split: SplitName) -> int | None:
    return None if data is None else sum(data.size(name) for name in {split, "train"})


def _features(name: str) -> dict[str, Any]:
    """Read and check the config of features by their name in conf/, or from a file."""
    file = Path(name)
    if file.suffix != ".yaml":
        file = directory() / "features" / f"{name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        known = suggestion(name, options("features"))
        raise ConfigError(f"--features {name}: there are no such features; {known}") from error
    return need(check(from_yaml(text, str(file)), "features"), torch.nn.Module, "features")


def _measured(
    one: _Asked,
    way: Way,
    reference: quality.Reference,
    samples: int,
    places: Sequence[torch.device],
    label: str,
) -> quality.Quality:
    settings = {**one.settings(way), "device": places[0].type}
    before = quality.find(one.run, reference, samples, settings)
    if before is not None:
        return before
    remake = None
    if one.data is not None:
        one.model.to(places[0])
        remake = drawn.reconstruct(one.model, one.data, reference.split)
    total = quality.work(reference, samples, remake is not None)
    with (
        drawing(one.model, one.seed, places) as draw,
        progress(printable(label), total) as advance,
    ):
        found = quality.measure(
            reference,
            samples,
            _drawn(draw, way),
            remake,
            one.run.path,
            settings,
            advance,
        )
    quality.keep(one.run, found, one.run.quality)
    return found


def _drawn(draw: Draw, way: Way) -> quality.Make:
    def make(ranges: Sequence[range]) -> Iterator[Tensor]:
        for images in draw(way, ranges, lambda amount: None):
            yield torch.from_numpy(images.copy()).permute(0, 3, 1, 2)

    return make


def _show(console: Console, found: Sequence[tuple[str, quality.Quality]]) -> None:
    first = found[0][1]
    accuracy = first.settings.get("accuracy")
    told = f", accuracy {accuracy:.1%}" if isinstance(accuracy, float) else ""
    images = f"{first.samples:,} samples against the {first.split} images"
    console.print(f"{images}, in the features {first.features}{told}; ± is a 95 % interval")
    for number, (label, _) in enumerate(found, start=1):
        console.print(printable(f"{number}  {label}"), markup=False)
    rows = [(str(number), one.values) for number, (_, one) in enumerate(found, start=1)]
    rows.append(("noise", first.floor))
    explained = "noise: half of the training images against the other"
    if first.split != quality.TRAIN:  # these against themselves say nothing
        rows.append(("train", first.train_test))
        explained += f"; train: training images against those of {first.split}"
    shown = {
        heading: name
        for heading, name in _COLUMNS.items()
        if any(name in values for _, values in rows)
    }
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("")
    for heading in shown:
        table.add_column(heading, justify="right", min_width=len(heading))
    for label, values in rows:
        table.add_row(label, *(_cell(name, values.get(name)) for name in shown.values()))
    console.print(table)
    console.print(explained)
    for note in dict.fromkeys(note for _, one in found for note in one.notes):
        console.print(printable(note), markup=False)


def _cell(name: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    decimals = names.describe(name).decimals
    return f"{estimate.value:.{decimals}f} ±{estimate.half:.{decimals}f}"
