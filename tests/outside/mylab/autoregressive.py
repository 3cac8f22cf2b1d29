"""A model family of one's own: an autoregressive model with an exact likelihood.

p(x) is the product over pixels of Bernoulli(x_i | x_1, ..., x_(i-1)), each a logistic regression on
the pixels before it (Frey 1998). There is no latent, so that its kl is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from genlab.errors import number
from genlab.modules.base import GenerativeModule
from genlab.protocols import ImageSpec, NetworkExport
from genlab.seeding import ImageNoise, Noise
from genlab.tensors import device_of, sum_except_batch


class Autoregressive(nn.Module):
    """Logistic regressions of each pixel on those before it, for binary images.

    Args:
        spec: the images, of 2 levels.
        initial_scale: spread of the weights before training; 0 or more.
    """

    def __init__(self, spec: ImageSpec, initial_scale: float = 0.0) -> None:
        super().__init__()
        number("initial_scale", initial_scale, at_least=0)
        if spec.levels != 2:
            raise ValueError("the pixels are not binary: set data.binarisation=static")
        self.spec = spec
        self.weight = nn.Parameter(initial_scale * torch.randn(spec.dims, spec.dims))
        self.bias = nn.Parameter(torch.zeros(spec.dims))

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) of images (B, C, H, W), (B,) in nats, exact."""
        x = x.flatten(1)
        logits = self.logits(x)
        nats = functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return -sum_except_batch(nats)

    def logits(self, x: Tensor) -> Tensor:
        """Log-odds that a pixel is white, given those before it, (B, D), of pixels (B, D)."""
        return functional.linear(x, self.weight.tril(-1), self.bias)

    def exports(self) -> dict[str, NetworkExport]:
        """Name the regressions for `genlab export --format onnx`."""
        meaning = "maps pixels x (B, D) to the log-odds that each is white, (B, D)."
        inputs = {"x": torch.zeros(2, self.spec.dims)}
        return {"pixels": NetworkExport(_Logits(self), inputs, ("logits",), meaning)}

    def loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        step: int | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Compute the negative log-likelihood of a batch."""
        return {"loss": -self.log_likelihood(x).mean()}

    def evaluate(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        noise: Noise | None = None,
        full: bool = False,
    ) -> dict[str, Tensor]:
        """Measure images: all of the bound is reconstruction."""
        nats = -self.log_likelihood(x)
        return {"loss": nats, "reconstruction": nats, "kl": torch.zeros_like(nats)}

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, first: int = 0) -> Tensor:
        """Draw images pixel by pixel, (n, C, H, W)."""
        device = device_of(self)
        noise = ImageNoise(seed, "sample", indices=range(first, first + n), device=device)
        u = noise.uniform(self.spec.dims)
        x = torch.zeros(n, self.spec.dims, device=device)
        for i in range(self.spec.dims):
            p = torch.sigmoid(x[:, :i] @ self.weight[i, :i] + self.bias[i])
            x[:, i] = (u[:, i] < p).float()
        return x.unflatten(1, self.spec.shape)


class _Logits(nn.Module):
    """`Autoregressive.logits` as a module."""

    def __init__(self, model: Autoregressive) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.logits(x)


class AutoregressiveModule(GenerativeModule):
    """Trains an `Autoregressive`, and logs how far its weights have come."""

    model: Autoregressive

    def constants(self) -> dict[str, float]:
        return {"weight_norm": float(self.model.weight.detach().tril(-1).norm())}
