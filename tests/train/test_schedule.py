"""The learning rate and the clipped gradient of every step, against their formulas."""

import math

import pandas as pd
import pytest
import torch

from bora.bayes.adamw import RowwiseAdamW
from tests.conftest import table

N, WARMUP, LR = 12, 4, 0.01
FALLING = {"constant": lambda x: 1.0, "linear": lambda x: 1 - x, "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2}


@pytest.fixture
def figures(command, tmp_path):
    """Train N steps with these settings, and return their rows of metrics.csv."""

    def run(*settings: str) -> pd.DataFrame:
        path = table(tmp_path / "t.csv", {"a": 20, "b": 28})
        data = f"data=table data.path={path} data.min_documents=5 data.max_tokens=12 data.batch_size=4".split()
        fit = f"optim.lr={LR} trainer.max_epochs=2 trainer.log_every_n_steps=1 logger=none hydra.run.dir=run".split()
        assert command(*data, *fit, *settings)[0] == 0
        return pd.read_csv(tmp_path / "run/metrics.csv").dropna(subset="lr")

    return run


@pytest.mark.parametrize("schedule", FALLING)
def test_the_learning_rate_rises_and_falls_over_the_runs_steps(figures, schedule):
    rates = figures(f"optim.schedule={schedule}", f"optim.warmup_steps={WARMUP}")["lr"].tolist()
    rising = [step / WARMUP for step in range(WARMUP)]
    falling = [FALLING[schedule](step / (N - WARMUP)) for step in range(N - WARMUP)]
    assert rates == pytest.approx([LR * x for x in rising + falling])


def test_a_warmup_as_long_as_the_run_is_warned_of(figures, tmp_path):
    assert figures(f"optim.warmup_steps={N}")["lr"].max() < LR
    told = f"the run has at most {N} steps, so the learning rate never reaches optim.lr={LR}"
    assert told in (tmp_path / "run/run.log").read_text()


@pytest.fixture
def clipped_gradients(monkeypatch) -> list[list[torch.Tensor]]:
    """Record the gradients at each optimiser step: those of the rows in the batch, and the mean's."""
    step, found = RowwiseAdamW.step, []

    def record(self, closure):
        loss = closure()  # Lightning clips in it
        gradients = [p.grad for p in self.param_groups[0]["params"]]
        found.append([(g.coalesce().values() if g.is_sparse else g).clone() for g in gradients])
        step(self)
        return loss

    monkeypatch.setattr(RowwiseAdamW, "step", record)
    return found


def test_a_steps_gradient_is_clipped_over_the_tasks_and_the_mean_together(figures, clipped_gradients):
    clip = 1.9
    rows = figures(f"optim.clip={clip}")
    whole = [math.hypot(*pair) for pair in zip(rows["grad_norm/mean"], rows["grad_norm/tasks"], strict=True)]
    assert min(whole) < clip < max(whole)
    norms = [math.hypot(*(g.norm() for g in gradients)) for gradients in clipped_gradients]
    assert norms == pytest.approx([min(norm, clip) for norm in whole], rel=1e-4)


def test_lightning_can_clip_by_value(figures, clipped_gradients):
    figures("optim.clip=1e-4", "trainer.extra.gradient_clip_algorithm=value")
    assert [max(float(g.abs().max()) for g in gradients) for gradients in clipped_gradients] == pytest.approx(
        [1e-4] * N
    )
