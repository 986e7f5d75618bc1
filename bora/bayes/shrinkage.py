"""Shrink the tasks' deviations: θ_d = Θ + c_d δ_d, with c_d ∈ [0, 1] chosen on held-out documents.

The δ_d were trained nearly without a prior, and fit noise as well as their task. In a linear-Gaussian model with
curvature h in every direction, c δ_d is the mode under the prior of a higher precision::

    δ = b / (h + τ),   c δ = b / (h + τ′),   τ′ = (h + τ) / c − h

so c is τ in another unit, and held-out text can choose it without further training. A profile holds the documents' NLL at
a few values of c. Around its minimum c̄ it is taken as a parabola: task d has slope −S_d, the sum of its documents'
scores, and curvature H_d. The tasks' own optima are shrunk towards c̄ as in a random-effects meta-analysis
(DerSimonian & Laird 1986)::

    c_d = (c̄ / ω² + e_d / v_d) / (1/ω² + 1/v_d),   e_d = c̄ + S_d / H_d,   v_d = n_d σ² / H_d²

with σ² the variance of the scores within tasks, and ω² that of the tasks' c, by the method of moments.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-9  # relative rounding error of a sum of squares
FREE_TAU = 1.0  # τ while the deviations are trained that are shrunk afterwards


class Profile(NamedTuple):
    """Held-out NLL of D tasks at S equally spaced values of c, the first 0; float64.

    Attributes:
        scales: [S] ascending.
        nats: [S, D] sums over a task's documents.
        moments: [S, S, D] Σ_n (nll_n(s) − nll_n(0)) (nll_n(t) − nll_n(0)), of single documents n.
        n_documents, n_tokens: [D] documents and scored tokens of each task.
    """

    scales: Tensor
    nats: Tensor
    moments: Tensor
    n_documents: Tensor
    n_tokens: Tensor


class Shrinkage(NamedTuple):
    """The c that a profile chooses.

    Attributes:
        common: c̄, for all tasks together.
        by_task: [D] c_d.
        spread: ω, the standard deviation of the tasks' c around c̄.
        lowest: the parabola's minimum, which may be outside the range to which c̄ is clamped.
        error: standard error of `lowest`, from the differences between tasks; nan for one task, or if the NLL is not
            convex there.
        curvature: second derivative of the NLL in c at c̄, nats a scored token.
        n_tasks: tasks with a scored token.
    """

    common: float
    by_task: Tensor
    spread: float
    lowest: float
    error: float
    curvature: float
    n_tasks: int


def shrink(profile: Profile) -> Shrinkage:
    """Choose c for each task.

    If the NLL is not convex at its lowest point, all tasks get the c of that point. If each task has one document, the
    tasks' own c cannot be told from noise, and all get the common one. So does a task whose documents would be worse
    off under its own, because its parabola is narrower than the others'.
    """
    c, nats = profile.scales, profile.nats
    total, step, largest = nats.sum(dim=1), float(c[1]), float(c[-1])
    k = min(max(int(total.argmin()), 1), len(c) - 2)
    bend = float(total[k + 1] - 2 * total[k] + total[k - 1]) / step**2
    known = profile.n_tokens > 0  # a task without a scored token has no information
    n_tasks = int(known.sum())
    if bend <= 0:
        lowest = float(c[total.argmin()])
        return Shrinkage(lowest, torch.full_like(profile.n_tokens, lowest), 0.0, lowest, math.nan, 0.0, n_tasks)
    curvature = bend / float(profile.n_tokens.sum())
    hessian = curvature * profile.n_tokens
    score = (nats[k - 1] - nats[k + 1]) / (2 * step)  # at c[k]
    lowest = float(c[k] + score.sum() / bend)
    common = min(max(0.0, lowest), largest)
    score = score - hessian * (lowest - c[k])
    error = float(score.norm()) / bend * math.sqrt(n_tasks / (n_tasks - 1)) if n_tasks > 1 else math.nan
    by_task = torch.full_like(hessian, common)
    own = Profile(c, nats[:, known], profile.moments[:, :, known], profile.n_documents[known], profile.n_tokens[known])
    spread, by_task[known] = _by_task(own, k, lowest + score[known] / hessian[known], hessian[known], common)
    by_task = by_task.clamp(0, largest)
    worse = _nats_at(profile, by_task) > _nats_at(profile, torch.full_like(by_task, common))
    return Shrinkage(common, by_task.where(~worse, common), spread, lowest, error, curvature, n_tasks)


def _nats_at(profile: Profile, c: Tensor) -> Tensor:
    """Interpolate each task's NLL at its c, [D], by the parabola through the profile's three nearest points."""
    x = c / profile.scales[1]
    k = x.round().long().clamp(1, len(profile.scales) - 2)
    below, here, above = (profile.nats.gather(0, (k + i)[None])[0] for i in (-1, 0, 1))
    x = x - k
    return here + x * (above - below) / 2 + x**2 * (above - 2 * here + below) / 2


def _by_task(profile: Profile, k: int, effect: Tensor, hessian: Tensor, common: float) -> tuple[float, Tensor]:
    """Shrink the tasks' own optima towards the common one; return ω, and c_d [D].

    Args:
        k: index of the scale at which the scores are taken.
        effect: [D] e_d.
        hessian: [D] H_d.
    """
    m, n = profile.moments, profile.n_documents
    width = profile.scales[k + 1] - profile.scales[k - 1]
    sums = (profile.nats[k + 1] - profile.nats[k - 1]) / width
    squares = (m[k + 1, k + 1] - 2 * m[k + 1, k - 1] + m[k - 1, k - 1]) / width**2
    within = (squares - sums**2 / n).sum() / max(1.0, float(n.sum()) - len(n))
    if len(n) == 1 or n.sum() == len(n) or within <= ROUNDING * squares.sum():
        return 0.0, torch.full_like(effect, common)
    variance = n * within / hessian**2
    weight = 1 / variance
    centre = (weight * effect).sum() / weight.sum()
    excess = (weight * (effect - centre) ** 2).sum() - (len(n) - 1)
    between = (excess / (weight.sum() - (weight**2).sum() / weight.sum())).clamp(min=0)
    return float(between.sqrt()), common + (effect - common) * between / (between + variance)


def equivalent_tau(c: float, tau: float, curvature: float) -> float:
    """Return τ′, under which c δ is the mode if δ is the mode under τ; exact if the likelihood is quadratic along δ.

    Args:
        c: 0 ≤ c ≤ 1.
        curvature: h, curvature of the training NLL along the deviations, nats / (parameter units)².
    """
    return math.inf if c == 0 else (curvature + tau) / c - curvature
