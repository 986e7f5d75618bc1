"""A batch's rows of the [D, P] matrix: θ for each document, the prior's energy for each task, and their gradients.

The rows are gathered, moved by Θ, cast to the backbone's dtype and, on the way back, summed by task one task at a time: a
row of a million numbers fits a processor's cache, a batch of them does not. Written as separate
operations on [R, P] tensors under autograd the same takes ten times as long (experiments/bench).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bora.bayes.prior import prior_energies, prior_gradients


class Prior(NamedTuple):
    """Arguments of `prior_energies` beside the deviations."""

    tau: float
    penalty: str
    sizes: Sequence[int]


class Form(NamedTuple):
    """How rows are read and their gradient is given back.

    Attributes:
        centered: the matrix holds θ_d; else θ_d − Θ.
        sparse: its gradient is sparse, of the batch's tasks alone.
        dtype: of the rows given out.
    """

    centered: bool
    sparse: bool
    dtype: torch.dtype


class _Rows(torch.autograd.Function):
    """theta [R, P] and energies [U] from the matrix [D, P] and Θ [P]."""

    @staticmethod
    def forward(
        ctx, stored: Tensor, mean: Tensor, places: dict[int, list[int]], form: Form, prior: Prior | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(stored, mean)
        ctx.places, ctx.form, ctx.prior = places, form, prior
        ctx.set_materialize_grads(False)
        theta = stored.new_empty(sum(map(len, places.values())), stored.shape[1], dtype=form.dtype)
        energies = mean.new_empty(len(places))
        for i, (task, rows) in enumerate(places.items()):
            row = stored[task]
            theta_d = (row if form.centered else mean + row).to(form.dtype)
            for r in rows:
                theta[r] = theta_d
            if prior is not None:
                deviation = row - mean if form.centered else row
                energies[i] = prior_energies(deviation[None], *prior)[0]
        return theta, None if prior is None else energies

    @staticmethod
    @once_differentiable
    def backward(ctx, of_theta: Tensor | None, of_energies: Tensor | None):
        (stored, mean), form, prior = ctx.saved_tensors, ctx.form, ctx.prior
        values = stored.new_zeros(len(ctx.places), stored.shape[1])
        of_mean = torch.zeros_like(mean)
        for i, (task, rows) in enumerate(ctx.places.items()):
            value = values[i]
            if of_theta is not None:
                for r in rows:
                    value += of_theta[r]
                if not form.centered:
                    of_mean += value  # θ_d = Θ + δ_d
            if of_energies is not None:
                row = stored[task]
                deviation = row - mean if form.centered else row
                pull = prior_gradients(deviation[None], *prior)[0] * of_energies[i]
                value += pull
                if form.centered:
                    of_mean -= pull
        tasks = torch.tensor(list(ctx.places), device=stored.device)
        if form.sparse:
            of_stored = torch.sparse_coo_tensor(
                tasks[None], values, stored.shape, is_coalesced=True, check_invariants=False
            )
        else:
            of_stored = torch.zeros_like(stored).index_copy_(0, tasks, values)
        return of_stored, of_mean, None, None, None


def rows(
    stored: Tensor, mean: Tensor, task: Tensor, form: Form, prior: Prior | None = None
) -> tuple[Tensor, Tensor | None]:
    """θ of each document of a batch, and −log prior of its task.

    Args:
        stored: [D, P] of θ_d or θ_d − Θ.
        mean: [P] Θ.
        task: [R] each document's task.
        prior: None where it is not asked for.

    Returns:
        theta [R, P] in form.dtype; energies [R] in nats, or None without a prior.
    """
    present, index = task.unique(return_inverse=True)  # sorted, as a sparse gradient's rows must be
    places: dict[int, list[int]] = {d: [] for d in present.tolist()}
    for r, d in enumerate(task.tolist()):
        places[d].append(r)
    theta, energies = _Rows.apply(stored, mean, places, form, prior)
    return theta, None if energies is None else energies[index]
