"""Networks that do not fit on one device: their weights spread over all of them (FSDP).

Each process keeps a slice of every weight, of its gradient, of the optimizer's moments and of the
average, and gathers a block of the network only while that computes (Zhao et al. 2023). What is
computed is what `trainer=ddp` computes; checkpoints are whole, and the same file for any number of
devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from genlab.errors import ConfigError


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for torch's second FSDP, over all processes, with whole checkpoints.

    Attributes:
        needs_all: no process may have a batch more than the others, who would not answer it.
    """

    needs_all = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(networks: Iterable[nn.Module], others: Iterable[str], mesh: DeviceMesh) -> None:
    """Spread the networks over the processes of `mesh`, block by block.

    Args:
        others: names of trained weights that are in none of the networks.

    Raises:
        ConfigError: if there are such weights: nobody would average their gradients.
    """
    if outside := sorted(others):
        raise ConfigError(
            f"trainer=fsdp spreads the networks alone, and {', '.join(outside)} "
            f"{'is' if len(outside) == 1 else 'are'} trained beside them; use trainer=ddp"
        )
    for network in networks:
        for block in _blocks(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements with weights of the outermost lists and sequences of layers."""
    children = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield from (child for child in children if any(True for _ in child.parameters()))
    else:
        for child in children:
            yield from _blocks(child)


def reshard(module: nn.Module) -> None:
    """Drop the whole weights that a forward pass gathered, so that each process has its slices.

    The outermost network keeps them until the backward pass, and after an evaluation there is none:
    its `parameters()` are plain tensors until then, and what is written into the slices is not what
    the next forward pass computes with.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(weight: Tensor) -> Tensor:
    """A copy of a weight that may be spread over the processes; all of them must ask for it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()


def spread_like(value: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor, the same in each process, on the device and in the slices of `weight`."""
    value = value.to(weight.device)
    if not isinstance(weight, DTensor):
        return value
    return distribute_tensor(value, weight.device_mesh, weight.placements)
