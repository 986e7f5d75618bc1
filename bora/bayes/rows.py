"""A batch's rows of the [D, P] matrix: θ for each document, the prior's potential for each task, and their gradients.

The rows are gathered, moved by Θ, cast to the backbone's dtype and, on the way back, summed by task one task at a time: a
row of a million numbers fits a processor's cache, a batch of them does not. Written as separate
operations on [R, P] tensors under autograd the same takes ten times as long (experiments/bench).
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bora.bayes.prior import FLAT, Flat, Prior


class Form(Protocol):
    """How a row of the matrix, θ_d and Θ depend on each other. All tensors are [P]."""

    sparse: bool  # the matrix's gradient: of the batch's tasks alone

    def theta_of(self, row: Tensor, mean: Tensor) -> Tensor:
        """Return θ_d. Its derivative with respect to the row is 1."""

    def deviation_of(self, row: Tensor, mean: Tensor) -> Tensor:
        """Return θ_d − Θ. Its derivative with respect to the row is 1."""

    def add_to_mean(self, of_mean: Tensor, of_theta: Tensor, of_deviation: Tensor | None) -> None:
        """Add Θ's part of the gradients with respect to θ_d and θ_d − Θ to `of_mean`, in place."""


class _Rows(torch.autograd.Function):
    """theta [R, P] and potentials [U] from the matrix [D, P] and Θ [P]."""

    @staticmethod
    def forward(
        ctx, stored: Tensor, mean: Tensor, places: dict[int, list[int]], form: Form, dtype: torch.dtype, prior: Prior
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(stored, mean)
        ctx.places, ctx.form, ctx.prior = places, form, prior
        ctx.set_materialize_grads(False)
        theta = stored.new_empty(sum(map(len, places.values())), stored.shape[1], dtype=dtype)
        potentials = mean.new_zeros(len(places))
        flat = isinstance(prior, Flat)
        for i, (task, rows) in enumerate(places.items()):
            row = stored[task]
            theta_d = form.theta_of(row, mean).to(dtype)
            for r in rows:
                theta[r] = theta_d
            if not flat:
                potentials[i] = prior.potential(form.deviation_of(row, mean)[None])[0]
        if flat:
            ctx.mark_non_differentiable(potentials)
        return theta, potentials

    @staticmethod
    @once_differentiable
    def backward(ctx, of_theta: Tensor | None, of_potentials: Tensor | None):
        (stored, mean), form, prior = ctx.saved_tensors, ctx.form, ctx.prior
        values = stored.new_zeros(len(ctx.places), stored.shape[1])
        of_mean = torch.zeros_like(mean)
        for i, (task, rows) in enumerate(ctx.places.items()):
            value, pull = values[i], None
            if of_theta is not None:
                for r in rows:
                    value += of_theta[r]
            if of_potentials is not None:
                pull = prior.pull(form.deviation_of(stored[task], mean)[None])[0] * of_potentials[i]
            form.add_to_mean(of_mean, value, pull)
            if pull is not None:
                value += pull
        tasks = torch.tensor(list(ctx.places), device=stored.device)
        if form.sparse:
            of_stored = torch.sparse_coo_tensor(
                tasks[None], values, stored.shape, is_coalesced=True, check_invariants=False
            )
        else:
            of_stored = torch.zeros_like(stored).index_copy_(0, tasks, values)
        return of_stored, of_mean, None, None, None, None


def rows(
    stored: Tensor, mean: Tensor, task: Tensor, form: Form, dtype: torch.dtype, prior: Prior = FLAT
) -> tuple[Tensor, Tensor]:
    """Gather θ of each document of a batch, and the prior's potential of its task.

    Args:
        stored: [D, P], of which `form` makes θ_d.
        mean: [P] Θ.
        task: [R] each document's task.
        dtype: of θ.

    Returns:
        theta [R, P]; potentials [R] in nats, 0 under a flat prior.
    """
    present, index = task.unique(return_inverse=True)  # sorted, as a sparse gradient's rows must be
    places: dict[int, list[int]] = {d: [] for d in present.tolist()}
    for r, d in enumerate(task.tolist()):
        places[d].append(r)
    theta, potentials = _Rows.apply(stored, mean, places, form, dtype, prior)
    return theta, potentials[index]
