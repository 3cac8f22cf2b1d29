"""Adapter of the schedulers of diffusers to both check commands."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from genlab.config.compose import suggestion
from genlab.diffusion.gaussian import GaussianData
from genlab.diffusion.process import alpha_sigma
from genlab.diffusion.sampler_check import Response
from genlab.diffusion.schedule_check import ScheduleSummary
from genlab.errors import ConfigError
from genlab.seeding import generator

#: Draws that estimate the moments of a stochastic scheduler, to 0.2 %.
DRAWS = 1 << 17


class Scheduler:
    """One class of `diffusers.schedulers` with its settings; other settings have their defaults.

    Args:
        text: its name, then any settings: `DDIMScheduler,timestep_spacing=trailing`.

    Raises:
        ConfigError: diffusers is missing or does not know the class or a setting, or the scheduler
            has no alpha-bar.
    """

    def __init__(self, text: str) -> None:
        name, *settings = text.split(",")
        try:
            # Only this submodule: all of diffusers takes seconds to import.
            importlib.import_module("diffusers.schedulers")
            schedulers = importlib.import_module("diffusers")
        except ImportError as error:
            raise ConfigError(
                f"--diffusers {text}: the package diffusers is not installed; "
                "pip install 'genlab[diffusers]'"
            ) from error
        self.name = text
        known = [n for n in dir(schedulers) if n.endswith("Scheduler")]
        if name not in known:
            raise ConfigError(
                f"--diffusers {name}: there is no such scheduler; {suggestion(name, known)}"
            )
        self._class: Any = getattr(schedulers, name)
        self._settings = self._read(text, settings)
        made = self._made()
        if not isinstance(getattr(made, "alphas_cumprod", None), Tensor):
            raise ConfigError(
                f"--diffusers {name}: it has no alpha-bar (alphas_cumprod), so its noise is not "
                "of the kind that is checked here; give one such as DDIMScheduler"
            )
        alpha_bar = made.alphas_cumprod.double()
        self.log_snr: Tensor = torch.log(alpha_bar) - torch.log1p(-alpha_bar)

    def _read(self, text: str, settings: list[str]) -> dict[str, Any]:
        known = inspect.signature(self._class).parameters
        # A Gaussian is unbounded, so that nothing may be clipped.
        read: dict[str, Any] = {
            key: False for key in ("clip_sample", "thresholding") if key in known
        }
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in known:
                raise ConfigError(
                    f"--diffusers {text}: {self._class.__name__} has no {key}; "
                    f"{suggestion(key, list(known))}"
                )
            read[key] = yaml.safe_load(value)
        return read

    def _made(self) -> Any:
        return self._run(lambda: self._class(**self._settings))

    def _run(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"--diffusers {self.name}: the scheduler cannot be run like this ({reason}); "
                "change its settings"
            ) from error

    def summary(self) -> ScheduleSummary:
        """Summarise its noise schedule."""
        steps = len(self.log_snr)
        times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        return ScheduleSummary(self.name, steps, times, self.log_snr)

    def response(self, steps: int, data: GaussianData) -> tuple[Response, bool]:
        """Measure its effect on one-dimensional Gaussian data; True if that is an estimate.

        A deterministic scheduler is affine in x_T, so that two probes are exact. For a stochastic
        one, for which two equal probes give different results, samples are drawn.
        """
        probes = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
        x, evaluations = self._run(lambda: self._sample(probes, steps, data))
        zero, one, again = x.tolist()
        if one == again:
            return Response(one - zero, zero, 0.0, evaluations), False
        noise = torch.randn(DRAWS, generator=generator(0, "check"), dtype=torch.float64)
        x, _ = self._run(lambda: self._sample(noise, steps, data))
        return Response(0.0, float(x.mean()), float(x.var()), evaluations), True

    def _sample(self, x: Tensor, steps: int, data: GaussianData) -> tuple[Tensor, int]:
        scheduler = self._made()
        scheduler.set_timesteps(steps)
        # Some schedulers require a channel axis.
        x = x.reshape(-1, 1, 1, 1) * float(scheduler.init_noise_sigma)
        takes = inspect.signature(scheduler.step).parameters
        given = {"generator": generator(0, "steps")} if "generator" in takes else {}
        for t in scheduler.timesteps:
            output = self._perfect(scheduler, scheduler.scale_model_input(x, t), float(t), data)
            x = scheduler.step(output, t, x, **given).prev_sample
        return x.flatten(), len(scheduler.timesteps)

    def _perfect(self, scheduler: Any, x_t: Tensor, t: float, data: GaussianData) -> Tensor:
        """Compute the perfect network's output in the scheduler's parameterization."""
        at = float(np.interp(t, np.arange(len(self.log_snr)), self.log_snr.numpy()))
        log_snr = torch.tensor([at], dtype=torch.float64)
        alpha, sigma = (float(value) for value in alpha_sigma(log_snr))
        x0_hat = data.posterior_mean(x_t, log_snr)
        kind = scheduler.config.prediction_type
        if kind == "sample":
            return x0_hat
        eps_hat = (x_t - alpha * x0_hat) / sigma
        if kind == "epsilon":
            return eps_hat
        if kind == "v_prediction":
            return alpha * eps_hat - sigma * x0_hat
        raise ValueError(f"prediction_type={kind} is not one of epsilon, sample, v_prediction")
