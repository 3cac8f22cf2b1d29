"""Values that the formats of an export share: the model, and what its card says of a format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genlab.config.check import Config
from genlab.protocols import ImageSpec


@dataclass(frozen=True)
class Trained:
    """A trained model and where it is from.

    Attributes:
        run: the run directory, or an export of one.
        checkpoint: the file of the weights.
        model: for evaluation.
        config: of the model, checked.
        spec: shape and kind of its images.
        packages: those besides genlab that the config names classes of.
        ema: relative width of the average that replaces the weights of the checkpoint, if any.
    """

    run: Path
    checkpoint: Path
    model: Any
    config: Config
    spec: ImageSpec
    packages: tuple[str, ...] = ()
    ema: float | None = None


@dataclass(frozen=True)
class Part:
    """The section of a model card on one format.

    Attributes:
        title: the heading.
        code: lines of Python that load the model.
        notes: sentences in Markdown.
    """

    title: str
    code: str
    notes: list[str] = field(default_factory=list)
