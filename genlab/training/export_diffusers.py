"""Export the U-Net of a diffusion model in the layout of diffusers, with its noise schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from genlab.nets.diffusers_layout import indexed, unet2d
from genlab.protocols import CanExportScheduler
from genlab.training import weights
from genlab.training.export_parts import Part, Trained

_UNET = """\
from diffusers import DDPMScheduler, UNet2DModel

net = UNet2DModel.from_pretrained("path/to/this/folder", subfolder="unet")"""
_SCHEDULER = """
scheduler = DDPMScheduler.from_pretrained("path/to/this/folder", subfolder="scheduler")"""
_PIPELINE = """\
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("path/to/this/folder")
images = pipeline(batch_size=16, num_inference_steps={steps}).images"""


def write(trained: Trained, folder: Path) -> Part:
    """Write `unet/`, and `scheduler/` where a scheduler of diffusers has the noise schedule.

    In discrete time the timestep of the U-Net is the number of the step, from 0 on, which
    schedulers use; in continuous time it is the position of the log-SNR. A pipeline of diffusers
    takes both where it can draw images: without classes, and of sides that need no padding.

    Raises:
        ValueError: diffusers has no such network; the message says what differs.
        ImportError: diffusers is not installed.
    """
    model, spec = trained.model, trained.spec
    if not isinstance(model, CanExportScheduler):
        raise ValueError(f"a {type(model).__name__} has no U-Net of diffusion")
    own = model.exports()["unet"]
    net = unet2d(own.module, spec)
    log_snrs = model.step_log_snrs()
    if log_snrs is not None:
        net = indexed(net, log_snrs)
    net.save_config(folder / "unet")
    weights.write_exported(folder / "unet" / "diffusion_pytorch_model.safetensors", net)
    padding: Any = own.module.padding
    is_conditional = "labels" in own.inputs
    notes = [f"`unet/` {own.meaning}", _of_timestep(log_snrs)]
    if is_conditional:
        notes.append(f"`class_labels` are numbers of classes, and {len(spec.classes)} for none.")
    if any(padding):
        left, right, top, bottom = padding
        notes.append(
            f"Pad x_t with zeros, {left} pixels on the left, {right} on the right, {top} above and "
            f"{bottom} below, and crop the output likewise: the network halves its sides."
        )
    try:
        scheduler = model.scheduler()
    except ValueError as error:
        return Part("With diffusers", _UNET, [*notes, f"There is no `scheduler/`: {error}."])
    scheduler.save_pretrained(folder / "scheduler")
    if is_conditional or any(padding):
        return Part("With diffusers", _UNET + _SCHEDULER, notes)
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    DDPMPipeline(net, scheduler).save_config(folder)
    return Part("With diffusers", _PIPELINE.format(steps=len(scheduler)), notes)


def _of_timestep(log_snrs: Tensor | None) -> str:
    if log_snrs is None:
        return (
            "Its timestep is 25 (20 - s), a float, for the log-SNR s = ln(alpha² / sigma²) between "
            "-20 and 20."
        )
    return (
        f"Its timestep i, from 0 to {len(log_snrs) - 1}, is the time t = (i + 1) / {len(log_snrs)} "
        "of the noise schedule."
    )
