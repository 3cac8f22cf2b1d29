"""TensorBoard: Lightning's logger, which also shows the pictures of a run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from genlab.media.pictures import read_png

if find_spec("tensorboard") is None:
    raise ImportError("the package tensorboard is not installed: pip install genlab[tensorboard]")


class TensorBoardLogger(LightningTensorBoardLogger):
    """Logs one run to event files in its run directory; a resumed run adds a file beside them."""

    @rank_zero_only
    def log_image(self, key: str, path: Path, step: int) -> None:
        """Show the PNG at `path`."""
        self.experiment.add_image(key, read_png(path), step, dataformats="HWC")
