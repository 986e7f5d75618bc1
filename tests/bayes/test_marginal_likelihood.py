"""τ for inference against closed forms, and against R's results in statsmodels' tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.regression.tests.results import lme_r_results

from bora.bayes.marginal_likelihood import TAUS, Curvature, bin_parameters, choose_tau, evidence_slopes, profile


def one_coordinate(h: float) -> Curvature:
    return Curvature(*(torch.tensor([value], dtype=torch.float64) for value in (h, 1.0, h)))


@pytest.mark.parametrize("number", [0, 1])  # with and without a variance
def test_tau_equals_rs_for_a_random_intercept(number: int):
    table = pd.read_csv(Path(lme_r_results.__file__).parent / f"lme{number:02d}.csv")
    beta, scale, variance = (
        getattr(lme_r_results, f"{name}_ml_drf_{number}").item() for name in ("coef", "scale", "cov_re")
    )
    assert (table["exog_re_0"] == 1).all()
    table["score"] = (table["endog"] - beta * table["exog_fe_0"]) / scale
    groups = table.groupby("groups")["score"].agg(["size", "sum"])
    tokens, b = (torch.tensor(groups[k].to_numpy(float)) for k in ("size", "sum"))
    found = choose_tau(evidence_slopes(one_coordinate(1 / scale), tokens, b[:, None] ** 2)[0])
    assert found.tau == pytest.approx(1 / variance if variance else np.inf, rel=1e-3)


def drawn(
    tau: float, n_tasks: int, tokens: int, n_parameters: int, seed: int
) -> tuple[Curvature, torch.Tensor, torch.Tensor]:
    """Draw tasks of a linear-Gaussian model with coordinates of curvature 0.1 to 10: curvature, T_d, b [D, P]."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.logspace(-1, 1, n_parameters, dtype=torch.float64)
    delta, noise = (torch.randn(n_tasks, n_parameters, generator=generator, dtype=torch.float64) for _ in range(2))
    b = tokens * h * delta / np.sqrt(tau) + (tokens * h).sqrt() * noise
    return Curvature(h, torch.ones_like(h), h), torch.full((n_tasks,), float(tokens), dtype=torch.float64), b


def test_the_evidence_equals_the_marginal_density_of_the_data():
    curvature, tokens, b = drawn(3.0, n_tasks=5, tokens=4, n_parameters=6, seed=0)
    h = tokens[0] * curvature.diagonal
    variances = h[None] + h[None] ** 2 / TAUS[:, None]  # of b, for δ ~ N(0, 1/τ) and noise of variance h
    density = sum(torch.distributions.Normal(0, variances.sqrt()).log_prob(row).sum(dim=1) for row in b)
    slopes, by_eigenvalues = evidence_slopes(curvature, tokens, b.square())
    torch.testing.assert_close(
        slopes.sum(dim=0), torch.gradient(density, spacing=(TAUS.log(),))[0], rtol=1e-2, atol=1e-2
    )
    torch.testing.assert_close(profile(slopes), density - density.max(), rtol=1e-3, atol=1e-2)
    assert choose_tau(slopes).tau == pytest.approx(float(TAUS[density.argmax()]), rel=0.05)
    # The eigenvalues of a diagonal H are its diagonal.
    assert choose_tau(by_eigenvalues).tau == pytest.approx(choose_tau(slopes).tau, rel=0.1)


def test_intervals_cover_the_true_tau():
    found = [
        choose_tau(evidence_slopes(c, t, b.square())[0]) for c, t, b in (drawn(10, 30, 3, 4, s) for s in range(60))
    ]
    assert np.mean([f.low <= 10 <= f.high for f in found]) >= 0.85
    assert np.median([f.tau for f in found]) == pytest.approx(10, rel=0.15)


def test_dispersion_keeps_noisy_documents_from_looking_like_differing_tasks():
    curvature, tokens, b = drawn(np.inf, 30, 3, 50, seed=0)  # only noise
    loud = (2 * b).square()  # as if the tokens of a document all pulled in one direction
    assert choose_tau(evidence_slopes(curvature, tokens, loud)[0]).tau < 100
    assert choose_tau(evidence_slopes(curvature, tokens, loud, dispersion=4)[0]).high == np.inf


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000))
def test_the_eigenvalues_count_at_most_as_many_parameters_as_the_diagonal(n_sampled: int, n_parameters: int, seed: int):
    gradients = torch.randn(n_sampled, n_parameters, generator=torch.Generator().manual_seed(seed)).double()
    bins, diagonal, counts = bin_parameters(gradients.square().sum(dim=0))
    eigenvalues = torch.linalg.eigvalsh(gradients @ gradients.T).clamp(min=0)
    curvature, tokens = Curvature(diagonal, counts, eigenvalues), torch.ones(1, dtype=torch.float64)
    none = torch.zeros(1, len(diagonal), dtype=torch.float64)  # b = 0: the slope is then only γ/2
    many, few = evidence_slopes(curvature, tokens, none)
    assert (few <= many * 1.001 + 1e-9).all()
    assert counts.sum() == n_parameters
    assert len(bins) == n_parameters
