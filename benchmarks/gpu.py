"""Measure training on one GPU: images per second, MFU and peak memory of the published recipe.

    python benchmarks/gpu.py                    into benchmarks/results/gpu_speed.md
    python benchmarks/gpu.py --steps 64 --only 'recipe;bare'

It trains `experiment=ddpm/cifar10` through `train.py` (35.7 million parameters, batch 128,
averaged weights, clipping) on as many 32 x 32 colour images, digits of the embedded MNIST in random
colours: the speed does not depend on their content. The limit is the same network in a plain loop
with nothing else. A row is the median of the last half of a training, in windows of as many steps
as there are between two rows of metrics, so that compilation is excluded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rounds import HERE, ROOT, machine, save

from genlab.config.build import build
from genlab.config.compose import compose
from genlab.training.run_config import RunConfig, build_model

BATCH, WINDOW = 128, 16
VAE = [
    *("trainer=gpu", "compile=true", "channels_last=true", "model/net=conv"),
    *("data.batch_size=512", "trainer.max_epochs=12", "callbacks=none", "logger=none"),
]
RECIPE = ["experiment=ddpm/cifar10", "data.flip=true"]
#: Overrides of the recipe, which is compiled, in bf16 and with channels last.
VARIANTS = {
    "recipe": [],
    "recipe, benchmark=true": ["trainer.benchmark=true"],
    "recipe, deterministic=true": ["trainer.deterministic=true"],
    "not compiled": ["compile=false"],
    "not compiled, channels first": ["compile=false", "channels_last=false"],
}
#: As little as possible of the parts that are not measured.
UNMEASURED = [
    *("trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "callbacks=none"),
    *("logger=none", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("model.val_draws=1", "model.test_draws=1", f"trainer.log_every_n_steps={WINDOW}"),
]


def coloured_folder(root: Path, images: int) -> list[str]:
    """Digits of 32 x 32 pixels in random colours as PNGs; the config that reads them."""
    data = build(RunConfig.of(compose(["data=mnist_mini", "logger=none"])).data, "data")
    data.prepare_data()
    data.setup("fit")
    digits = np.pad(data.pixels("train")[:, 0], ((0, 0), (2, 2), (2, 2)))
    colours = np.random.default_rng(0).uniform(0.2, 1.0, (images, 3))
    for i, colour in enumerate(colours):
        folder = root / ("train" if i < images - BATCH else "test") / "digit"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = digits[i % len(digits), :, :, None] * colour
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:05d}.png", compress_level=1)
    return [
        *("data=folder", f"data.source.root={root}", "data.source.fit=exact"),
        *(f"data.source.cache_dir={root / 'cache'}", f"data.val_images={BATCH}"),
        *(f"data.batch_size={BATCH}", f"data.eval_batch_size={BATCH}"),
    ]


def through_genlab(*overrides: str) -> dict[str, Any]:
    """Train through genlab; return the metrics of the last half of its rows, and of its end."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "train.py", f"runs_dir={folder}", *overrides],
            cwd=ROOT,
            text=True,
            capture_output=True,
            env={**os.environ, "WANDB_MODE": "offline"},
        )
        if done.returncode != 0:
            return {"failed": f"{done.stdout[-1000:]}\n{done.stderr[-1000:]}"}
        seconds = time.perf_counter() - started
        (run,) = Path(folder).glob("*/*/metrics.jsonl")
        rows = [json.loads(line) for line in run.read_text().splitlines()]
        trained = [row for row in rows if "train/images_per_second" in row]
        steady = trained[len(trained) // 2 :]
        result = json.loads((run.parent / "result.json").read_text())
    rates = [row["train/images_per_second"] for row in steady]
    return {
        "rates": rates,
        "mfu": statistics.median(row.get("train/mfu", float("nan")) for row in steady),
        "memory": result["peak_gpu_memory_bytes"],
        "parameters": result["parameters"],
        "loss": steady[-1]["train/loss"],
        "seconds": seconds,
    }


def bare(overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """Train the network alone: noise, forward, backward, fused Adam, in bf16 and compiled."""
    torch.manual_seed(0)
    config = RunConfig.of(compose(["model=ddpm", "logger=none", *overrides]))
    data = build(config.data, "data")
    data.prepare_data()
    data.setup("fit")
    model = build_model(config.model, data.spec)
    device = torch.device("cuda")
    net = model.net.to(device, memory_format=torch.channels_last)
    net.compile()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    times = torch.arange(1, model.process.steps + 1, dtype=torch.float64) / model.process.steps
    table = model.process.log_snr(times).float().to(device)
    alpha, sigma = (torch.sigmoid(s * table).sqrt().view(-1, 1, 1, 1) for s in (1, -1))
    pixels = torch.from_numpy(np.array(data.pixels("train"))).to(device)
    rates = []
    for _ in range(max(2, steps // WINDOW)):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(WINDOW):
            rows = torch.randint(0, len(pixels), (BATCH,), device=device)
            x = pixels[rows].float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
            i = torch.randint(0, len(table), (BATCH,), device=device)
            eps = torch.randn_like(x)
            with torch.autocast("cuda", torch.bfloat16):
                eps_hat = net(alpha[i] * x + sigma[i] * eps, table[i])
            F.mse_loss(eps_hat.float(), eps, reduction="sum").div(BATCH).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        rates.append(WINDOW * BATCH / (time.perf_counter() - began))
    return {"rates": rates[len(rates) // 2 :], "memory": torch.cuda.max_memory_allocated()}


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in its own process, which frees its GPU memory at its end."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def device_name() -> tuple[str, str]:
    """Return the name of the GPU, and the versions of its driver and libraries."""
    name = torch.cuda.get_device_name()
    return name, f"torch {torch.__version__}, CUDA {torch.version.cuda}"


def row(name: str, measured: dict[str, Any], limit: float | None) -> str:
    """Format a line of the table."""
    if "failed" in measured:
        return f"| {name} | failed | | | |"
    rates = measured["rates"]
    rate = statistics.median(rates)
    share = f"{measured['mfu']:.1%}" if "mfu" in measured else ""
    return (
        f"| {name} | {rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | "
        f"{'' if limit is None else f'{rate / limit:.2f}'} | {share} | "
        f"{measured['memory'] / 2**30:.2f} |"
    )


def main() -> None:
    """Measure the chosen variants, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=256, help="of each training")
    parser.add_argument("--only", default=";".join([*VARIANTS, "bare", "vae"]), help="A;B;...")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu_speed.md")
    options = parser.parse_args()
    chosen = options.only.split(";")
    gpu, driver = apart(device_name)
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = coloured_folder(Path(folder), options.steps * BATCH + 2 * BATCH)
        for name in [*VARIANTS, "bare", "vae"]:
            if name not in chosen:
                continue
            if name == "bare":
                measured[name] = apart(bare, [*RECIPE, *images], options.steps)
            elif name == "vae":
                measured[name] = through_genlab(*VAE, f"trainer.log_every_n_steps={WINDOW}")
            else:
                measured[name] = through_genlab(*RECIPE, *images, *UNMEASURED, *VARIANTS[name])
            print(name, json.dumps(measured[name]), flush=True)
            save(options.out, page(measured, gpu, driver, options.steps))


def page(measured: dict[str, dict[str, Any]], gpu: str, driver: str, steps: int) -> list[str]:
    """Return the lines of the page with all measurements so far."""
    limit = statistics.median(measured["bare"]["rates"]) if "bare" in measured else None
    of_recipe = {name: found for name, found in measured.items() if name not in ("bare", "vae")}
    lines = [
        "# Training on one GPU",
        "",
        f"`python benchmarks/gpu.py --steps {steps}`, {time.strftime('%Y-%m-%d')}, {gpu}, "
        f"{driver}, {machine()}.",
        "Median (lowest to highest) over windows of "
        f"{WINDOW} steps in the last half of a training.",
        "",
        "## `experiment=ddpm/cifar10`: 35.7 million parameters, batch 128, bf16",
        "",
        "| variant | images/s | times the bare loop | MFU | peak memory, GiB |",
        "|---|---|---|---|---|",
        *(row(name, found, limit) for name, found in of_recipe.items()),
    ]
    if "bare" in measured:
        lines.append(row("bare loop, compiled, channels last", measured["bare"], None))
    lines += [
        "",
        "The recipe is compiled, channels last; the bare loop has no averaged weights, no",
        "clipping, no record, and its images on the GPU.",
    ]
    if "vae" in measured:
        lines += [
            "",
            f"## A convolutional VAE: `{' '.join(VAE)}`",
            "",
            "| variant | images/s | times the bare loop | MFU | peak memory, GiB |",
            "|---|---|---|---|---|",
            row("through train.py", measured["vae"], None),
        ]
    return lines


if __name__ == "__main__":
    main()
