"""Measure the limits of a DDPM: its network in loops of plain PyTorch, with nothing else.

python benchmarks/bare_ddpm.py train MODE KEY=VALUE...           CPU us per image of each epoch
python benchmarks/bare_ddpm.py sample IMAGES REPEATS KEY=VALUE...    genlab's sampler and bare
                                                                 forwards, in turns: us per image
python benchmarks/bare_ddpm.py memory IMAGES KEY=VALUE...        MB that sampling adds to the peak

The keys are those of `train.py`; `model=ddpm` is implied.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from clock import tree_cpu_seconds

from genlab.config.build import build
from genlab.config.compose import compose
from genlab.training.run_config import RunConfig, build_model


def built(overrides: list[str]) -> tuple[Any, Any, RunConfig]:
    """Build the data and the model of a config, and return both with it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = RunConfig.of(compose(["model=ddpm", *overrides]))
    data = build(config.data, "data")
    data.prepare_data()
    data.setup("fit")
    return data, build_model(config.model, data.spec), config


def train(mode: str, overrides: list[str]) -> list[float]:
    """Return CPU microseconds per image of forward, backward and fused AdamW."""
    data, model, config = built(overrides)
    pixels = torch.from_numpy(data.pixels("train").copy())
    batch = config.data["batch_size"]
    net = model.net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    steps = model.process.steps
    table = model.process.log_snr(torch.arange(1, steps + 1, dtype=torch.float64) / steps).float()
    alpha, sigma = (torch.sigmoid(s * table).sqrt().view(-1, 1, 1, 1) for s in (1, -1))
    taken = []
    for _ in range(config.trainer["max_epochs"]):
        order = torch.randperm(len(pixels))
        for step, start in enumerate(range(0, len(pixels) - batch + 1, batch)):
            x = pixels[order[start : start + batch]].float().div_(127.5).sub_(1)
            i = torch.randint(0, steps, (len(x),))
            eps = torch.randn_like(x)
            x_t = alpha[i] * x + sigma[i] * eps
            with torch.autocast("cpu", torch.bfloat16) if mode == "bf16" else nullcontext():
                eps_hat = net(x_t, table[i])
            loss = F.mse_loss(eps_hat.float(), eps, reduction="sum") / len(x)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step == 0:
                begin = tree_cpu_seconds()
        taken.append((tree_cpu_seconds() - begin) / (step * batch) * 1e6)
    return taken


def sample(images: int, repeats: int, overrides: list[str]) -> dict[str, list[float]]:
    """CPU microseconds per image of `DDPM.sample`, and of as many forward passes alone."""
    _, model, _ = built(overrides)
    model.eval()
    shape = (images, *model.spec.shape)

    def forwards() -> None:
        x, log_snr = torch.randn(shape), torch.zeros(images)
        with torch.inference_mode():
            for _ in range(model.sampler.steps):
                model.net(x, log_snr)

    def through_genlab() -> None:
        model.sample(images)

    ways = {"genlab": through_genlab, "bare forwards": forwards}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(3):
            model.net(torch.randn(shape), torch.zeros(images))
    for repeat in range(repeats):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            begin = time.process_time()
            ways[name]()
            taken[name].append((time.process_time() - begin) / images * 1e6)
    return taken


def memory(images: int, overrides: list[str]) -> float:
    """Return the MB that the config's sampler adds to the peak (`ru_maxrss`) of a forward pass."""
    _, model, _ = built(overrides)
    model.eval()
    with torch.inference_mode():
        model.net(torch.randn(images, *model.spec.shape), torch.zeros(images))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.sample(images)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "train":
        print(json.dumps(train(arguments[0], arguments[1:])))
    elif what == "sample":
        print(json.dumps(sample(int(arguments[0]), int(arguments[1]), arguments[2:])))
    else:
        print(json.dumps(memory(int(arguments[0]), arguments[1:])))
