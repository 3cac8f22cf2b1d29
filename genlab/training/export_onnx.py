"""Export the networks that a model names (`CanExport`) to ONNX."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from genlab.protocols import CanExport, NetworkExport
from genlab.runs.files import write_atomically
from genlab.training.export_parts import Part, Trained


def write(trained: Trained, folder: Path) -> Part:
    """Write NAME.onnx for each network that the model can export, for batches of any size.

    Raises:
        ValueError: the model has none, or torch cannot export one.
        ImportError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        importlib.import_module(package)
    model = trained.model
    networks = model.exports() if isinstance(model, CanExport) else {}
    if not networks:
        raise ValueError(f"a {type(model).__name__} names no network that can be exported")
    for name, network in networks.items():
        write_atomically(folder / f"{name}.onnx", _exported(name, network))
    name, first = next(iter(networks.items()))
    inputs = ", ".join(f'"{key}": {key}' for key in first.inputs)
    code = (
        "import onnxruntime\n\n"
        f'{name} = onnxruntime.InferenceSession("path/to/this/folder/{name}.onnx")\n'
        f"{', '.join(first.outputs)}{',' if len(first.outputs) == 1 else ''} = "
        f"{name}.run(None, {{{inputs}}})  # arrays of float32"
    )
    notes = [f"`{key}.onnx` {n.meaning} {n.notes}".strip() for key, n in networks.items()]
    return Part("With ONNX", code, notes)


def _exported(name: str, network: NetworkExport) -> bytes:
    """Return the content of an ONNX file.

    Raises:
        ValueError: torch cannot export the network.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                network.module.eval(),
                tuple(network.inputs.values()),
                input_names=list(network.inputs),
                output_names=list(network.outputs),
                dynamic_shapes=tuple({0: batch} for _ in network.inputs),
                dynamo=True,
                verbose=False,
            )
    except RuntimeError as error:  # the base of all that the exporter raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"torch cannot export its {name} ({reason[:160]})") from error
    # torch writes where each node is from, in files of this machine
    ClearMetadataAndDocStringPass()(program.model)
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the exporter's warnings, of packages that are not needed and of its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
