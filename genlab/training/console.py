"""Output of a run on the terminal and in its train.log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from torch import nn

from genlab.config import hydra_job
from genlab.config.check import Config, to_yaml
from genlab.data.datamodule import ImageData, SplitName
from genlab.metrics import names
from genlab.protocols import HasSetting
from genlab.runs.text import printable
from genlab.tensors import parameter_count
from genlab.training.changes import changes
from genlab.training.terminal import escape

log = logging.getLogger(__name__)


def introduce(path: Path, config: Config, data: ImageData, model: nn.Module, resumed: bool) -> None:
    """Print where the run is, what is not the default in it, and its data and model."""
    log.info("resolved config\n%s", to_yaml(config))
    parameters = parameter_count(model)
    spec = data.spec
    levels = "real-valued" if spec.levels is None else f"{spec.levels} levels"
    sizes = ", ".join(f"{data.size(s):,} {s}" for s in get_args(SplitName))
    print(f"run    {path}{' (going on)' if resumed else ''}")
    if changed := changes(config, hydra_job.choices(), hydra_job.overrides()):
        print(_wrapped("set    ", changed))
    print(f"data   {sizes}; {spec.channels} x {spec.height} x {spec.width}, {levels}")
    print(f"model  {type(model).__name__}, {parameters:,} parameters")
    if isinstance(model, HasSetting):
        print(f"setting {model.describe()}")


def _wrapped(title: str, words: Sequence[str]) -> str:
    """Join words to lines of 80 columns, those after the first below its first word."""
    lines = [title]
    for word in map(printable, words):
        if len(lines[-1]) + len(word) > 80 and lines[-1] != " " * len(title):
            lines.append(" " * len(title))
        lines[-1] += f"{word}  "
    return "\n".join(line.rstrip() for line in lines)


def show(result: dict[str, Any], file: Path, split: str = "test") -> None:
    """Print the result of a split in two lines, and the file that holds it."""
    start = f"{split}/"
    metrics = {n: v for n, v in result.get("metrics", {}).items() if isinstance(v, int | float)}
    tested = {n.removeprefix(start): v for n, v in metrics.items() if n.startswith(start)}
    terms = [f"{name} {tested[name]:.2f}" for name in names.shown(tested)]
    terms += [f"{n} {v:.2f}" for n, v in tested.items() if n.startswith("nll_iwae")]
    if result.get("verdict"):
        terms.append(str(result["verdict"]))
    print(printable(f"{split:<6} {'  '.join(terms)}"))
    print(f"result {file}")


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Write log lines of genlab and of Lightning to train.log during a run."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


def quieten_libraries() -> None:
    """Send what Lightning would print at every start to train.log only."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    if not any(isinstance(h, _Terminal) for h in logging.getLogger().handlers):
        logging.getLogger().addHandler(_Terminal())
    for message in (
        ".*does not have many workers.*",  # the data are in memory: workers would slow it down
        ".*your dataloader is not resumable.*",  # its order is a function of the step
        ".*`?isinstance\\(treespec, LeafSpec\\)`? is deprecated.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Found \\d+ module\\(s\\) in eval mode.*",  # frozen networks
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # they are sums already
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing changes it in place
    ):
        warnings.filterwarnings("ignore", message=message)


class _LogFile(logging.FileHandler):
    """Log file that silently drops lines for which the disk has no room."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Handler that prints genlab's own warnings, one line each."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self.addFilter(lambda record: record.name.startswith("genlab") and not record.exc_info)
        self.addFilter(escape)
