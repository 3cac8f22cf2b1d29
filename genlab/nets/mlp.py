"""A fully connected denoising network, for latents that are vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.errors import whole
from genlab.nets.blocks import activation
from genlab.nets.embeddings import ClassEmbedding, LogSNREmbedding
from genlab.protocols import ImageSpec


class MLPDenoiser(nn.Module):
    """A residual network of linear layers from x_t (B, C, H, W) and log-SNRs to (B, out, H, W).

    Each block is h + last(act(scale * norm(first(act(norm(h)))) + shift)), with scale and shift of
    the embedding of the log-SNR and the class. The last layer of every block and of the network is
    initialised to zero, so at first the output is 0.

    Args:
        spec: shape and kind of x_t.
        out_channels: channels of the output; the parameterization defines their meaning.
        classes: number of classes; 0 for a network that ignores labels.
        width: size of the hidden layers.
        blocks: number of residual blocks.
        act: the activation.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        spec: ImageSpec,
        out_channels: int,
        classes: int = 0,
        width: int = 256,
        blocks: int = 3,
        act: str = "silu",
    ) -> None:
        super().__init__()
        whole("width", width, 1)
        whole("blocks", blocks, 1)
        self.log_snr_embedding = LogSNREmbedding(width, width)
        self.class_embedding = ClassEmbedding(classes, width) if classes > 0 else None
        self.act = activation(act)
        self.first = nn.Linear(spec.dims, width)
        self.blocks = nn.ModuleList(_Block(width, act) for _ in range(blocks))
        self.last_norm = nn.LayerNorm(width)
        self.shape = (out_channels, spec.height, spec.width)
        self.last = _zeroed(nn.Linear(width, out_channels * spec.height * spec.width))

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate at x_t (B, C, H, W), log-SNRs (B,) and labels (B,), -1 or None for no class."""
        embedding = self.log_snr_embedding(log_snr)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(labels, log_snr)
        embedding = self.act(embedding)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.last(self.act(self.last_norm(h)))
        return out.unflatten(1, self.shape)


class _Block(nn.Module):
    """A residual block whose second norm is modulated by the embedding."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), activation(act)
        self.first = nn.Linear(width, width)
        self.modulated_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = _zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, 1)
        inner = self.modulated_norm(self.first(self.act(self.norm(h))))
        out: Tensor = h + self.last(self.act(inner * (1 + scale) + shift))
        return out


@torch.no_grad()
def _zeroed(layer: nn.Linear) -> nn.Linear:
    layer.weight.zero_()
    layer.bias.zero_()
    return layer
