"""The likelihood along the probability-flow ODE, against Gaussians whose density is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from genlab.diffusion.beta_tables import LinearBetas
from genlab.diffusion.gaussian import GaussianData
from genlab.diffusion.ode_likelihood import ode_log_density
from genlab.diffusion.process import Process, alpha_sigma
from genlab.diffusion.schedules import Linear, LinearLogSNR

# Ends where any data are all but noise: its alpha, 5e-5, is how far the mean is from that of noise.
PROCESS = Process(LinearLogSNR(8.0, -20.0), None)


def rotated(process: Process) -> tuple[MultivariateNormal, Callable[[Tensor, Tensor], Tensor]]:
    """A Gaussian of correlated dimensions at the first time, and the perfect denoiser."""
    torch.manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    std = torch.tensor([0.03, 0.3, 1.0, 0.7], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.2, 0.0, 0.1], dtype=torch.float64)
    along = GaussianData((rotation.T @ mean).reshape(1, 2, 2), std.reshape(1, 2, 2))

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        turned = (x_t.flatten(1) @ rotation).reshape(x_t.shape)
        x0_hat = along.posterior_mean(turned, process.log_snr(t))
        return (x0_hat.flatten(1) @ rotation.T).reshape(x_t.shape)

    alpha, sigma = alpha_sigma(process.log_snr(torch.tensor([process.first]).double()))
    covariance = rotation @ torch.diag((alpha * std).square() + sigma.square()) @ rotation.T
    return MultivariateNormal(alpha * mean, covariance), denoise


@pytest.mark.parametrize("process", [PROCESS, Process(Linear(), 50), Process(LinearBetas(50), 50)])
def test_the_density_of_a_gaussian_is_found(process: Process) -> None:
    truth, denoise = rotated(process)
    x = truth.sample((6,))
    actual = ode_log_density(x.reshape(6, 1, 2, 2), denoise, process, 200)
    # a process that ends at a log-SNR of -10 is that much off its prior
    tolerance = 1e-4 if process is PROCESS else 1e-2
    torch.testing.assert_close(actual, truth.log_prob(x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("std", [0.03, 0.3, 1.0, 2.0])
def test_the_density_of_one_dimension_is_that_of_torch(std: float) -> None:
    data = GaussianData(0.2, std)
    x = data.sample(5)
    normal = Normal(*data.marginal(PROCESS.log_snr(torch.zeros(1))))
    actual = ode_log_density(x, data.denoiser(PROCESS), PROCESS, 200)
    torch.testing.assert_close(actual, normal.log_prob(x).flatten(), rtol=0, atol=1e-4)


def test_the_error_falls_with_the_fourth_power_of_the_step() -> None:
    truth, denoise = rotated(PROCESS)
    x = truth.sample((4,))
    errors = [
        float(
            (ode_log_density(x.reshape(4, 1, 2, 2), denoise, PROCESS, steps) - truth.log_prob(x))
            .abs()
            .max()
        )
        for steps in (20, 40)
    ]
    assert 3.7 < math.log2(errors[0] / errors[1]) < 4.3


def test_random_probes_give_the_divergence_without_bias() -> None:
    truth, denoise = rotated(PROCESS)
    x = truth.sample((1,)).reshape(1, 1, 2, 2)
    full = ode_log_density(x, denoise, PROCESS, 30)
    # every image of a batch has probes of its own
    guesses = ode_log_density(x.expand(2000, 1, 2, 2), denoise, PROCESS, 30, probes=1)
    error = float(guesses.std()) / math.sqrt(2000)
    assert float(guesses.mean() - full) == pytest.approx(0, abs=3 * error)
    fewer = ode_log_density(x.expand(2000, 1, 2, 2), denoise, PROCESS, 30, probes=4)
    assert float(fewer.std() / guesses.std()) == pytest.approx(0.5, abs=0.05)


def test_one_probe_is_exact_where_dimensions_are_independent() -> None:
    data = GaussianData(torch.tensor([0.4, -0.3]).reshape(1, 1, 2), 0.5)
    x, denoise = data.sample(3), data.denoiser(PROCESS)
    torch.testing.assert_close(
        ode_log_density(x, denoise, PROCESS, 10), ode_log_density(x, denoise, PROCESS, 10, probes=1)
    )


def test_the_density_is_found_in_inference_mode_and_in_float32() -> None:
    data = GaussianData(torch.tensor([0.4, -0.3]).reshape(1, 1, 2), 0.5)
    x = data.sample(3)
    with torch.inference_mode():
        single = ode_log_density(x.float(), data.denoiser(PROCESS), PROCESS, 50)
    double = ode_log_density(x, data.denoiser(PROCESS), PROCESS, 50)
    torch.testing.assert_close(single, double, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("steps", "probes", "key"), [(0, None, "steps=0"), (5, 0, "probes=0")])
def test_wrong_counts_are_refused(steps: int, probes: int | None, key: str) -> None:
    data = GaussianData(0.0, 1.0)
    with pytest.raises(ValueError, match=key):
        ode_log_density(data.sample(1), data.denoiser(PROCESS), PROCESS, steps, probes)
