"""Measure the limit: genlab's networks in a loop of plain PyTorch, with nothing else.

python benchmarks/bare.py NET MODE IMAGES EPOCHS   prints CPU microseconds per image of each epoch
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from clock import tree_cpu_seconds

from genlab.config.build import build
from genlab.config.compose import compose
from genlab.training.run_config import RunConfig, build_model

BATCH = 128


def main(net: str, mode: str, images: int, epochs: int) -> list[float]:
    """Return CPU microseconds per image of each epoch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if mode == "medium":
        torch.set_float32_matmul_precision("medium")
    config = RunConfig.of(compose([f"model/net={net}", "data.val_images=1000"]))
    data = build(config.data, "data")
    data.prepare_data()
    data.setup("fit")
    pixels = torch.from_numpy(data.pixels("train")[:images].copy())
    model = build_model(config.model, data.spec)
    encoder, decoder = model.encoder, model.decoder
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    taken = []
    for _ in range(epochs):
        order = torch.randperm(len(pixels))
        for step, start in enumerate(range(0, len(pixels) - BATCH + 1, BATCH)):
            x = pixels[order[start : start + BATCH]].float().div_(255)
            with torch.autocast("cpu", torch.bfloat16) if mode == "bf16" else nullcontext():
                mean, log_var = encoder(x).float().chunk(2, 1)
                z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
                logits = decoder(z)
            nats = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="none")
            kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
            loss = (nats.flatten(1).sum(1) + kl.sum(1)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step == 0:
                begin = tree_cpu_seconds()
        taken.append((tree_cpu_seconds() - begin) / (step * BATCH) * 1e6)
    return taken


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
