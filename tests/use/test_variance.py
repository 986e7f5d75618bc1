"""Shares of variance on gradients of known variance, and gradients against a loop over single documents."""

import numpy as np
import pandas as pd
import pytest
import torch

import bora
import bora.commands.variance
from bora.config.compose import compose_config
from bora.data.batches import Documents
from bora.data.read import read_documents
from bora.errors import UserError
from bora.runs.directory import RunDirectory
from bora.train.run import train
from bora.use import curvature, variance
from bora.use.curvature import draw_labels, measure_curvature
from bora.use.restore import restore
from bora.use.variance import gradient_similarities, variance_shares
from tests.conftest import one_line, table

P = 400  # numbers in a gradient


def drawn(party: float, task: float, seed: int, n_tasks: int = 24, n_each: int = 8):
    """Draw gradients of documents whose tasks are in 6 parties, with these variances, and 1 for a document."""
    rng = np.random.default_rng(seed)
    of_task = np.repeat(np.arange(n_tasks), n_each)
    of_party = of_task % 6
    parts = (1.0, rng.standard_normal((len(of_task), P))), (task, rng.standard_normal((n_tasks, P))[of_task])
    parts += ((party, rng.standard_normal((6, P))[of_party]),)
    g = sum(np.sqrt(v) * z for v, z in parts) + rng.standard_normal(P)  # plus a part that all share
    return g @ g.T, of_task, of_party


def test_shares_equal_the_true_ones():
    similarity, task, party = drawn(party=0.1, task=0.2, seed=0)
    one, two = variance_shares(similarity, task.tolist(), {"party": party.tolist()})
    assert (one.column, two.column) == ("task", "party")
    # A task's documents also share its party.
    assert one.share == pytest.approx(0.3 / 1.3, abs=0.02)
    assert two.share == pytest.approx(0.1 / 1.3, abs=0.02)
    assert one.low < 0.3 / 1.3 < one.high
    assert two.low < 0.1 / 1.3 < two.high
    assert one.p_value == two.p_value == pytest.approx(1 / 201)


def test_a_column_is_not_credited_with_the_variance_of_its_tasks():
    found = [
        variance_shares(k, t.tolist(), {"party": p.tolist()}) for k, t, p in (drawn(0.0, 0.2, s) for s in range(20))
    ]
    by_column = {share.column: [s for one in found for s in one if s.column == share.column] for share in found[0]}
    assert np.mean([s.share for s in by_column["party"]]) == pytest.approx(0, abs=0.005)
    assert np.mean([s.p_value < 0.05 for s in by_column["party"]]) <= 0.15
    assert all(s.p_value < 0.01 for s in by_column["task"])


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
    for gradients, low, high in ((clear, 0, 1 / 200), (g, 0.05, 1)):
        shares = variance_shares(gradients @ gradients.T, task.tolist(), {"year": year.tolist()})
        (p_value,) = (share.p_value for share in shares if share.column == "year")
        assert low < p_value < high


@pytest.mark.parametrize(
    ("task", "column", "words"),
    [
        ([0, 0, 1, 1], None, "3 tasks"),
        ([0, 1, 2, 3], None, "no task has two documents"),
        ([0, 0, 1, 1, 2, 2], [5] * 6, "one value only"),
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], "no value that two tasks have"),
    ],
)
def test_shares_that_cannot_be_estimated_are_refused(task, column, words):
    with pytest.raises(UserError, match=words):
        variance_shares(np.eye(len(task)), task, {} if column is None else {"c": column})


def test_gradient_similarities_equal_a_loop_over_documents(trained, monkeypatch):
    monkeypatch.setattr(variance, "SKETCH", 2**22)  # so that hardly two numbers share a place
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


def test_the_command_ranks_columns_and_infers_tau(trained, call):
    run = trained("tau=10")
    code, out, err = call(bora.commands.variance.main, run, "--tau")
    assert (code, "documents of a task" in out, "τ for inference" in out) == (0, True, True), err
    assert pd.read_csv(run / "variance/shares.csv")["column"].tolist() == ["task"]
    found = pd.read_csv(run / "variance/tau.csv").set_index("group")
    assert found.index.tolist() == ["A", "B", "all"]
    assert (found["lower_tau"] <= found["tau"]).all()
    evidence = pd.read_csv(run / "variance/evidence.csv").query("group == 'all'").set_index("tau")["evidence"]
    assert evidence.max() == 0
    assert evidence.idxmax() == pytest.approx(found["tau"]["all"], rel=0.1)
    one_line(call(bora.commands.variance.main, run, "--by", "nonsense"), "--by=nonsense", "there is no such column")


