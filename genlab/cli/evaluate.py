"""`genlab evaluate`: test trained models, on any split and any checkpoint, without training."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from genlab.cli import averages, trained
from genlab.cli.output import say
from genlab.cli.parsing import add_command, add_group, whole_number
from genlab.errors import DONE, ConfigError, RunDirectoryError
from genlab.runs.files import refuse_foreign, write_atomically
from genlab.runs.run import Run


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "evaluate",
        "test trained models without training them",
        "Evaluate a checkpoint of each run as its own test does, and write the numbers "
        "into RUN/evaluations/. Without other choices they are those of the run's own test, to the "
        "last bit on a like device.",
        "genlab evaluate RUN data=mnist_mini --split val --checkpoint last",
        "genlab evaluate RUN data=mnist_mini --ema 0.05,0.1,0.2",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="where the data are, as for genlab train: data=NAME, and keys such as data.data_dir; "
        "what is not given is as in the run",
    )
    parser.add_argument(
        "--split",
        choices=("test", "val", "train"),
        default="test",
        help="images to evaluate on (default: %(default)s)",
    )
    parser.add_argument(
        "--batches",
        metavar="N",
        help="at most so many batches, or all (default: as in the run's own test)",
    )
    trained.add_checkpoint(parser)
    averages.add_ema(parser, several=True)
    trained.add_trust(parser)
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu or cuda:N; auto is a GPU if there is one (default: %(default)s)",
    )
    of_quality = add_group(
        parser,
        "quality of samples",
        "Instead of the test: distances of samples and reconstructions to real images, each with "
        "its interval, in RUN/quality.json. A measurement that was stopped goes on where it was.",
    )
    of_quality.add_argument("--quality", action="store_true", help="measure samples")
    of_quality.add_argument(
        "--features",
        metavar="NAME",
        help="a file of conf/features, or a YAML file of your own (classifier if the data have "
        "labels, else pixels)",
    )
    of_quality.add_argument(
        "--samples", type=whole_number("--samples"), metavar="N", help="number of samples (10000)"
    )
    of_quality.add_argument(
        "--seed", type=whole_number("--seed"), metavar="N", help="seed of the samples (0)"
    )
    trained.add_classes(of_quality)
    trained.add_sampler(of_quality)
    parser.set_defaults(command=evaluate)


def evaluate(
    runs: Sequence[str],
    overrides: Sequence[str],
    split: Any,
    batches: str | None,
    checkpoint: str | None,
    ema: str | None,
    trust: Sequence[str],
    device: str,
    quality: bool,
    features: str | None,
    samples: int | None,
    seed: int | None,
    **sampler: Any,
) -> int:
    """Evaluate the runs one after another, and write a record of each into its directory.

    Args:
        overrides: of the data; see `trained.runs_and_data`.
        ema: relative widths of averages, each of which is evaluated; see `averages.ema_widths`.
        quality: measure samples instead; see `genlab.cli.quality`.
        sampler: of a diffusion model's samples; see `drawing.ways_asked`.
    """
    paths, of_data = trained.runs_and_data([*runs, *overrides])
    if quality:
        from genlab.cli import quality as measuring

        if batches is not None:
            raise ConfigError(f"--batches {batches}: of samples there are --samples N")
        return measuring.evaluate(
            paths,
            of_data,
            split,
            checkpoint,
            ema,
            trust,
            device,
            features=features,
            samples=10_000 if samples is None else samples,
            seed=seed or 0,
            **sampler,
        )
    of_samples = {"features": features, "samples": samples, "seed": seed, **sampler}
    for name, value in of_samples.items():
        if value is not None:
            option = {"classes": "class"}.get(name, name.replace("_", "-"))
            raise ConfigError(f"--{option}: this is about samples; add --quality")

    from genlab.cli.drawing import devices
    from genlab.training.load import read_received

    most = None if batches is None else _number_of_batches(batches)
    places = devices(device)
    if len(places) > 1 and device != "auto":
        raise ConfigError(f"--device {device}: give one device")
    found = []
    for path in paths:  # all of them are looked at before the first is evaluated
        there = averages.checkpoint_of(path, checkpoint, ema)
        spec = read_received(path, trust).spec
        if not of_data:
            raise trained.NoDataError(path)
        widths = averages.ema_widths(path, ema, trust)
        found += [(path, there, spec, width) for width in widths]

    from genlab.training import console as terminal
    from genlab.training import data_record, evaluation

    console = Console(soft_wrap=True, highlight=False)
    for path, there, spec, width in found:
        own = evaluation.OfRun.of(path)
        data = trained.data_for(path, spec, of_data, own.data)
        if other := data_record.difference(Run(path), data):
            say(console, f"{path}: {other}")
        limit = own.batches if most is None else most or None
        record = evaluation.evaluate(path, data, there, split, limit, places[0], trust, width)
        record |= {"run": path.resolve().name, "batches": limit, "data": list(of_data)}
        target = path / "evaluations" / f"{_name(record, is_own=most is None)}.json"
        _write(target, record)
        weights = there if width is None else f"average of width {width:g}"
        say(console, f"{path}, {weights}, {record['images']:,} images")
        terminal.show(record, target, split)
    if ema is not None:
        averages.show(console, list(dict.fromkeys(path for path, *_ in found)))
    return DONE


def _number_of_batches(text: str) -> int:
    """Return the number, 0 for all."""
    if text == "all":
        return 0
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--batches {text}: give a whole number of at least 1, or all")


def _name(record: dict[str, Any], is_own: bool) -> str:
    """Return a name that is the same for the same evaluation, and for no other."""
    of_it: tuple[str, ...] = (
        "weights",
        "split",
        "batches",
        "data",
        "seed",
        "precision",
        "eval_batch_size",
        "device",
    )
    of_it += ("ema",) if "ema" in record else ()
    digits = hashlib.sha256(json.dumps([record[k] for k in of_it]).encode()).hexdigest()[:8]
    words = [record["split"], record["checkpoint"], *map(_value, record["data"])]
    words += [f"ema_{record['ema']:g}"] if "ema" in record else []
    words += [] if is_own else [f"batches_{record['batches'] or 'all'}"]
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "-".join(words))[:80].strip(".") + f"-{digits}"


def _value(override: str) -> str:
    """Return what an override chooses, without a folder of this machine."""
    key, _, value = override.partition("=")
    return value if key == "data" else f"{key.rpartition('.')[2]}_{Path(value).name}"


def _write(path: Path, record: dict[str, Any]) -> None:
    folder = path.parent
    refuse_foreign(folder, deep=False)
    try:
        folder.mkdir(exist_ok=True)
        write_atomically(path, record)
    except OSError as error:
        raise RunDirectoryError(
            f"{folder} cannot be written ({error.strerror}): make it writable"
        ) from error
