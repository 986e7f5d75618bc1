"""The negative log posterior U(θ, Θ) of eq. 6, in nats, as plain functions on tensors.

    U(θ, Θ) = − Σ_d Σ_n log p(document n of task d | θ_d)  +  τ/2 · Σ_d ‖θ_d − Θ‖²

with Θ's hyperprior flat. What is minimised is U / T, T the number of scored training tokens.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

PENALTIES = ("gaussian", "norm")
LIKELIHOODS = ("sum", "task_mean")


def likelihood_estimate(nll: Tensor, batch_documents: int, n_documents: int) -> Tensor:
    """Unbiased estimate of the data's −log likelihood from a uniform draw of documents.

    (N/B) · Σ_batch nll: each document is in a batch of B out of N with probability B/N.

    Args:
        nll: [R] nats of the documents at hand (R = B, or this process's share of the B).
        batch_documents: B.
        n_documents: N, all training documents of all tasks.
    """
    return nll.sum() * (n_documents / batch_documents)


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


def gaussian_energy(deviations: Iterable[Tensor], tau: float) -> Tensor:
    """τ/2 · Σ_d ‖θ_d − Θ‖², the −log of eq. 5 without its constant, in nats.

    Args:
        deviations: tensors [D, …], θ_d − Θ factor by factor.
        tau: 0 ≤ τ < ∞, in (parameter units)⁻².
    """
    return 0.5 * tau * sum(d.square().sum() for d in deviations)


def norm_energy(deviations: Iterable[Tensor], tau: float) -> Tensor:
    """τ · Σ over tasks and factors of ‖·‖_F, not squared: the prior of the published code."""
    return tau * sum(torch.linalg.vector_norm(d.flatten(1), dim=1).sum() for d in deviations)


def prior_energy(deviations: Iterable[Tensor], tau: float, penalty: str) -> Tensor | float:
    """The prior's part of U in nats; 0 at τ = 0 (flat prior) and at τ = ∞ (no deviations).

    Raises:
        ValueError: `penalty` is not one of PENALTIES.
    """
    if penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, not {penalty!r}")
    if tau == 0 or math.isinf(tau):
        return 0.0
    return (gaussian_energy if penalty == "gaussian" else norm_energy)(deviations, tau)
