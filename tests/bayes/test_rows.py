"""A batch's rows, gathered one by one or together, equal autograd's over operations on the whole matrix."""

import pytest
import torch

from bora.bayes import rows
from bora.bayes.forms import Centered, NonCentered
from bora.bayes.prior import FLAT, Gaussian, Norm
from bora.model.batch import find_places
from bora.model.lora import Layout

D, P = 5, 24
TASK = torch.tensor([3, 0, 3, 1, 3])  # task 3 three times, 2 and 4 not at all
LAYOUT = Layout({"x": (3, 5), "y": (2, 2)}, rank=2)


@pytest.fixture(params=[False, True], ids=["each", "together"], autouse=True)
def gathering(request, monkeypatch):
    """Gather rows one by one, as on a CPU, or together, as on a GPU."""
    monkeypatch.setattr(rows, "together", lambda device: request.param)


def problem(form, sparse: bool = True, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    adapters = form(LAYOUT, list("abcde"), init_std=1.0, sparse=sparse).to(dtype)
    return adapters, torch.randn(len(TASK), P, dtype=dtype), torch.rand(len(TASK), dtype=dtype)


@pytest.mark.parametrize("prior", [Gaussian(7.0, P), Norm(7.0, LAYOUT.sizes), FLAT], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("form", [Centered, NonCentered])
def test_values_and_gradients_equal_autograds(form, sparse, prior):
    adapters, weights, shares = problem(form, sparse)
    theta, potentials = adapters.rows(find_places(TASK), torch.float64, prior)
    ((theta * weights).sum() + (potentials * shares).sum()).backward()
    ours = adapters.stored.grad, adapters.mean.grad
    assert ours[0].is_sparse == sparse
    assert not sparse or ours[0].is_coalesced()

    adapters.zero_grad()
    whole = adapters.stored[TASK]
    expected = whole if form is Centered else adapters.mean + whole
    by_row = prior.potential(whole - adapters.mean if form is Centered else whole)
    torch.testing.assert_close((theta, potentials), (expected, by_row))
    total = (expected * weights).sum() + (by_row * shares).sum() + 0 * adapters.mean.sum()
    total.backward()
    # Θ has a gradient even if nothing depends on it, as DistributedDataParallel needs.
    torch.testing.assert_close((ours[0].to_dense(), ours[1]), (adapters.stored.grad, adapters.mean.grad))


def test_bfloat16_rows_have_gradients_summed_in_float32():
    adapters, weights, _ = problem(NonCentered, dtype=torch.float32)
    theta, _ = adapters.rows(find_places(TASK), torch.bfloat16)
    assert theta.dtype == torch.bfloat16
    theta.backward(weights.bfloat16())
    assert adapters.stored.grad.dtype == torch.float32
    expected = torch.zeros(D, P).index_add_(0, TASK, weights.bfloat16().float())
    torch.testing.assert_close(adapters.stored.grad.to_dense(), expected, rtol=1e-6, atol=1e-6)
