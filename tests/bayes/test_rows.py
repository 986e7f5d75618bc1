"""A batch's rows, taken task by task, are what autograd makes of the same in whole operations."""

import pytest
import torch

from bora.bayes.prior import prior_energies, prior_gradients
from bora.bayes.rows import Form, Prior, rows

D, P = 5, 12
TASK = torch.tensor([3, 0, 3, 1, 3])  # task 3 three times, 2 and 4 not at all
SIZES = [4, 5, 3]


def problem(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(D, P, dtype=dtype, generator=generator).requires_grad_()
    mean = torch.randn(P, dtype=dtype, generator=generator).requires_grad_()
    weights = torch.randn(len(TASK), P, dtype=dtype, generator=generator)
    return stored, mean, weights, torch.rand(len(TASK), dtype=dtype, generator=generator)


@pytest.mark.parametrize("penalty", ["gaussian", "norm", None])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("centered", [True, False])
def test_values_and_gradients_equal_autograds(centered, sparse, penalty):
    stored, mean, weights, shares = problem()
    prior = None if penalty is None else Prior(7.0, penalty, SIZES)
    theta, energies = rows(stored, mean, TASK, Form(centered, sparse, torch.float64), prior)
    loss = (theta * weights).sum() + (0 if energies is None else (energies * shares).sum())
    loss.backward()
    ours = stored.grad, mean.grad
    assert ours[0].is_sparse == sparse

    stored.grad = mean.grad = None
    whole = stored[TASK]
    expected = whole if centered else mean + whole
    torch.testing.assert_close(theta, expected)
    total = (expected * weights).sum()
    if penalty is not None:
        deviations = whole - mean if centered else whole
        by_row = prior_energies(deviations, *prior)
        torch.testing.assert_close(energies, by_row)
        total = total + (by_row * shares).sum()
    total.backward()
    torch.testing.assert_close(ours[0].to_dense(), stored.grad)
    zero = torch.zeros(P, dtype=torch.float64)
    torch.testing.assert_close(ours[1], zero if mean.grad is None else mean.grad)


def test_the_prior_alone_has_its_gradient():
    stored, mean, _, shares = problem()
    prior = Prior(7.0, "gaussian", SIZES)
    _, energies = rows(stored, mean, TASK, Form(True, True, torch.float64), prior)
    (energies * shares).sum().backward()
    expected = torch.zeros(D, P, dtype=torch.float64)
    expected.index_add_(0, TASK, 7.0 * shares[:, None] * (stored[TASK] - mean).detach())
    torch.testing.assert_close(stored.grad.to_dense(), expected)
    torch.testing.assert_close(mean.grad, -expected.sum(0))


def test_bfloat16_rows_have_gradients_summed_in_float32():
    stored, mean, weights, _ = problem(torch.float32)
    theta, _ = rows(stored, mean, TASK, Form(False, True, torch.bfloat16))
    assert theta.dtype == torch.bfloat16
    weights = weights.bfloat16()
    theta.backward(weights)
    assert stored.grad.dtype == torch.float32
    expected = torch.zeros(D, P).index_add_(0, TASK, weights.float())
    torch.testing.assert_close(stored.grad.to_dense(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", ["gaussian", "norm"])
def test_the_priors_written_out_gradient_is_autograds(penalty):
    deviations = torch.randn(3, P, dtype=torch.float64)
    deviations[1, :4] = 0  # a factor at Θ
    deviations.requires_grad_()
    prior_energies(deviations, 3.0, penalty, SIZES).sum().backward()
    ours = prior_gradients(deviations.detach(), 3.0, penalty, SIZES)
    torch.testing.assert_close(ours, deviations.grad)


def test_a_nan_is_not_hidden():
    assert prior_gradients(torch.full((1, P), torch.nan), 1.0, "norm", SIZES).isnan().all()
    with pytest.raises(ValueError, match="penalty"):
        prior_gradients(torch.zeros(1, P), 1.0, "cubic", SIZES)
