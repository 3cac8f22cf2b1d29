"""What a run says: on the terminal, and in its train.log."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.tree import Tree

from genlab.config import configs, hydra_job
from genlab.data.datamodule import ImageData, SplitName
from genlab.modules.base import GenerativeModule
from genlab.training.progress_bar import SHOWN

log = logging.getLogger(__name__)


def introduce(
    path: Path, config: configs.Config, data: ImageData, module: GenerativeModule, resumed: bool
) -> None:
    """The config as a tree, and what is about to be trained on what."""
    shown = {k: v for k, v in config.items() if k not in ("launcher",)}
    tree = Tree("config")
    _grow(tree, shown)
    log.info("resolved config\n%s", configs.to_yaml(config))
    if hydra_job.is_first():
        Console(soft_wrap=True, highlight=False).print(tree)
    parameters = sum(p.numel() for p in module.parameters())
    spec = data.spec
    levels = "real-valued" if spec.levels is None else f"{spec.levels} levels"
    sizes = ", ".join(f"{data.size(s):,} {s}" for s in get_args(SplitName))
    print(f"\nrun    {path}{' (going on)' if resumed else ''}")
    print(f"data   {sizes}; {spec.channels} x {spec.height} x {spec.width}, {levels}")
    print(f"model  {type(module).__name__}, {parameters:,} parameters")
    if module.meaning():
        print(f"knob   {module.meaning()}")


def _grow(tree: Tree, node: dict[str, Any]) -> None:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            _grow(tree.add(key), value)
        else:
            tree.add(f"{key}: {json.dumps(value)}".replace("[", r"\["))


def show(result: dict[str, Any], path: Path) -> None:
    """What came of it, in two lines."""
    metrics = result.get("metrics", {})
    terms = [f"{n} {metrics[f'test/{n}']:.2f}" for n in SHOWN if f"test/{n}" in metrics]
    terms += [f"{n[5:]} {v:.2f}" for n, v in metrics.items() if n.startswith("test/nll_iwae")]
    if result.get("verdict"):
        terms.append(str(result["verdict"]))
    print(f"test   {'  '.join(terms)}")
    print(f"result {path / 'result.json'}")


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Log lines of genlab and of Lightning to train.log while a run lasts."""
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
    """What Lightning would print at every start goes to train.log alone."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    if not any(isinstance(h, _Terminal) for h in logging.getLogger().handlers):
        logging.getLogger().addHandler(_Terminal())
    for message in (
        ".*does not have many workers.*",  # the data are in memory: workers would only slow it down
        ".*your dataloader is not resumable.*",  # its order is a function of the step
        ".*`?isinstance\\(treespec, LeafSpec\\)`? is deprecated.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # they are sums over all already
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing changes it in place
    ):
        warnings.filterwarnings("ignore", message=message)


class _LogFile(logging.FileHandler):
    """A line that finds no room on the disk is dropped without a word."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Warnings of genlab's own, one line each."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self.addFilter(lambda record: record.name.startswith("genlab") and not record.exc_info)
