import pytest
import torch

from bora.bayes.adamw import RowwiseAdamW
from bora.bayes.adapters import Adapters
from bora.bayes.prior import likelihood_estimate, prior_energies, prior_estimate
from bora.bayes.rows import Prior


def test_gaussian_energy_is_the_normal_density_up_to_its_constant():
    torch.manual_seed(0)
    theta, mean, tau = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64), 7.0
    normal = torch.distributions.Normal(mean, tau**-0.5)
    expected = -(normal.log_prob(theta) - normal.log_prob(mean)).sum(1)
    torch.testing.assert_close(prior_energies(theta - mean, tau, "gaussian", [6]), expected)


def test_at_fixed_theta_the_best_mean_is_the_average():
    theta = torch.randn(5, 3, dtype=torch.float64)
    mean = theta.mean(0).requires_grad_()
    prior_energies(theta - mean, 3.0, "gaussian", [3]).sum().backward()
    assert mean.grad.abs().max() < 1e-12


def test_norm_energy_is_not_squared_and_taken_factor_by_factor():
    A, B = torch.randn(3, 2, 4), torch.randn(3, 5, 2)
    rows = torch.cat([A.flatten(1), B.flatten(1)], dim=1)
    expected = [2.0 * sum(torch.linalg.matrix_norm(f[d]) for f in (A, B)) for d in range(3)]
    torch.testing.assert_close(prior_energies(rows, 2.0, "norm", [8, 10]), torch.stack(expected))


def test_norm_energy_has_a_finite_gradient_at_the_mean():
    deviation = torch.zeros(2, 3, requires_grad=True)
    prior_energies(deviation, 1.0, "norm", [3]).sum().backward()
    assert torch.isfinite(deviation.grad).all()


def test_an_unknown_penalty_is_refused():
    with pytest.raises(ValueError, match="penalty"):
        prior_energies(torch.zeros(1, 1), 1.0, "cubic", [1])


@pytest.mark.parametrize("cuts", [[1, 2, 5], [3], [2, 4], [5]])
def test_the_batch_estimates_are_unbiased(cuts):
    """However an epoch is cut into batches, their mean is the whole."""
    nll = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0, 2.0], dtype=torch.float64)
    energies = torch.tensor([7.0, 0.3, 2.0], dtype=torch.float64)
    task, sizes = torch.tensor([0, 2, 0, 1, 0, 2]), torch.tensor([3, 1, 2])
    batches = torch.randperm(6).tensor_split(cuts)
    batches = [b for b in batches if len(b)]
    k = len(batches)
    likelihood = [likelihood_estimate(nll[b], k) for b in batches]
    prior = [prior_estimate(energies[task[b]], task[b], sizes, k) for b in batches]
    torch.testing.assert_close(torch.stack(likelihood).mean(), nll.sum())
    torch.testing.assert_close(torch.stack(prior).mean(), energies.sum())


@pytest.mark.parametrize(
    ("estimator", "tau", "atol"), [("dense", 0.5, 2e-4), ("dense", 20.0, 2e-4), ("by_document", 20.0, 2e-3)]
)
@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
def test_the_linear_gaussian_toy_reaches_its_closed_form(parameterization, estimator, tau, atol):
    """With A fixed the layer is linear in B, and squared error is a Gaussian's −log likelihood.

    dense: the whole of U in each step. by_document: a few documents a step, rows of absent tasks at rest.
    """
    torch.manual_seed(0)
    D, n_in, n_out, rank, alpha = 3, 4, 2, 2, 3.0
    layer = torch.nn.Linear(n_in, n_out, bias=False).double().requires_grad_(False)
    layer.weight.zero_()
    adapters = Adapters(
        {"layer": layer}, list("abc"), rank, alpha, parameterization, sparse=estimator == "by_document"
    ).double()
    A, scale = adapters.mean_lora["layer"].A.detach().clone(), alpha / rank
    sizes = (3, 8, 20)
    x = [torch.randn(n, n_in, dtype=torch.float64) for n in sizes]
    y = [torch.randn(n, n_out, dtype=torch.float64) + d for d, n in enumerate(sizes)]
    task = torch.arange(D).repeat_interleave(torch.tensor(sizes))
    is_A = torch.cat([torch.ones(rank * n_in), torch.zeros(n_out * rank)]).bool()

    def step(documents, batches):
        prior = Prior(tau, "gaussian", adapters.layout.sizes)
        theta, energies = adapters.rows(task[documents], torch.float64, prior)
        # A is held by giving it no gradient: θ's part that is A comes detached.
        theta = torch.where(is_A, theta.detach(), theta)
        with adapters.routed(theta):
            residual = torch.cat(y)[documents] - layer(torch.cat(x)[documents][:, None])[:, 0]
        nll = 0.5 * residual.square().sum(1)
        if estimator == "by_document":
            return likelihood_estimate(nll, batches) + prior_estimate(
                energies, task[documents], counts, batches
            )
        return nll.sum() + prior_energies(adapters.deviation(adapters.stored), *prior).sum()

    counts = torch.tensor(sizes)
    if estimator == "dense":
        optimiser = torch.optim.AdamW(adapters.parameters(), lr=0.05, weight_decay=0.0)
        n_steps, k, decay = 6000, 1, 0.998
    else:
        optimiser = RowwiseAdamW(adapters.parameters(), lr=0.05)
        n_steps, k, decay = 6000, 4, 0.9985
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay)
    for i in range(n_steps):
        if i % k == 0:
            batches = torch.randperm(len(task)).tensor_split(k)
        optimiser.zero_grad()
        step(batches[i % k], k).backward()
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
        lora = adapters.tasks["abc"[d]]["layer"]
        torch.testing.assert_close(lora.A, A, rtol=0, atol=1e-9)
        torch.testing.assert_close(lora.B.T, solution[rank * d : rank * (d + 1)], rtol=0, atol=atol)
    torch.testing.assert_close(adapters.mean_lora["layer"].B.T, solution[m], rtol=0, atol=atol)
