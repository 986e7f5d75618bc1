"""The temperature against a fine grid; the calibration error by hand."""

import numpy as np
import pytest

from bora.train.authorship import calibration_error, fit_temperature
from bora.use.score import measure_sureness


def log_loss(nats: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    """Return the mean −log of the softmax at the true task."""
    own = nats[np.arange(len(nats)), truth]
    return (np.logaddexp.reduce(nats / temperature, axis=1) - own / temperature).mean()


@pytest.mark.parametrize(("scale", "n"), [(0.3, 25), (3.0, 25), (40.0, 200)])
def test_no_temperature_on_a_fine_grid_is_better(scale, n):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, n)
    nats = rng.normal(0, scale, (n, 4)) + scale * np.eye(4)[truth] - 200
    found = fit_temperature(nats, truth)
    grid = np.geomspace(0.1, 1000, 20_001)
    losses = [log_loss(nats, truth, t) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=1e-3)
    assert log_loss(nats, truth, found) <= min(losses)


def test_temperatures_at_the_ends_of_their_range():
    nats = np.array([[3.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(nats, np.array([0, 1])) == 1  # always right: no temperature is the best
    assert fit_temperature(nats, np.array([1, 0])) == pytest.approx(1000)  # always wrong: as good as guessing
    nearly = np.array([[3.0, 0.0], [0.0, 3.0], [1e-30, 0.0]])
    assert fit_temperature(nearly, np.array([0, 1, 1])) == pytest.approx(0.1)


def test_measures_of_sureness_equal_those_by_hand():
    nats = np.log([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]) - 50
    prior = np.log([0.5, 0.25, 0.25])
    found = measure_sureness(nats, np.array([0, 2]), prior, 2.0)
    by_bayes = np.array([[0.30, 0.075, 0.025], [0.1, 0.125, 0.075]])  # p(d) p(text | d)
    by_bayes /= by_bayes.sum(axis=1, keepdims=True)
    assert found["log_loss_at_1"] == pytest.approx(-np.log([by_bayes[0, 0], by_bayes[1, 2]]).mean())
    tempered = np.exp(prior) * np.sqrt(np.exp(nats))
    tempered /= tempered.sum(axis=1, keepdims=True)
    assert found["log_loss"] == pytest.approx(-np.log([tempered[0, 0], tempered[1, 2]]).mean())
    assert found["guessing_log_loss"] == pytest.approx(-np.log([0.5, 0.25]).mean())
    # By Bayes' rule: 0.75 and right, 0.42 and wrong, each in its own bin. Tempered: 0.62, right; 0.42, wrong (task 0).
    assert found["calibration_error_at_1"] == pytest.approx((0.25 + by_bayes[1].max()) / 2)
    assert found["calibration_error"] == pytest.approx((1 - tempered[0, 0] + tempered[1, 0]) / 2)


def test_the_calibration_error_equals_the_one_by_hand():
    probability = np.array([0.82, 0.9, 0.88, 1.0, 0.45])
    right = np.array([True, False, True, True, False])
    # (0.8, 0.9] has three, 2/3 right, mean 0.8667; (0.9, 1] one, right; (0.4, 0.5] one, wrong.
    assert calibration_error(probability, right) == pytest.approx((3 * (2.6 / 3 - 2 / 3) + 0 + 0.45) / 5)
    assert calibration_error(np.array([0.1, 0.1]), np.array([True, False])) == pytest.approx(0.4)
