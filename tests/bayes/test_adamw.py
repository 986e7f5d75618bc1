"""AdamW by rows: each row is what torch's AdamW makes of it when it steps only if the row has a gradient."""

import pytest
import torch

from bora.bayes.adamw import RowwiseAdamW

OPTIONS = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}


def gradients(seed: int = 0):
    """Steps of (rows, one gradient a row), a row twice among them, as in a batch with two documents of a task."""
    generator = torch.Generator().manual_seed(seed)
    for rows in ([0, 2, 0], [1], [2, 2], [0, 1, 2], [3, 0]):
        yield rows, torch.randn(len(rows), 6, dtype=torch.float64, generator=generator)


def sparse(rows, values, n_rows=5):
    shape = (n_rows, values.shape[1])
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)


def test_each_row_is_an_adamw_of_its_own():
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


def test_a_dense_gradient_is_as_in_torch():
    start = torch.randn(7)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine, torchs = RowwiseAdamW([ours], **OPTIONS), torch.optim.AdamW([theirs], **OPTIONS, weight_decay=0.0)
    for _ in range(5):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
        torch.testing.assert_close(ours, theirs)


def test_it_goes_on_from_its_saved_state():
    start = torch.randn(5, 6, dtype=torch.float64)
    straight, stopped = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one, two = RowwiseAdamW([straight], **OPTIONS), RowwiseAdamW([stopped], **OPTIONS)
    for i, (rows, values) in enumerate(gradients()):
        if i == 3:
            state = two.state_dict()
            two = RowwiseAdamW([stopped], **OPTIONS)
            two.load_state_dict(state)
        straight.grad, stopped.grad = sparse(rows, values), sparse(rows, values)
        one.step()
        two.step()
    assert torch.equal(straight, stopped)


def test_a_closure_is_called():
    parameter = torch.nn.Parameter(torch.ones(3))

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert RowwiseAdamW([parameter], **OPTIONS).step(closure) == 3
    assert (parameter < 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_untouched_rows_keep_their_moments(dtype):
    parameter = torch.nn.Parameter(torch.randn(5, 6, dtype=dtype))
    optimiser = RowwiseAdamW([parameter], **OPTIONS)
    parameter.grad = sparse([1], torch.ones(1, 6, dtype=dtype))
    optimiser.step()
    before = {k: v.clone() for k, v in optimiser.state[parameter].items()}
    parameter.grad = sparse([3], torch.ones(1, 6, dtype=dtype))
    optimiser.step()
    after = optimiser.state[parameter]
    assert after["step"].tolist() == [0, 1, 0, 1, 0]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(before[name][1], after[name][1])
