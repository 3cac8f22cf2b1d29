"""Measure training of denoising-diffusion-pytorch's U-Net at the size of genlab's `unet_small`.

    PEERS_PYTHON benchmarks/peer_ddpm.py MODE BATCH BATCHES EPOCHS    CPU us per image of each epoch
                                                               but the first

The plain loop of `bare_ddpm.py`, on noise of 32 x 32 pixels in place of images. Width 24 and
multipliers 1, 2, 3 give 1.13 million parameters; genlab's network has 1.19.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from clock import tree_cpu_seconds
from denoising_diffusion_pytorch import Unet


def main(mode: str, batch: int, batches: int, epochs: int) -> list[float]:
    """Return CPU microseconds per image of forward, backward and fused AdamW."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Unet(dim=24, dim_mults=(1, 2, 3), channels=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    taken = []
    for _ in range(epochs):
        for step in range(batches):
            x_t, eps = torch.randn(2, batch, 1, 32, 32)
            t = torch.randint(0, 1000, (batch,))
            with torch.autocast("cpu", torch.bfloat16) if mode == "bf16" else nullcontext():
                eps_hat = net(x_t, t)
            loss = F.mse_loss(eps_hat.float(), eps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step == 0:
                begin = tree_cpu_seconds()
        taken.append((tree_cpu_seconds() - begin) / ((batches - 1) * batch) * 1e6)
    return taken[1:]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:]))))
