"""Export the U-Net of a diffusion model in the layout of diffusers, with its noise schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlab.diffusion.diffusers_scheduler import log_snrs, scheduler
from genlab.diffusion.model import DDPM
from genlab.nets.diffusers_layout import indexed, unet2d
from genlab.protocols import ImageSpec
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
    model = trained.model
    if not isinstance(model, DDPM):
        raise ValueError(f"a {type(model).__name__} has no U-Net of diffusion")
    net = unet2d(model.net, trained.spec)
    if model.process.is_discrete:
        net = indexed(net, log_snrs(model))
    net.save_config(folder / "unet")
    weights.write_exported(folder / "unet" / "diffusion_pytorch_model.safetensors", net)
    notes = _notes(model, trained.spec)
    try:
        steps = scheduler(model)
    except ValueError as error:
        return Part("With diffusers", _UNET, [*notes, f"There is no `scheduler/`: {error}."])
    steps.save_pretrained(folder / "scheduler")
    if model.conditional or any(trained.model.net.padding):
        return Part("With diffusers", _UNET + _SCHEDULER, notes)
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    DDPMPipeline(net, steps).save_config(folder)
    return Part("With diffusers", _PIPELINE.format(steps=model.process.steps), notes)


def output_note(name: str, model: DDPM, spec: ImageSpec) -> str:
    """Say what goes into the network of a model and what comes out of it."""
    kind = type(model.parameterization).__name__
    output = {"Epsilon": "the noise", "X0": "x", "V": "v = alpha noise - sigma x"}.get(
        kind, f"what {kind} says"
    )
    if model.reverse_variance.is_learned:
        output += f" in the first {spec.channels} channels, and the fraction of the variance"
    return (
        f"`{name}` predicts {output} from images x_t = alpha x + sigma noise, where x is in "
        "[-1, 1] and alpha² + sigma² = 1."
    )


def _notes(model: DDPM, spec: ImageSpec) -> list[str]:
    notes = [output_note("unet/", model, spec)]
    if (steps := model.process.steps) is not None:
        notes.append(
            f"Its timestep i, from 0 to {steps - 1}, is the time t = (i + 1) / {steps} of the "
            "noise schedule."
        )
    else:
        notes.append(
            "Its timestep is 25 (20 - s), a float, for the log-SNR s = ln(alpha² / sigma²) between "
            "-20 and 20."
        )
    if model.conditional:
        notes.append(f"`class_labels` are numbers of classes, and {len(spec.classes)} for none.")
    padding: Any = model.net.padding
    if any(padding):
        left, right, top, bottom = padding
        notes.append(
            f"Pad x_t with zeros, {left} pixels on the left, {right} on the right, {top} above and "
            f"{bottom} below, and crop the output likewise: the network halves its sides."
        )
    return notes
