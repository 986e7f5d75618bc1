"""AdamW by rows: each row equals a torch AdamW that steps only when the row has a gradient."""

import math

import pytest
import torch
from lightning.fabric.utilities.optimizer import _optimizer_to_device

from bora.bayes import adamw
from bora.bayes.adamw import RowwiseAdamW, clip_gradients

OPTIONS = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}


def gradients(seed: int = 0):
    """Yield each step's rows and a gradient for each; rows repeat, as in a batch with two documents of a task."""
    generator = torch.Generator().manual_seed(seed)
    for rows in ([0, 2, 0], [1], [2, 2], [0, 1, 2], [3, 0]):
        yield rows, torch.randn(len(rows), 6, dtype=torch.float64, generator=generator)


def sparse(rows, values, n_rows=5):
    shape = (n_rows, values.shape[1])
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)


@pytest.mark.parametrize("together", [False, True])
def test_each_row_equals_its_own_torch_adamw(together, monkeypatch):
    monkeypatch.setattr(adamw, "together", lambda device: together)
    start = torch.randn(5, 6, dtype=torch.float64)
    ours = torch.nn.Parameter(start.clone())
    optimiser = RowwiseAdamW([ours], **OPTIONS)
    theirs = [torch.nn.Parameter(row.clone()) for row in start]
    optimisers = [torch.optim.AdamW([row], **OPTIONS, weight_decay=0.0) for row in theirs]
    for rows, values in gradients():
        ours.grad = sparse(rows, values)
        optimiser.step()
        for d in set(rows):
            theirs[d].grad = values[[i for i, row in enumerate(rows) if row == d]].sum(0)
            optimisers[d].step()
        for d in range(5):
            torch.testing.assert_close(ours[d], theirs[d], rtol=1e-12, atol=1e-12)
    assert torch.equal(ours[4], start[4])  # never in a batch
    assert optimiser.state[ours]["step"].tolist() == [3, 2, 3, 1, 0]


@pytest.mark.parametrize("together", [False, True])
def test_a_running_average_is_the_weighted_mean_of_a_rows_own_steps(together, monkeypatch):
    monkeypatch.setattr(adamw, "together", lambda device: together)
    start = torch.randn(5, 6, dtype=torch.float64)
    rows, dense = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimiser = RowwiseAdamW([rows, dense], **OPTIONS, average=True)
    steps = {d: [start[d]] for d in range(5)}
    whole = []
    for places, values in gradients():
        rows.grad, dense.grad = sparse(places, values), torch.ones_like(dense)
        optimiser.step()
        for d in set(places):
            steps[d].append(rows[d].detach().clone())
        whole.append(dense.detach().clone())

    def average(values):
        """Weight value s by c_s and by 1 − c of every later value; c_1 = 1, so the start counts no more."""
        factors = [10 / (s + 9) for s in range(1, len(values) + 1)]
        return sum(c * math.prod(1 - later for later in factors[s + 1 :]) * values[s] for s, c in enumerate(factors))

    last = rows.detach().clone()
    optimiser.exchange_averages()
    for d in range(5):
        torch.testing.assert_close(rows[d].detach(), average(steps[d][1:]) if d < 4 else start[4], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(dense.detach(), average(whole), rtol=1e-7, atol=1e-7)
    optimiser.exchange_averages()
    assert torch.equal(rows, last)


def test_a_loaded_state_is_on_its_parameters_device():
    """A GPU run is resumed from a checkpoint that was read onto the CPU; "meta" stands in for the GPU."""
    saved = torch.nn.Parameter(torch.randn(5, 6))
    optimiser = RowwiseAdamW([saved], **OPTIONS)
    saved.grad = sparse([0, 2], torch.randn(2, 6))
    optimiser.step()
    resumed = torch.nn.Parameter(torch.empty(5, 6, device="meta"))
    loaded = RowwiseAdamW([resumed], **OPTIONS)
    loaded.load_state_dict(optimiser.state_dict())
    _optimizer_to_device(loaded, resumed.device)  # Lightning's function, which does not move the step counts
    assert {tensor.device.type for tensor in loaded.state[resumed].values()} == {"meta"}


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("bound", [1e-3, 1e3])
def test_sparse_gradients_are_clipped_as_torch_clips_dense_ones(by_value, bound):
    ours = [torch.nn.Parameter(torch.zeros(5, 6, dtype=torch.float64)), torch.nn.Parameter(torch.zeros(6))]
    rows, values = next(gradients())  # a row twice: its gradient is the sum
    ours[0].grad, ours[1].grad = sparse(rows, values), torch.randn(6)
    theirs = [torch.nn.Parameter(torch.zeros_like(p)) for p in ours]
    for mine, dense in zip(ours, theirs, strict=True):
        dense.grad = mine.grad.to_dense().clone()
    clip_gradients(ours, bound, by_value)
    (torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_)(theirs, bound)
    for mine, dense in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.to_dense(), dense.grad)
    assert torch.equal(ours[0].grad.to_dense(), sparse(rows, values).to_dense()) == (bound > 1)
