"""A scheduler of diffusers takes the reverse steps of the model whose process it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab.config.check import resolve
from genlab.config.compose import compose
from genlab.diffusion.diffusers_scheduler import scheduler
from genlab.diffusion.model import DDPM
from genlab.diffusion.process import posterior
from genlab.protocols import ImageSpec
from genlab.training.run_config import build_model, check_model

SPEC = ImageSpec(1, 4, 4)


class Linear(nn.Module):
    """A network that puts out a part of its input."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.cat([0.3 * x, 0.5 * x.flip(2)][: self.out_channels], 1)


def ddpm(*overrides: str) -> DDPM:
    small = ["model=ddpm", "model.steps=6", "model.sampler.steps=6", "model.net.attention=[]"]
    node = resolve(compose([*small, *overrides]))["model"]
    model: Any = build_model(check_model(node), SPEC)
    model.net = Linear(2 if model.reverse_variance.is_learned else 1)
    return model


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned"])
@pytest.mark.parametrize(
    "schedule",
    [
        ("model/noise_schedule=linear", "model/parameterization=eps"),
        (
            "model/noise_schedule=cosine_betas",
            "model/parameterization=v",
            "model.sampler.clip=false",
        ),
        ("model/noise_schedule=linear_log_snr", "model/parameterization=x0"),
        ("model/noise_schedule=zero_terminal_snr", "model/parameterization=v"),
    ],
    ids=lambda overrides: overrides[0].rpartition("=")[2],
)
def test_a_step_of_the_scheduler_is_the_reverse_step(
    schedule: tuple[str, ...], variance: str
) -> None:
    model = ddpm(*schedule, f"model/reverse_variance={variance}")
    theirs = scheduler(model)
    theirs.set_timesteps(6)
    assert theirs.timesteps.tolist() == [5, 4, 3, 2, 1, 0]
    torch.manual_seed(0)
    x_t = torch.randn(3, *SPEC.shape)
    for i in theirs.timesteps.tolist():
        t = torch.full((3,), (i + 1) / 6, dtype=torch.float64)
        prediction = model.predict(x_t, t)
        if model.sampler.clip:
            prediction = prediction.clipped()
        s = model.process.previous(t)
        at = [model.process.log_snr(time) for time in (s, t)]
        mean = posterior(prediction.x0_hat, x_t, *at).mean
        ours = mean
        if i > 0:
            noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(i))
            log_variance = model.reverse_variance.log_variance(model.process, t, prediction)
            std = (
                (log_variance / 2)
                .exp()
                .reshape(3, *[1, *SPEC.shape[1:]] if variance == "learned" else [1, 1, 1])
            )
            ours = mean + std.float() * noise
        output = model.net(x_t, at[1])
        step = theirs.step(output, i, x_t, generator=torch.Generator().manual_seed(i))
        torch.testing.assert_close(
            step.pred_original_sample, prediction.x0_hat, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(step.prev_sample, ours, rtol=1e-4, atol=1e-4)
        x_t = ours


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model.steps=null", "model.test_draws=2", "model/noise_schedule=linear_log_snr"],
            "^in continuous time",
        ),
        (["model/reverse_variance=optimal"], "has Optimal$"),
    ],
)
def test_a_process_that_diffusers_does_not_have_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scheduler(ddpm(*overrides))
