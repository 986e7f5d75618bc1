"""A batch's rows of the [D, P] matrix: θ for each document, the prior's potential for each task, and their gradients.

The forward gathers the rows, adds Θ and casts to the backbone's dtype; the backward sums the gradients by task. There are
two ways to do it, with the same result. On a CPU, one task at a time: a row of a million numbers fits into the cache, a
batch of rows does not, and operations on whole [R, P] tensors take ten times as long (experiments/bench). On any other
device, all tasks together: there one row is too little work for a kernel.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bora.bayes.prior import FLAT, Flat, Prior
from bora.model.batch import Places


class Form(Protocol):
    """How rows of the matrix, θ_d and Θ depend on each other. Rows are [P] or [U, P], Θ is [P].

    With levels above the task a document has several rows, and its θ is the sum of Θ and all of them.
    """

    sparse: bool  # whether the matrix's gradient is sparse, with only the batch's rows
    n_tasks: int  # number of rows that are tasks; the rest are units of levels

    def theta_of(self, row: Tensor, mean: Tensor) -> Tensor:
        """Return θ_d. Its derivative with respect to the row is 1."""

    def deviation_of(self, row: Tensor, mean: Tensor) -> Tensor:
        """Return θ_d − Θ. Its derivative with respect to the row is 1."""

    def add_to_mean(self, of_mean: Tensor, of_theta: Tensor, of_deviation: Tensor | None) -> None:
        """Add to `of_mean`, in place, what the gradients with respect to θ_d and θ_d − Θ contribute to Θ's; all [P]."""


def together(device: torch.device) -> bool:
    """Return whether this device handles a batch's rows all together."""
    return device.type != "cpu"


