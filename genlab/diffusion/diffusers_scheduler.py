"""The noise schedule of a model as a scheduler of diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import logsigmoid

from genlab.diffusion.parameterizations import X0, Epsilon, V
from genlab.diffusion.variances import FixedLarge, FixedSmall, Learned

if TYPE_CHECKING:
    from genlab.diffusion.model import DDPM

_PREDICTIONS: dict[type, str] = {Epsilon: "epsilon", X0: "sample", V: "v_prediction"}
_VARIANCES: dict[type, str] = {
    FixedLarge: "fixed_large",
    FixedSmall: "fixed_small",
    Learned: "learned_range",
}


def scheduler(model: DDPM) -> Any:
    """Build the `DDPMScheduler` with the process of a model; its timestep i is t = (i + 1) / T.

    With all T steps it draws as `genlab.diffusion.samplers.Ancestral` does.

    Raises:
        ValueError: if diffusers has no such scheduler; the message says why.
        ImportError: if diffusers is not installed.
    """
    log_snrs = model.step_log_snrs()
    if log_snrs is None:
        raise ValueError(
            "in continuous time there are no steps, which a scheduler of diffusers has"
        )
    prediction = _PREDICTIONS.get(type(model.parameterization))
    variance = _VARIANCES.get(type(model.reverse_variance))
    if prediction is None or variance is None:
        component = model.parameterization if prediction is None else model.reverse_variance
        raise ValueError(f"no scheduler of diffusers has {type(component).__name__}")
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    # beta = 1 - alpha_t^2 / alpha_s^2, without the cancellation
    log_alpha_squared = logsigmoid(log_snrs)
    before = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_squared[:-1]])
    return DDPMScheduler(
        num_train_timesteps=len(log_snrs),
        trained_betas=(-torch.expm1(log_alpha_squared - before)).tolist(),
        prediction_type=prediction,
        variance_type=variance,
        clip_sample=model.sampler.clip,
        timestep_spacing="trailing",
    )
