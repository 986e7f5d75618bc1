"""Minimising U, or its estimates from batches, reaches the closed form of a linear-Gaussian toy."""

import pytest
import torch

from bora.bayes.forms import PARAMETERIZATIONS
from bora.bayes.objective import prior_by_document, sum_likelihood
from bora.bayes.prior import FLAT, Gaussian
from bora.model.batch import find_places
from bora.model.lora import Layout, add_low_rank


@pytest.mark.parametrize("estimator", ["by_document", "dense"])
@pytest.mark.parametrize("tau", [0.5, 20.0])
@pytest.mark.parametrize("form", PARAMETERIZATIONS)
def test_the_linear_gaussian_toy_reaches_its_closed_form(form, tau, estimator):
    """With A fixed the layer is linear in B, and squared error is a Gaussian's −log likelihood.

    dense minimises the whole U at once, by_document the mean of its estimates from an epoch's batches.
    """
    dense = estimator == "dense"
    torch.manual_seed(0)
    D, n_in, n_out, rank, scale = 3, 4, 2, 2, 1.5
    layout = Layout({"layer": (n_in, n_out)}, rank)
    adapters = PARAMETERIZATIONS[form](layout, list("abc"), sparse=not dense).double()
    prior = Gaussian(tau, layout.n_parameters)
    A = layout.factors(adapters.mean)["layer"].A.detach().clone()
    sizes = (3, 8, 20)
    x = [torch.randn(n, n_in, dtype=torch.float64) for n in sizes]
    y = [torch.randn(n, n_out, dtype=torch.float64) + d for d, n in enumerate(sizes)]
    inputs, targets, counts = torch.cat(x)[:, None], torch.cat(y), torch.tensor(sizes)
    task = torch.arange(D).repeat_interleave(counts)
    is_A = torch.arange(layout.n_parameters) < rank * n_in

    def estimate(documents, k):
        theta, potentials = adapters.rows(find_places(task[documents]), torch.float64, FLAT if dense else prior)
        # A stays fixed, since its part of θ is detached.
        lora = layout.factors(torch.where(is_A, theta.detach(), theta))["layer"]
        zero = torch.zeros(len(documents), 1, n_out, dtype=torch.float64)
        residual = targets[documents] - add_low_rank(zero, inputs[documents], lora, scale)[:, 0]
        nll = 0.5 * residual.square().sum(1)
        if dense:
            return nll.sum() + prior.potential(adapters.deviations()).sum()
        return sum_likelihood(nll, k) + prior_by_document(potentials, task[documents], counts, k)

    batches = torch.randperm(len(task)).tensor_split(1 if dense else 4)
    optimiser = torch.optim.LBFGS(
        adapters.parameters(), max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def epoch():
        optimiser.zero_grad()
        energy = sum(estimate(batch, len(batches)) for batch in batches) / len(batches)
        energy.backward()
        return energy

    optimiser.step(epoch)

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
        torch.testing.assert_close(lora.B.T, solution[rank * d : rank * (d + 1)], rtol=0, atol=1e-6)
    torch.testing.assert_close(layout.factors(adapters.mean)["layer"].B.T, solution[m], rtol=0, atol=1e-6)
