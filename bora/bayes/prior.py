"""The prior of a task's deviation δ_d = θ_d − Θ: its energy −log p(δ_d) in nats, and the energy's gradient::

    class      −log p(δ)
    Gaussian   τ/2 · ‖δ‖² + P/2 · log(2π/τ)              δ ~ N(0, τ⁻¹I) (eq. 5)
    Norm       Σ over factors f of (τ ‖f‖_F + log Z_f)   the published code's penalty, not squared
    Flat       0                                         τ = 0, and τ = ∞, where no task deviates

Z_f = ∫ exp(−τ‖f‖) df = 2 π^{n/2} Γ(n) / (Γ(n/2) τⁿ) over the n numbers of a factor. The terms without δ are the
normaliser. Training at a fixed τ leaves it out: it minimises and logs only the potential, the terms with δ.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = ("gaussian", "norm")


class Prior(ABC):
    """A density of deviations; rows are independent."""

    @abstractmethod
    def potential(self, deviations: Tensor) -> Tensor:
        """Return −log p of each row without its normaliser: [M, P] → [M] nats."""

    @abstractmethod
    def pull(self, deviations: Tensor) -> Tensor:
        """Return the potential's gradient: [M, P] → [M, P]."""

    @property
    @abstractmethod
    def log_normaliser(self) -> float:
        """The part of a row's −log p that does not depend on its deviation, in nats."""

    def energy(self, deviations: Tensor) -> Tensor:
        """Return −log p of each row: [M, P] → [M] nats."""
        return self.potential(deviations) + self.log_normaliser


@dataclass(frozen=True)
class Gaussian(Prior):
    """N(0, τ⁻¹I) over P parameters.

    Attributes:
        tau: 0 < τ < ∞, in (parameter units)⁻².
        n_parameters: P.
    """

    tau: float
    n_parameters: int

    def potential(self, deviations: Tensor) -> Tensor:
        return 0.5 * self.tau * deviations.square().sum(dim=1)

    def pull(self, deviations: Tensor) -> Tensor:
        return self.tau * deviations

    @property
    def log_normaliser(self) -> float:
        return self.n_parameters / 2 * math.log(2 * math.pi / self.tau)


@dataclass(frozen=True)
class Norm(Prior):
    """∝ exp(−τ Σ ‖f‖_F) over the factors f that make up a row.

    Attributes:
        tau: 0 < τ < ∞, in (parameter units)⁻¹.
        sizes: how many numbers each factor has.
    """

    tau: float
    sizes: Sequence[int]

    def potential(self, deviations: Tensor) -> Tensor:
        norms = [torch.linalg.vector_norm(f, dim=1) for f in deviations.split(list(self.sizes), dim=1)]
        return self.tau * torch.stack(norms).sum(dim=0)

    def pull(self, deviations: Tensor) -> Tensor:
        """τ times each factor's unit vector; zero where a factor is at Θ."""
        factors = deviations.split(list(self.sizes), dim=1)
        least = torch.finfo(deviations.dtype).tiny
        units = [f / torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp(min=least) for f in factors]
        return self.tau * torch.cat(units, dim=1)

    @property
    def log_normaliser(self) -> float:
        return sum(
            math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2) + math.lgamma(n) - n * math.log(self.tau)
            for n in self.sizes
        )


@dataclass(frozen=True)
class Flat(Prior):
    """No prior: improper, with its constant set to 0."""

    def potential(self, deviations: Tensor) -> Tensor:
        return deviations.new_zeros(len(deviations))

    def pull(self, deviations: Tensor) -> Tensor:
        return torch.zeros_like(deviations)

    @property
    def log_normaliser(self) -> float:
        return 0.0


FLAT = Flat()


def make_prior(tau: float, penalty: str, sizes: Sequence[int]) -> Prior:
    """Choose the prior.

    Args:
        tau: 0 ≤ τ ≤ ∞; at both ends the prior is flat.
        penalty: one of PENALTIES.
        sizes: how many numbers each factor has, P in all.

    Raises:
        ValueError: `penalty` is not one of PENALTIES.
    """
    if penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, not {penalty!r}")
    if tau == 0 or math.isinf(tau):
        return FLAT
    return Gaussian(tau, sum(sizes)) if penalty == "gaussian" else Norm(tau, tuple(sizes))
