"""Sharded weights: each process has its slice, and together they are the whole."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from genlab.nets.unet import Block, UNet
from genlab.protocols import ImageSpec
from genlab.training.sharding import shard, sharded_like, unsharded

WORLD = 2


def net() -> UNet:
    torch.manual_seed(0)
    made = UNet(ImageSpec(1, 8, 8), out_channels=1, channels=16, multipliers=(1, 2))
    for parameter in made.parameters():  # those that begin at zero would hide what is lost
        torch.nn.init.normal_(parameter)
    return made


def in_each_process(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    original, spread = net(), net()
    shard([spread], [], init_device_mesh("cpu", (WORLD,)))

    weights = [(original.get_parameter(n), p) for n, p in spread.named_parameters()]
    kept = sum(p.to_local().numel() for _, p in weights if isinstance(p, DTensor))
    total = sum(p.numel() for p in original.parameters())
    assert abs(kept / total - 1 / WORLD) < 0.02
    for before, after in weights:
        assert torch.equal(unsharded(after), before)
        assert torch.equal(unsharded(sharded_like(2 * before.detach(), after)), 2 * before)
    blocks = [m for m in spread.modules() if isinstance(m, Block)]
    assert all(hasattr(block, "unshard") for block in blocks)  # each is gathered by itself

    x, log_snr = torch.randn(4, 1, 8, 8), torch.zeros(4)
    torch.testing.assert_close(spread(x, log_snr), original(x, log_snr))
    dist.destroy_process_group()


def test_each_process_keeps_its_share_and_computes_the_same(tmp_path: Path) -> None:
    mp.spawn(in_each_process, (str(tmp_path / "meeting"),), nprocs=WORLD)
