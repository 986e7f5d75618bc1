"""c on held-out text, against closed forms and statsmodels' random-effects meta-analysis."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from bora.bayes.shrinkage import Profile, equivalent_tau, shrink

SCALES = np.linspace(0, 1, 7)


def profile_of(optimum: np.ndarray, documents: np.ndarray, noise: float, seed: int = 0, bend=30.0) -> Profile:
    """Build the NLL of tasks whose documents are parabolas in c, each with its own minimum; a task has one curvature."""
    rng = np.random.default_rng(seed)
    nats, moments = [], []
    for c, n, own in zip(optimum, documents, np.broadcast_to(bend, optimum.shape), strict=True):
        lowest = c + noise * rng.standard_normal(n)
        nll = 0.5 * own * (SCALES[:, None] - lowest) ** 2 + 100
        nats.append(nll.sum(axis=1))
        gain = nll - nll[0]
        moments.append(gain @ gain.T)
    tokens = 10.0 * documents
    parts = SCALES, np.array(nats).T, np.array(moments).transpose(1, 2, 0), documents.astype(float), tokens
    return Profile(*map(torch.tensor, parts))


def test_the_common_c_minimises_the_nll_of_all_documents():
    rng = np.random.default_rng(1)
    documents, optimum = rng.integers(2, 9, 12), rng.uniform(0.2, 0.9, 12)
    profile = profile_of(optimum, documents, noise=0.0)
    found = shrink(profile)
    assert found.common == pytest.approx(np.average(optimum, weights=documents))
    assert found.curvature == pytest.approx(30 / 10)  # nats a token


def test_c_by_task_equals_a_random_effects_meta_analysis():
    rng = np.random.default_rng(2)
    documents, optimum = rng.integers(2, 12, 30), 0.6 + 0.1 * rng.standard_normal(30)
    profile = profile_of(optimum, documents, noise=0.3, seed=3)
    found = shrink(profile)
    profile = Profile(*(part.numpy() for part in profile))
    k = min(max(int(profile.nats.sum(axis=1).argmin()), 1), 5)
    width = SCALES[k + 1] - SCALES[k - 1]
    bend = (profile.nats[k + 1] - 2 * profile.nats[k] + profile.nats[k - 1]) / (width / 2) ** 2  # exact: parabolas
    effect = SCALES[k] - (profile.nats[k + 1] - profile.nats[k - 1]) / width / bend
    # A document's score has the standard deviation bend · noise, which is estimated from the documents.
    sums = (profile.nats[k + 1] - profile.nats[k - 1]) / width
    m = profile.moments
    squares = (m[k + 1, k + 1] - 2 * m[k + 1, k - 1] + m[k - 1, k - 1]) / width**2
    within = (squares - sums**2 / documents).sum() / (documents.sum() - 30)
    assert math.sqrt(within) == pytest.approx(30 * 0.3, rel=0.15)
    oracle = combine_effects(effect, documents * within / bend**2, method_re="dl")
    assert found.spread == pytest.approx(math.sqrt(oracle.tau2), rel=1e-8)
    weight = oracle.tau2 / (oracle.tau2 + documents * within / bend**2)
    np.testing.assert_allclose(found.by_task, found.common + weight * (effect - found.common), rtol=1e-8)


def test_tasks_that_do_not_differ_get_the_same_c():
    found = shrink(profile_of(np.full(20, 0.5), np.full(20, 6), noise=0.2, seed=5))
    assert np.ptp(found.by_task.numpy()) < 0.1
    for seed in range(20):  # one document for each task: no spread, whatever the rounding
        one_each = shrink(profile_of(np.linspace(0.2, 0.8, 9), np.ones(9, dtype=int), noise=0.1, seed=seed))
        assert (np.ptp(one_each.by_task.numpy()), one_each.spread) == (0, 0)


def test_a_task_without_a_scored_token_has_the_common_c():
    full = profile_of(np.linspace(0.2, 0.8, 9), np.full(9, 6), noise=0.1)
    empty = Profile(full.scales, *(torch.nn.functional.pad(part, (0, 1)) for part in full[1:]))
    found, without = shrink(empty), shrink(full)
    assert found.by_task.tolist() == [*without.by_task.tolist(), without.common]
    assert found.spread == without.spread


def test_the_error_of_the_common_c_equals_its_spread_over_draws_of_tasks():
    for n in (3, 25):
        found = []
        for seed in range(400):
            rng = np.random.default_rng(seed)
            optimum = 0.5 + 0.1 * rng.standard_normal(n)
            found.append(shrink(profile_of(optimum, np.full(n, 5), noise=0.2, seed=seed + 1000)))
        errors, lowest = np.array([f.error for f in found]), np.array([f.lowest for f in found])
        assert np.sqrt((errors**2).mean()) == pytest.approx(lowest.std(), rel=0.1)
        half = stats.t.ppf(0.975, n - 1) * errors
        assert (abs(lowest - 0.5) < half).mean() == pytest.approx(0.95, abs=0.03)
    assert math.isnan(shrink(profile_of(np.full(1, 0.5), np.full(1, 5), noise=0.2)).error)


def test_a_task_with_a_narrow_parabola_is_not_shrunk_past_its_own_minimum():
    optimum, bend = np.full(25, 0.8), np.full(25, 3.0)
    optimum[7], bend[7] = 0.55, 60.0
    profile = profile_of(optimum, np.full(25, 20), noise=0.1, bend=bend)
    found = shrink(profile)
    lost = 10 * bend * ((found.by_task.numpy() - optimum) ** 2 - (found.common - optimum) ** 2)  # nats
    assert lost[7] <= 0
    assert lost.sum() < 1


def test_the_error_is_that_of_the_minimum_even_beyond_the_ends():
    found = shrink(profile_of(np.full(25, 2.0), np.full(25, 6), noise=0.0))
    assert found.common == 1
    assert found.lowest == pytest.approx(2)
    assert found.error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("values", [(0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0), (0, 2, 3, 4, 3, 2, 1)])
def test_without_an_interior_minimum_c_is_the_better_end(values):
    nats = np.array(values, dtype=float)[:, None]
    found = shrink(Profile(*map(torch.tensor, (SCALES, nats, np.zeros((7, 7, 1)), np.ones(1), np.ones(1)))))
    assert found.common == SCALES[nats.argmin()]


@given(st.floats(0.1, 100), st.floats(0.1, 10), st.floats(10, 1000), st.integers(0, 100))
def test_for_a_quadratic_likelihood_c_is_equivalent_to_another_tau(h, tau, higher, seed):
    b = np.random.default_rng(seed).standard_normal(5)
    free, shrunk = b / (h + tau), b / (h + tau + higher)
    c = float(shrunk[0] / free[0])
    assert equivalent_tau(c, tau, h) == pytest.approx(tau + higher, rel=1e-6)
    assert equivalent_tau(0.0, tau, h) == math.inf
