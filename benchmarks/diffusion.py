"""Measure the speed of the DDPM, in CPU time per image, against its limits and peers.

    python benchmarks/diffusion.py                                  genlab and its limits
    python benchmarks/diffusion.py --peers DIR --peers-python PY    also diffusers and lucidrains

Every variant runs in a fresh process with one thread; rounds are interleaved, so that a machine
that slows down slows all of them. The result is the ratio of the medians. genlab trains through
`train.py`, with its record and W&B (offline) on, on `mnist_mini` at 28 pixels and, padded with
zeros and as a folder of PNGs, at 32. The limit in training is the same network in a plain loop
(`bare_ddpm.py`), that in sampling as many forward passes. `--peers` names a folder with the
`c_ddpm.py` and `d_sample.py` of the peers' benchmarks, `--peers-python` an interpreter that has
diffusers and denoising-diffusion-pytorch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rounds import HERE, Job, interleaved, output, peer, save, script, spread, train, written_by

from genlab.config.build import build
from genlab.config.compose import compose
from genlab.training.run_config import RunConfig

BATCH, EPOCHS, SAMPLED = 64, 3, 64
# The size of the peers' networks; that of diffusers has the same levels, blocks and attention.
AS_PEERS = [
    *("model/net=unet_small", "model.net.multipliers=[1,2,3]"),
    *("model.net.blocks=2", "model.net.scale_shift=false"),
]
NETS = {
    "tiny": ["model/net=unet_tiny"],
    "small": ["model/net=unet_small"],
    "2.6M": AS_PEERS,
}
PARAMETERS = {"tiny": "0.30 M, 28 px", "small": "1.19 M, 32 px", "2.6M": "2.60 M, 32 px"}
# Factor by which batches and samples are fewer than with the tiny network.
DIVISORS = {"tiny": 1, "small": 2, "2.6M": 3}
MODES = {"fp32": [], "bf16": ["trainer.precision=bf16-mixed"]}
# Averaged weights and clipping, which the experiments use, and both peers' own trainers.
AVERAGED = ["ema_decay=0.999", "trainer.gradient_clip_val=784"]
# As little as possible of the parts that are not measured: validation, test and their pictures.
UNMEASURED = [
    *("data.val_images=64", "data.eval_batch_size=64", "trainer.limit_test_batches=1"),
    *("model.val_draws=1", "model.test_draws=1", "callbacks=none"),
]
PEERS = {
    "diffusers loop": "dif_full",
    "lucidrains loop": "luc_full",
    "lucidrains Trainer": "luc_trainer",
}


def padded_folder(root: Path, images: int) -> list[str]:
    """Write digits of 32 x 32 pixels as PNGs, and return the config that reads them."""
    data = build(RunConfig.of(compose(["data=mnist_mini"])).data, "data")
    data.prepare_data()
    data.setup("fit")
    digits = np.pad(data.pixels("train")[: images + 64], ((0, 0), (0, 0), (2, 2), (2, 2)))
    for split, chosen in (("train", digits), ("test", digits[:64])):
        folder = root / split / "digit"
        folder.mkdir(parents=True)
        for i, pixels in enumerate(chosen):
            Image.fromarray(pixels[0]).save(folder / f"{i:05d}.png")
    return [
        *("data=folder", f"data.source.root={root}", "data.source.channels=1"),
        *("data.source.fit=exact", f"data.source.cache_dir={root / 'cache'}"),
    ]


def loop(mode: str, settings: Sequence[str]) -> list[float]:
    """Return CPU microseconds per image of each epoch but the first, of a plain loop."""
    epochs: list[float] = script("bare_ddpm.py", "train", mode, *settings)
    return epochs[1:]


def peer_loop(python: str, mode: str, batches: int) -> list[float]:
    """Return CPU microseconds per image of lucidrains' network in the same plain loop."""
    command = [python, str(HERE / "peer_ddpm.py"), mode, *map(str, (BATCH, batches, EPOCHS))]
    epochs: list[float] = json.loads(output(command).splitlines()[-1])
    return epochs


def sample(net: str, repeats: int, settings: Sequence[str]) -> dict[str, list[float]]:
    """Return CPU us per image of genlab's sampler and, in turns, of its forward passes alone."""
    arguments = ["sample", str(SAMPLED), str(repeats)]
    taken: dict[str, list[float]] = script("bare_ddpm.py", *arguments, *settings)
    return {f"{net}|{name}": values for name, values in taken.items()}


def memory(images: int, settings: Sequence[str]) -> list[str]:
    """Return a line on the memory that the steps of ancestral sampling add to the peak."""
    megabytes = {
        steps: script(
            *("bare_ddpm.py", "memory", str(images), *settings),
            *("model/sampler=ancestral", f"model.steps={steps}"),
        )
        for steps in (10, 100, 1000)
    }
    added = ", ".join(f"T = {steps}: {added:.1f} MB" for steps, added in megabytes.items())
    return [f"Ancestral sampling of {images} images adds to the peak of one forward pass: {added}."]


