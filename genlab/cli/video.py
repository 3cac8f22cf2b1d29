"""`genlab video`: what trained models do when their latents or their noise move."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from genlab.cli import trained
from genlab.errors import DONE, ConfigError, RunDirectoryError
from genlab.runs.files import refuse_links

if TYPE_CHECKING:
    from genlab.callbacks.videos import VideoCallback
    from genlab.media.pictures import Pixels
    from genlab.report import Record

#: Different frames of a diffusion model's walk, unless --seconds and --fps ask for fewer.
_SAMPLED = 60


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    parser = commands.add_parser(
        "video",
        help="film trained models, several of them side by side",
        description="Film what trained models do: validation images that turn into one another, "
        "single latents, a walk through the prior, the way out of noise, the samples of each "
        "validation. Several runs make one video, with the same images and the same noise at every "
        "moment and the knob's value above each. MP4 needs genlab[video]; WebP is made anyway.",
        epilog="example: genlab video runs/vae-kl_weight --kind interpolation,prior_walk",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a sweep's"
    )
    parser.add_argument(
        "--kind",
        metavar="KIND,...",
        help="interpolation, traversal, prior_walk, trajectory, training; by default all that a "
        "model has, but no walk of a diffusion model, which takes minutes",
    )
    parser.add_argument("--n", type=int, help="panels of a run; 9 by default, 3 of a trajectory")
    parser.add_argument("--seconds", type=float, default=6.0, help="length (%(default)s)")
    parser.add_argument("--fps", type=float, default=20.0, help="frames a second (%(default)s)")
    trained.add_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the files go, instead of videos/ in the run, or of several beside them",
    )
    parser.set_defaults(run=_video)


def _video(options: argparse.Namespace) -> int:
    from genlab.callbacks.videos import KINDS
    from genlab.checks import whole
    from genlab.media import videos

    if options.n is not None:
        whole("--n", options.n, 1)
    kinds = list(KINDS) if options.kind is None else options.kind.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"--kind {kind}: give one of {', '.join(KINDS)}, or several")
    chosen = _chosen(options.runs)
    callbacks = [{k: _callback(k, r.path / "videos", options) for k in kinds} for _, r in chosen]

    console = Console(soft_wrap=True, highlight=False)
    films: dict[str, dict[str, Pixels]] = {}
    for (label, record), of_run in zip(chosen, callbacks, strict=True):
        with console.status(f"{label or record.run_id} ..."):
            made = _film(record.path, of_run, options)
        for kind, film in made.items():
            films.setdefault(kind, {})[label] = film
        said = ", ".join(name.replace("_", " ") for name in made) or "nothing to film"
        console.print(f"{label or record.run_id}: {said}", markup=False)
    for kind, by_label in films.items():
        if options.out is not None:
            stem = options.out / kind
        elif len(chosen) == 1:
            stem = chosen[0][1].path / "videos" / f"{kind}-final"
        else:
            sweep = chosen[0][1].path.parent
            refuse_links(sweep, ("videos",))
            stem = sweep / "videos" / kind
        film = next(iter(by_label.values()))
        if len(chosen) > 1:
            film = videos.beside(list(by_label.values()), list(by_label))
        title = ": ".join(filter(None, [kind.replace("_", " "), ", ".join(by_label)]))
        try:
            written = videos.save(stem, film, options.fps, title)
        except OSError as error:
            raise RunDirectoryError(
                f"{stem.parent} cannot be written ({error.strerror}): give --out a folder that can"
            ) from error
        for path in written:
            console.print(f"  {path}", markup=False)
    return DONE


def _chosen(paths: Sequence[Path]) -> list[tuple[str, Record]]:
    """The runs with their labels; the label of the only one is empty.

    Raises:
        RunDirectoryError: nothing to film there.
    """
    from genlab.report import collect
    from genlab.report.collect import swept_keys
    from genlab.report.naming import run_label
    from genlab.report.videos import compared
    from genlab.runs.directory import Run

    if len(paths) == 1 and Run(paths[0]).config_text is None:
        chosen = compared(collect(paths[0]))
        if not chosen:
            raise RunDirectoryError(
                f"{paths[0]} is no run directory and holds no completed runs: train some first"
            )
        return chosen
    records = [record for path in paths for record in collect([path])]
    if len(records) == 1:
        return [("", records[0])]
    swept = swept_keys(records)
    labels = [run_label(record, swept) for record in records]
    if len(set(labels)) < len(labels):
        labels = [f"{record.path.parent.name}/{record.run_id}" for record in records]
    return list(zip(labels, records, strict=True))


def _callback(kind: str, folder: Path, options: argparse.Namespace) -> VideoCallback:
    """What films this kind during training, with what was asked for here."""
    from genlab.callbacks.videos import KINDS, PriorWalkVideo

    given: dict[str, Any] = {"images": options.n} if options.n is not None else {}
    if kind == "trajectory":
        given.setdefault("images", 3)
    if KINDS[kind] is PriorWalkVideo and options.kind is not None:
        given["sampled_frames"] = _SAMPLED
    try:
        return KINDS[kind](
            folder, **given, seconds=options.seconds, fps=options.fps, seed=options.seed
        )
    except ConfigError as error:
        # said of the option that the person has typed, not of the key that it stands for
        raise ConfigError(str(error).replace(f"callbacks.video_{kind}.", "--")) from error


def _film(
    run: Path, callbacks: dict[str, VideoCallback], options: argparse.Namespace
) -> dict[str, Pixels]:
    import torch

    from genlab.callbacks.pictures import encoded
    from genlab.training import weights as checkpoints

    module, data = checkpoints.load(run, options.checkpoint)
    module.to("cuda" if torch.cuda.is_available() else "cpu")

    def inputs(count: int) -> torch.Tensor:
        data.prepare_data()
        data.setup("fit")
        return encoded(module, data.pixels("val")[:count])

    made = {kind: callback.film(module, inputs) for kind, callback in callbacks.items()}
    missing = [kind for kind, film in made.items() if film is None]
    if missing and options.kind is not None:
        raise ConfigError(
            f"--kind {missing[0]}: {run} has none, being a {type(module).__name__}"
            f"{' without the frames of two validations' if missing[0] == 'training' else ''}; "
            "leave it out"
        )
    return {kind: film for kind, film in made.items() if film is not None}
