"""The likelihood of a diffusion model, as a normalising flow along its probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genlab.diffusion.process import Process, alpha_sigma, scale
from genlab.errors import whole
from genlab.tensors import sum_except_batch

# x_t is practically pure noise from here on: KL(q(x_t | x_0) || N(0, I)) is 1e-9 nats/dimension.
_LAST_LOG_SNR = -20.0


def ode_log_density(
    x: Tensor,
    denoise: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    steps: int,
    probes: int | None = None,
) -> Tensor:
    """Compute the log-density in nats, (B,) float64, of images x (B, C, H, W) at the first time.

    The images are taken as x_t of the first time, in [-1, 1] units. Song et al. (2021, score SDE),
    eq. 39, with the classical Runge-Kutta method of order 4 on `steps` equal steps of the log-SNR
    l. In l the ODE is dx/dl = alpha (x0_hat - alpha x) / 2.

    Args:
        denoise: maps images and times (B,) to x0_hat, differentiable in the images.
        probes: number of random +-1 vectors for an unbiased estimate of the divergence
            (Hutchinson), from torch's default generator, the same along the whole path. None for
            the exact divergence, by one derivative for each of the D dimensions.

    Raises:
        ValueError: if steps or probes is below 1.
    """
    whole("steps", steps, 1)
    first = float(process.log_snr(torch.tensor(process.first)))
    last = max(float(process.log_snr(torch.tensor(1.0))), _LAST_LOG_SNR)
    step = (last - first) / steps
    # Runge-Kutta evaluates both ends and the middle of a step.
    log_snrs = torch.linspace(first, last, 2 * steps + 1, dtype=torch.float64, device=x.device)
    times = process.schedule.time_at(log_snrs).clamp(min=process.first)
    alphas, _ = alpha_sigma(log_snrs)

    def rate(x_t: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Compute dx/dl and its divergence (B,)."""
        t, alpha = times[place].expand(len(x)), alphas[place].expand(len(x))
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            drift = scale(alpha / 2, denoise(x_t, t) - scale(alpha, x_t))
            divergence = torch.zeros_like(alpha)
            for vector in vectors:
                (gradient,) = torch.autograd.grad(drift, x_t, vector, retain_graph=True)
                divergence = divergence + sum_except_batch((gradient * vector).double())
        return drift.detach(), divergence / (1 if probes is None else probes)

    # Autograd does not accept tensors that were created in inference mode.
    with torch.inference_mode(False):
        x_t = x.detach().clone()
        vectors = _vectors(x_t, probes)
        times, alphas = times.clone(), alphas.clone()
        integral = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i in range(0, 2 * steps, 2):
            k1, d1 = rate(x_t, i)
            k2, d2 = rate(x_t + step / 2 * k1, i + 1)
            k3, d3 = rate(x_t + step / 2 * k2, i + 1)
            k4, d4 = rate(x_t + step * k3, i + 2)
            x_t = x_t + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            integral = integral + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    log_normal = -0.5 * (x_t.double().square() + math.log(2 * math.pi))
    return sum_except_batch(log_normal) + integral


def _vectors(x: Tensor, probes: int | None) -> list[Tensor]:
    if probes is None:
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        return [row.reshape(x[0].shape).expand_as(x) for row in basis]
    whole("probes", probes, 1)
    return [torch.randint_like(x, 2) * 2 - 1 for _ in range(probes)]
