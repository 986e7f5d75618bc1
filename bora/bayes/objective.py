"""The negative log posterior U(θ, Θ) of eq. 6, in nats, and unbiased estimates of its parts from one batch::

    U(θ, Θ) = − Σ_d Σ_n log p(document n of task d | θ_d)  −  Σ_d log p(θ_d − Θ)

with a flat hyperprior for Θ. Training minimises U / T, with T the number of scored training tokens. An epoch divides the
documents into K batches; the mean of an estimate over them is exactly the whole, however unequal the batches are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LIKELIHOODS = ("sum", "task_mean")
ESTIMATORS = ("by_document", "dense")


class Objective(NamedTuple):
    """U/T from one batch.

    Attributes:
        likelihood, prior: its two parts, in nats a token.
        nll: [R] NLL of each document in nats, without a gradient.
        scored: [R] number of scored tokens of each.
    """

    likelihood: Tensor
    prior: Tensor
    nll: Tensor
    scored: Tensor

    @property
    def loss(self) -> Tensor:
        """U/T, which training minimises."""
        return self.likelihood + self.prior


def sum_likelihood(nll: Tensor, batches: int) -> Tensor:
    """Estimate the data's −log likelihood (eq. 4): K · Σ_batch nll.

    Args:
        nll: [R] nats of the batch's documents, or of this process's share of them.
        batches: K.
    """
    return nll.sum() * batches


def task_mean_likelihood(nll: Tensor, scored: Tensor, task: Tensor, task_documents: Tensor) -> Tensor:
    """Return what the published code has instead of the likelihood: Σ_d N_d · (mean NLL of d's tokens).

    The sum is over the tasks in the batch, the mean over the scored tokens of their rows.

    Args:
        nll, scored: [R] nats and number of scored tokens of each document in the batch.
        task: [R] task of each.
        task_documents: [D] N_d, training documents of each task.
    """
    weights = task_documents.to(nll.dtype)
    nats = torch.zeros_like(weights).index_add(0, task, nll)
    tokens = torch.zeros_like(weights).index_add(0, task, scored.to(nll.dtype))
    return (weights * nats / tokens.clamp(min=1)).sum()


def prior_by_document(
    potentials: Tensor, task: Tensor, task_documents: Tensor, batches: int, share: Tensor | None = None
) -> Tensor:
    """Estimate Σ_d potential_d: each document adds 1/N_d of its task's potential, each of its pieces a share of that.

    A task without a document in the batch adds nothing, and so gets no gradient.

    Args:
        potentials: [R] nats, of each document's task; with levels [R, 1 + L], of its units too.
        task: the tasks, and units, that the potentials belong to; same shape.
        task_documents: [D] N_d, training documents of each task, and of each unit.
        batches: K.
        share: [R] the share of a document that each row holds; None if every row is a whole document.
    """
    potentials = potentials / task_documents[task]
    if share is not None:
        potentials = potentials * (share if potentials.dim() == 1 else share[:, None])
    return potentials.sum() * batches
