"""`genlab sample`: draw images of a trained model, also with several samplers side by side."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from genlab.cli import averages, trained
from genlab.cli.parsing import add_command, add_group, whole_number
from genlab.errors import DONE, ConfigError, RunDirectoryError, whole
from genlab.runs.files import refuse_links, sha256
from genlab.runs.text import printable

if TYPE_CHECKING:
    from genlab.cli.drawing import Pixels, Way

#: Images in a row of a comparison, and classes in a row of a grid, to fit a screen.
_COLUMNS = 16
#: Rows and columns of the picture of trajectories.
_TRAJECTORIES, _TIMES = 4, 10


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "sample",
        "draw images from a trained model, with several samplers side by side",
        "Draw images from a trained model: a grid, numbered PNGs and samples.npz. "
        "Image i depends on the seed, i and its class alone, and not on the batch size where the "
        "device rounds all batches alike, as a CPU does. Several samplers or numbers of steps also "
        "make one picture, with the same noise in each column. Each call writes a new folder.",
        "genlab sample RUN",
        "genlab sample RUN --n 16 --sampler ddim,dpm_solver --steps 10,50",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--n",
        type=whole_number("--n"),
        default=64,
        metavar="N",
        help="number of images (default: %(default)s)",
    )
    trained.add_arguments(parser)
    averages.add_ema(parser)
    parser.add_argument(
        "--batch-size",
        type=whole_number("--batch-size"),
        default=64,
        metavar="N",
        help="images drawn at once (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda:N, or several such as cuda:0,cuda:1, which take turns with the batches; "
        "auto is all GPUs (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder (default: one in RUN/samples/)"
    )
    parser.add_argument(
        "--trajectory", action="store_true", help="also draw the way from noise to images"
    )
    trained.add_classes(parser)
    choices = add_group(
        parser,
        "diffusion models",
        "Without an option, the run's own value is used, or that of the sampler's file.",
    )
    trained.add_sampler(choices)
    parser.set_defaults(command=sample)


def sample(
    run: Path,
    n: int,
    seed: int,
    checkpoint: str | None,
    ema: str | None,
    trust: Sequence[str],
    batch_size: int,
    device: str,
    out: Path | None,
    trajectory: bool,
    sampler: Sequence[str] | None,
    steps: str | None,
    grid: str | None,
    eta: float | None,
    classes: str | None,
    guidance: float | None,
    guidance_interval: Sequence[float] | None,
) -> int:
    """Draw images of a run's model in one or several ways, and write them into a new folder."""
    import numpy as np

    from genlab.cli.drawing import devices, drawing, refuse_options, ways_asked
    from genlab.data.progress import progress
    from genlab.protocols import CanSample, HasSetting, HasTrajectory
    from genlab.training import weights

    with trained.naming_flags():
        whole("n", n, 1)
        whole("batch-size", batch_size, 1)
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"--seed {seed}: give a whole number from 0 to 2^63 - 1")
    places = devices(device)
    other_weights = [] if checkpoint is None else [checkpoint]
    checkpoint = averages.checkpoint_of(run, checkpoint, ema)
    width = averages.ema_width(run, ema, trust)
    model: Any = averages.load(run, checkpoint, width, trust)
    family, spec = type(model).__name__, model.spec
    if not isinstance(model, CanSample):
        raise ConfigError(f"{run}: {family} is a model that draws no images")
    if spec.levels is None:
        raise ConfigError(
            f"{run}: its data are real numbers, which no picture holds; give a run on 8-bit images"
        )
    if not isinstance(model, HasTrajectory):
        refuse_options(run, model, {"trajectory": trajectory or None})
    ways = ways_asked(
        run,
        model,
        trust,
        sampler=sampler,
        steps=steps,
        grid=grid,
        eta=eta,
        classes=classes,
        guidance=guidance,
        guidance_interval=guidance_interval,
    )

    first = ways[0].settings
    asked = [] if classes is None else [f"class {classes}"]
    asked += [f"guidance {first['guidance']:g}"] if first.get("guidance", 1) != 1 else []
    if "guidance_interval" in first:
        asked += [f"guidance interval {first['guidance_interval']}"]
    asked += [f"seed {seed}"]
    label = model.label() if isinstance(model, HasSetting) else ""
    facts: dict[str, Any] = {
        "run": run.resolve().name,
        "model": family,
        "weights": sha256(weights.checkpoint_of(run, checkpoint)),
    }
    facts |= {"checkpoint": checkpoint, "n": n, "seed": seed, "batch_size": batch_size}
    facts |= {} if width is None else {"ema": width}
    facts |= {} if classes is None else {"class": classes}
    batches = [range(start, min(n, start + batch_size)) for start in range(0, n, batch_size)]

    console = Console(soft_wrap=True, highlight=False)
    drawn: list[Pixels] = []
    words = [ways[0].tag if len(ways) == 1 else "side-by-side", f"n{n}", *asked]
    words += other_weights if width is None else [f"ema {width:g}"]
    with (
        _new_folder(run, out, _folder_name(words)) as folder,
        drawing(model, seed, places) as draw,
    ):
        for way in ways:
            name, started = way.name or family, time.perf_counter()
            with progress(name, n * way.steps) as advance:
                images = np.concatenate(list(draw(way, batches, advance)))
            seconds = time.perf_counter() - started
            caption = ", ".join(filter(None, [label, way.name, *asked]))
            into = folder if len(ways) == 1 else folder / _folder_name([way.tag])
            _write(into, way, images, caption, {**facts, **way.settings})
            if trajectory:
                _write_trajectory(into / "trajectory.png", model, way, n, seed, caption)
            drawn.append(images)
            console.print(
                f"{printable(name)}: {n} images in {seconds:.1f} s, {seconds / n:.2g} s each",
                markup=False,
            )
        if len(ways) > 1:
            from genlab.media import pictures

            rows = [images[:_COLUMNS].transpose(0, 3, 1, 2) for images in drawn]
            caption = ", ".join(filter(None, [label, *asked]))
            picture = pictures.rows(rows, [way.name for way in ways], caption=caption)
            pictures.save_png(folder / "side-by-side.png", picture)
    console.print(f"  {printable(str(folder))}", markup=False)
    return DONE


