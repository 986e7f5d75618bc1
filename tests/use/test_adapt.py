"""New tasks from the prior: Θ stays fixed, each task is fitted as if alone, and the folder can be read as a run's."""

import json
import shutil
from collections import deque
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from bora.commands import adapt as command_line
from bora.commands import evaluate, export
from bora.data.batches import Documents
from bora.data.tokens import Encoded, Truncation
from bora.runs.directory import RunDirectory
from bora.runs.sweep import finished_runs
from bora.use.adapt import adapt, train_epochs
from bora.use.new_tasks import NewDocuments, new_tasks
from bora.use.restore import restore
from tests.conftest import VOCABULARY, encoded_of, hierarchical, one_line, random_factors, table, tiny_opt


@pytest.fixture
def smooth_model():
    """Build a model of two tasks with nonzero factors, as if restored; smooth, so that its gradient is 0 at a maximum."""
    backbone = tiny_opt(dtype=torch.float64)
    for layer in backbone.model.decoder.layers:
        layer.activation_fn = torch.nn.GELU()
    model = hierarchical(backbone, ["a", "b"], [3, 3], 60, 50.0, rank=2, alpha=16).double()
    random_factors(model, std=0.1)
    return SimpleNamespace(model=model)


def documents(n: int, seed: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    return [encoded_of(rng.integers(4, VOCABULARY, 9), document=100 * seed + i) for i in range(n)]


def fitted(restored, encoded, tasks, tau=50.0):
    new = NewDocuments(encoded, tasks, [""] * len(tasks), {}, [], Truncation(0, 0), {})
    model, _ = adapt(restored, new, tau, epochs=30, lr=1e-2)
    return {name: torch.cat([f.flatten() for lora in model.tasks[name].values() for f in lora]) for name in model.tasks}


def test_each_of_many_new_tasks_is_fitted_as_if_alone(smooth_model):
    few, more = documents(2, 1), documents(5, 2)
    theta = fitted(smooth_model, few + more, ["x"] * 2 + ["y"] * 5)
    for name, mine in (("x", few), ("y", more)):
        alone = fitted(smooth_model, mine, [name] * len(mine))
        torch.testing.assert_close(alone[name], theta[name], rtol=1e-4, atol=1e-5)


def test_epochs_are_chosen_by_cross_validation(smooth_model):
    few, more, one = documents(2, 1), documents(3, 2), documents(1, 3)
    alike = [encoded_of([4, 5, 6] * 3, document=i) for i in range(6)]
    tasks, texts = ["x"] * 2 + ["y"] * 3 + ["z"], ["a", "b", "c", "c", "d", "e"]  # y has a text twice, z has one text
    for encoded in (alike, few + more + one):  # predictable documents, and unpredictable ones
        new = NewDocuments(encoded, tasks, texts, {}, [], Truncation(0, 0), {})
        model, about = adapt(smooth_model, new, 50.0, lr=1e-2, batch_size=2, seed=3)
        nats = np.zeros(11)
        for held_out in ([0, 2, 3], [1, 4]):
            rest = [i for i in range(6) if i not in held_out]
            counts = [sum(tasks[i] == name for i in rest) for name in "xyz"]
            part = new_tasks(smooth_model, "xyz", counts, 8 * len(rest), 50.0)
            learned_from, others = (
                Documents([encoded[i] for i in some], ["xyz".index(tasks[i]) for i in some])
                for some in (rest, held_out)
            )
            batch = others[list(range(len(held_out))), 1]
            nats[0] += part.nll(batch).sum().item()
            for epoch in train_epochs(part, learned_from, 10, 1e-2, 2, 3):
                nats[epoch] += part.nll(batch).sum().item()
        np.testing.assert_allclose(about["held_out_nll"], nats / 40, rtol=1e-6)
        assert about["epochs"] == nats.argmin()
        if encoded is alike:
            given, _ = adapt(smooth_model, new, 50.0, about["epochs"], lr=1e-2, batch_size=2, seed=3)
            assert torch.equal(model.adapters.stored, given.adapters.stored)
        else:
            assert about["epochs"] == 0
            assert not model.adapters.stored.any()
    new = NewDocuments(few, ["x", "x"], ["a", "a"], {}, [], Truncation(0, 0), {})
    assert adapt(smooth_model, new, 50.0)[1]["held_out_nll"] is None


@pytest.mark.parametrize(("likelihood", "share"), [("sum", 1), ("task_mean", 3 / 24)])  # N_d × mean NLL of 24 tokens
def test_theta_new_maximises_its_posterior_and_the_mean_stays_fixed(smooth_model, likelihood, share):
    smooth_model.model.likelihood = likelihood
    encoded, mean = documents(3, 1), smooth_model.model.adapters.mean.detach().clone()
    model = new_tasks(smooth_model, ["x"], [3], 24, 50.0).double()
    for lr in (1e-2, 1e-3, 1e-4, 1e-5):
        deque(train_epochs(model, Documents(encoded, [0] * 3), epochs=250, lr=lr), maxlen=0)
    whole = Documents(encoded, [0] * 3)[[0, 1, 2], 1]
    nll, deviation = model.nll(whole).sum(), model.adapters.stored[0]
    (gradient,) = torch.autograd.grad(nll, model.adapters.stored, retain_graph=True)
    # At the maximum the likelihood's pull equals the prior's, τ (θ − Θ).
    pull = -share * gradient.to_dense()[0]
    torch.testing.assert_close(pull, 50.0 * deviation, rtol=0, atol=0.02 * pull.abs().max().item())
    assert torch.equal(model.adapters.mean, mean)
    assert torch.equal(smooth_model.model.adapters.mean, mean)


def test_the_command_writes_a_folder_that_can_be_read_as_a_runs(trained, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = table(tmp_path / "new.csv", {"c": 3, "": 2, "d/e": 1}, seed=1)
    run = trained("tau=100")
    line = partial(call, command_line.main)
    code, out, err = line(run, "out", "--data", new, "--epochs", "2")
    assert (code, err) == (0, "")
    assert "c: 3 documents" in out
    assert "dropped: 2 without a task" in out
    restored, theirs = restore(tmp_path / "out"), restore(run).model
    named = pd.read_csv(new, keep_default_na=False).query("task != ''")["text"].tolist()
    lengths = [len(ids) for ids in restored.tokenizer(named).input_ids]
    assert restored.summary["truncated_documents"] == sum(n > 20 for n in lengths)
    assert torch.equal(restored.model.adapters.mean, theirs.adapters.mean)
    assert restored.model.adapters.distances().min() > 0
    per_task = restored.directory.per_task().set_index("task")
    assert per_task["n_train"].to_dict() == {"c": 3, "d/e": 1}
    assert per_task["train_tokens"].sum() == restored.summary["n_tokens"] == sum(min(n, 20) - 1 for n in lengths)
    # Neither θ_new nor Θ is independent of the run's own documents.
    code, _, err = call(evaluate.main, "out", "--data", run.parent / "t.csv")
    assert "no row belongs to a task of the run" in err
    code, _, err = call(evaluate.main, "out", "--data", new, "--task", "task")
    assert code == 0
    assert err.startswith("bora: 2 rows name no task; they are in documents.csv only\nbora: the run was trained on the")
    assert "of 4 rows of 6: left out of the figures" in err
    assert restored.directory.trained_on() > RunDirectory(run).trained_on()
    summary = json.loads((tmp_path / "out/evaluation/new/summary.json").read_text())
    assert (summary["perplexity"], summary["documents"]["trained_on"]) == (None, 4)
    assert summary["run_data_sha256"] == restored.summary["data_sha256"]
    code, _, err = call(export.main, "out", "exported")
    assert (code, err) == (0, "")
    card = (tmp_path / "exported/d-e/README.md").read_text()
    assert "not measured" in card
    assert "to a few documents, with the prior's mean Θ from a run on other tasks" in card
    (tmp_path / "sweep").mkdir()
    shutil.copytree(run, "sweep/tau=100,seed=0")
    shutil.copytree("out", "sweep/adapted")
    rows, _, unreadable = finished_runs(tmp_path / "sweep")
    assert (rows["run"].tolist(), unreadable) == (["tau=100,seed=0"], [])
    for tau in ("0", "inf"):
        found = line(trained(f"tau={tau}"), "nowhere", "--data", new)
        one_line(found, f"a new task needs 0 < τ < ∞, not {tau}", "give --tau")
    assert restored.summary["data_sha256"] in card
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in (
        ([run, "out", "--data", new], "is not empty"),
        ([run, "/proc/other", "--data", new], "/proc/other cannot be written"),
        ([run, "other", "--data", new, "--seed", "-1"], "--seed: '-1': Input should be greater"),
        ([run, "other", "--data", new, "--lr", "inf"], "--lr: 'inf'"),
        ([run, "other", "--data", new, "--lr", "1e30"], "training diverged"),
    ):
        code, _, err = line(*arguments)
        assert code == 2
        assert said in err.splitlines()[-1]
        assert sorted(tmp_path.rglob("*")) == before
