"""τ for inference: the precision under which the trained deviations are likeliest, all of θ_d integrated over.

It is another τ than the best for perplexity. Near θ_d the log likelihood of task d is taken as quadratic, with slope −g_d
and curvature H_d in δ_d; b_d = −g_d + H_d δ_d is then the same wherever on the parabola δ_d is, so that what an
optimiser's noise has added to δ_d, or an early stop has left out, drops out. With H_d diagonal, by group of parameters::

    log p(D | Θ, τ) = Σ_d Σ_j { ½ b² / (h + τ) − ½ log(1 + h/τ) } + const
    d / d log τ     = ½ Σ_d ( γ_d − τ ‖m_d‖² ),    m = b / (h + τ),    γ_d = Σ_j h / (h + τ)

γ_d is the number of parameters that the data determine (MacKay 1992, https://doi.org/10.1162/neco.1992.4.3.415).
H_d is T_d H: tasks share the curvature of a token, and have T_d tokens. The diagonal of H counts too many parameters as
determined (Schur and Horn: γ is concave in H), the eigenvalues of H from S sampled gradients too few, at most S. Both are
held against the same ‖m_d‖²: the truth is between the two, and so is τ.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PER_DECADE = 32
TAUS = torch.logspace(-2, 9, 11 * PER_DECADE + 1, dtype=torch.float64)
BINS_PER_DECADE = 32  # in which parameters of like curvature are summed
LEAST = -30  # log₁₀ of the curvature that stands for zero
RESAMPLES = 1000


class Curvature(NamedTuple):
    """H of one group of parameters, of a scored token; float64.

    Attributes:
        diagonal: [K] values that its diagonal has.
        counts: [K] parameters of each.
        eigenvalues: [S] of the same matrix.
    """

    diagonal: Tensor
    counts: Tensor
    eigenvalues: Tensor


class Chosen(NamedTuple):
    """τ with its 95 % interval over tasks; ∞ if nothing speaks for a variance, 0 if τ is below TAUS."""

    tau: float
    low: float
    high: float


def bin_parameters(diagonal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put parameters of like curvature together.

    Args:
        diagonal: [P] ≥ 0.

    Returns:
        The bin of each, [P]; the mean curvature of each bin, [K] float64; the parameters in it, [K] float64.
    """
    place = (diagonal.double().log10().clamp(min=LEAST) * BINS_PER_DECADE).round()
    _, bins, counts = place.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, bins, diagonal.double())
    return bins, sums / counts, counts.double()


def evidence_slopes(
    curvature: Curvature, tokens: Tensor, squares: Tensor, dispersion: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute each task's part of the evidence's slope in log τ at TAUS, [D, len(TAUS)] nats.

    Args:
        tokens: [D] T_d.
        squares: [D, K] Σ b² over the parameters of each value of the diagonal.
        dispersion: φ, by how much documents' gradients vary more than their tokens' would if each stood alone. The
            log likelihood is divided by it (quasi-likelihood).

    Returns:
        The slopes by the diagonal; and by the eigenvalues, with ‖m_d‖² as it is where the diagonal's evidence is highest.
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
        slopes: [D, len(TAUS)] of the tasks.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(slopes), (RESAMPLES, len(slopes)), generator=generator)
    weights = torch.zeros(RESAMPLES, len(slopes), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    several = _maxima(weights @ slopes)
    low, high = several.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), interpolation="nearest").tolist()
    return Chosen(float(_maxima(slopes.sum(dim=0)[None])), low, high)


def profile(slopes: Tensor) -> Tensor:
    """Return the evidence at TAUS less its highest, [len(TAUS)] nats, from the tasks' slopes."""
    found = _integral(slopes.sum(dim=0)[None])[0]
    return found - found.max()


def _integral(slopes: Tensor) -> Tensor:
    return torch.nn.functional.pad(torch.cumulative_trapezoid(slopes, TAUS.log(), dim=1), (1, 0))


def _maxima(slopes: Tensor) -> Tensor:
    """Find the τ at which each row's integral is highest, [M]: where the slope goes through zero."""
    best = _integral(slopes).argmax(dim=1)
    last = len(TAUS) - 1
    # The slope's root is beside the highest of the grid: before it where the slope is negative there.
    left = torch.where(slopes.gather(1, best[:, None])[:, 0] > 0, best, best - 1).clamp(0, last - 1)
    here, there = (slopes.gather(1, i[:, None])[:, 0] for i in (left, left + 1))
    share = torch.where(here > there, here / (here - there), 0.5).clamp(0, 1)
    log_taus = TAUS.log()
    found = (log_taus[left] + share * (log_taus[left + 1] - log_taus[left])).exp()
    found[best == last] = torch.inf
    found[best == 0] = 0.0
    return found
