"""Active units, ELBO surgery and the fitted aggregate, where the answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from genlab.vae import diagnostics
from genlab.vae.diagnostics import active_units, fitted_aggregate, information


def channel(n: int, d: int, log_var: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means and variances whose aggregate is N(0, I): q(z|x) of variance exp(log_var)."""
    torch.manual_seed(0)
    means = torch.randn(n, d) * math.sqrt(1 - math.exp(log_var))
    log_vars = torch.full((n, d), log_var)
    return means, log_vars, Normal(means, math.exp(log_var / 2)).sample()


def test_active_units_vary_by_more_than_a_hundredth() -> None:
    torch.manual_seed(0)
    spread = torch.tensor([1.0, 0.11, 0.09, 0.0])
    signs = torch.tensor([1.0, -1.0]).repeat(500)[:, None]
    assert active_units(signs * spread) == 2
    assert active_units(signs * spread, threshold=0.5) == 1


def test_active_units_survive_a_large_mean() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(500)[:, None]
    assert active_units(10_000.0 + signs * torch.tensor([0.2, 0.05])) == 1


def test_nvae_counts_another_number() -> None:
    means, log_vars = torch.zeros(10, 3), torch.tensor([0.0, -1.0, -4.0]).expand(10, 3)
    per_dim = diagnostics.kl_per_dim(means, log_vars)
    expected = torch.tensor([0.0, (math.exp(-1) - 1 + 1) / 2, (math.exp(-4) - 1 + 4) / 2])
    torch.testing.assert_close(per_dim, expected.double())
    assert active_units(means) == 0
    assert diagnostics.kl_active_units(per_dim) == 2


def test_information_against_the_definition_written_out() -> None:
    torch.manual_seed(0)
    means, log_vars = torch.randn(40, 3) + 5, torch.randn(40, 3)
    q = Normal(means.double(), (log_vars.double() / 2).exp())
    z = q.sample()
    each = q.log_prob(z[:, None]).sum(2)
    log_q = each.exp().mean(1).log()
    expected = float((each.diagonal() - log_q).mean())
    found = information(means, log_vars, z)
    kl = float(diagnostics.kl_per_dim(means, log_vars).sum())
    assert found.mutual_information == pytest.approx(expected, abs=1e-9)
    assert found.mutual_information + found.aggregate_kl == pytest.approx(kl)
    assert found.cap == pytest.approx(math.log(40))


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    q = channel(101, 4, -2.0)
    whole = information(*q)
    monkeypatch.setattr(diagnostics, "_BLOCK", 101 * 7)
    assert information(*q) == pytest.approx(whole)


def test_a_matched_aggregate_leaves_all_of_the_rate_to_information() -> None:
    means, log_vars, z = channel(4000, 3, -1.0)
    found = information(means, log_vars, z)
    assert found.mutual_information == pytest.approx(1.5, abs=0.06)
    assert found.aggregate_kl == pytest.approx(0, abs=0.06)


def test_a_shifted_aggregate_leaves_the_shift_to_the_prior() -> None:
    means, log_vars, z = channel(3000, 2, -1.0)
    found = information(means + 3, log_vars, z + 3)
    assert found.mutual_information == pytest.approx(1.0, abs=0.06)
    assert found.aggregate_kl == pytest.approx(2 * 9 / 2, abs=0.2)


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_a_minibatch_estimate_saturates_at_the_log_of_its_size(n: int) -> None:
    # 20 latents of 1.5 nats each: 30 nats, of which a batch can show ln n
    found = information(*channel(n, 20, -3.0))
    assert math.log(n) - 0.3 < found.mutual_information <= found.cap == math.log(n)


def test_tiny_variances_are_safe() -> None:
    torch.manual_seed(0)
    means, log_vars = 100 * torch.randn(300, 5), torch.full((300, 5), -30.0)
    z = means.double() + math.exp(-15) * torch.randn(300, 5).double()
    assert information(means, log_vars, z).mutual_information == pytest.approx(math.log(300))


def test_a_collapsed_posterior_has_nothing_to_say() -> None:
    torch.manual_seed(0)
    zeros = torch.zeros(100, 4)
    found = information(zeros, zeros, torch.randn(100, 4))
    assert found.mutual_information == pytest.approx(0, abs=1e-9)
    assert found.aggregate_kl == pytest.approx(0, abs=1e-9)


def test_the_fitted_aggregate_has_the_moments_of_q() -> None:
    torch.manual_seed(0)
    means, log_vars = (
        torch.randn(500, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]),
        -torch.ones(500, 2),
    )
    fitted = fitted_aggregate(means + 7, log_vars)
    noise = math.exp(-1) * torch.eye(2)
    expected = torch.cov(means.T, correction=0) + noise
    torch.testing.assert_close(fitted.covariance_matrix.float(), expected)
    torch.testing.assert_close(fitted.mean.float(), means.mean(0) + 7)


def test_verdicts_are_short() -> None:
    assert diagnostics.verdict(0, 20) == "collapsed"
    assert diagnostics.verdict(12, 20) == "12 of 20 active"
    assert diagnostics.verdict(20, 20) == "all 20 active"
