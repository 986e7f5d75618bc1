"""The learning rate of every step, against its formula."""

import math

import pandas as pd
import pytest

from tests.conftest import table

N, WARMUP, LR = 12, 4, 0.01
FALLING = {"constant": lambda x: 1.0, "linear": lambda x: 1 - x, "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2}


@pytest.mark.parametrize("schedule", FALLING)
def test_the_rate_rises_and_falls_by_the_runs_steps(command, tmp_path, schedule):
    path = table(tmp_path / "t.csv", {"a": 20, "b": 28})
    data = f"data=table data.path={path} data.min_documents=5 data.max_tokens=12 data.batch_size=4".split()
    fit = f"optim.lr={LR} optim.schedule={schedule} optim.warmup_steps={WARMUP} trainer.max_epochs=2".split()
    assert command(*data, *fit, "trainer.log_every_n_steps=1", "logger=none", "hydra.run.dir=run")[0] == 0
    rates = pd.read_csv(tmp_path / "run/metrics.csv")["lr"].dropna().tolist()
    rising = [step / WARMUP for step in range(WARMUP)]
    falling = [FALLING[schedule](step / (N - WARMUP)) for step in range(N - WARMUP)]
    assert rates == pytest.approx([LR * x for x in rising + falling])
