"""New tasks from the prior: Θ stays, each task is fitted as if alone, and the folder is read as a run's."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from bora.data.batches import Documents
from bora.data.tokens import Encoded
from bora.errors import UserError
from bora.use import adapt, evaluate, export
from bora.use.restore import restore
from tests.conftest import VOCABULARY, hierarchical, random_factors, table, tiny_opt


@pytest.fixture
def trained():
    """A model of two tasks with factors of some size, as if restored; smooth, so that a maximum has a zero gradient."""
    backbone = tiny_opt(dtype=torch.float64)
    for layer in backbone.model.decoder.layers:
        layer.activation_fn = torch.nn.GELU()
    model = hierarchical(backbone, ["a", "b"], [3, 3], 60, 50.0, rank=2, alpha=16).double()
    random_factors(model, std=0.1)
    return SimpleNamespace(model=model, tokens=SimpleNamespace(pad_id=1), summary={"tau": 50.0})


def documents(n: int, seed: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    return [Encoded(rng.integers(4, VOCABULARY, 9).astype(np.int32), 0) for _ in range(n)]


def fitted(trained, encoded, tasks, **options):
    model = adapt.adapt(trained, encoded, tasks, **({"tau": 50.0, "epochs": 30, "lr": 1e-2} | options))
    return {name: torch.cat([f.flatten() for lora in model.tasks[name].values() for f in lora]) for name in model.tasks}


def test_many_new_tasks_at_once_are_each_alone(trained):
    few, more = documents(2, 1), documents(5, 2)
    theta = fitted(trained, few + more, ["x"] * 2 + ["y"] * 5)
    for name, mine in (("x", few), ("y", more)):
        alone = fitted(trained, mine, [name] * len(mine))
        torch.testing.assert_close(alone[name], theta[name], rtol=1e-4, atol=1e-5)


def test_theta_new_is_the_maximum_of_its_posterior_and_the_mean_stays(trained):
    encoded, mean = documents(3, 1), trained.model.adapters.mean.detach().clone()
    model = adapt.new_tasks(trained, ["x"], [3], 24, 50.0).double()
    for lr in (1e-2, 1e-3, 1e-4, 1e-5):
        adapt.fit(model, Documents(encoded, [0] * 3, 1), epochs=250, lr=lr)
    whole = Documents(encoded, [0] * 3, 1)[[0, 1, 2], 1]
    nll, deviation = model.nll(whole).sum(), model.adapters.stored[0]
    (gradient,) = torch.autograd.grad(nll, model.adapters.stored, retain_graph=True)
    # At the maximum the likelihood's pull is the prior's: τ (θ − Θ).
    pull = -gradient.to_dense()[0]
    torch.testing.assert_close(pull, 50.0 * deviation, rtol=0, atol=0.02 * pull.abs().max().item())
    assert torch.equal(model.adapters.mean, mean)
    assert torch.equal(trained.model.adapters.mean, mean)


def test_a_stronger_prior_holds_the_new_task_nearer_to_the_mean(trained):
    mean, distances = trained.model.adapters.mean, []
    for tau in (10.0, 1e3, 1e6):
        theta = fitted(trained, documents(3, 1), ["x"] * 3, tau=tau)["x"]
        distances.append((theta - mean).norm().item())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-2 * mean.norm()


@pytest.mark.parametrize("tau", [0.0, float("inf")])
def test_the_limits_are_refused(trained, tau):
    with pytest.raises(UserError, match="0 < τ < ∞"):
        adapt.new_tasks(trained, ["x"], [1], 8, tau)


def test_the_command_leaves_a_folder_that_is_read_as_a_runs(command, tmp_path, call):
    path = table(tmp_path / "t.csv", {"a": 24, "b": 40})
    code, _, _ = command(
        "tau=100",
        "data=table",
        f"data.path={path}",
        "data.min_documents=5",
        "data.max_tokens=20",
        "trainer.max_epochs=1",
        "optim.lr=0.01",
        "hydra.run.dir=run",
        "logger=none",
    )
    assert code == 0
    new = table(tmp_path / "new.csv", {"c": 3, "": 2, "d/e": 1}, seed=1)

    run = partial(call, adapt.main)

    code, out, err = run("run", "out", "--data", str(new), "--epochs", "2")
    assert (code, err) == (0, "")
    assert "c: 3 documents" in out
    assert "dropped: 2 without a task" in out
    restored = restore(tmp_path / "out")
    named = pd.read_csv(new, keep_default_na=False).query("task != ''")["text"].tolist()
    lengths = [len(ids) for ids in restored.tokenizer(named).input_ids]
    assert restored.summary["truncated_documents"] == sum(n > 20 for n in lengths)
    assert list(restored.model.tasks) == ["c", "d/e"]
    theirs = restore(tmp_path / "run").model
    assert torch.equal(restored.model.adapters.mean, theirs.adapters.mean)
    assert restored.model.adapters.distances().min() > 0
    per_task = restored.per_task.set_index("task")
    assert per_task["n_train"].to_dict() == {"c": 3, "d/e": 1}
    code, out, err = call(evaluate.main, "out", "--data", new, "--task", "task", "--out", "evaluation")
    assert (code, err) == (0, "bora: 2 rows name no task; they are in documents.csv only\n")
    summary = json.loads((tmp_path / "evaluation/summary.json").read_text())
    assert summary["run_data_sha256"] == restored.summary["data_sha256"]
    code, out, err = call(export.main, "out", "exported")
    assert (code, err) == (0, "")
    card = (tmp_path / "exported/d-e/README.md").read_text()
    assert "not measured" in card
    assert restored.summary["data_sha256"] in card
    for arguments, said in (
        (["run", "out", "--data", str(new)], "is not empty"),
        (["run", "/proc/other", "--data", str(new)], "/proc/other: nothing can be written there"),
        (["run", "other", "--data", str(new), "--seed", "-1"], "--seed must be a whole number from 0"),
        (["run", "other", "--data", str(new), "--batch-size", str(10**20)], "--batch-size must be a whole number"),
        (["nowhere", "other", "--data", str(new)], "no finished run"),
        (["run", "other", "--data", "absent.csv"], "--data absent.csv: there is no such file"),
        (["run", "other", "--data", str(new), "--lr", "inf"], "--lr inf"),
        (["run", "other", "--data", str(new), "--epochs", "0"], "--epochs"),
        (["run", "other", "--data", str(new), "--tau", "inf"], "τ"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "other").exists()
    code, _, err = run("run", "other", "--data", str(new), "--lr", "1e30")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "training diverged" in err
    assert not list((tmp_path / "other").iterdir())
