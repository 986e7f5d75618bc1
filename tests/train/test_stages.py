"""tau=learn: Θ as at τ = ∞, then the tasks' deviations from it, shrunk by validation; saved as an ordinary run."""

import math

import pandas as pd
import pytest
import torch

from bora.data.batches import Documents
from bora.data.read import read_documents
from bora.runs.directory import RunDirectory
from bora.train import stages
from bora.train.stages import SCALES
from bora.use.restore import restore
from bora.use.score import perplexities
from tests.conftest import one_line

LONG = ("trainer.max_epochs=9", "data.batch_size=8")


def validations(run) -> pd.DataFrame:
    """Return the rows of metrics.csv for validations during training."""
    rows = pd.read_csv(run / "metrics.csv").dropna(subset="val/nll")
    return rows[: RunDirectory(run).summary()["epochs"]].reset_index(drop=True)


def test_theta_is_first_trained_as_at_tau_infinity(trained):
    learned, pooled = trained("tau=learn", *LONG), trained("tau=inf", *LONG)
    mine, theirs = validations(learned), validations(pooled)
    first = mine["val/c"].isna()
    assert 2 <= first.sum() <= 6  # at least a third of the 9 epochs is for the deviations
    pd.testing.assert_series_equal(mine["val/nll"][first], theirs["val/nll"][: first.sum()])


@pytest.mark.parametrize("rate", ["optim.lr=0.02", "optim.lr=0.001"])  # deviations become too large; too small
def test_theta_learns_with_the_deviations_while_validation_does_not_shrink_them(trained, rate):
    folder = trained("tau=learn", *LONG, rate, "trainer.log_every_n_steps=1")
    scale = validations(folder)["val/c"]
    norms = pd.read_csv(folder / "metrics.csv").dropna(subset="train/loss").groupby("epoch")["grad_norm/mean"].count()
    learns = norms > 0  # in the epoch, as the previous validation decides
    before = scale.shift()
    assert learns[scale.isna()].all()
    assert (learns == (before == 1))[scale.notna()].all()
    assert learns[scale.notna()].any() == (rate == "optim.lr=0.001")


@pytest.mark.parametrize(("gain", "steps", "epochs"), [(0.0, 1, 6), (0.2, 1, 5), (0.2, 50, 6)])
def test_deviations_begin_when_an_epoch_of_theta_gains_little(trained, monkeypatch, gain, steps, epochs):
    monkeypatch.setattr(stages, "LEAST_GAIN", gain)
    monkeypatch.setattr(stages, "LEAST_STEPS", steps)  # an epoch has 6
    rows = validations(trained("tau=learn", *LONG, "optim.lr=0.001", f"name=gain-{gain}-{steps}"))
    gains = -rows["val/nll"][rows["val/c"].isna()].diff().dropna()
    assert len(gains) + 1 == epochs
    assert (gains.iloc[-1] < gain) == (gain > 0)
    assert (gains[:-1] >= gain).all() == (steps < 6)


def test_the_nll_at_c_is_that_of_theta_plus_c_times_the_deviation(trained):
    run = restore(trained("tau=learn", *LONG))
    model = run.model
    documents = read_documents(run.cfg.data).iloc[:6]
    encoded, _ = run.tokens.encode(documents)
    tasks = [model.adapters.task_names.index(task) for task in documents["task"]]
    batch = Documents(encoded, tasks)[list(range(len(encoded))), 1]
    for c in (0.0, *SCALES):
        for row, (one, task) in enumerate(zip(encoded, tasks, strict=True)):
            alone = Documents([one], [task])[[0], 1]
            theta = model.adapters.mean + c * (model.adapters.theta(task) - model.adapters.mean)
            expected = model.backbone.nll(alone, theta[None])
            torch.testing.assert_close(model.nll(batch, c)[row], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.nll(batch, 0.0), model.nll(batch, "mean"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.nll(batch, 1.0), model.nll(batch), rtol=1e-5, atol=1e-5)


def test_a_learned_run_is_saved_as_an_ordinary_run_at_its_tau(trained):
    folder = trained("tau=learn", *LONG)
    directory = RunDirectory(folder)
    summary, per_task = directory.summary(), directory.per_task()
    learned = summary["learned"]
    assert directory.config().tau == "learn"
    assert summary["tau"] == learned["tau"]
    assert ("c_by_task" in learned, "c" in per_task) == (False, True)
    assert ((per_task["c"] >= 0) & (per_task["c"] <= 1)).all()
    run = restore(folder)
    assert run.model.tau == float(summary["tau"])
    # Scored again from its folder, each text under its task, the run has the summary's perplexity.
    documents = pd.read_csv(folder / "documents.csv").query("split == 'test'")
    table = read_documents(run.cfg.data).loc[documents["row"]]
    _, again = perplexities(run, table, 8)
    assert again["perplexity"] == pytest.approx(summary["test_perplexity"], rel=1e-5)


def test_a_learned_run_is_no_worse_on_validation_than_theta_alone(trained):
    for more in ((), ("optim.lr=0.5",)):  # a rate that spoils the deviations
        folder = trained("tau=learn", *LONG, *more)
        summary = RunDirectory(folder).summary()
        rows = validations(folder)
        alone = rows["val/nll"][rows["val/c"].isna()].min()
        assert math.log(summary["val_perplexity"]) <= alone + 1e-6


def test_a_small_c_is_found(trained):
    learned = RunDirectory(trained("tau=learn", *LONG, "optim.lr=0.5")).summary()["learned"]
    assert 0 < learned["c"] < 0.25


def test_if_deviations_do_not_help_the_run_is_one_model_for_all_tasks(trained, monkeypatch):
    monkeypatch.setattr(stages, "SCALES", (0.5, 1.0))  # all tried values are too large
    folder = trained("tau=learn", *LONG, "optim.lr=0.5", "name=too-much")
    summary = RunDirectory(folder).summary()
    assert (float(summary["tau"]), summary["learned"]["c"]) == (math.inf, 0)
    assert RunDirectory(folder).per_task()["distance"].eq(0).all()
    assert restore(folder).model.adapters.name == "shared"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("prior.estimator=dense", ["prior.estimator=dense", "by_document"]),
        ("prior.parameterization=centered", ["noncentered"]),
        ("trainer.max_epochs=1", ["two validations"]),
    ],
)
def test_settings_that_tau_learn_does_not_support_are_refused(command, setting, words):
    one_line(command("tau=learn", "logger=none", setting), *words)
