"""Training of generative image models whose settings can be compared with one another."""

import os
import sys

# `python -m genlab` would import what lies in the working directory, which may be a stranger's.
# The few modules with which Python itself starts `-m` are kept from it by `python -P -m` alone.
if sys.argv[:1] == ["-m"] and not __file__.startswith(f"{sys.path[0]}{os.sep}"):
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genlab.report.comparison import compare as compare
    from genlab.training.load import load as load
    from genlab.training.notebook import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "load", "train"]

#: The modules of the functions, imported at the first use: importing genlab does not import torch.
_MODULES = {
    "compare": "genlab.report.comparison",
    "load": "genlab.training.load",
    "train": "genlab.training.notebook",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
