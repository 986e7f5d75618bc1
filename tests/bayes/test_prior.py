"""Each prior's energy is −log of a density, and its pull is the energy's gradient."""

import math

import pytest
import torch

from bora.bayes.prior import FLAT, Gaussian, Norm, make_prior


def test_the_gaussian_energy_is_minus_log_of_the_normal_density():
    deviations, tau = torch.randn(4, 6, dtype=torch.float64), 7.0
    expected = -torch.distributions.Normal(0.0, tau**-0.5).log_prob(deviations).sum(1)
    torch.testing.assert_close(Gaussian(tau, 6).energy(deviations), expected)


def test_the_norm_is_taken_factor_by_factor_and_not_squared():
    A, B = torch.randn(3, 2, 4), torch.randn(3, 5, 2)
    rows = torch.cat([A.flatten(1), B.flatten(1)], dim=1)
    expected = [2.0 * sum(torch.linalg.matrix_norm(f[d]) for f in (A, B)) for d in range(3)]
    torch.testing.assert_close(Norm(2.0, [8, 10]).potential(rows), torch.stack(expected))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_norms_normaliser_is_the_radial_integral(n):
    r = torch.arange(0, 60, 1e-3, dtype=torch.float64) + 5e-4
    sphere = 2 * math.pi ** (n / 2) / math.gamma(n / 2)
    whole = sphere * (r ** (n - 1) * torch.exp(-1.7 * r)).sum().item() * 1e-3
    assert Norm(1.7, [n]).log_normaliser == pytest.approx(math.log(whole), abs=1e-5)
    assert Norm(1.7, [n, n]).log_normaliser == pytest.approx(2 * math.log(whole), abs=1e-5)


@pytest.mark.parametrize("prior", [Gaussian(3.0, 12), Norm(3.0, [4, 5, 3]), FLAT], ids=lambda p: type(p).__name__)
def test_the_pull_is_the_energys_gradient(prior):
    deviations = torch.randn(3, 12, dtype=torch.float64)
    deviations[1, :4] = 0  # a factor at Θ
    ours = prior.pull(deviations)
    deviations.requires_grad_()
    (prior.energy(deviations) + 0 * deviations.sum(1)).sum().backward()
    torch.testing.assert_close(ours, deviations.grad)


def test_the_pull_of_a_nan_is_nan():
    assert Norm(1.0, [4]).pull(torch.full((1, 4), torch.nan)).isnan().all()


def test_the_limits_of_tau_have_a_flat_prior_and_an_unknown_penalty_is_refused():
    assert make_prior(0.0, "norm", [3]) is make_prior(math.inf, "gaussian", [3]) is FLAT
    with pytest.raises(ValueError, match="penalty must be one of gaussian, norm, not 'cubic'"):
        make_prior(1.0, "cubic", [3])
