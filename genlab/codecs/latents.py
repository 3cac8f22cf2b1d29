"""The codec of latent diffusion: the latents of a trained VAE, which is frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from genlab.codecs.base import Codec, Coded
from genlab.protocols import Autoencoder, ImageSpec, NetworkExport
from genlab.seeding import Noise
from genlab.tensors import sum_except_batch

#: A channel is collapsed if so small a share of its variance is that of the means of q(z|x).
_COLLAPSED = 1e-3
#: Below this, float32 cannot tell the latents of a channel from a constant.
_LEAST_SCALE = 1e-12


class LatentCodec(Codec):
    """The latents of a frozen VAE, scaled to unit variance (Rombach et al. 2022, app. G).

    x_0 = (z - shift) / scale with z ~ q(z|x); both are measured for each channel on the training
    images. With the diffusion model as the prior of the VAE,

        -log p(x) <= E[-log p(x|z)] + E[log q(z|x)] - E[log p(z)].

    The first term is `reconstruction`; the other two are `kl`, and separately `log_posterior` and
    `latent_nll`, as densities of x_0: the scale has no part in their sum.

    Args:
        spec: shape and kind of the images.
        vae: constructor of the VAE, called with the spec. It has random weights until those of the
            run are loaded.
        run: the run directory that the weights came from; not read here.
        collapsed: "keep" or "refuse" channels that say nothing about the image, whose x_0 is noise.

    Raises:
        ValueError: if there is no VAE, or its p(x|z) is no density of the images.
    """

    is_costly = True
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        vae: Callable[..., nn.Module] | None = None,
        run: str | None = None,
        collapsed: Literal["keep", "refuse"] = "keep",
    ) -> None:
        super().__init__(spec)
        self.run, self.collapsed = run, collapsed
        if vae is None:
            raise ValueError("run=null: give the run directory of a trained VAE")
        self.vae = vae(spec=spec).requires_grad_(False).eval()
        self._autoencoder.check_density()
        channels, height, width = self._autoencoder.latent_shape
        self.code = ImageSpec(channels, height, width, None, spec.classes)
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    @torch.no_grad()
    def inputs(self, x: Tensor) -> Tensor:
        """Compute mean and standard deviation of q(z|x), (B, 2, C, h, w), in float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            q = self._frozen.encode(x.to(self.scale.dtype))
            return torch.stack([q.loc, q.scale], 1).unflatten(2, self.code.shape)

    def draw(self, inputs: Tensor, noise: Noise) -> Tensor:
        mean, std = inputs.unbind(1)
        eps = noise.normal(*self.code.shape).to(mean.dtype)
        return (mean - self.shift) / self.scale + std / self.scale * eps

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        with torch.autocast(x0.device.type, enabled=False):
            images: Tensor = self._frozen.decode(self._latents(x0)).mean
        return 2 * images - 1

    @torch.no_grad()
    def coded(self, x: Tensor, noise: Noise) -> Coded:
        inputs = self.inputs(x)
        x0 = self.draw(inputs, noise)
        with torch.autocast(x.device.type, enabled=False):
            log_prob = self._frozen.log_prob(x.to(x0.dtype), self._latents(x0))
        entropy = 0.5 * math.log(2 * math.pi * math.e) + (inputs[:, 1] / self.scale).double().log()
        return Coded(
            x0,
            {"reconstruction": -log_prob.double(), "log_posterior": -sum_except_batch(entropy)},
        )

    def bound(self, coded: Coded, decoder: Tensor, diffusion: Tensor) -> dict[str, Tensor]:
        latent_nll = decoder + diffusion
        kl = coded.nats["log_posterior"] + latent_nll
        return {**coded.nats, "kl": kl, "latent_nll": latent_nll}

    def measure(self, inputs: Iterable[Tensor]) -> list[str]:
        """Measure shift and scale on the results of `inputs` for all training images.

        Returns:
            Sentences about what was found.

        Raises:
            ValueError: if a channel is not finite or constant, or collapsed and `collapsed` is
                "refuse".
        """
        count, sums, first = 0, torch.zeros(()), torch.zeros(())
        for batch in inputs:
            mean, std = batch.double().unbind(1)
            if count == 0:  # the others are relative to it, so that squares do not cancel
                first = mean[0].mean((1, 2), keepdim=True)
            parts = torch.stack([mean - first, (mean - first).square(), std.square()])
            sums = sums.to(parts) + parts.sum((1, 3, 4))
            count += mean[:, 0].numel()
        centre, square, noise = sums / count
        signal = (square - centre.square()).clamp(min=0)
        variance = signal + noise
        self._refuse(signal, variance)
        self.shift.copy_(first + centre[:, None, None])
        self.scale.copy_(variance.sqrt()[:, None, None])
        scale, share = self.scale.flatten().tolist(), float((noise / variance).mean())
        told = [
            f"latents {' x '.join(map(str, self.code.shape))}, divided by {min(scale):.3g} to "
            f"{max(scale):.3g}; {100 * share:.2g} % of their variance is that of q(z|x)"
        ]
        if quiet := _numbers(signal < _COLLAPSED * variance):
            told.append(f"channels {quiet} say nothing about the image: they are noise")
        return told

    def _refuse(self, signal: Tensor, variance: Tensor) -> None:
        if not variance.isfinite().all():
            raise ValueError(
                f"run={self.run}: its latents are not finite in the channels "
                f"{_numbers(~variance.isfinite())}; give a VAE whose training has not diverged"
            )
        if constant := _numbers(variance.sqrt() < _LEAST_SCALE):
            raise ValueError(
                f"run={self.run}: its latents are constant in the channels {constant}, so that no "
                "scale gives them unit variance; give a VAE with fewer latents"
            )
        collapsed = _numbers(signal < _COLLAPSED * variance)
        if collapsed and self.collapsed == "refuse":
            raise ValueError(
                f"collapsed=refuse: the channels {collapsed} say nothing about the image; give "
                "keep, or a VAE with a smaller kl_weight or fewer latents"
            )

    def describe(self) -> str:
        return "x are latents of zero mean and unit variance"

    def exports(self) -> dict[str, NetworkExport]:
        return {
            "encoder": NetworkExport(
                _Encoder(self),
                {"image": torch.zeros(3, *self.spec.shape)},
                ("mean", "stddev"),
                "maps images (B, C, H, W) in [0, 1] to the mean and the standard deviation of the "
                "latents x, each shaped like x_t.",
            ),
            "decoder": NetworkExport(
                _Decoder(self),
                {"x": torch.zeros(3, *self.code.shape)},
                ("image",),
                "maps latents x, such as samples of the diffusion model, to images in [0, 1].",
            ),
        }

    @property
    def _frozen(self) -> Autoencoder:
        """The VAE as it is in an evaluation, whatever `train` was called on."""
        if self.vae.training:
            self.vae.eval()
        return self._autoencoder

    @property
    def _autoencoder(self) -> Autoencoder:
        vae: object = self.vae
        if not isinstance(vae, Autoencoder):
            raise ValueError(f"run={self.run}: a {type(vae).__name__} has no latents; give a VAE")
        return vae

    def _latents(self, x0: Tensor) -> Tensor:
        return (x0 * self.scale + self.shift).flatten(1)


class _Encoder(nn.Module):
    """The moments of x_0, as a module."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.codec.inputs(x).unbind(1)
        return (mean - self.codec.shift) / self.codec.scale, std / self.codec.scale


class _Decoder(nn.Module):
    """The image of x_0, as a module."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, x0: Tensor) -> Tensor:
        return (self.codec.decode(x0) + 1) / 2


def _numbers(mask: Tensor) -> str:
    """Return the places where a mask is true, as words; at most ten."""
    places = mask.nonzero().flatten().tolist()
    return ", ".join(map(str, places[:10])) + (", ..." if len(places) > 10 else "")
