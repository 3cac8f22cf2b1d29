"""A tree of image files, decoded once into a memory-mapped cache."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from genlab.data.base import Fingerprint, SourceSplit, share_of_test, test_part
from genlab.data.cache import (
    CachedSource,
    CacheWriter,
    ImageCache,
    cache_key,
    default_cache_dir,
    fingerprint,
)
from genlab.data.decoding import RULES, Decoder, Fit, height_and_width
from genlab.data.filling import Encoded, Filler, Part, Unreadable
from genlab.data.tree import (
    Files,
    ImageFile,
    Layout,
    describe_left_out,
    find_images,
    read_layout,
)
from genlab.errors import DataError
from genlab.protocols import ImageSpec


class ImageFolder(CachedSource):
    """Image files in `root/{train,val,test}/<class>/`, `root/<class>/`, or without class folders.

    The splits may be named in any case; `valid` and `validation` are `val`. Without a folder of
    test images a fixed part of the others becomes the test set. Files and folders that systems
    leave behind (`.DS_Store`, `__MACOSX`, ...) are not looked at.

    The images are decoded once into a cache. The key of the cache is a digest of this
    configuration, of the rules of decoding, and of the list of files with their sizes and
    modification times.

    Args:
        root: the tree; folders below a class folder belong to that class.
        image_size: height and width in pixels of the images that the model gets, or one number.
        channels: 1 for grey, 3 for colour.
        fit: "crop" resizes the shorter side and cuts out the centre, "stretch" resizes both sides,
            "exact" refuses any other size.
        background: the colour that is seen through transparent pixels.
        unreadable: whether to "refuse" or to "skip" (and count) images that cannot be decoded.
        test_fraction: the share of test images if there is no `test` folder; in (0, 1).
        cache_dir: None for `$XDG_CACHE_HOME/genlab`, or `~/.cache/genlab` if that is not set.
    """

    name = "folder"

    def __init__(
        self,
        root: str,
        image_size: int | list[int],
        channels: int = 3,
        fit: Fit = "crop",
        background: str = "white",
        unreadable: Unreadable = "refuse",
        test_fraction: float = 0.1,
        cache_dir: str | None = None,
    ) -> None:
        self._decoder = Decoder(*height_and_width(image_size), channels, fit, background)
        self._filler = Filler(self._decoder, unreadable)
        self.root = Path(root).expanduser()
        self._test_fraction = share_of_test(test_fraction)
        self.cache_dir = default_cache_dir(cache_dir)

    @property
    def spec(self) -> ImageSpec:
        """Spec whose `classes` are the names of the folders; empty if `root` does not exist."""
        classes = self._layout.classes if self.root.is_dir() else ()
        return self._decoder.spec(classes)

    def fingerprint(self, data_dir: Path) -> Fingerprint:
        splits = self._files.images
        files = (
            (f"{split} {label} {path.relative_to(self.root)}", path)
            for split in sorted(splits)
            for path, label in splits[split]
        )
        return fingerprint({split: len(files) for split, files in splits.items()}, files)

    def _notes(self) -> list[str]:
        notes = super()._notes()
        left_out = describe_left_out(self._layout, self._files.left_out)
        return [left_out, *notes] if left_out else notes

    @cached_property
    def _layout(self) -> Layout:
        if not self.root.is_dir():
            raise DataError(f"data.source.root={self.root}: there is no such folder")
        return read_layout(self.root)

    @cached_property
    def _files(self) -> Files:
        return self._scan()

    @cached_property
    def _cache(self) -> ImageCache:
        images = self._files.images
        cache = ImageCache(self.cache_dir / "folder", self._key(images), self.spec.shape)
        cache.make(self._fill)
        return cache

    def _scan(self) -> Files:
        images, left_out = find_images(self._layout)
        if "test" not in images:
            held_out = test_part(len(images["train"]), self._test_fraction)
            pairs = list(zip(images["train"], held_out, strict=True))
            images["test"] = [file for file, is_test in pairs if is_test]
            images["train"] = [file for file, is_test in pairs if not is_test]
        return Files(images, left_out)

    def _key(self, splits: dict[SourceSplit, list[ImageFile]]) -> str:
        settings = [RULES, str(self.root.resolve()), asdict(self._decoder), self._filler.unreadable]
        files = ((split, file) for split in sorted(splits) for file in splits[split])
        return cache_key(settings, ((f"{split} {file.label}", file.path) for split, file in files))

    def _fill(self, writer: CacheWriter) -> None:
        images = self._files.images
        parts = {
            split: Part(len(files), (Encoded(str(path), path, label) for path, label in files))
            for split, files in images.items()
        }
        self._filler(writer, str(self.root), self._layout.classes, parts)