class _Rows(torch.autograd.Function):
    """Compute theta [R, P] and potentials [U] from the matrix [D, P] and Θ [P]."""

    @staticmethod
    def forward(
        ctx, stored: Tensor, mean: Tensor, present: Tensor, place: Tensor, form: Form, dtype: torch.dtype, prior: Prior
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(stored, mean, present, place)
        ctx.form, ctx.prior = form, prior
        ctx.set_materialize_grads(False)
        gather = _gather_together if together(stored.device) else _gather_each
        theta, potentials = gather(stored, mean, present, place, form, dtype, prior)
        if isinstance(prior, Flat):
            ctx.mark_non_differentiable(potentials)
        return theta, potentials

    @staticmethod
    @once_differentiable
    def backward(ctx, of_theta: Tensor | None, of_potentials: Tensor | None):
        (stored, mean, present, place), form = ctx.saved_tensors, ctx.form
        scatter = _scatter_together if together(stored.device) else _scatter_each
        values, of_mean = scatter(stored, mean, present, place, form, ctx.prior, of_theta, of_potentials)
        if form.sparse:
            of_stored = torch.sparse_coo_tensor(
                present[None], values, stored.shape, is_coalesced=True, check_invariants=False
            )
        else:
            of_stored = torch.zeros_like(stored).index_copy_(0, present, values)
        return of_stored, of_mean, None, None, None, None, None


def _gather_each(stored, mean, present, place, form, dtype, prior) -> tuple[Tensor, Tensor]:
    theta = stored.new_empty(len(place), stored.shape[1], dtype=dtype)
    potentials = mean.new_zeros(len(present))
    rows = present.tolist()
    if place.dim() == 2:
        _sum_rows(stored, mean, rows, place.tolist(), theta)
    for i, (task, documents) in enumerate(zip(rows, _documents(place, len(present)), strict=True)):
        row = stored[task]
        if place.dim() == 1:
            theta_d = form.theta_of(row, mean).to(dtype)
            for r in documents:
                theta[r] = theta_d
        if not isinstance(prior, Flat):
            potentials[i] = prior.potential(form.deviation_of(row, mean)[None])[0]
    return theta, potentials


def _sum_rows(stored: Tensor, mean: Tensor, rows: list[int], places: list[list[int]], theta: Tensor) -> None:
    """Fill in θ for documents with several rows each: Θ plus their sum, once for documents with the same rows."""
    found: dict[tuple[int, ...], Tensor] = {}
    for r, mine in enumerate(places):
        key = tuple(mine)
        if key not in found:
            total = mean.clone()
            for i in mine:
                total += stored[rows[i]]
            found[key] = total.to(theta.dtype)
        theta[r] = found[key]


def _gather_together(stored, mean, present, place, form, dtype, prior) -> tuple[Tensor, Tensor]:
    rows = stored.index_select(0, present)
    if place.dim() == 1:
        theta = form.theta_of(rows, mean).to(dtype).index_select(0, place)
    else:
        total = mean + rows.index_select(0, place[:, 0])
        for level in range(1, place.shape[1]):
            total += rows.index_select(0, place[:, level])
        theta = total.to(dtype)
    return theta, prior.potential(form.deviation_of(rows, mean))


def _scatter_each(stored, mean, present, place, form, prior, of_theta, of_potentials) -> tuple[Tensor, Tensor]:
    values, of_mean = stored.new_zeros(len(present), stored.shape[1]), torch.zeros_like(mean)
    for i, (task, documents) in enumerate(zip(present.tolist(), _documents(place, len(present)), strict=True)):
        value, pull = values[i], None
        if of_theta is not None:
            for r in documents:
                value += of_theta[r]
        if of_potentials is not None:
            pull = prior.pull(form.deviation_of(stored[task], mean)[None])[0] * of_potentials[i]
        if task < form.n_tasks:  # each document has one task, and so counts once
            form.add_to_mean(of_mean, value, pull)
        if pull is not None:
            value += pull
    return values, of_mean


def _scatter_together(stored, mean, present, place, form, prior, of_theta, of_potentials) -> tuple[Tensor, Tensor]:
    of_mean, pull = torch.zeros_like(mean), None
    if of_theta is None:
        values = stored.new_zeros(len(present), stored.shape[1])
    else:
        values = _sum_by_task(of_theta, place, len(present), stored.dtype)
    if of_potentials is not None:
        rows = stored.index_select(0, present)
        pull = prior.pull(form.deviation_of(rows, mean)) * of_potentials[:, None]
    if place.dim() == 1:
        form.add_to_mean(of_mean, values.sum(0), None if pull is None else pull.sum(0))
    else:
        form.add_to_mean(of_mean, (present < form.n_tasks).to(values.dtype) @ values, None)
    return values if pull is None else values.add_(pull), of_mean


def _sum_by_task(of_theta: Tensor, place: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Sum [R, P] over each task's documents to [U, P], by a product with 0 and 1: index_add is not deterministic."""
    member = torch.arange(n, device=place.device).view(-1, *[1] * place.dim()) == place
    if place.dim() == 2:
        member = member.any(dim=2)
    if of_theta.is_cuda and (of_theta.dtype, dtype) == (torch.bfloat16, torch.float32):
        return torch.mm(member.to(of_theta.dtype), of_theta, out_dtype=dtype)  # sums in float32 without a float32 copy
    return member.to(dtype) @ of_theta.to(dtype)


def _documents(place: Tensor, n: int) -> list[list[int]]:
    """List the documents of each present row."""
    documents: list[list[int]] = [[] for _ in range(n)]
    for r, mine in enumerate(place.reshape(len(place), -1).tolist()):
        for i in mine:
            documents[i].append(r)
    return documents


def rows(
    stored: Tensor, mean: Tensor, places: Places, form: Form, dtype: torch.dtype, prior: Prior = FLAT
) -> tuple[Tensor, Tensor]:
    """Gather θ of each document of a batch, and the prior's potential of its task.

    Args:
        stored: [D, P], from which `form` computes θ_d.
        mean: [P] Θ.
        dtype: dtype of the returned θ.

    Returns:
        theta [R, P]; potentials in nats, 0 under a flat prior: [R], or with levels [R, 1 + L], one for each row.
    """
    theta, potentials = _Rows.apply(stored, mean, *places, form, dtype, prior)
    return theta, potentials.index_select(0, places.place.flatten()).view(places.place.shape)
