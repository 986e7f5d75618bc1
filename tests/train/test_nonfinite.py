"""A loss that is not finite stops the run, naming the task, or its step is skipped."""

import pandas as pd
import pytest
import torch

from bora.model.backbone import Backbone
from bora.runs.directory import RunDirectory
from bora.train.module import TrainingModule
from tests.conftest import table

SMALL = "tau=100 logger=none data=table data.path=t.csv data.min_documents=5 data.max_tokens=20 data.batch_size=4"
SMALL = [*SMALL.split(), "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "checkpoint_minutes=0"]
BAD_STEP = 5


@pytest.fixture(autouse=True)
def bad_batch(tmp_path, monkeypatch):
    """Make each NLL of the fifth training batch NaN."""
    table(tmp_path / "t.csv", {"ann": 40})
    step, nll, calls, bad = TrainingModule.training_step, Backbone.nll, [], []

    def count(self, batch, batch_idx):
        calls.append(1)
        bad[:] = [1] * (len(calls) == BAD_STEP)
        try:
            return step(self, batch, batch_idx)
        finally:
            bad.clear()

    monkeypatch.setattr(TrainingModule, "training_step", count)
    monkeypatch.setattr(Backbone, "nll", lambda *args: nll(*args) * (float("nan") if bad else 1.0))


def test_a_loss_that_is_not_finite_stops_the_run(command, tmp_path):
    code, _, err = command(*SMALL, "hydra.run.dir=a")
    assert (code, (tmp_path / "a/summary.json").exists()) == (2, False)
    assert "training diverged: at step 5 the loss is nan, caused by documents of 'ann'; give a lower optim.lr" in err
    assert "a/checkpoints/last.ckpt" in err
    state = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(v.isfinite().all() for v in state["state_dict"].values())


def test_a_step_with_a_loss_that_is_not_finite_can_be_skipped(command, tmp_path):
    code, out, _ = command(*SMALL, "optim.nonfinite=skip", "hydra.run.dir=a")
    assert code == 0
    assert "at step 5 the loss is nan, caused by documents of 'ann': the step is skipped" in out
    steps = pd.read_csv(tmp_path / "a/metrics.csv").dropna(subset="train/prior")
    assert steps.loc[steps["train/loss"].isna(), "step"].tolist() == [BAD_STEP - 1]
    summary = RunDirectory(tmp_path / "a").summary()
    assert summary["test_perplexity"] < summary["base_test_perplexity"]
