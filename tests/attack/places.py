"""Links, FIFOs, devices and folders in the place of files, and files that nobody expects."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from attack.changes import MUTATIONS, Mutation, Place, mutation
from attack.sandbox import MARK

FILES = (
    *(
        "config.yaml",
        "spec.json",
        "status.json",
        "metrics.jsonl",
        "result.json",
        "bound.json",
        "env.json",
    ),
    *("train.log", "tracker_id", ".lock", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    *("checkpoints/last.before.ckpt", "pictures/reconstructions-final.png"),
    *("videos/interpolation-final.mp4", "videos/interpolation-final.webp"),
)
FOLDERS = ("checkpoints", "pictures", "videos", "samples", "wandb")


def _remove(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def something_else(place: Place, path: Path, chance: random.Random) -> None:
    """Put something that is no regular file in the place of a file."""
    _remove(path)
    match chance.randrange(9):
        case 0 | 1:
            path.symlink_to(place.private / "notes.txt")
        case 2:
            path.symlink_to(place.private)
        case 3 | 4:
            os.mkfifo(path)
        case 5:
            path.symlink_to(chance.choice(["/dev/zero", "/dev/urandom", "/dev/tty", "/dev/stdin"]))
        case 6:
            path.mkdir()
        case 7:
            path.symlink_to(path.name)  # to itself
        case _:
            path.symlink_to("/proc/self/environ")


def _in_place_of(name: str) -> None:
    def change(place: Place, chance: random.Random) -> None:
        something_else(place, place.run / name, chance)

    MUTATIONS[f"no_file_{name}"] = Mutation("places", change, may_refuse=True, is_last=True)


for _name in FILES:
    _in_place_of(_name)


@mutation("places", may_refuse=True)
def a_fifo_in_place_of_any_file(place: Place, chance: random.Random) -> None:
    path = place.run / chance.choice(FILES)
    _remove(path)
    os.mkfifo(path)


@mutation("places", may_refuse=True)
def a_device_in_place_of_any_file(place: Place, chance: random.Random) -> None:
    path = place.run / chance.choice(FILES)
    _remove(path)
    try:
        os.mknod(path, 0o20666, os.makedev(1, chance.choice([5, 9])))
    except PermissionError:
        path.symlink_to("/dev/zero")


@mutation("places", may_refuse=True)
def a_folder_that_is_a_link(place: Place, chance: random.Random) -> None:
    path = place.run / chance.choice(FOLDERS)
    _remove(path)
    target = chance.choice(
        [place.private, place.private / "folder", Path(".."), Path("/proc/self")]
    )
    path.symlink_to(target)


@mutation("places", may_refuse=True)
def a_folder_that_is_a_file(place: Place, chance: random.Random) -> None:
    path = place.run / chance.choice(FOLDERS)
    _remove(path)
    path.write_bytes(b"x") if chance.random() < 0.5 else os.mkfifo(path)


@mutation("sweep", may_refuse=True)
def a_run_that_is_a_link(place: Place, chance: random.Random) -> None:
    moved = place.private / place.run.name
    shutil.copytree(place.run, moved)
    shutil.rmtree(place.run)
    place.run.symlink_to(moved)


@mutation("places", may_refuse=True)
def a_run_that_is_no_directory(place: Place, chance: random.Random) -> None:
    shutil.rmtree(place.run)
    place.run.write_bytes(b"x") if chance.random() < 0.5 else os.mkfifo(place.run)


@mutation("places", may_refuse=True)
def files_for_whoever_works_here(place: Place, chance: random.Random) -> None:
    """Configuration and modules that libraries take from the working directory."""
    for folder in (place.run, place.run.parent):
        (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: module://planted\n")
        for name in ("sitecustomize", "planted", "av", "yaml", "genlab", "tomli", "brotli", "conf"):
            (folder / f"{name}.py").write_text(f"import os; os.system('{MARK}')")
        (folder / "pyproject.toml").write_text("[tool.x]\n")
        (folder / ".env").write_text(f"WANDB_BASE_URL=http://192.0.2.1\nX={MARK}\n")
        (folder / "wandb").mkdir(exist_ok=True)
        (folder / "wandb" / "settings").write_text("[default]\nbase_url = http://192.0.2.1\n")


@mutation("places", may_refuse=True)
def folders_without_end(place: Place, chance: random.Random) -> None:
    deep = place.run
    for _ in range(chance.choice([100, 900])):
        deep = deep / "d"
        if len(str(deep)) > 3500:
            break
        deep.mkdir()
