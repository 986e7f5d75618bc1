"""A loss that is not finite stops the run and names its task, or its step is skipped."""

import pandas as pd
import pytest
import torch

from bora.bayes.model import HierarchicalLoRA
from bora.runs.directory import RunDirectory
from tests.conftest import table

SMALL = "tau=100 logger=none data=table data.path=t.csv data.min_documents=5 data.max_tokens=20 data.batch_size=4"
SMALL = [*SMALL.split(), "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "checkpoint_minutes=0"]
BAD_STEP = 5


@pytest.fixture(autouse=True)
def bad_batch(tmp_path, monkeypatch):
    """Make each NLL of the fifth training batch NaN."""
    table(tmp_path / "t.csv", {"ann": 40})
    objective, nll, calls = HierarchicalLoRA.objective, HierarchicalLoRA.nll, []

    def count(self, batch, n_processes=1):
        calls.append(1)
        return objective(self, batch, n_processes)

    def spoil(self, batch, under="task"):
        is_bad = len(calls) == BAD_STEP and self.training
        return nll(self, batch, under) * (float("nan") if is_bad else 1.0)

    monkeypatch.setattr(HierarchicalLoRA, "objective", count)
    monkeypatch.setattr(HierarchicalLoRA, "nll", spoil)


def test_a_loss_that_is_not_finite_stops_the_run(command, tmp_path):
    code, _, err = command(*SMALL, "hydra.run.dir=a")
    assert code == 2
    assert "training diverged: at step 5 the loss is nan, by documents of 'ann'; give a lower optim.lr" in err
    assert "a/checkpoints/last.ckpt" in err
    state = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(v.isfinite().all() for v in state["state_dict"].values())


def test_its_step_can_be_skipped(command, tmp_path):
    code, out, _ = command(*SMALL, "optim.nonfinite=skip", "hydra.run.dir=a")
    assert code == 0
    assert "at step 5 the loss is nan, by documents of 'ann': the step is not taken" in out
    steps = pd.read_csv(tmp_path / "a/metrics.csv").dropna(subset="train/prior")
    assert steps.loc[steps["train/loss"].isna(), "step"].tolist() == [BAD_STEP - 1]
    summary = RunDirectory(tmp_path / "a").summary()
    assert summary["test_perplexity"] < summary["base_test_perplexity"]