def test_python_gives_the_commands_results_even_for_a_run_on_a_frame(call, tmp_path):
    path = table(tmp_path / "t.csv", {"a": 24, "b": 40, "c": 30})
    frame = pd.read_csv(path).assign(half=lambda rows: rows.index % 2)
    frame.to_csv(path, index=False)
    words = "data.min_documents=5 data.max_tokens=20 optim.lr=0.02 lora.rank=3 trainer.max_epochs=1".split()
    config, _ = compose_config([*words, "data=table", f"data.path={path}", "tau=10", "logger=none"])
    train(config, RunDirectory(tmp_path / "run"), group="group", name="run")
    run, of_frame = bora.load(tmp_path / "run"), bora.fit(frame, tau=10, output=tmp_path / "of_frame", overrides=words)
    assert call(bora.commands.variance.main, run.folder, "--by", "half", "--tau")[0] == 0
    shares, tau = (pd.read_csv(run.folder / f"variance/{name}.csv") for name in ("shares", "tau"))
    for found in (run.variance("half"), of_frame.variance("half", frame=frame)):
        pd.testing.assert_frame_equal(found, shares, rtol=1e-4)
    for found, _ in (run.infer_tau(), of_frame.infer_tau(frame=frame)):
        pd.testing.assert_frame_equal(found, tau, rtol=1e-3)
    with pytest.raises(UserError, match="give it as frame="):
        of_frame.variance("half")


def test_drawn_tokens_give_the_fisher_information(trained):
    """The mean of ‖g̃‖² over draws is the trace of Σ_i J_iᵀ Wᵀ (diag p_i − p_i p_iᵀ) W J_i, J_i for the hidden state."""
    run = restore(trained("tau=10"))
    model = run.model
    table = pd.DataFrame({"task": model.adapters.task_names[:1], "text": ["the house asks"]})
    (piece,), _ = run.tokens.encode(table)
    batch = Documents([piece], [0])[[0], 1]
    theta = model.adapters.theta(0).detach().clone()[None].requires_grad_()
    with model.backbone.routed(theta):
        hidden = model.backbone.hidden(batch["input_ids"]).flatten(0, 1)[batch["scored"] - 1]
    head, trace = model.backbone.head, 0.0
    for h in hidden:
        jacobian = torch.cat([torch.autograd.grad(x, theta, retain_graph=True)[0] for x in h])  # [H, P]
        p = head.logits(h[None])[0].detach().softmax(dim=0)
        mean = p @ head.weight
        covariance = head.weight.T @ (p[:, None] * head.weight) - mean[:, None] * mean
        trace += float(((jacobian @ jacobian.T) * covariance).sum())
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(150):
        batch["labels"] = draw_labels(model.backbone, batch, theta, generator)
        squares.append(float(torch.autograd.grad(model.backbone.nll(batch, theta).sum(), theta)[0].square().sum()))
    assert abs(np.mean(squares) - trace) < 3 * np.std(squares) / 150**0.5
    assert np.std(squares) / 150**0.5 < 0.1 * trace


def test_the_evidence_equals_a_loop_over_documents(trained, monkeypatch):
    monkeypatch.setattr(curvature, "SKETCH", 2**22)  # so that hardly two numbers share a place
    run = restore(trained("tau=10"))
    model, names = run.model, run.model.adapters.task_names[:2]
    own = {task: read_documents(run.cfg.data).query("task == @task").iloc[:4] for task in names}
    tokens, _ = measure_curvature(run, pd.concat(own.values()), 3)
    monkeypatch.setattr(curvature, "draw_labels", lambda backbone, batch, theta, generator: batch["labels"])
    _, by_own_tokens = measure_curvature(run, pd.concat(own.values()), 3)
    everything, of_task = [], []
    for task, rows in own.items():
        encoded, _ = run.tokens.encode(rows)
        assert tokens[names.index(task)] == sum(piece.n_scored for piece in encoded)
        d = model.adapters.task_names.index(task)
        for piece in encoded:
            theta = model.adapters.theta(d).detach().clone()[None].requires_grad_()
            nll = model.backbone.nll(Documents([piece], [d])[[0], 1], theta)
            everything.append(torch.autograd.grad(nll.sum(), theta)[0][0].double())
            of_task.append(names.index(task))
    g, whose = torch.stack(everything), torch.tensor(of_task)
    in_b = torch.zeros(model.n_parameters)
    for lora in model.backbone.layout.factors(in_b).values():
        lora.B.fill_(1)
    for group, measured in zip((in_b == 0, in_b == 1), by_own_tokens, strict=True):
        h, c = (g[:, group] ** 2).sum(dim=0) / tokens.sum(), measured.curvature
        torch.testing.assert_close((c.diagonal * c.counts).sum(), h.sum(), rtol=1e-3, atol=0)
        torch.testing.assert_close(c.eigenvalues.sum(), h.sum(), rtol=1e-3, atol=0)
        sums = torch.stack([g[whose == i][:, group].sum(dim=0) for i in range(2)])
        deviations = torch.stack([model.adapters.deviations()[i][group] for i in range(2)]).double()
        b = tokens[:, None] * h * deviations - sums
        torch.testing.assert_close(measured.squares.sum(dim=1), b.square().sum(dim=1), rtol=1e-3, atol=0)
        within = sum(((g[whose == i][:, group] - sums[i] / 4) ** 2).sum() * 4 / 3 for i in range(2))
        assert measured.dispersion == pytest.approx(float(within / (tokens.sum() * h.sum())), rel=1e-3)
