"""The layout of a tree of images: which folders are splits and classes, which files images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from genlab.data.base import SPLIT_NAMES, SourceSplit
from genlab.data.decoding import FORMATS, is_image
from genlab.errors import DataError

# What systems and programs leave beside images; names that begin with a dot are left out as well.
_HOUSEKEEPING = frozenset(
    (
        *("__macosx", "__pycache__", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot"),
        *("$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
    )
)


class ImageFile(NamedTuple):
    """A file and its label."""

    path: Path
    label: int


@dataclass(frozen=True)
class Layout:
    """The folders of a tree, known without looking into the folders of the classes.

    Attributes:
        root: the tree.
        splits: the folder of each split; only that of train, if the tree has no folders of splits.
        classes: names of the folders of the classes, in order; empty if the images lie in the
            folders of the splits themselves.
        beside: names of folders beside those of the splits, which are not read.
    """

    root: Path
    splits: dict[SourceSplit, Path]
    classes: tuple[str, ...]
    beside: tuple[str, ...] = ()


class Files(NamedTuple):
    """The images of each split in order, and what else lies among them, by kind."""

    images: dict[SourceSplit, list[ImageFile]]
    left_out: Counter[str]


def read_layout(root: Path) -> Layout:
    """Find the splits and the classes of a tree.

    Raises:
        DataError: if the folders contradict each other; it names one of them.
    """
    names = _folders(root)
    found: dict[SourceSplit, str] = {}
    for name in names:
        split = SPLIT_NAMES.get(name.lower())
        if split in found:
            raise DataError(
                f"{root} has the folders {found[split]} and {name}, both of the {split} images: "
                "keep one of them"
            )
        if split is not None:
            found[split] = name
    if not found:
        return Layout(root, {"train": root}, names)
    splits = {split: root / name for split, name in found.items()}
    if "train" not in splits:
        named = next(iter(splits.values()))
        raise DataError(
            f"{named} is named like a split, but there is no folder train beside it: rename it if "
            "it is a class, or else put the training images into train"
        )
    train, beside = splits["train"], tuple(name for name in names if name not in found.values())
    classes = _folders(train)
    if beside and not classes:
        raise DataError(
            f"{train} is named like a split, but stands beside {_listed(beside)} and has no class "
            "folders: rename it if it is a class, or else put a folder for each class into it"
        )
    for folder in splits.values():
        own = _folders(folder)
        if classes and not own:
            raise DataError(
                f"{folder} has no class folders, but {train} has {_listed(classes)}: put its "
                "images into folders of the same names, or move it elsewhere"
            )
        if strangers := set(own) - set(classes):
            raise DataError(
                f"{folder / min(strangers)} is a class without a folder in {train}: add or remove "
                "it"
            )
    return Layout(root, splits, classes, beside)


def find_images(layout: Layout) -> Files:
    """List the images of every split, and count what else lies among them.

    Raises:
        DataError: if a class, or a split, has no image.
    """
    images: dict[SourceSplit, list[ImageFile]] = {}
    left_out: Counter[str] = Counter()
    for split, folder in layout.splits.items():
        images[split] = []
        for label, name in enumerate(layout.classes or (".",)):
            others: Counter[str] = Counter()
            found = sorted(_images(folder / name, others))
            images[split] += [ImageFile(path, label) for path in found]
            if not found and split == "train":
                among = f" among {_counted(others)}" if others else ""
                raise DataError(
                    f"{folder / name} has no image{among}: put images "
                    f"({', '.join(FORMATS)}) into it, or remove it"
                )
            left_out += others
        if not images[split]:
            raise DataError(f"{folder} has no image: put the {split} images into it, or remove it")
        if layout.classes:
            left_out += _strays(folder)
    return Files(images, left_out)


def describe_left_out(layout: Layout, left_out: Counter[str]) -> str:
    """Return a sentence on what is not read, empty if all is."""
    parts = [_counted(left_out)] if left_out else []
    parts += [f"{name}/ beside {layout.splits['train'].name}/" for name in layout.beside]
    return f"left out of {layout.root}: {', '.join(parts)}" if parts else ""


def _is_housekeeping(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HOUSEKEEPING


def _folders(folder: Path) -> tuple[str, ...]:
    above = (Path(os.path.realpath(folder)),)
    with _readable(folder) as entries:
        return tuple(
            sorted(
                entry.name
                for entry in entries
                if entry.is_dir()
                and not _is_housekeeping(entry.name)
                and not (entry.is_symlink() and _leads_back(Path(entry.path), above))
            )
        )


def _images(folder: Path, others: Counter[str]) -> Iterator[Path]:
    """Yield the images below a folder, in no order, and count the other files."""
    if not folder.is_dir():
        return
    for path in _files(folder):
        if not path.is_file():
            others["links to nothing"] += 1
        elif is_image(path):
            yield path
        else:
            others[_kind(path)] += 1


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder; links to folders are followed unless they lead back up."""
    above = (*above, Path(os.path.realpath(folder)))
    with _readable(folder) as entries:
        for entry in entries:
            if _is_housekeeping(entry.name):
                continue
            path = Path(entry.path)
            if not entry.is_dir():
                if entry.is_file() or entry.is_symlink():
                    yield path
            elif not (entry.is_symlink() and _leads_back(path, above)):
                yield from _files(path, above)


def _leads_back(link: Path, above: Sequence[Path]) -> bool:
    target = os.path.realpath(link)
    return any(folder.is_relative_to(target) for folder in above)


def _strays(folder: Path) -> Counter[str]:
    """Count the images in the folder of a split that lie beside the folders of its classes."""
    with _readable(folder) as entries:
        paths = [Path(e.path) for e in entries if e.is_file() and not _is_housekeeping(e.name)]
    return Counter(f"{_kind(p)} beside the class folders" for p in paths if is_image(p))


def _kind(path: Path) -> str:
    return path.suffix.lower() or "without a suffix"


def _counted(kinds: Counter[str]) -> str:
    by_count = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {kind}" for kind, count in by_count)


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])


@contextmanager
def _readable(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror}): make it readable, or move it elsewhere"
        ) from error
