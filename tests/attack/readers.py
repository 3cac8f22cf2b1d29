"""The runs that are mutated, and every way in which genlab reads what it received.

BASE/private/            a file and a folder that nobody may read or change
BASE/received/sweep/     two VAEs and their manifest, report, pictures and videos
BASE/received/ddpm/      a DDPM
BASE/received/resumed/   a VAE that was stopped, and can go on
BASE/out/                where the reader may write
"""

from __future__ import annotations

import csv
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from attack.changes import Place
from interruption import MODELS, SMALL, stop_after
from trained_media import TINY
from trained_runs import train_in

import genlab
from genlab import cli
from genlab.callbacks.videos import KINDS
from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.errors import DONE, REFUSED, GenlabError
from genlab.report import collect, write_sweep
from genlab.runs.manifest import FILE_NAME, Job, Manifest
from genlab.sweeps import job
from genlab.training import run as training
from genlab.training.terminal import print_error

VAE = ["model.net.encoder.hidden=[8]", "model.net.decoder.hidden=[8]", "model.latent_dim=2"]
DDPM = [
    *("model=ddpm", "model.steps=8", "model.sampler.steps=3", "model.net.channels=8"),
    *("model.net.multipliers=[1,2]", "model.net.attention=[]"),
]
FILMED = [
    *("callbacks=default", "callbacks.video_interpolation.stops=2"),
    *(f"callbacks.video_{kind}.{key}" for kind in KINDS for key in ("seconds=0.2", "images=1")),
]
SHORT = [*TINY, "data.batch_size=32", "callbacks=none"]
ONCE = [f"trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]
RESUMED = [*SMALL, *MODELS["vae"], "trainer.max_epochs=2", "group=resumed"]


def make_originals(folder: Path) -> None:
    """Train the runs into `folder/received`, so that their paths are those of the mutants.

    Then move them to `folder/originals`.
    """
    received = folder / "received"
    jobs = []
    for weight in (0, 30):
        chosen = [*TINY, *VAE, f"model.kl_weight={weight}", "data.batch_size=32"]
        run = train_in(received, *chosen, *FILMED, "group=sweep")
        point = {"model.kl_weight": weight}
        config = resolve(compose(chosen))
        jobs.append(Job(run.name, (f"model.kl_weight={weight}",), point, 0, config))
    jobs.append(Job("never-started", (), {"model.kl_weight": 1}, 0, config))
    Manifest("sweep", ("model.kl_weight",), tuple(jobs)).write(received / "sweep")
    write_sweep(collect(received / "sweep"), received / "sweep")
    train_in(received, *TINY, *DDPM, "callbacks=pictures", "group=ddpm")
    assert stop_after(14, signal.SIGTERM, "vae", received, *RESUMED[-2:]) == 143
    received.rename(folder / "originals")


@dataclass(frozen=True)
class Reader:
    """A command that reads a run directory.

    Attributes:
        call: it; returns the exit code.
        families: the originals that it can read.
        writable: the folders in which it may write.
        code: the exit code if nothing was changed.
    """

    call: Callable[[Place], int]
    families: tuple[str, ...] = ("sweep", "ddpm")
    writable: Callable[[Place], list[Path]] = lambda place: [place.out]
    code: int = DONE


def _command(*words: str) -> Callable[[Place], int]:
    def call(place: Place) -> int:
        known = {"RUN": place.run, "SWEEP": place.run.parent, "OUT": place.out / "made"}
        return cli.main([str(known.get(word, word)) for word in words])

    return call


def _load(place: Place) -> int:
    genlab.load(place.run)
    return DONE


def _train(*overrides: str) -> Callable[[Place], int]:
    def call(place: Place) -> int:
        known = {"RUN": place.run, "OUT": place.out, "RUNS": place.base / "received"}
        given = [re.sub("[A-Z]{3,}", lambda m: str(known[m[0]]), o) for o in overrides]
        return training.run(compose(given)).exit_code

    return call


def _job(place: Place) -> int:
    return job.run_job([str(place.run.parent / FILE_NAME), place.run.name])


def _refusing(call: Callable[[Place], int]) -> Callable[[Place], int]:
    """Print genlab's own errors as its commands do."""

    def refusing(place: Place) -> int:
        try:
            return call(place)
        except GenlabError as error:
            print_error(str(error))
            return error.exit_code

    return refusing


_SHORT_VIDEO = ("--seconds", "0.1", "--n", "1", "--out", "OUT")
READERS = {
    "load": Reader(_refusing(_load), writable=lambda place: []),
    "sample": Reader(_command("sample", "RUN", "--n", "2", "--out", "OUT")),
    "export": Reader(_command("export", "RUN", "--out", "OUT")),
    "video": Reader(
        _command("video", "RUN", "data=mnist_mini", "--kind", "interpolation", *_SHORT_VIDEO),
        ("sweep",),
    ),
    "way": Reader(_command("video", "RUN", "--kind", "trajectory", *_SHORT_VIDEO), ("ddpm",)),
    "walk": Reader(_command("video", "RUN", "--kind", "prior_walk", *_SHORT_VIDEO), ("sweep",)),
    "films": Reader(_command("video", "SWEEP", "data=mnist_mini", *_SHORT_VIDEO), ("sweep",)),
    "report": Reader(_command("report", "SWEEP", "--output", "OUT")),
    "report here": Reader(
        _command("report", "SWEEP"), ("sweep",), lambda place: [place.run.parent]
    ),
    "workspace": Reader(
        _command("workspace", "SWEEP", "--dry", "--report"),
        ("sweep",),
        lambda place: [place.run.parent],
    ),
    "init_from": Reader(
        _refusing(_train(*SHORT, *VAE, *ONCE, "runs_dir=OUT", "init_from='RUN'")), ("sweep",)
    ),
    "resume": Reader(
        _refusing(_train(*RESUMED, "runs_dir=RUNS")),
        ("resumed",),
        lambda place: [place.run.parent],
    ),
    "job": Reader(_refusing(_job), ("sweep",), lambda place: [], REFUSED),
}


def flaws(folder: Path) -> Iterator[str]:
    """Find what a report should have escaped for where it is shown."""
    for path in folder.glob("*.csv"):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for cell in (cell for row in csv.reader(file) for cell in row):
                if cell[:1] in ("=", "+", "-", "@", "\t") and not _is_number(cell):
                    yield f"a formula in {path.name}: {cell[:60]!r}"
    for path in folder.glob("*.md"):
        if re.search(r"(?<!\\)<evil", path.read_text("utf-8", "replace")):
            yield f"markup in {path.name}"
    for path in folder.glob("*.html"):
        tags: set[str] = set()
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attrs, tags=tags: tags.update(  # type: ignore[method-assign]
            [tag, *(name for name, _ in attrs)]
        )
        parser.feed(path.read_text("utf-8", "replace"))
        if {"evil", "onerror"} & tags:
            yield f"markup in {path.name}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def unprintable(text: str) -> str:
    """Return the characters that a terminal would obey."""
    return "".join(c for c in text if not c.isprintable() and c != "\n")
