"""p(z): the standard normal, and the mixture of posteriors at learned images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.distributions import Normal

from genlab.config.build import build
from genlab.config.check import check
from genlab.errors import ConfigError
from genlab.protocols import ImageSpec
from genlab.vae.bounds import gaussian_kl
from genlab.vae.priors import Prior, StandardNormal, VampPrior

FILES = sorted((Path(__file__).parents[2] / "conf/model/prior").glob("*.yaml"))
SPEC = ImageSpec(1, 4, 4)


def component(path: Path, **changes: Any) -> Prior:
    node = {**OmegaConf.to_container(OmegaConf.load(path)), **changes}
    prior: Prior = build(check(node, "model.prior"), "model.prior")(spec=SPEC, latent_dim=3)
    return prior


class Encoder(nn.Module):
    """Linear: images to q(z|x)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Normal:
        mean, log_var = self.linear(x.flatten(1)).chunk(2, 1)
        return Normal(mean, (log_var / 2).exp())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_prior_scores_and_samples_and_says_whether_its_kl_is_a_closed_form(
    path: Path,
) -> None:
    prior, encode = component(path), Encoder()
    distribution = prior.distribution(encode)
    z = distribution.sample((7,))
    assert z.shape == (7, 3)
    assert distribution.log_prob(z).shape == (7,)
    per_dim = prior.kl_per_dim(encode(torch.rand(5, 1, 4, 4)))
    assert (per_dim is not None) == prior.kl_is_analytic
    if per_dim is not None:
        assert per_dim.shape == (5, 3)


def test_the_standard_normal_is_one() -> None:
    prior, z = StandardNormal(SPEC, 3), torch.randn(5, 3)
    expected = -0.5 * z.square().sum(1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(prior.distribution().log_prob(z), expected)
    mean, log_var = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(
        prior.kl_per_dim(Normal(mean, (log_var / 2).exp())), gaussian_kl(mean, log_var)
    )


def test_a_vamp_prior_of_one_standard_normal_is_the_standard_prior() -> None:
    vamp, z = VampPrior(SPEC, 3, components=1), torch.randn(50, 3)
    p = vamp.distribution(lambda u: Normal(torch.zeros(len(u), 3), torch.ones(len(u), 3)))
    torch.testing.assert_close(p.log_prob(z), StandardNormal(SPEC, 3).distribution().log_prob(z))


def test_a_vamp_prior_is_the_mean_of_the_posteriors_at_its_images() -> None:
    vamp, encode, z = VampPrior(SPEC, 3, components=4), Encoder(), torch.randn(9, 3)
    q = encode(vamp.pseudo_inputs)
    each = torch.stack([Normal(q.loc[k], q.scale[k]).log_prob(z).sum(1) for k in range(4)])
    torch.testing.assert_close(vamp.distribution(encode).log_prob(z), each.exp().mean(0).log())


def test_pseudo_inputs_are_images_and_learn() -> None:
    vamp, encode = VampPrior(SPEC, 3, components=4, initial_std=5.0), Encoder()
    assert vamp.pseudo_inputs.min() >= 0 and vamp.pseudo_inputs.max() <= 1
    vamp.distribution(encode).log_prob(torch.randn(9, 3)).sum().backward()
    assert vamp.raw.grad is not None and float(vamp.raw.grad.abs().sum()) > 0
    real = VampPrior(ImageSpec(1, 4, 4, levels=None), 3, components=4, initial_std=5.0)
    assert real.pseudo_inputs.min() < 0


def test_a_vamp_prior_without_an_encoder_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="pass encode"):
        VampPrior(SPEC, 3, components=1).distribution()


@pytest.mark.parametrize("changes", [{"components": 0}, {"initial_std": -1.0}])
def test_a_wrong_value_is_refused_by_name(changes: dict[str, Any]) -> None:
    ((key, value),) = changes.items()
    with pytest.raises(ConfigError, match=f"^model.prior.{key}={value}: "):
        component(FILES[0].with_name("vamp.yaml"), **changes)
