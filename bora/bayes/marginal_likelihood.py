"""τ for inference: the precision of highest evidence, the likelihood of the training documents with θ_d integrated out.

It differs from the τ that is best for perplexity. Near θ_d the log likelihood of task d is taken as quadratic, with slope
−g_d and curvature H_d in δ_d. Then b_d = −g_d + H_d δ_d is the same wherever on the parabola δ_d is, so the optimiser's
noise and early stopping do not matter. With H_d diagonal, for each group of parameters::

    log p(D | Θ, τ) = Σ_d Σ_j { ½ b² / (h + τ) − ½ log(1 + h/τ) } + const
    d / d log τ     = ½ Σ_d ( γ_d − τ ‖m_d‖² ),    m = b / (h + τ),    γ_d = Σ_j h / (h + τ)

γ_d is the number of parameters that the data determine (MacKay 1992, https://doi.org/10.1162/neco.1992.4.3.415).
H_d is T_d H: tasks share the curvature H of a token, and task d has T_d tokens. The diagonal of H counts too many
parameters as determined (Schur and Horn: γ is concave in H), the eigenvalues of H from S sampled gradients too few, at
most S. Both are compared with the same ‖m_d‖²: the truth is between the two, and so is τ.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PER_DECADE = 32
TAUS = torch.logspace(-2, 9, 11 * PER_DECADE + 1, dtype=torch.float64)
BINS_PER_DECADE = 32  # parameters of similar curvature are summed in a bin
LEAST = -30  # log₁₀ of the curvature that stands for zero
RESAMPLES = 1000


class Curvature(NamedTuple):
    """H of one group of parameters, for a scored token; float64.

    Attributes:
        diagonal: [K] distinct values on its diagonal.
        counts: [K] number of parameters with each value.
        eigenvalues: [S] its eigenvalues, from S sampled gradients.
    """

    diagonal: Tensor
    counts: Tensor
    eigenvalues: Tensor


class Chosen(NamedTuple):
    """τ with its 95 % interval over tasks; ∞ if there is no evidence of a variance, 0 if τ is below TAUS."""

    tau: float
    low: float
    high: float


def bin_parameters(diagonal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bin parameters by curvature.

    Args:
        diagonal: [P] ≥ 0.

    Returns:
        The bin of each parameter, [P]; each bin's mean curvature, [K] float64, and number of parameters, [K] float64.
    """
    place = (diagonal.double().log10().clamp(min=LEAST) * BINS_PER_DECADE).round()
    _, bins, counts = place.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, bins, diagonal.double())
    return bins, sums / counts, counts.double()


def evidence_slopes(
    curvature: Curvature, tokens: Tensor, squares: Tensor, dispersion: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute each task's contribution to the evidence's slope in log τ, at TAUS, [D, len(TAUS)] nats.

    Args:
        tokens: [D] T_d.
        squares: [D, K] Σ b² over the parameters with each value of the diagonal.
        dispersion: φ, the variance of documents' gradients relative to that of independent tokens. The log likelihood is
            divided by it (quasi-likelihood).

    Returns:
        The slopes by the diagonal; and by the eigenvalues, with ‖m_d‖² at the τ of the diagonal's highest evidence.
    """
    h, spectrum = (tokens[:, None] * values / dispersion for values in (curvature.diagonal, curvature.eigenvalues))
    many = torch.stack([(h / (h + tau)) @ curvature.counts for tau in TAUS], dim=1)
    few = torch.stack([(spectrum / (spectrum + tau)).sum(dim=1) for tau in TAUS], dim=1)
    lengths = torch.stack([(squares / dispersion**2 / (h + tau) ** 2).sum(dim=1) for tau in TAUS], dim=1)
    diagonal = 0.5 * (many - TAUS * lengths)
    best = int(_integral(diagonal.sum(dim=0)[None]).argmax())
    return diagonal, 0.5 * (few - TAUS * lengths[:, best, None])


def choose_tau(slopes: Tensor) -> Chosen:
    """Choose the τ of the highest evidence, with an interval from resampling the tasks (seed 0).

    Args:
        slopes: [D, len(TAUS)] each task's contribution to the slope.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(slopes), (RESAMPLES, len(slopes)), generator=generator)
    weights = torch.zeros(RESAMPLES, len(slopes), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    several = _maxima(weights @ slopes)
    low, high = several.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), interpolation="nearest").tolist()
    return Chosen(float(_maxima(slopes.sum(dim=0)[None])), low, high)


def profile(slopes: Tensor) -> Tensor:
    """Return the log evidence at TAUS minus its maximum, [len(TAUS)] nats, from the tasks' slopes."""
    found = _integral(slopes.sum(dim=0)[None])[0]
    return found - found.max()


def _integral(slopes: Tensor) -> Tensor:
    return torch.nn.functional.pad(torch.cumulative_trapezoid(slopes, TAUS.log(), dim=1), (1, 0))


def _maxima(slopes: Tensor) -> Tensor:
    """Find the τ of each row's highest integral, [M], where the slope crosses zero."""
    best = _integral(slopes).argmax(dim=1)
    last = len(TAUS) - 1
    # The slope's root is next to the grid's highest point: before it if the slope is negative there.
    left = torch.where(slopes.gather(1, best[:, None])[:, 0] > 0, best, best - 1).clamp(0, last - 1)
    here, there = (slopes.gather(1, i[:, None])[:, 0] for i in (left, left + 1))
    share = torch.where(here > there, here / (here - there), 0.5).clamp(0, 1)
    log_taus = TAUS.log()
    found = (log_taus[left] + share * (log_taus[left + 1] - log_taus[left])).exp()
    found[best == last] = torch.inf
    found[best == 0] = 0.0
    return found
