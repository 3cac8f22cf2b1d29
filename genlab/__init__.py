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
    from genlab.training.load import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # imported at the first use, so that importing the package does not import torch
    if name == "load":
        return import_module("genlab.training.load").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
