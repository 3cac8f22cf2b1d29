"""Building blocks that several networks use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genlab.errors import number

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def activation(name: str) -> nn.Module:
    """Create the activation called `name`.

    Raises:
        ValueError: if the name is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"act={name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def check_positive(name: str, values: Sequence[int]) -> None:
    """Refuse sizes below 1.

    Raises:
        ValueError: with a message that names the parameter and the values.
    """
    if any(value < 1 for value in values):
        raise ValueError(f"{name}={list(values)}: sizes start at 1")


def check_levels(name: str, values: Sequence[int]) -> None:
    """Refuse sizes of levels below 1, and an empty list of levels.

    Raises:
        ValueError: with a message that names the parameter and the values.
    """
    check_positive(name, values)
    if not values:
        raise ValueError(f"{name}=[]: at least one level is needed")


def check_dropout(dropout: float) -> None:
    """Refuse a dropout probability outside [0, 1).

    Raises:
        ValueError: with a message that names the value.
    """
    if number("dropout", dropout, at_least=0) >= 1:
        raise ValueError(f"dropout={dropout}: give a share below 1")


def groups_for(channels: int, most: int = 32) -> int:
    """Return the largest number of groups up to `most` with at least four channels each, or 1.

    With fewer channels in a group, the norm would remove most of a channel's mean, and so of the
    bias before the norm.
    """
    return max(g for g in range(1, most + 1) if channels % g == 0 and (g == 1 or channels >= 4 * g))


def group_norm(channels: int, most: int = 32) -> nn.GroupNorm:
    """Create a group normalisation (Wu and He 2018) with `groups_for` groups.

    Batch normalisation is not used: its running statistics would make a run depend on its history.
    """
    return nn.GroupNorm(groups_for(channels, most), channels)


class ResidualBlock(nn.Module):
    """A pre-activation residual block (He et al. 2016); keeps the shape.

    x + conv(act(norm(conv(act(norm(x)))))).
    """

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(channels, most=8),
            activation(act),
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels, most=8),
            activation(act),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def residual_blocks(channels: int, count: int, act: str) -> list[nn.Module]:
    """Create `count` residual blocks and a final activation; only the activation for 0."""
    blocks: list[nn.Module] = [ResidualBlock(channels, act) for _ in range(count)]
    return [*blocks, activation(act)]
