"""Export a trained model into a folder that other programs read, with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex

from genlab.config.check import to_yaml
from genlab.errors import ConfigError
from genlab.runs.files import write_atomically
from genlab.runs.locks import Lock, is_locked, was_locked
from genlab.runs.run import EXPORTED, Run
from genlab.training import export_diffusers, export_onnx, weights
from genlab.training.export_parts import Part, Trained
from genlab.training.load import load, read_received
from genlab.training.model_card import model_card
from genlab.training.power_averages import load_average

Writer = Callable[[Trained, Path], Part]


def export(
    run: Path,
    target: Path,
    checkpoint: str | None = None,
    formats: Collection[str] = ("safetensors",),
    packages: Collection[str] = (),
    ema: float | None = None,
) -> None:
    """Write the model of a run directory, or of an export, and its model card into a new folder.

    Args:
        target: the folder, which must be empty if it exists.
        checkpoint: see `genlab.training.load.load`.
        formats: of `FORMATS`.
        packages: those whose classes the run's config may name beside those of genlab's models.
        ema: relative width of the average of the weights at the last step, made from the snapshots
            of the run, that replaces those of the checkpoint, which must be the last.

    Raises:
        ConfigError: a format does not fit the model, or its package is not installed; or see
            `genlab.training.load.load`.
        RunDirectoryError: config, spec, checkpoint or snapshots are missing or unreadable.
        ValueError: the snapshots do not reach this width.
        OSError: the folder cannot be written.
    """
    received = read_received(run, packages)
    model = load(run, checkpoint, packages) if ema is None else load_average(run, ema, packages)
    path = weights.checkpoint_of(run, checkpoint)
    trained = Trained(run, path, model, received.model, received.spec, tuple(packages), ema)
    with _renamed_when_whole(target) as folder:
        parts = [_in_format(name, trained, folder) for name in formats]
        write_atomically(folder / "README.md", model_card(trained, parts))


def _in_format(name: str, trained: Trained, folder: Path) -> Part:
    try:
        return FORMATS[name](trained, folder)
    except ValueError as error:
        raise ConfigError(f"--format {name}: {trained.run} does not fit: {error}") from error
    except ImportError as error:
        raise ConfigError(
            f"--format {name}: a package is missing ({error}): pip install 'genlab[{name}]'"
        ) from error


def _safetensors(trained: Trained, folder: Path) -> Part:
    """Write weights, config and spec, from which `genlab.load` builds the model."""
    weights.write_exported(folder / EXPORTED, trained.model)
    there = Run(folder)
    write_atomically(there.config_path, to_yaml({"model": trained.config}))
    write_atomically(there.spec_path, asdict(trained.spec))
    trust = f", packages={list(trained.packages)!r}" if trained.packages else ""
    return Part(
        "With genlab",
        f'import genlab\n\nmodel = genlab.load("path/to/this/folder"{trust})\n'
        "images = model.sample(16, seed=0)  # (16, C, H, W) in [0, 1]",
        [
            f"`{EXPORTED}` holds the weights, `config.yaml` the settings of the model and "
            "`spec.json` the shape and the kind of its images."
        ],
    )


#: The writers by the names of their formats; each raises ValueError if the model does not fit.
FORMATS: Mapping[str, Writer] = {
    "safetensors": _safetensors,
    "diffusers": export_diffusers.write,
    "onnx": export_onnx.write,
}


@contextmanager
def _renamed_when_whole(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which takes its place at the end, or is removed.

    Folders that killed exports to the same place have left are removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.iterdir():
        is_ours = left.name.startswith(f".{target.name}.") and left.name.endswith(".tmp")
        if is_ours and not left.is_symlink() and was_locked(left) and not is_locked(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = target.with_name(f".{target.name}.{token_hex(4)}.tmp")
    folder.mkdir()
    lock = Lock(folder)
    try:
        lock.open()
        yield folder
        lock.remove()
        folder.replace(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.close()
