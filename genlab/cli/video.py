"""`genlab video`: make videos of trained models, several of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from genlab.cli import averages, trained
from genlab.cli.output import say
from genlab.cli.parsing import add_command, number, whole_number
from genlab.data.progress import progress
from genlab.errors import DONE, ConfigError, RunDirectoryError, whole
from genlab.runs.files import refuse_links

if TYPE_CHECKING:
    from genlab.callbacks.videos import VideoCallback
    from genlab.media.pictures import Pixels
    from genlab.report import Record

#: Sampled frames of a diffusion model's walk, unless --seconds and --fps give fewer.
_SAMPLED = 60
#: Panels of a trajectory, each of two pictures.
_TRAJECTORIES = 3


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "video",
        "film trained models, several of them side by side",
        "Film trained models: validation images that turn into one another, single latents, a "
        "walk through the prior, the way from noise to images, the samples at each validation of "
        "the training. Several runs make one video, with the same images and the same noise at "
        "every moment and the setting above each. MP4 needs genlab[video]; WebP is made anyway.",
        "genlab video RUN",
        "genlab video runs/vae-kl_weight data=mnist_mini --kind interpolation",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, or a folder of several"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="data=NAME",
        help="the images for interpolation and traversal, with keys below data as for train.py, "
        "such as data.data_dir=DIR; a run directory does not say where images are",
    )
    parser.add_argument(
        "--kind",
        metavar="KIND,...",
        help="interpolation, traversal, prior_walk, trajectory, training (default: all that the "
        "model has, except the walk of a diffusion model, which takes minutes, and, without "
        "data=NAME, those that need images)",
    )
    parser.add_argument(
        "--n",
        type=whole_number("--n"),
        metavar="N",
        help="panels of each run (default: 9; 3 of a trajectory)",
    )
    parser.add_argument(
        "--seconds",
        type=number("--seconds"),
        default=6.0,
        metavar="S",
        help="length in seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--fps",
        type=number("--fps"),
        default=20.0,
        metavar="N",
        help="frames a second (default: %(default)g)",
    )
    trained.add_arguments(parser)
    averages.add_ema(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the files (default: videos/ in the run; of several runs, beside them)",
    )
    parser.set_defaults(command=video)


def video(
    runs: Sequence[str],
    overrides: Sequence[str],
    kind: str | None,
    n: int | None,
    seconds: float,
    fps: float,
    seed: int,
    checkpoint: str | None,
    ema: str | None,
    trust: Sequence[str],
    out: Path | None,
) -> int:
    """Film the models of the runs, and write one video of each kind.

    Args:
        overrides: of the data; see `trained.runs_and_data`.
    """
    from genlab.callbacks.videos import KINDS

    paths, data = trained.runs_and_data([*runs, *overrides], ", or a sweep's")
    kinds = list(KINDS) if kind is None else kind.split(",")
    for name in kinds:
        if name not in KINDS:
            raise ConfigError(f"--kind {name}: give one of {', '.join(KINDS)}, or several")
    with trained.naming_flags():
        if n is not None:
            whole("n", n, 1)
        settings = {"seconds": seconds, "fps": fps, "seed": seed}
        settings |= {} if n is None else {"images": n}
        chosen = _chosen(paths)
        folders = [record.path / "videos" for _, record in chosen]
        callbacks = [_callbacks(path, kinds, settings, kind is not None) for path in folders]
    read = [  # all of them are looked at before the first is filmed
        (
            averages.checkpoint_of(record.path, checkpoint, ema),
            averages.ema_width(record.path, ema, trust),
        )
        for _, record in chosen
    ]

    console = Console(soft_wrap=True, highlight=False)
    films: dict[str, dict[str, Pixels]] = {}
    lines: list[str] = []
    with progress("filming", len(chosen) * len(kinds)) as advance:
        for (label, record), weights, of_run in zip(chosen, read, callbacks, strict=True):
            model = averages.load(record.path, *weights, trust)
            made, left_out = _films(record.path, model, data, of_run, kind is not None, advance)
            for name, film in made.items():
                films.setdefault(name, {})[label] = film
            names = ", ".join(name.replace("_", " ") for name in made) or "nothing to film"
            lines.append(f"{label or record.run_id}: {names}")
            if left_out:
                lines.append(f"  left out: {left_out}")
    for line in lines:
        say(console, line)
    for name, by_label in films.items():
        for path in _save(name, by_label, [record.path for _, record in chosen], fps, out):
            say(console, f"  {path}")
    return DONE


def _chosen(paths: Sequence[Path]) -> list[tuple[str, Record]]:
    """Read the runs with their labels; a single run has an empty label.

    Raises:
        RunDirectoryError: there is no run with a model, or one that is named cannot be read.
    """
    from genlab.report import collect
    from genlab.report.collect import swept_keys
    from genlab.report.naming import run_label
    from genlab.report.videos import compared
    from genlab.runs.run import Run

    if len(paths) == 1 and Run(paths[0]).config_text is None:
        chosen = compared(collect(paths[0]))
        if not chosen:
            raise RunDirectoryError(
                f"{paths[0]} is no run directory and holds no completed runs: train some first"
            )
        return chosen
    records = [record for path in paths for record in collect([path])]
    for record in records:
        if not record.is_readable:
            raise RunDirectoryError(record.error)
    if len(records) == 1:
        return [("", records[0])]
    swept = swept_keys(records)
    labels = [run_label(record, swept) for record in records]
    if len(set(labels)) < len(labels):
        labels = [f"{record.path.parent.name}/{record.run_id}" for record in records]
    return list(zip(labels, records, strict=True))


def _callbacks(
    folder: Path, kinds: Sequence[str], settings: Mapping[str, Any], is_asked: bool
) -> list[VideoCallback]:
    """Make the callbacks that film these kinds during training.

    Args:
        is_asked: True if the user named the kinds; else a walk that is sampled step by step,
            which takes minutes, is left out.
    """
    from genlab.callbacks.videos import KINDS

    own: dict[str, dict[str, Any]] = {"trajectory": {"images": _TRAJECTORIES}}
    own["prior_walk"] = {"sampled_frames": _SAMPLED if is_asked else 0}
    return [KINDS[kind](folder, **{**own.get(kind, {}), **settings}) for kind in kinds]


def _films(
    run: Path,
    model: Any,
    overrides: Sequence[str],
    callbacks: Sequence[VideoCallback],
    is_asked: bool,
    advance: Callable[[int], None],
) -> tuple[dict[str, Pixels], str]:
    """Draw the films of a run: return them by kind, and why some were left out.

    Args:
        overrides: of the data.
        is_asked: True if the user named the kinds; else those that need images are left out where
            no data are named.
        advance: called with 1 after each kind.

    Raises:
        ConfigError: the model lacks the ability for a requested kind, or the data are missing or
            do not fit.
    """
    import torch

    from genlab.callbacks.base import inputs_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    data = trained.data_for(run, model.spec, overrides) if overrides else None

    def inputs(count: int) -> torch.Tensor:
        if data is None:
            raise trained.NoDataError(run)
        data.prepare_data()
        return inputs_of(data, device)(count)

    films: dict[str, Pixels] = {}
    left_out = ""
    for callback in callbacks:
        try:
            film = callback.film(model, inputs)
        except trained.NoDataError as error:
            if is_asked:
                raise
            left_out = str(error)
            advance(1)
            continue
        advance(1)
        if film is not None:
            films[callback.kind] = film
        elif is_asked:
            reason = " without the frames of two validations" if callback.kind == "training" else ""
            raise ConfigError(
                f"--kind {callback.kind}: {run} has none, being a {type(model).__name__}{reason}; "
                "leave it out"
            )
    return films, left_out


def _save(
    kind: str, films: Mapping[str, Pixels], runs: Sequence[Path], fps: float, out: Path | None
) -> list[Path]:
    """Write films of one kind, labelled by run, as one video, and return its files.

    Raises:
        RunDirectoryError: the folder cannot be written, or leads out of the run or the sweep.
    """
    from genlab.media import videos

    if out is not None:
        stem = out / kind
    else:
        alone = len(runs) == 1
        folder = runs[0] if alone else runs[0].parent
        refuse_links(folder, ("videos",))
        stem = folder / "videos" / (f"{kind}-final" if alone else kind)
    film = next(iter(films.values()))
    if len(runs) > 1:
        film = videos.beside(list(films.values()), list(films))
    title = ": ".join(filter(None, [kind.replace("_", " "), ", ".join(films)]))
    try:
        return videos.save(stem, film, fps, title)
    except OSError as error:
        raise RunDirectoryError(
            f"{stem.parent} cannot be written ({error.strerror}): give --out a folder that can"
        ) from error
