"""Export the networks of a model to ONNX: the encoder and the decoder of a VAE, a U-Net."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genlab.diffusion.model import DDPM
from genlab.protocols import CanDecode, CanEncode
from genlab.runs.files import write_atomically
from genlab.training.export_diffusers import output_note
from genlab.training.export_parts import Part, Trained

#: Images of the batch with which a network is traced; a size of 1 would be taken for a constant.
_BATCH = 3


class _Encoder(nn.Module):
    def __init__(self, model: CanEncode) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(x)
        return posterior.mean, posterior.stddev


class _Decoder(nn.Module):
    def __init__(self, model: CanDecode) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model.decode(z).mean


class _Network(NamedTuple):
    """A network to export, with inputs of the right shapes and the names of all."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    note: str


def write(trained: Trained, folder: Path) -> Part:
    """Write `encoder.onnx` and `decoder.onnx`, or `unet.onnx`, for batches of any size.

    Raises:
        ValueError: the model has no such network, or torch cannot export one.
        ImportError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        importlib.import_module(package)
    networks = _networks(trained)
    if not networks:
        family = type(trained.model).__name__
        raise ValueError(f"a {family} has neither encoder and decoder nor a U-Net of diffusion")
    for network in networks:
        write_atomically(folder / f"{network.name}.onnx", _exported(network))
    first = networks[0]
    inputs = ", ".join(f'"{name}": {name}' for name in first.inputs)
    code = (
        "import onnxruntime\n\n"
        f'{first.name} = onnxruntime.InferenceSession("path/to/this/folder/{first.name}.onnx")\n'
        f"{', '.join(first.outputs)}{',' if len(first.outputs) == 1 else ''} = "
        f"{first.name}.run(None, {{{inputs}}})  # arrays of float32"
    )
    return Part("With ONNX", code, [network.note for network in networks])


def _networks(trained: Trained) -> list[_Network]:
    model, spec = trained.model, trained.spec
    x = torch.rand(_BATCH, *spec.shape)
    if isinstance(model, CanEncode) and isinstance(model, CanDecode):
        with torch.no_grad():
            z = model.encode(x).mean
        encoder = (
            "`encoder.onnx` maps images x (B, C, H, W) in [0, 1] to the mean and the standard "
            "deviation of q(z given x), each (B, d)."
        )
        decoder = "`decoder.onnx` maps latents z (B, d) to the mean of p(x given z)."
        return [
            _Network("encoder", _Encoder(model), {"x": x}, ("mean", "stddev"), encoder),
            _Network("decoder", _Decoder(model), {"z": z}, ("image",), decoder),
        ]
    if not isinstance(model, DDPM):
        return []
    inputs = {"x_t": x, "log_snr": torch.linspace(-5, 5, _BATCH)}
    note = output_note("unet.onnx", model, spec) + " `log_snr` is ln(alpha² / sigma²), (B,)."
    if model.conditional:
        inputs["labels"] = torch.arange(_BATCH) % (len(spec.classes) + 1) - 1
        note += " `labels` are numbers of classes, int64, and -1 for none."
    return [_Network("unet", model.net, inputs, ("output",), note)]


def _exported(network: _Network) -> bytes:
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
        raise ValueError(f"torch cannot export its {network.name} ({reason[:160]})") from error
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
