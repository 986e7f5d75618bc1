"""Shares of variance: on gradients of known variance, and gradients against a loop of single documents."""

import numpy as np
import pandas as pd
import pytest
import torch

import bora.commands.variance
from bora.data.batches import Documents
from bora.data.read import read_documents
from bora.errors import UserError
from bora.use import variance
from bora.use.restore import restore
from bora.use.variance import gradient_similarities, variance_shares
from tests.conftest import one_line

P = 400  # numbers of a gradient


def drawn(party: float, task: float, seed: int, n_tasks: int = 24, n_each: int = 8):
    """Gradients of documents of tasks of 6 parties, with these variances beside 1 of the document."""
    rng = np.random.default_rng(seed)
    of_task = np.repeat(np.arange(n_tasks), n_each)
    of_party = of_task % 6
    parts = (1.0, rng.standard_normal((len(of_task), P))), (task, rng.standard_normal((n_tasks, P))[of_task])
    parts += ((party, rng.standard_normal((6, P))[of_party]),)
    g = sum(np.sqrt(v) * z for v, z in parts) + rng.standard_normal(P)  # and what all share
    return g @ g.T, of_task, of_party


def test_shares_are_those_that_were_drawn():
    similarity, task, party = drawn(party=0.1, task=0.2, seed=0)
    one, two = variance_shares(similarity, task.tolist(), {"party": party.tolist()})
    assert (one.column, two.column) == ("task", "party")
    # A task's documents share its party too.
    assert one.share == pytest.approx(0.3 / 1.3, abs=0.02)
    assert two.share == pytest.approx(0.1 / 1.3, abs=0.02)
    assert one.low < 0.3 / 1.3 < one.high
    assert two.low < 0.1 / 1.3 < two.high
    assert one.p_value == two.p_value == pytest.approx(1 / 201)


def test_a_column_is_not_credited_with_what_its_tasks_are():
    found = [
        {s.column: s for s in variance_shares(k, t.tolist(), {"party": p.tolist()})}
        for k, t, p in (drawn(0.0, 0.2, seed) for seed in range(20))
    ]
    assert np.mean([f["party"].share for f in found]) == pytest.approx(0, abs=0.005)
    assert np.mean([f["party"].p_value < 0.05 for f in found]) <= 0.15
    assert all(f["task"].p_value < 0.01 for f in found)


def test_without_variance_nothing_is_found():
    found = [variance_shares(k, t.tolist(), {})[0] for k, t, _ in (drawn(0.0, 0.0, seed) for seed in range(40))]
    assert np.mean([f.share for f in found]) == pytest.approx(0, abs=0.002)
    assert np.mean([f.p_value < 0.05 for f in found]) <= 0.125
    assert np.mean([f.low < 0 < f.high for f in found]) >= 0.85


def test_a_column_that_crosses_the_tasks_is_permuted_within_them():
    rng = np.random.default_rng(3)
    task = np.repeat(np.arange(12), 10)
    year = rng.integers(0, 4, len(task))
    g = rng.standard_normal((len(task), P)) + 0.5 * rng.standard_normal((12, P))[task]
    clear = g + 0.5 * rng.standard_normal((4, P))[year]
    found = {s.column: s for s in variance_shares(clear @ clear.T, task.tolist(), {"year": year.tolist()})}
    assert found["year"].p_value == pytest.approx(1 / 201)
    assert {s.column: s for s in variance_shares(g @ g.T, task.tolist(), {"year": year.tolist()})}[
        "year"
    ].p_value > 0.05


@pytest.mark.parametrize(
    ("task", "column", "words"),
    [
        ([0, 0, 1, 1], None, "3 tasks"),
        ([0, 1, 2, 3], None, "no task has two documents"),
        ([0, 0, 1, 1, 2, 2], [5] * 6, "one value only"),
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], "no value that two tasks have"),
    ],
)
def test_what_cannot_be_told_is_said(task, column, words):
    with pytest.raises(UserError, match=words):
        variance_shares(np.eye(len(task)), task, {} if column is None else {"c": column})


def test_gradients_are_those_of_single_documents(trained, monkeypatch):
    monkeypatch.setattr(variance, "SKETCH", 2**22)  # hardly two numbers in one place
    run = restore(trained("tau=10"))
    table = read_documents(run.cfg.data).iloc[20:30]
    encoded, _ = run.tokens.encode(table)
    model, rows = run.model, []
    for piece in encoded:
        theta = model.adapters.mean.detach().clone().requires_grad_()
        nll = model.backbone.nll(Documents([piece], [0])[[0], 1], theta)
        (gradient,) = torch.autograd.grad(nll.sum(), theta)
        rows.append(gradient / piece.n_scored**0.5)
    g = torch.stack(rows).double()
    np.testing.assert_allclose(
        gradient_similarities(run, table, 4), g @ g.T, rtol=1e-3, atol=1e-3 * float((g @ g.T).max())
    )


def test_the_command_ranks_columns(trained, call, tmp_path):
    run = trained("tau=10")
    code, out, err = call(bora.commands.variance.main, run, "--out", tmp_path / "shares.csv")
    assert (code, "documents of a task" in out) == (0, True), err
    assert pd.read_csv(tmp_path / "shares.csv")["column"].tolist() == ["task"]
    one_line(call(bora.commands.variance.main, run, "--by", "nonsense"), "--by=nonsense", "there is no such column")
