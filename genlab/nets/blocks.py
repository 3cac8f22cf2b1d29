"""Pieces that the networks share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genlab.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def activation(name: str) -> nn.Module:
    """The activation called `name`.

    Raises:
        ConfigError: for a name that is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"model.net activation={name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def check_positive(key: str, values: int | Sequence[int]) -> None:
    """Refuse sizes below 1.

    Raises:
        ConfigError: naming the key and the value.
    """
    for value in [values] if isinstance(values, int) else values:
        if value < 1:
            raise ConfigError(f"{key}={values}: sizes start at 1")


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018) with the largest number of groups up to 8 that fits.

    Not batch normalisation: its running statistics would make a run depend on its history.
    """
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), pre-activation (He et al. 2016); keeps the shape."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(channels),
            activation(act),
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels),
            activation(act),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def residual_blocks(channels: int, count: int, act: str) -> list[nn.Module]:
    """`count` residual blocks and the activation that closes them; the activation alone for 0."""
    blocks: list[nn.Module] = [ResidualBlock(channels, act) for _ in range(count)]
    return [*blocks, activation(act)]
