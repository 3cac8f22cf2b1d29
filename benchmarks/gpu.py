"""Measure training and sampling on one GPU: images per second, MFU, peak memory, and a profile.

    python benchmarks/gpu.py                    into benchmarks/results/gpu_speed_new.md
    python benchmarks/gpu.py --steps 64 --only 'recipe;bare'
    python benchmarks/gpu.py --old DIR          also the recipe and the VAE of another checkout
    python benchmarks/gpu.py --profile          where the time of a step goes, in under 3 minutes
    python benchmarks/gpu.py --device cpu --tiny --only 'recipe;bare'   to see that it runs

It trains `experiment=ddpm/cifar10` through `train.py` (35.7 million parameters, batch 128,
averaged weights, clipping) on as many 32 x 32 colour images, digits of the embedded MNIST in random
colours: the speed does not depend on their content. The limit is the same network in a plain loop
with nothing else; UNet2DModel of diffusers has the same size and its own training loop. A row is
the median of the last half of a training, in windows of as many steps as there are between two rows
of metrics, so that compilation is excluded. All rows are measured one after another on one card.

`--tiny` takes tiny networks and batches, and compiles nothing: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from profiling import profiled, synchronize
from rounds import HERE, ROOT, machine, save
from torch import Tensor, nn

from genlab.config.build import build
from genlab.config.compose import compose
from genlab.diffusion.samplers import DDIM
from genlab.training.run_config import RunConfig, build_model

RECIPE = ["experiment=ddpm/cifar10", "data.flip=true"]
VAE = [
    *("trainer=gpu", "channels_last=true", "model/net=conv"),
    *("trainer.max_epochs=12", "callbacks=none", "logger=none"),
]
#: Overrides of the recipe, which is compiled, in bf16 and with channels last.
VARIANTS = {
    "recipe": [],
    "recipe, compile=reduce-overhead": ["compile=reduce-overhead"],
    "recipe, compile=max-autotune": ["compile=max-autotune"],
    "recipe, networks compiled alone": ["compile=networks"],
    "recipe, images on the CPU": ["data.device=cpu"],
    "recipe, benchmark=true": ["trainer.benchmark=true"],
    "recipe, deterministic=true": ["trainer.deterministic=true"],
    "not compiled": ["compile=false"],
    "not compiled, channels first": ["compile=false", "channels_last=false"],
}
VAES = {
    "VAE": ["compile=true"],
    "VAE, compile=reduce-overhead": ["compile=reduce-overhead"],
    "VAE, networks compiled alone": ["compile=networks"],
}
BARE = {
    "bare loop": {"mode": None},
    "bare loop, reduce-overhead": {"mode": "reduce-overhead"},
}
DIFFUSERS = {"diffusers": {"compiled": False}, "diffusers, compiled": {"compiled": True}}
SAMPLING = {"DDIM": {"compiled": False}, "DDIM, compiled": {"compiled": True}}
NAMES = [*VARIANTS, *BARE, *DIFFUSERS, *VAES, *SAMPLING]


@dataclass(frozen=True)
class Sizes:
    """The device, and the sizes that a row is measured with.

    Attributes:
        batch, vae_batch: images of a training step of the recipe, and of the VAE.
        window: steps between two rows of metrics.
        steps: steps of a training.
        samples: images that are drawn at once.
        channels: width of each level of the U-Net.
        recipe, vae: further overrides of a DDPM, and of a VAE.
        trainer: further overrides of a training.
    """

    device: str
    batch: int = 128
    vae_batch: int = 512
    window: int = 16
    steps: int = 256
    samples: Sequence[int] = (64, 256, 1024)
    channels: Sequence[int] = (128, 256, 256, 256)
    recipe: Sequence[str] = ()
    vae: Sequence[str] = ()
    trainer: Sequence[str] = ()

    @classmethod
    def of(cls, device: str, steps: int, tiny: bool) -> Sizes:
        """Return the sizes of the published recipe, or tiny ones."""
        trainer = () if device == "cuda" else ("trainer.accelerator=cpu", "trainer.devices=1")
        if not tiny:
            return cls(device, steps=steps, trainer=trainer)
        net = ("model.net.channels=8", "model.net.multipliers=[1,2]", "model.net.blocks=1")
        return cls(
            device,
            batch=8,
            vae_batch=16,
            window=2,
            steps=8,
            samples=(2, 4),
            channels=(8, 16),
            recipe=(*net, "model.steps=50"),
            vae=("data.train_images=128", "data.val_images=16", "trainer.limit_test_batches=1"),
            trainer=(*trainer, "compile=false"),
        )

    def unmeasured(self) -> list[str]:
        """Return as little as possible of the parts that are not measured."""
        return [
            *("trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "callbacks=none"),
            *("logger=none", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
            *("model.val_draws=1", "model.test_draws=1"),
            f"trainer.log_every_n_steps={self.window}",
        ]


def coloured_folder(root: Path, sizes: Sizes) -> list[str]:
    """Digits of 32 x 32 pixels in random colours as PNGs; the config that reads them."""
    data = build(RunConfig.of(compose(["data=mnist_mini", "logger=none"])).data, "data")
    data.prepare_data()
    data.setup("fit")
    batch, images = sizes.batch, (sizes.steps + 2) * sizes.batch
    digits = np.pad(data.pixels("train")[:, 0], ((0, 0), (2, 2), (2, 2)))
    colours = np.random.default_rng(0).uniform(0.2, 1.0, (images, 3))
    for i, colour in enumerate(colours):
        folder = root / ("train" if i < images - batch else "test") / "digit"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = digits[i % len(digits), :, :, None] * colour
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:05d}.png", compress_level=1)
    return [
        *("data=folder", f"data.source.root={root}", "data.source.fit=exact"),
        *(f"data.source.cache_dir={root / 'cache'}", f"data.val_images={batch}"),
        *(f"data.batch_size={batch}", f"data.eval_batch_size={batch}"),
    ]


def train(checkout: Path, *overrides: str, **variables: str) -> str:
    """Train through `train.py` of a checkout; return the end of its output if it failed."""
    path = os.pathsep.join((str(checkout), str(HERE)))
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": path, **variables}
    command = [sys.executable, "train.py", *overrides]
    done = subprocess.run(command, cwd=checkout, text=True, capture_output=True, env=environment)
    return "" if done.returncode == 0 else f"{done.stdout[-1000:]}\n{done.stderr[-1000:]}"


def through_genlab(checkout: Path, *overrides: str) -> dict[str, Any]:
    """Train through genlab; return the metrics of the last half of its rows, and of its end."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        if failed := train(checkout, f"runs_dir={folder}", *overrides):
            return {"failed": failed}
        seconds = time.perf_counter() - started
        (run,) = Path(folder).glob("*/*/metrics.jsonl")
        rows = [json.loads(line) for line in run.read_text().splitlines()]
        trained = [row for row in rows if "train/images_per_second" in row]
        steady = trained[len(trained) // 2 :]
        result = json.loads((run.parent / "result.json").read_text())
    return {
        "rates": [row["train/images_per_second"] for row in steady],
        "mfu": statistics.median(row.get("train/mfu", float("nan")) for row in steady),
        "memory": result.get("peak_gpu_memory_bytes"),
        "parameters": result["parameters"],
        "loss": steady[-1]["train/loss"],
        "seconds": seconds,
    }


def profile_of_genlab(sizes: Sizes, *overrides: str) -> dict[str, Any]:
    """Profile a training through genlab."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "profile.json"
        first, steps = profiled_steps(sizes)
        callback = f"{{_target_: profiling.Profile, first: {first}, steps: {steps}}}"
        ways = (f"runs_dir={folder}", f"+callbacks.profile={callback}")
        failed = train(ROOT, *overrides, *ways, BENCH_OUT=str(out))
        return {"failed": failed} if failed else json.loads(out.read_text())


def profiled_steps(sizes: Sizes) -> tuple[int, int]:
    """Return the first step of a profile, after compilation, and the number of steps."""
    return sizes.steps // 4, sizes.steps // 4


class Loop:
    """The data and the device of a plain loop: images on the device, a schedule as a table."""

    def __init__(self, overrides: Sequence[str], sizes: Sizes) -> None:
        torch.manual_seed(0)
        config = RunConfig.of(compose(["model=ddpm", "logger=none", *overrides]))
        data = build(config.data, "data")
        data.prepare_data()
        data.setup("fit")
        self.sizes, self.device = sizes, torch.device(sizes.device)
        self.model = build_model(config.model, data.spec)
        steps = self.model.process.steps
        times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        self.table = self.model.process.log_snr(times).float().to(self.device)
        self.pixels = torch.from_numpy(np.array(data.pixels("train"))).to(self.device)

    def on_device(self, net: nn.Module) -> nn.Module:
        """Return a network on the device, channels last."""
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(self) -> Tensor:
        """Return a random batch, in [-1, 1]."""
        rows = torch.randint(0, len(self.pixels), (self.sizes.batch,), device=self.device)
        x = self.pixels[rows].float().div_(127.5).sub_(1)
        return x.to(memory_format=torch.channels_last)

    def times(self) -> Tensor:
        """Return the random steps of a batch."""
        return torch.randint(0, len(self.table), (self.sizes.batch,), device=self.device)

    def autocast(self) -> torch.autocast:
        """Return the precision of the recipe."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def rates(self, step: Callable[[], None]) -> dict[str, Any]:
        """Time a step in windows."""
        window, rates = self.sizes.window, []
        for _ in range(max(2, self.sizes.steps // window)):
            synchronize(self.device)
            began = time.perf_counter()
            for _ in range(window):
                step()
            synchronize(self.device)
            rates.append(window * self.sizes.batch / (time.perf_counter() - began))
        return {"rates": rates[len(rates) // 2 :], "memory": peak_memory(self.device)}


def bare(overrides: Sequence[str], sizes: Sizes, mode: str | None, profiles: bool = False) -> Any:
    """Train the network alone: noise, forward, backward, fused Adam, in bf16 and compiled."""
    loop = Loop(overrides, sizes)
    net = loop.on_device(loop.model.net)
    net.compile(mode=mode)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    table = loop.table
    alpha, sigma = (torch.sigmoid(s * table).sqrt().view(-1, 1, 1, 1) for s in (1, -1))

    def step() -> None:
        x, i = loop.images(), loop.times()
        eps = torch.randn_like(x)
        with loop.autocast():
            eps_hat = net(alpha[i] * x + sigma[i] * eps, table[i])
        F.mse_loss(eps_hat.float(), eps, reduction="sum").div(len(x)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return profiled(step, *profiled_steps(sizes), loop.device) if profiles else loop.rates(step)


def diffusers(overrides: Sequence[str], sizes: Sizes, compiled: bool) -> dict[str, Any]:
    """Train UNet2DModel of diffusers as its example does: AdamW, clipping, averaged weights."""
    if importlib.util.find_spec("diffusers") is None:
        return {"failed": "diffusers is not installed: pip install genlab[diffusers]"}
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    loop = Loop(overrides, sizes)
    levels = len(sizes.channels)
    attends = [level == 1 for level in range(levels)]
    net = UNet2DModel(
        sample_size=32,
        block_out_channels=tuple(sizes.channels),
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        attention_head_dim=None,
        norm_num_groups=min(32, sizes.channels[0]),
        dropout=0.1,
    )
    net = loop.on_device(net)
    if compiled:
        net.compile()
    scheduler, optimizer = DDPMScheduler(1000), torch.optim.AdamW(net.parameters(), lr=1e-4)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True)

    def step() -> None:
        x, i = loop.images(), loop.times()
        eps = torch.randn_like(x)
        with loop.autocast():
            eps_hat = net(scheduler.add_noise(x, eps, i), i).sample
        F.mse_loss(eps_hat.float(), eps).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(net.parameters())

    measured = loop.rates(step)
    return {**measured, "parameters": sum(p.numel() for p in net.parameters())}


def sampling(overrides: Sequence[str], sizes: Sizes, compiled: bool) -> dict[str, Any]:
    """Draw images by DDIM in 50 steps, in bf16, at several batch sizes."""
    loop = Loop(overrides, sizes)
    model = loop.on_device(loop.model).eval()
    if compiled and not sizes.recipe:
        model.net.compile()
    found = {}
    for images in sizes.samples:
        rates = []
        for turn in range(3):
            synchronize(loop.device)
            began = time.perf_counter()
            with loop.autocast():
                model.sample(images, seed=turn, sampler=DDIM(steps=50))
            synchronize(loop.device)
            rates.append(images / (time.perf_counter() - began))
        found[images] = {"rates": rates[1:], "memory": peak_memory(loop.device)}
    return {"by_size": found}


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of a GPU in bytes, and start to count it anew."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def apart(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function in its own process, which frees its GPU memory at its end."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments, **named).result()


def device_name(device: str) -> tuple[str, str]:
    """Return the name of the device, and the versions of its driver and libraries."""
    if device == "cpu":
        return "CPU", f"torch {torch.__version__}"
    name = torch.cuda.get_device_name()
    return name, f"torch {torch.__version__}, CUDA {torch.version.cuda}"


def row(name: str, measured: dict[str, Any], limit: float | None) -> str:
    """Format a line of the table."""
    if "failed" in measured:
        return f"| {name} | failed: {measured['failed'].strip().splitlines()[-1]} | | | |"
    rates = measured["rates"]
    rate = statistics.median(rates)
    share = f"{measured['mfu']:.1%}" if "mfu" in measured else ""
    memory = measured.get("memory")
    return (
        f"| {name} | {rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | "
        f"{'' if limit is None else f'{rate / limit:.2f}'} | {share} | "
        f"{'' if memory is None else f'{memory / 2**30:.2f}'} |"
    )


def measure(name: str, images: Sequence[str], sizes: Sizes, old: Path | None) -> dict[str, Any]:
    """Measure a row, by its name."""
    recipe = [*RECIPE, *sizes.recipe, *images]
    if name in BARE:
        return apart(bare, recipe, sizes, **BARE[name])
    if name in DIFFUSERS:
        return apart(diffusers, recipe, sizes, **DIFFUSERS[name])
    if name in SAMPLING:
        return apart(sampling, recipe, sizes, **SAMPLING[name])
    before = old is not None and name.startswith("before: ")
    checkout, name = (old, name.removeprefix("before: ")) if before else (ROOT, name)
    if name in VAES:
        overrides = [
            *VAE,
            *VAES[name],
            *sizes.vae,
            f"data.batch_size={sizes.vae_batch}",
            f"trainer.log_every_n_steps={sizes.window}",
        ]
    else:
        overrides = [*recipe, *sizes.unmeasured(), *VARIANTS[name]]
    assert checkout is not None
    return through_genlab(checkout, *overrides, *sizes.trainer)


def main() -> None:
    """Measure the chosen variants, or profile, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=256, help="of each training")
    parser.add_argument("--only", help="A;B;... of " + "; ".join(NAMES))
    parser.add_argument("--old", type=Path, help="a checkout whose rows are measured too")
    parser.add_argument("--profile", action="store_true", help="profile a training and the loop")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="the page; a default for each of the two")
    options = parser.parse_args()
    sizes = Sizes.of(options.device, 64 if options.profile else options.steps, options.tiny)
    if options.tiny:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    names = ["recipe", "bare loop"] if options.profile else list(NAMES)
    names = options.only.split(";") if options.only else names
    if options.old is not None and not options.profile:
        names = [*(f"before: {name}" for name in ("recipe", "VAE") if name in names), *names]
    page = "gpu_profile.md" if options.profile else "gpu_speed_new.md"
    out = options.out or HERE / "results" / page
    name, driver = apart(device_name, options.device)
    about = [
        f"`{shlex.join(['python', 'benchmarks/gpu.py', *sys.argv[1:]])}`, "
        f"{time.strftime('%Y-%m-%d')}, {name}, {driver}, {machine()}."
    ]
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = coloured_folder(Path(folder), sizes)
        for name in names:
            if options.profile:
                measured[name] = profile_row(name, images, sizes)
            else:
                measured[name] = measure(name, images, sizes, options.old)
            print(name, json.dumps(measured[name]), flush=True)
        save(out, (profile_page if options.profile else speed_page)(measured, about, sizes))


def profile_row(name: str, images: Sequence[str], sizes: Sizes) -> dict[str, Any]:
    """Profile a training through genlab, or the bare loop, by its name."""
    recipe = [*RECIPE, *sizes.recipe, *images]
    if name in BARE:
        found: dict[str, Any] = apart(bare, recipe, sizes, **BARE[name], profiles=True)
        return found
    return profile_of_genlab(sizes, *recipe, *sizes.unmeasured(), *VARIANTS[name], *sizes.trainer)


def profile_page(measured: dict[str, dict[str, Any]], about: list[str], sizes: Sizes) -> list[str]:
    """Return the lines of the page of the profiles."""
    kind = "kernels" if sizes.device == "cuda" else "operators"
    lines = [
        *("# Where the time of a step goes", "", *about, ""),
        f"| training | ms a step | with the profiler | busy | {kind} a step | gaps a step "
        "| gaps, ms a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in measured.items():
        if "failed" in found:
            lines.append(f"| {name} | failed: {found['failed'].strip().splitlines()[-1]} |")
            continue
        lines.append(
            f"| {name} | {found['plain_ms']:.2f} | {found['ms']:.2f} | {found['busy']:.1%} | "
            f"{found['kernels']:,.0f} | {found['gaps']:,.0f} | {found['gap_ms']:.2f} |"
        )
    lines += ["", "A gap is a time of more than 5 us in which the device does nothing."]
    for name, found in measured.items():
        lines += ["", f"## {name}: the longest {kind}", "", "| name | ms a step | calls a step |"]
        lines.append("|---|---|---|")
        for kernel, ms, calls in found.get("top", []):
            lines.append(f"| `{kernel[:90]}` | {ms:.3f} | {calls:,.1f} |")
    return lines


def speed_page(measured: dict[str, dict[str, Any]], about: list[str], sizes: Sizes) -> list[str]:
    """Return the lines of the page of the speeds."""
    limit = None
    if "rates" in measured.get("bare loop", {}):
        limit = statistics.median(measured["bare loop"]["rates"])
    header = [
        "| variant | images/s | times the bare loop | MFU | peak memory, GiB |",
        "|---|---|---|---|---|",
    ]
    is_vae = {name: name.removeprefix("before: ") in VAES for name in measured}
    of_vae = [row(name, found, None) for name, found in measured.items() if is_vae[name]]
    of_recipe = [
        row(name, found, limit)
        for name, found in measured.items()
        if not is_vae[name] and name not in SAMPLING
    ]
    lines = [
        *("# Training and sampling on one GPU", "", *about),
        f"Median (lowest to highest) over windows of {sizes.window} steps in the last half of a "
        "training.",
        *("", f"## `experiment=ddpm/cifar10`: batch {sizes.batch}, bf16", "", *header),
        *of_recipe,
        "",
        "The recipe is compiled, channels last; the bare loop has no averaged weights, no",
        "clipping, no record, and its images on the device. diffusers is its UNet2DModel of the",
        "same widths in the loop of its own example: AdamW, clipping and averaged weights.",
    ]
    if of_vae:
        lines += ["", f"## A convolutional VAE: `{' '.join(VAE)}`", "", *header, *of_vae]
    drawn = {name: found for name, found in measured.items() if name in SAMPLING}
    if drawn:
        lines += ["", "## Samples of the recipe's network: DDIM, 50 steps", "", *header]
        for name, found in drawn.items():
            for images, rates in found.get("by_size", {}).items():
                lines.append(row(f"{name}, {images} at once", rates, None))
    return lines


if __name__ == "__main__":
    main()
