"""The negative log posterior U(θ, Θ) of eq. 6, in nats, as plain functions on tensors::

    U(θ, Θ) = − Σ_d Σ_n log p(document n of task d | θ_d)  +  τ/2 · Σ_d ‖θ_d − Θ‖²

with Θ's hyperprior flat. What is minimised is U / T, T the number of scored training tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PENALTIES = ("gaussian", "norm")
LIKELIHOODS = ("sum", "task_mean")
ESTIMATORS = ("by_document", "dense")


def likelihood_estimate(nll: Tensor, batches: int) -> Tensor:
    """Unbiased estimate of the data's −log likelihood from one batch of an epoch.

    An epoch divides the documents into K batches. K · Σ_batch nll has the sum over all documents as its
    mean over these batches, however many documents each of them has.

    Args:
        nll: [R] nats of the batch's documents (or of this process's share of them).
        batches: K.
    """
    return nll.sum() * batches


def task_mean_estimate(nll: Tensor, scored: Tensor, task: Tensor, task_documents: Tensor) -> Tensor:
    """What the published code puts in the likelihood's place: Σ_d N_d · (mean NLL of d's tokens).

    The sum is over the tasks in the batch, the mean over the scored tokens of their rows.

    Args:
        nll, scored: [R] nats and scored tokens of the documents at hand.
        task: [R] their tasks.
        task_documents: [D] N_d, training documents of each task.
    """
    weights = task_documents.to(nll.dtype)
    nats = torch.zeros_like(weights).index_add(0, task, nll)
    tokens = torch.zeros_like(weights).index_add(0, task, scored.to(nll.dtype))
    return (weights * nats / tokens.clamp(min=1)).sum()


def prior_energies(deviations: Tensor, tau: float, penalty: str, sizes: Sequence[int]) -> Tensor:
    """[M] the −log of each row's prior without its constant, in nats.

    gaussian: τ/2 · ‖θ_d − Θ‖² (eq. 5). norm: τ · Σ over the factors of ‖·‖_F, not squared, the prior
    of the published code.

    Args:
        deviations: [M, P] θ_d − Θ.
        tau: 0 < τ < ∞, in (parameter units)⁻².
        penalty: one of PENALTIES.
        sizes: lengths of the factors that P is made of.

    Raises:
        ValueError: `penalty` is not one of PENALTIES.
    """
    if penalty == "gaussian":
        return 0.5 * tau * deviations.square().sum(dim=1)
    if penalty == "norm":
        factors = deviations.split(list(sizes), dim=1)
        return tau * torch.stack([torch.linalg.vector_norm(f, dim=1) for f in factors]).sum(dim=0)
    raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, not {penalty!r}")


def prior_gradients(deviations: Tensor, tau: float, penalty: str, sizes: Sequence[int]) -> Tensor:
    """[M, P] the gradient of each row's energy with respect to its deviation: of `prior_energies`, written out.

    gaussian: τ (θ_d − Θ). norm: τ times each factor's unit vector; zero where a factor is at Θ.

    Args, Raises: as `prior_energies`.
    """
    if penalty == "gaussian":
        return tau * deviations
    if penalty == "norm":
        factors = deviations.split(list(sizes), dim=1)
        least = torch.finfo(deviations.dtype).tiny
        units = [f / torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp(min=least) for f in factors]
        return tau * torch.cat(units, dim=1)
    raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, not {penalty!r}")


def prior_estimate(energies: Tensor, task: Tensor, task_documents: Tensor, batches: int) -> Tensor:
    """Unbiased estimate of Σ_d energy_d from one batch: a document brings 1/N_d of its task's prior.

    A task that has no document in the batch has no part in it, and so no gradient.

    Args:
        energies: [R] the prior energy of each document's task.
        task: [R] their tasks.
        task_documents: [D] N_d, training documents of each task.
        batches: K, batches an epoch.
    """
    return (energies / task_documents[task]).sum() * batches
