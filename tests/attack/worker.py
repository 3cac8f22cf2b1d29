"""Make mutants of run directories, have each read inside the sandbox, and judge what happened."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from attack import (  # noqa: F401  (each adds its mutations)
    checkpoints,
    configs,
    pictures,
    places,
    records,
    sweeps,
)
from attack.changes import MUTATIONS, Place
from attack.readers import READERS, flaws, unprintable
from attack.sandbox import Sandbox

from genlab.errors import DONE, REFUSED, TRAINING_FAILED

#: The share of each part among the mutants, and how often it is given to each reader.
PARTS: dict[str, tuple[float, dict[str, float]]] = {
    "config": (
        0.47,
        {"load": 35, "sample": 25, "export": 5, "video": 10, "walk": 8, "way": 4, "workspace": 10}
        | {"report": 2, "films": 1},
    ),
    "checkpoint": (
        0.33,
        {"load": 50, "sample": 22, "export": 5, "walk": 7, "init_from": 8, "resume": 8},
    ),
    "records": (0.08, {"workspace": 60, "export": 10, "report": 12, "resume": 12, "films": 6}),
    "media": (0.02, {"report": 90, "report here": 10}),
    "places": (
        0.07,
        {
            "load": 20,
            "sample": 25,
            "export": 5,
            "walk": 15,
            "report": 8,
            "report here": 3,
            "workspace": 15,
        }
        | {"init_from": 3, "resume": 6},
    ),
    "sweep": (0.03, {"report": 12, "report here": 15, "workspace": 50, "films": 5, "job": 18}),
}
#: Bytes that a reader may take beyond what the process has at its start.
MEMORY = 4 << 30


class Mutant(NamedTuple):
    """A copy of a run with changes, and who reads it; its name says how to make it again."""

    name: str
    family: str
    reader: str
    mutations: tuple[str, ...]


def families(part: str, reader: str) -> list[str]:
    """Return the runs of which a reader is given mutants of this part."""
    return [name for name in READERS[reader].families if part != "sweep" or name == "sweep"]


def random_mutant(seed: int) -> Mutant:
    chance = random.Random(seed)
    part = chance.choices([*PARTS], [share for share, _ in PARTS.values()])[0]
    readers = PARTS[part][1]
    reader = chance.choices([*readers], [*readers.values()])[0]
    fitting = [name for name, mutation in MUTATIONS.items() if mutation.part == part]
    chosen = [chance.choice(fitting) for _ in range(chance.choice([1, 1, 2, 3]))]
    mutations = tuple(sorted(chosen, key=lambda name: MUTATIONS[name].is_last))
    return Mutant(str(seed), chance.choice(families(part, reader)), reader, mutations)


def known_mutants(most: int) -> Iterator[Mutant]:
    """Each mutation alone, read by so many of the readers of its part."""
    for number, (name, mutation) in enumerate(MUTATIONS.items()):
        pairs = [(r, f) for r in PARTS[mutation.part][1] for f in families(mutation.part, r)]
        start = number % len(pairs)
        pairs = [*pairs[start:], *pairs[:start]]
        pairs.sort(key=lambda pair: pair[0] != mutation.reader)
        for reader, family in pairs[:most]:
            yield Mutant(f"{name}:{reader}:{family}", family, reader, (name,))


def mutant_of(name: str) -> Mutant:
    """Return the mutant of this name: a seed, or MUTATION:READER:FAMILY."""
    if name.isdecimal():
        return random_mutant(int(name))
    mutation, reader, family = name.split(":")
    return Mutant(name, family, reader, (mutation,))


class Hang(BaseException):
    """A reader does not come to an end."""


class Worker:
    """Reads mutants one after the other in this process.

    Args:
        base: the folder in which `originals` are, and all else is made.
        seconds: after which a reader counts as hanging.
    """

    def __init__(self, base: Path, seconds: float) -> None:
        self.base, self.seconds = base, seconds
        self.private = base / "private"
        self.sandbox = Sandbox(base / "received", self.private)
        self.printed = (base / "printed").open("w+b")
        for descriptor in (1, 2):
            os.dup2(self.printed.fileno(), descriptor)
        for name, reader in READERS.items():
            for family in reader.families:
                healthy = Mutant(f"healthy:{name}:{family}", family, name, ())
                if found := self.read(healthy, learns=True):
                    raise AssertionError(f"{healthy.name}: {found}, {self.printed.read()!r}")
        status = Path("/proc/self/status").read_text()
        size = int(status.partition("VmSize:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))

    def make(self, mutant: Mutant) -> Place:
        """Make the mutant, beside new folders, and go into its sweep's directory."""
        os.chdir(self.base)
        for name in ("received", "private", "out", "tmp", "planted"):
            shutil.rmtree(self.base / name, ignore_errors=True)
        for name in ("out", "tmp", "private/folder"):
            (self.base / name).mkdir(parents=True)
        (self.private / "notes.txt").write_text("PRIVATE")
        (self.private / "folder" / "a-final.png").write_text("PRIVATE")
        sweep = self.base / "received" / mutant.family
        shutil.copytree(self.base / "originals" / mutant.family, sweep)
        place = Place(self.base, max(path.parent for path in sweep.glob("*/config.yaml")))
        chance = random.Random(mutant.name)
        for i, name in enumerate(mutant.mutations):
            # an earlier mutation may have left nothing that a later one could change
            with suppress(Exception) if i else nullcontext():
                MUTATIONS[name].change(place, chance)
        os.chdir(sweep)
        return place

    def read(self, mutant: Mutant, learns: bool = False) -> list[str]:
        """Return what was wrong when the mutant was read."""
        place, reader = self.make(mutant), READERS[mutant.reader]
        before = _contents(self.private)
        self.printed.truncate(0)
        self.printed.seek(0)
        failure, code = "", TRAINING_FAILED
        with self.sandbox.watching([self.base / "tmp", *reader.writable(place)], learns) as seen:
            try:
                with _alarm_after(self.seconds):
                    code = reader.call(place)
            except Hang:
                failure = f"a hang: it does not end within {self.seconds:g} s"
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else TRAINING_FAILED
            except BaseException as error:
                failure = f"a foreign error: {_summary(error)}"
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        text = (self.base / "printed").read_bytes().decode("utf-8", "replace")
        found = list(dict.fromkeys(seen))
        if _contents(self.private) != before or (self.base / "planted").exists():
            found.append("files outside were changed")
        found += [failure] if failure else _judge(mutant, code, text)
        if characters := unprintable(text):
            found.append(f"the terminal got {sorted(set(characters))}")
        made = place.out / "made"
        if mutant.reader in ("report", "report here", "export") and code == DONE:
            found += flaws(place.run.parent if mutant.reader == "report here" else made)
        return found


def _judge(mutant: Mutant, code: int, text: str) -> Iterator[str]:
    last = next(reversed(text.strip().splitlines()), "")[:200]
    if "Traceback (most recent call last)" in text:
        yield f"a traceback: {last}"
    if code not in (DONE, TRAINING_FAILED, REFUSED):
        yield f"exit code {code}"
    if code != DONE and not last.startswith("error: "):
        yield f"exit code {code} without a sentence: {last}"
    if code != READERS[mutant.reader].code and not mutant.mutations:
        yield f"exit code {code} although nothing was changed: {last}"
    may_refuse = any(MUTATIONS[name].may_refuse for name in mutant.mutations)
    if mutant.reader.startswith("report") and code != DONE and not may_refuse:
        yield f"a run ends the whole report: {last}"


@contextmanager
def _alarm_after(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again, should it be suppressed somewhere
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _summary(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/genlab/" in f.filename]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))
    return f"{type(error).__name__}: {str(error)[:150]!r} at {where}"


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }
