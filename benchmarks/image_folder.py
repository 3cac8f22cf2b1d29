"""Time the start of `data=folder` on many PNGs, beside a per-item DataLoader with Pillow.

    python benchmarks/image_folder.py --images 100000

Each measurement is a process of its own, with the page cache warm: the first start decodes all
images into a cache, with as many workers as there are cores; the second start reads the cache; then
one epoch of batches is read. The other side decodes each image when it is asked for, in a
`torch.utils.data.DataLoader` with as many workers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

HERE = Path(__file__).parent
SIZE, BATCH, CLASSES = 32, 128, 10


def write_images(root: Path, images: int) -> None:
    """Write PNGs of 32 x 32 pixels in colour, in classes, of smooth random content."""
    random = np.random.default_rng(0)
    for split, number in (("train", images), ("test", 100)):
        for name in range(CLASSES):
            (root / split / f"class{name}").mkdir(parents=True)
        for i in range(number):
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image.save(root / split / f"class{i % CLASSES}" / f"{i:06d}.png", compress_level=1)


class Items(Dataset[tuple[Tensor, int]]):
    """Images of a folder, each of which is decoded when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted((root / "train").glob("*/*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path = self.paths[i]
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), int(path.parent.name[-1])


def of_genlab(root: Path, data_dir: Path) -> Iterator[None]:
    """Set up the data of a run, then read an epoch of batches."""
    from genlab.config.build import build
    from genlab.config.check import check, resolve
    from genlab.config.compose import compose

    overrides = [
        *("data=folder", f"data.source.root={root}", f"data.source.image_size={SIZE}"),
        *(f"data.data_dir={data_dir}", "data.val_images=100", f"data.batch_size={BATCH}"),
    ]
    config = resolve(compose(overrides))
    data: Any = build(check(config["data"], "data"), "data")
    yield  # all is imported
    data.prepare_data()
    data.setup("fit")
    yield
    for _ in data.train_dataloader():
        pass
    yield


def of_loader(root: Path, data_dir: Path) -> Iterator[None]:
    """Make the loader, then read an epoch of batches."""
    yield
    loader = DataLoader(
        Items(root), BATCH, shuffle=True, num_workers=os.cpu_count() or 1, drop_last=True
    )
    yield
    for _ in loader:
        pass
    yield


def measure(kind: str, root: Path, data_dir: Path) -> dict[str, float]:
    """Return seconds of start and epoch, and the peak memory in MiB of this process and a worker.

    The memory of a worker is that of the largest; pages of a memory map count where they are read.
    """
    steps = {"genlab": of_genlab, "loader": of_loader}[kind](root, data_dir)
    next(steps)
    began = time.perf_counter()
    next(steps)
    ready = time.perf_counter()
    next(steps)
    ended = time.perf_counter()
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    cpu = sum(
        r.ru_utime + r.ru_stime
        for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    start, epoch = ready - began, ended - ready
    return {"start": start, "epoch": epoch, "memory": own, "worker": children, "cpu": cpu}


def row(name: str, kind: str, root: Path, data_dir: Path) -> str:
    """Measure in a process of its own, and return a row of the table."""
    command = [sys.executable, __file__, "--measure", kind, str(root), str(data_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return (
        f"| {name} | {found['start']:.1f} | {found['epoch']:.1f} | {found['cpu']:.1f} | "
        f"{found['memory']:.0f} | {found['worker']:.0f} |"
    )


def main() -> None:
    """Write the table of three measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "image_folder.md")
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "ROOT", "CACHE"))
    options = parser.parse_args()
    if options.measure:
        kind, root, data_dir = options.measure
        print(json.dumps(measure(kind, Path(root), Path(data_dir))))
        return
    with tempfile.TemporaryDirectory() as folder:
        root, data_dir = Path(folder) / "images", Path(folder) / "cache"
        write_images(root, options.images)
        rows = [
            row("`data=folder`, first start", "genlab", root, data_dir),
            row("`data=folder`, second start", "genlab", root, data_dir),
            row("DataLoader with Pillow, each epoch", "loader", root, data_dir),
        ]
    table = [
        f"# {options.images:,} PNGs of {SIZE} x {SIZE} pixels in colour",
        f"`python benchmarks/image_folder.py --images {options.images}`, on {os.cpu_count()} "
        "cores: seconds of wall time of the start and of one epoch; CPU seconds of the process and "
        "its workers, and the largest resident memory in MiB of the process and of its largest "
        "worker, both with the imports (of torch, and for genlab of Hydra and Lightning), which "
        "are not in the wall time.",
        "\n".join(
            [
                "| | start | epoch | CPU seconds | memory | of a worker |",
                "|---|---|---|---|---|---|",
                *rows,
            ]
        ),
    ]
    options.out.write_text("\n\n".join(table) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
