from itertools import combinations

import pytest
import torch

from bora.model.adapters import StackedLoRA
from bora.model.posterior import gaussian_energy, likelihood_estimate, norm_energy, prior_energy


def test_gaussian_energy_is_the_normal_density_up_to_its_constant():
    torch.manual_seed(0)
    theta, mean, tau = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64), 7.0
    normal = torch.distributions.Normal(mean, tau**-0.5)
    expected = -(normal.log_prob(theta) - normal.log_prob(mean)).sum()
    torch.testing.assert_close(gaussian_energy([theta - mean], tau), expected)


def test_at_fixed_theta_the_best_mean_is_the_average():
    theta = torch.randn(5, 3, dtype=torch.float64)
    mean = theta.mean(0).requires_grad_()
    gaussian_energy([theta - mean], 3.0).backward()
    assert mean.grad.abs().max() < 1e-12


def test_norm_energy_is_not_squared_and_taken_factor_by_factor():
    A, B = torch.randn(3, 2, 4), torch.randn(3, 5, 2)
    expected = 2.0 * sum(torch.linalg.matrix_norm(f[d]) for f in (A, B) for d in range(3))
    torch.testing.assert_close(norm_energy([A, B], 2.0), expected)


def test_norm_energy_has_a_finite_gradient_at_the_mean():
    deviation = torch.zeros(2, 3, requires_grad=True)
    norm_energy([deviation], 1.0).backward()
    assert torch.isfinite(deviation.grad).all()


@pytest.mark.parametrize("tau", [0.0, float("inf")])
def test_no_prior_at_either_limit(tau):
    assert prior_energy(iter([torch.ones(2, 2)]), tau, "gaussian") == 0.0


def test_an_unknown_penalty_is_refused():
    with pytest.raises(ValueError, match="penalty"):
        prior_energy([], 1.0, "cubic")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_batch_estimate_is_unbiased(size):
    nll = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0], dtype=torch.float64)
    estimates = [
        likelihood_estimate(nll[list(b)], size, len(nll)) for b in combinations(range(len(nll)), size)
    ]
    torch.testing.assert_close(torch.stack(estimates).mean(), nll.sum())


@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
@pytest.mark.parametrize("tau", [0.5, 20.0])
def test_the_linear_gaussian_toy_reaches_its_closed_form(parameterization, tau):
    """With A fixed the layer is linear in B, and squared error is a Gaussian's −log likelihood."""
    torch.manual_seed(0)
    D, n_in, n_out, rank, alpha = 3, 4, 2, 2, 3.0
    stack = StackedLoRA(n_in, n_out, D, rank, alpha, parameterization).double()
    A, scale = stack.A_mean.detach(), alpha / rank
    for name, parameter in stack.named_parameters():
        parameter.requires_grad_(name.startswith("B"))
    sizes = (3, 8, 20)
    x = [torch.randn(n, n_in, dtype=torch.float64) for n in sizes]
    y = [torch.randn(n, n_out, dtype=torch.float64) + d for d, n in enumerate(sizes)]

    def energy():
        parts = [0.5 * (y[d] - stack(x[d][None], torch.tensor([d]))[0]).square().sum() for d in range(D)]
        return sum(parts) + prior_energy(stack.deviations(), tau, "gaussian")

    optimiser = torch.optim.AdamW(
        [p for p in stack.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.997)
    for _ in range(5000):
        optimiser.zero_grad()
        energy().backward()
        optimiser.step()
        schedule.step()

    # Normal equations of min Σ_d ½‖y_d − Z_d b_d‖² + τ/2 Σ_d ‖b_d − m‖² in (b_1, …, b_D, m),
    # with z = scale · A x and one column of y at a time.
    z = [scale * xd @ A.T for xd in x]
    system = torch.zeros(rank * (D + 1), rank * (D + 1), dtype=torch.float64)
    right = torch.zeros(rank * (D + 1), n_out, dtype=torch.float64)
    eye, m = torch.eye(rank, dtype=torch.float64), slice(rank * D, None)
    for d in range(D):
        b = slice(rank * d, rank * (d + 1))
        system[b, b] = z[d].T @ z[d] + tau * eye
        system[b, m] = system[m, b] = -tau * eye
        right[b] = z[d].T @ y[d]
    system[m, m] = D * tau * eye
    solution = torch.linalg.solve(system, right)
    for d in range(D):
        torch.testing.assert_close(stack.of(d).B.T, solution[rank * d : rank * (d + 1)], rtol=0, atol=2e-4)
    torch.testing.assert_close(stack.B_mean.T, solution[m], rtol=0, atol=2e-4)
