"""Two processes train as one."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SMALL = [
    "data.modules=[argparse,pickle,ssl]", "data.documents_per_task=13", "data.min_documents=5",
    "data.max_tokens=24", "data.batch_size=4", "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=2", "logger=none", "lora.rank=2",
]  # fmt: skip


@pytest.fixture(scope="module", params=[0, 100])  # at τ = 0 the matrix alone has a gradient
def runs(tmp_path_factory, request) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ddp")
    for trainer in ("cpu", "ddp"):
        accelerator = (
            ["trainer.accelerator=cpu", "trainer.strategy.process_group_backend=gloo"]
            if trainer == "ddp"
            else []
        )
        keys = [f"+{k}" if "backend" in k else k for k in accelerator]
        command = [
            sys.executable,
            "-m",
            "bora.run",
            *SMALL,
            f"tau={request.param}",
            f"trainer={trainer}",
            *keys,
            f"hydra.run.dir={folder / trainer}",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    return {t: folder / t for t in ("cpu", "ddp")}


def test_two_processes_reach_the_numbers_of_one(runs):
    one, two = (pd.read_csv(runs[t] / "per_task.csv") for t in ("cpu", "ddp"))
    exact = ["task", "n_train", "n_val", "n_test", "train_tokens", "test_tokens"]
    pd.testing.assert_frame_equal(one[exact], two[exact])
    pd.testing.assert_frame_equal(one.drop(columns=exact), two.drop(columns=exact), rtol=1e-4)
    summaries = [json.loads((runs[t] / "summary.json").read_text()) for t in ("cpu", "ddp")]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 2 * math.ceil(one["n_train"].sum() / 8)
    assert summaries[0]["best_epoch"] == summaries[1]["best_epoch"]
    for key in ("test_perplexity", "base_test_perplexity"):
        assert math.isclose(summaries[0][key], summaries[1][key], rel_tol=1e-4)
