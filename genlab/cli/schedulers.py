"""diffusers' schedulers, seen as genlab sees its own, so that both checks can take them."""

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

#: Draws from which the moments of a stochastic scheduler are estimated, to 0.2 %.
DRAWS = 1 << 17


class Scheduler:
    """One class of `diffusers.schedulers` with its settings, all others as it comes.

    Args:
        said: its name, then any settings: `DDIMScheduler,timestep_spacing=trailing`.

    Raises:
        ConfigError: without diffusers, or for what it does not know or is no diffusion of the
            kind with an alpha-bar.
    """

    def __init__(self, said: str) -> None:
        name, *settings = said.split(",")
        try:
            # The one submodule: the whole of diffusers takes seconds to import.
            importlib.import_module("diffusers.schedulers")
            schedulers = importlib.import_module("diffusers")
        except ImportError as error:
            raise ConfigError(
                f"--diffusers {said}: the package diffusers is not installed; "
                "pip install 'genlab[diffusers]'"
            ) from error
        self.name = said
        known = [n for n in dir(schedulers) if n.endswith("Scheduler")]
        if name not in known:
            raise ConfigError(
                f"--diffusers {name}: there is no such scheduler; {suggestion(name, known)}"
            )
        self._class: Any = getattr(schedulers, name)
        self._settings = self._read(said, settings)
        made = self._made()
        if not isinstance(getattr(made, "alphas_cumprod", None), Tensor):
            raise ConfigError(
                f"--diffusers {name}: it has no alpha-bar (alphas_cumprod), so its noise is not "
                "of the kind that is checked here; give one such as DDIMScheduler"
            )
        alpha_bar = made.alphas_cumprod.double()
        self.log_snr: Tensor = torch.log(alpha_bar) - torch.log1p(-alpha_bar)

    def _read(self, said: str, settings: list[str]) -> dict[str, Any]:
        known = inspect.signature(self._class).parameters
        # A Gaussian has no ends to clip to.
        read: dict[str, Any] = {
            key: False for key in ("clip_sample", "thresholding") if key in known
        }
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in known:
                raise ConfigError(
                    f"--diffusers {said}: {self._class.__name__} has no {key}; "
                    f"{suggestion(key, list(known))}"
                )
            read[key] = yaml.safe_load(value)
        return read

    def _made(self) -> Any:
        return self._said(lambda: self._class(**self._settings))

    def _said(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"--diffusers {self.name}: the scheduler cannot be run like this ({reason}); "
                "change its settings"
            ) from error

    def summary(self) -> ScheduleSummary:
        """Its noise schedule."""
        steps = len(self.log_snr)
        times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        return ScheduleSummary(self.name, steps, times, self.log_snr)

    def response(self, steps: int, data: GaussianData) -> tuple[Response, bool]:
        """What it does to one-dimensional Gaussian data, and whether that is an estimate.

        A deterministic scheduler is affine in x_T: two probes are exact. Of a stochastic one,
        seen by two equal probes that come out unequal, samples are drawn.
        """
        probes = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
        x, evaluations = self._said(lambda: self._sample(probes, steps, data))
        zero, one, again = x.tolist()
        if one == again:
            return Response(one - zero, zero, 0.0, evaluations), False
        noise = torch.randn(DRAWS, generator=generator(0, "check"), dtype=torch.float64)
        x, _ = self._said(lambda: self._sample(noise, steps, data))
        return Response(0.0, float(x.mean()), float(x.var()), evaluations), True

    def _sample(self, x: Tensor, steps: int, data: GaussianData) -> tuple[Tensor, int]:
        scheduler = self._made()
        scheduler.set_timesteps(steps)
        # Some schedulers look for channels.
        x = x.reshape(-1, 1, 1, 1) * float(scheduler.init_noise_sigma)
        takes = inspect.signature(scheduler.step).parameters
        given = {"generator": generator(0, "steps")} if "generator" in takes else {}
        for t in scheduler.timesteps:
            output = self._perfect(scheduler, scheduler.scale_model_input(x, t), float(t), data)
            x = scheduler.step(output, t, x, **given).prev_sample
        return x.flatten(), len(scheduler.timesteps)

    def _perfect(self, scheduler: Any, x_t: Tensor, t: float, data: GaussianData) -> Tensor:
        """The output of the perfect network, in the terms that the scheduler expects."""
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