def main() -> None:
    """Measure everything, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--batches", type=int, default=12, help="of an epoch of the tiny network")
    parser.add_argument("--repeats", type=int, default=4, help="of sampling with the tiny network")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "diffusion_speed.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save(options.out, measure(options, Path(folder)))


def measure(options: argparse.Namespace, folder: Path) -> list[str]:
    """Measure everything, and return the lines of the page."""
    nets = options.nets.split(",")
    batches = {net: max(3, options.batches // divisor) for net, divisor in DIVISORS.items()}
    padded = padded_folder(folder, max(batches.values()) * BATCH)
    settings = {
        net: [
            *("model=ddpm", *NETS[net], *(["data=mnist_mini"] if net == "tiny" else padded)),
            *(f"data.batch_size={BATCH}", f"data.train_images={batches[net] * BATCH}"),
            *(f"trainer.max_epochs={EPOCHS}", "trainer.log_every_n_steps=10", "data.val_images=64"),
        ]
        for net in nets
    }
    jobs: dict[str, Job] = {}
    for net in nets:
        for mode, precision in MODES.items():
            run = [*settings[net], *UNMEASURED, *precision]
            jobs[f"{net}|{mode}|genlab"] = lambda r=run: train(*r)
            jobs[f"{net}|{mode}|bare loop"] = lambda m=mode, s=settings[net]: loop(m, s)
            if net == "small":
                other = [s.replace("unet_small", "unet_diffusers") for s in settings[net]]
                jobs[f"{net}|{mode}|diffusers, bare loop"] = lambda m=mode, s=other: loop(m, s)
            if net == "small" and options.peers:
                jobs[f"{net}|{mode}|lucidrains, bare loop"] = lambda m=mode, n=batches[net]: (
                    peer_loop(options.peers_python, m, n)
                )
            if net != "small":
                jobs[f"{net}|{mode}|genlab, averaged"] = lambda r=run: train(*r, *AVERAGED)
            if net == "2.6M" and options.peers:
                for name, variant in PEERS.items():
                    if mode == "bf16" and variant == "luc_trainer":
                        continue
                    arguments = [
                        *("--variant", variant + ("_bf16" if mode == "bf16" else "")),
                        *("--batch", str(BATCH), "--chunk", str(batches[net])),
                    ]
                    jobs[f"{net}|{mode}|{name}"] = lambda a=arguments: peer(
                        options.peers, options.peers_python, "c_ddpm.py", *a
                    )
    trained = interleaved(jobs, options.rounds)
    jobs = {}
    for net in nets:
        repeats = max(2, options.repeats // DIVISORS[net])
        jobs[net] = lambda n=net, r=repeats: sample(n, r, settings[n])
    if "2.6M" in nets and options.peers:
        jobs["2.6M|diffusers' DDIMPipeline"] = lambda: peer(
            *(options.peers, options.peers_python, "d_sample.py"),
            *("--variant", "dif_ddim_pipe", "--n", str(SAMPLED), "--reps", "1"),
        )
    sampled = interleaved(jobs, options.rounds)
    lines = [
        "# Speed of the DDPM: CPU microseconds per image, one thread",
        "",
        written_by(
            f"python benchmarks/diffusion.py --rounds {options.rounds}"
            f"{' --peers DIR --peers-python PY' if options.peers else ''}"
        ),
        f"Median (lowest to highest) of {options.rounds} interleaved rounds. `bf16` is autocast; "
        "`averaged` has `ema_decay` and gradient clipping on, as the peers' loops and Trainer do;",
        "`diffusers, bare loop` is a `UNet2DModel` of the same number of parameters in the plain "
        "loop, `lucidrains, bare loop` a `Unet` of 1.13 M. The other peers have 2.61 M.",
        "",
        f"## A training step, batch {BATCH}",
        "",
        "| network | mode | variant | us/image | genlab / variant |",
        "|---|---|---|---|---|",
    ]
    for name, values in trained.items():
        net, mode, variant = name.split("|")
        averaged = variant in PEERS
        against = f"{net}|{mode}|genlab{', averaged' if averaged else ''}"
        quotient = statistics.median(trained[against]) / statistics.median(values)
        note = " (averaged)" if averaged else ""
        shown = "" if variant == "genlab" else f"{quotient:.2f}{note}"
        lines.append(f"| {PARAMETERS[net]} | {mode} | {variant} | {spread(values)} | {shown} |")
    lines += [
        "",
        f"## Sampling {SAMPLED} images in 50 DDIM steps",
        "",
        "| network | variant | us/image | genlab / variant |",
        "|---|---|---|---|",
    ]
    for name, values in sampled.items():
        net, variant = name.split("|")
        own = sampled[f"{net}|genlab"]
        # Measurements close in time are slowed down alike.
        pairs = zip(own, values, strict=len(own) == len(values))
        quotient = statistics.median(ours / theirs for ours, theirs in pairs)
        shown = "" if variant == "genlab" else f"{quotient:.3f}"
        lines.append(f"| {PARAMETERS[net]} | {variant} | {spread(values)} | {shown} |")
    return [*lines, "", *memory(16, settings[nets[0]])]


if __name__ == "__main__":
    main()
