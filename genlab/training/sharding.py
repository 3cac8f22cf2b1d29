"""Networks that do not fit on one device: their weights are sharded over all devices (FSDP).

Each process keeps a shard of every weight, of its gradient, of the optimizer's moments and of the
average, and gathers a block of the network only while that block computes (Zhao et al. 2023). The
results are those of `trainer=ddp`; checkpoints are unsharded, and the same file for any number of
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
from genlab.protocols import HasNetworks


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for torch's FSDP2, over all processes, with unsharded checkpoints.

    Attributes:
        needs_all: no process may have more batches than the others, since every batch needs
            communication with all of them.
    """

    needs_all = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def shard(self, model: nn.Module) -> None:
        """Shard the networks of a model over all processes, once.

        Raises:
            ConfigError: the model has trained weights outside its networks.
        """
        assert isinstance(model, HasNetworks)
        networks = model.networks().values()
        if any(isinstance(network, FSDPModule) for network in networks):
            return
        inside = {id(p) for network in networks for p in network.parameters()}
        others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
        shard(networks, others, self.device_mesh["data_parallel"])

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(networks: Iterable[nn.Module], others: Iterable[str], mesh: DeviceMesh) -> None:
    """Shard the networks over the processes of `mesh`, block by block.

    Args:
        others: names of trained weights that belong to none of the networks.

    Raises:
        ConfigError: there are such weights, whose gradients would not be averaged.
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
    """Yield the elements with weights of the outermost lists and sequences of layers."""
    children = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield from (child for child in children if any(True for _ in child.parameters()))
    else:
        for child in children:
            yield from _blocks(child)


def reshard(module: nn.Module) -> None:
    """Free the full weights that a forward pass gathered, so that each process has its shards.

    The outermost network keeps them until a backward pass, which an evaluation does not have. Until
    then its `parameters()` are plain tensors, and the next forward pass does not use values that
    are written into the shards.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def unsharded(weight: Tensor) -> Tensor:
    """Copy a weight that may be sharded over the processes; all of them must call this."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()


def sharded_like(value: Tensor, weight: Tensor) -> Tensor:
    """Shard a full tensor, equal in each process, on the device and in the layout of `weight`."""
    value = value.to(weight.device)
    if not isinstance(weight, DTensor):
        return value
    return distribute_tensor(value, weight.device_mesh, weight.placements)