def _folder_name(words: Sequence[str]) -> str:
    """Join words, without characters that a shell would need quoted."""
    joined = "-".join(filter(None, words)).replace(" ", "")
    return re.sub(r"[^A-Za-z0-9.-]+", "_", joined)[:80]


@contextmanager
def _new_folder(run: Path, out: Path | None, name: str) -> Iterator[Path]:
    """Make an empty folder before anything is drawn: `out`, or the next free name in RUN/samples/.

    Raises:
        ConfigError: `out` holds files.
        RunDirectoryError: it cannot be written.
    """
    if out is None:
        refuse_links(run, ("samples",))
        names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
        folder = next(path for n in names if not (path := run / "samples" / n).exists())
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"--out {out} holds other files, which are never overwritten; give a new folder"
        )
    else:
        folder = out
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
        yield folder
    except OSError as error:
        raise RunDirectoryError(
            f"{folder} cannot be written ({error.strerror}): give --out a folder that can"
        ) from error
    finally:
        if out is None:
            with suppress(OSError):  # it holds files
                folder.rmdir()


def _write(folder: Path, way: Way, images: Pixels, caption: str, facts: dict[str, Any]) -> None:
    """Write PNGs, grid and, last, samples.npz, which exists only if all others do."""
    import numpy as np
    from PIL import Image

    from genlab.media import pictures

    folder.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as name:
        unfinished = Path(name)
        columns = _columns(len(images), len(way.classes))
        grid = pictures.grid(images.transpose(0, 3, 1, 2), columns, caption)
        pictures.save_png(unfinished / "grid.png", grid)
        (unfinished / "images").mkdir()
        digits = len(str(len(images) - 1))
        for i, image in enumerate(images):
            pixels = image[:, :, 0] if image.shape[2] == 1 else image
            # not by `save_png`, which syncs to the disk each time
            Image.fromarray(pixels).save(unfinished / "images" / f"{i:0{digits}}.png")
        labels = way.labels(len(images))
        np.savez_compressed(unfinished / "samples.npz", images=images, labels=labels, **facts)
        for part in ("images", "grid.png", "samples.npz"):
            (unfinished / part).replace(folder / part)


def _columns(n: int, classes: int) -> int | None:
    """Return the columns of a grid with one class per column; None for any number."""
    if not 1 < classes <= min(_COLUMNS, n):
        return None
    return classes * max(1, round(math.sqrt(n) / classes))


def _write_trajectory(path: Path, model: Any, way: Way, n: int, seed: int, caption: str) -> None:
    from genlab.callbacks.diffusion import trajectory
    from genlab.media import pictures

    def draw(on_step: Any) -> None:
        model.sample(min(n, _TRAJECTORIES), seed, **way.arguments, on_step=on_step)

    pictures.save_png(path, trajectory(model, draw, way.steps, _TIMES, caption))
