"""Two processes train as one; also with the backbone's weights divided between them."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch

from tests.conftest import assert_restores, table

pytestmark = pytest.mark.processes

SMALL = [
    "data=table",
    "data.path=t.csv",
    "data.min_documents=5",
    "data.max_tokens=20",
    "data.batch_size=4",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "optim.lr=0.01",
    "logger=none",
    "lora.rank=2",
]
# At τ = 0 the matrix alone has a gradient. In bfloat16 another padding is another rounding.
CASES = [
    (0, "float32", "ddp", 1e-4),
    (100, "float32", "ddp", 1e-4),
    (100, "bfloat16", "ddp", 1e-2),
    (100, "float32", "fsdp", 1e-4),
]


class Runs(NamedTuple):
    one: Path
    two: Path
    texts: Path
    rtol: float


def run(folder: Path, name: str, *overrides: str) -> Path:
    """A run in a process of its own, or already there."""
    if not (folder / name).is_dir():
        command = [sys.executable, "-m", "bora.commands.run", *SMALL, *overrides, f"hydra.run.dir={name}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    table(folder / "t.csv", {"a": 17, "b/c": 30, "d": 13})
    return folder


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case[:3])))
def runs(folder, request) -> Runs:
    tau, dtype, trainer, rtol = request.param
    what = [f"tau={tau}", f"model.dtype={dtype}"]
    two = ["trainer.accelerator=cpu", "+trainer.strategy.process_group_backend=gloo", f"trainer={trainer}"]
    return Runs(
        run(folder, f"one-{tau}-{dtype}", *what),
        run(folder, f"{trainer}-{tau}-{dtype}", *what, *two),
        folder / "t.csv",
        rtol,
    )


def test_two_processes_reach_the_numbers_of_one(runs):
    one, two = (pd.read_csv(folder / "per_task.csv") for folder in runs[:2])
    exact = ["task", "n_train", "n_val", "n_test", "train_tokens", "test_tokens"]
    pd.testing.assert_frame_equal(one[exact], two[exact])
    pd.testing.assert_frame_equal(one.drop(columns=exact), two.drop(columns=exact), rtol=runs.rtol)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in runs[:2]]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 2 * math.ceil(one["n_train"].sum() / 8)
    assert summaries[0]["best_epoch"] == summaries[1]["best_epoch"]
    for key in ("test_perplexity", "base_test_perplexity"):
        assert math.isclose(summaries[0][key], summaries[1][key], rel_tol=runs.rtol)


def test_lightnings_own_name_for_the_strategy(folder):
    alone = run(folder, "named", "tau=100", "+trainer.strategy=ddp", "trainer.accelerator=cpu")
    assert (alone / "summary.json").exists()


def test_their_losses_are_those_of_one_on_the_same_global_batches(runs):
    one, two = (pd.read_csv(folder / "metrics.csv").filter(like="train/") for folder in runs[:2])
    assert one["train/loss"].notna().sum() == 8  # 4 steps of an epoch
    pd.testing.assert_frame_equal(one, two, rtol=runs.rtol, atol=1e-6)


def test_one_process_reads_their_checkpoints(runs):
    one, two = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in runs[:2])
    assert one["state_dict"].keys() == two["state_dict"].keys()
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=0.05, atol=20 * runs.rtol * 0.01)
    assert_restores(runs.two, runs.texts, rel=runs.rtol)
