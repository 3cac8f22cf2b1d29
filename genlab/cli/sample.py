"""`genlab sample`: images of trained models, of several models and samplers side by side."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from genlab.cli import trained
from genlab.errors import DONE, ConfigError, RunDirectoryError
from genlab.runs.files import refuse_links

if TYPE_CHECKING:
    from genlab.cli.drawing import Draw
    from genlab.cli.sources import Pixels, Source

#: Images in a row of a comparison, and classes in a row of a grid: as many as a screen shows.
_COLUMNS = 16
#: Rows and columns of the picture of trajectories.
_TRAJECTORIES, _TIMES = 4, 10


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    parser = commands.add_parser(
        "sample",
        help="draw images from trained models, several of them side by side",
        description="Draw images from trained models: a grid, numbered PNGs and samples.npz. Image "
        "i is a function of the seed, i and its class, whatever the batch size; several runs, "
        "samplers or numbers of steps also make one picture, with the same noise in each column.",
        epilog="example: genlab sample RUN --n 16 --sampler ddim,dpm_solver --steps 10,50",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--n", type=int, default=64, help="number of images (%(default)s)")
    trained.add_arguments(parser)
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images drawn at once (%(default)s)"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda:N, or several, as cuda:0,cuda:1, which take turns with the batches; "
        "auto is all GPUs",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files go, instead of RUN/samples/"
    )
    diffusion = parser.add_argument_group(
        "diffusion models", "What is not given is as in the run's config, or the sampler's file."
    )
    diffusion.add_argument(
        "--sampler",
        metavar="NAME,...",
        action="append",
        help="of conf/model/sampler, or a YAML file of your own; may be repeated",
    )
    diffusion.add_argument("--steps", metavar="N,...", help="of the sampler; at most the model's")
    diffusion.add_argument("--grid", help="how steps are spaced: uniform, log_snr, ...")
    diffusion.add_argument("--eta", type=float, help="share of the ancestral noise in ddim")
    diffusion.add_argument(
        "--class",
        metavar="CLASS,...",
        help="names or numbers, taken in turn; by default all that the data have",
    )
    diffusion.add_argument("--guidance", type=float, help="towards the class; 1 is none")
    diffusion.add_argument(
        "--trajectory", action="store_true", help="also draw the way from noise to images"
    )
    parser.set_defaults(run=_sample)


def _sample(options: argparse.Namespace) -> int:
    from genlab.checks import whole
    from genlab.cli.drawing import devices, drawing
    from genlab.cli.sources import sources

    whole("--n", options.n, 1)
    whole("--batch-size", options.batch_size, 1)
    if not 0 <= options.seed < 1 << 63:
        raise ConfigError(f"--seed {options.seed}: give a whole number from 0 to 2^63 - 1")
    places = devices(options.device)
    chosen = sources(options)
    folders = [_folder(source, options.out, chosen) for source in chosen]
    stored = [_stored(*pair) for pair in zip(folders, chosen, strict=True)]

    console = Console(soft_wrap=True, highlight=False)
    drawn: list[Pixels] = []
    with drawing(chosen, places) as draw:
        for source, folder, images in zip(chosen, folders, stored, strict=True):
            if images is None:
                started = time.perf_counter()
                images = _drawn(draw, source, options.n, options.batch_size)
                seconds = time.perf_counter() - started
                _write(folder, source, images)
                said = f"{options.n} images in {seconds:.1f} s, {seconds / options.n:.2g} s each"
            else:
                said = "drawn before; remove the folder to draw them anew"
            drawn.append(images)
            console.print(f"{source.name}: {said}\n  {folder}", markup=False)
            if options.trajectory and not (path := folder / "trajectory.png").exists():
                _write_trajectory(path, source, options.n)
    if len(chosen) > 1:
        path = _write_side_by_side(options.out, chosen, drawn)
        console.print(f"side by side\n  {path}", markup=False)
    return DONE


def _folder(source: Source, out: Path | None, chosen: Sequence[Source]) -> Path:
    if out is None:
        refuse_links(source.run, ("samples",))
        return source.run / "samples" / source.tag
    if len(chosen) == 1:
        return out
    several = len({one.run for one in chosen}) > 1
    return (out / source.run.resolve().name if several else out) / source.tag


def _stored(folder: Path, source: Source) -> Pixels | None:
    """What the same command drew before; None where there is nothing yet.

    Raises:
        ConfigError: if the folder holds anything else.
    """
    import numpy as np

    path = folder / "samples.npz"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        with np.load(path) as content:
            if str(content["digest"]) == source.digest:
                return np.asarray(content["images"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    raise ConfigError(
        f"{folder} holds other files than those of this command: give --out a new folder, or "
        "remove this one"
    )


def _drawn(draw: Draw, source: Source, n: int, batch_size: int) -> Pixels:
    import numpy as np

    from genlab.data.progress import progress

    batches = [range(start, min(n, start + batch_size)) for start in range(0, n, batch_size)]
    with progress(source.name, n * source.steps) as advance:
        return np.concatenate(list(draw(source, batches, advance)))


def _write(folder: Path, source: Source, images: Pixels) -> None:
    """Grid, PNGs and samples.npz, all of them or none."""
    import numpy as np
    from PIL import Image

    from genlab.media import pictures

    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        grid = pictures.grid(
            images.transpose(0, 3, 1, 2),
            columns=_columns(len(images), len(source.classes)),
            caption=source.caption,
        )
        pictures.save_png(unfinished / "grid.png", grid)
        (unfinished / "images").mkdir()
        digits = len(str(len(images) - 1))
        for i, image in enumerate(images):
            pixels = image[:, :, 0] if image.shape[2] == 1 else image
            # not by `save_png`, which waits for the disk each time
            Image.fromarray(pixels).save(unfinished / "images" / f"{i:0{digits}}.png")
        np.savez_compressed(
            unfinished / "samples.npz",
            images=images,
            labels=source.labels(range(len(images))),
            digest=source.digest,
            **source.facts,
        )
        unfinished.replace(folder)
    except OSError as error:
        raise RunDirectoryError(
            f"{folder} cannot be written ({error.strerror}): give --out a folder that can"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _columns(n: int, classes: int) -> int | None:
    """Columns of a grid in which each holds one class; None for any number."""
    if not 1 < classes <= min(_COLUMNS, n):
        return None
    return classes * max(1, round(math.sqrt(n) / classes))


def _write_trajectory(path: Path, source: Source, n: int) -> None:
    from genlab.callbacks.diffusion import trajectory
    from genlab.media import pictures

    picture = trajectory(
        source.diffusion,
        lambda keep: source.images(range(min(n, _TRAJECTORIES)), keep),
        source.steps,
        _TIMES,
        source.caption,
    )
    pictures.save_png(path, picture)


def _write_side_by_side(
    out: Path | None, chosen: Sequence[Source], drawn: Sequence[Pixels]
) -> Path:
    """One row for each source; in words beside it what differs, above it what does not."""
    from genlab.cli.sources import digest
    from genlab.media import pictures

    labels = {source.module.label() for source in chosen}
    ways = {source.way for source in chosen}
    names = [source.run_name if len(ways) == 1 else source.name for source in chosen]
    common = [word for words in (labels, ways) if len(words) == 1 for word in words]
    caption = ", ".join(filter(None, [*common, *chosen[0].asked]))
    shown = [images[:_COLUMNS].transpose(0, 3, 1, 2) for images in drawn]
    picture = pictures.rows(shown, names, caption=caption)
    folder = chosen[0].run / "samples" if out is None else out
    name = f"side-by-side-{digest([source.digest for source in chosen])}.png"
    return pictures.save_png(folder / name, picture)
