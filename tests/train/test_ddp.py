"""Two processes train as one, also if the backbone's weights are sharded between them."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from bora.use.evaluate import evaluate
from bora.use.restore import restore
from tests.conftest import table

pytestmark = pytest.mark.processes

SMALL = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=20 data.batch_size=4 optim.lr=0.01"
SMALL += " logger=none lora.rank=2 trainer.accumulate_grad_batches=2 trainer.max_epochs=2 trainer.log_every_n_steps=1"
EXACT = ["task", "n_train", "n_val", "n_test", "train_tokens", "test_tokens"]
# At τ = 0 only the matrix has a gradient. In bfloat16 the rounding depends on the padding.
CASES = [
    (0, "float32", "trainer=ddp", 1e-4),
    (100, "float32", "trainer.strategy=ddp", 1e-4),
    (100, "bfloat16", "trainer=ddp", 1e-2),
    ("learn", "float32", "trainer=ddp", 1e-4),
    ("[10,100] data.levels=[party]", "float32", "trainer=ddp", 1e-4),
    (100, "float32", "trainer=fsdp", 1e-4),
    (100, "float32", "trainer=fsdp model.gradient_checkpointing=true", 1e-4),
]


def run(folder: Path, name: str, *overrides: str) -> Path:
    """Run the command in a separate process, unless it has run already."""
    if not (folder / name).is_dir():
        command = [sys.executable, "-m", "bora.run", *SMALL.split(), *overrides, f"hydra.run.dir={name}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    path = table(folder / "t.csv", {"a": 17, "b/c": 30, "d": 13})
    frame = pd.read_csv(path)
    frame.assign(party=frame["task"].map({"a": "left", "b/c": "right", "d": "left"})).to_csv(path, index=False)
    return folder


@pytest.mark.parametrize(("tau", "dtype", "trainer", "rtol"), CASES)
def test_two_processes_reach_the_numbers_of_one(folder, tau, dtype, trainer, rtol):
    what = [*f"tau={tau}".split(), f"model.dtype={dtype}"]
    name = f"{re.sub('[^0-9a-z]+', '-', str(tau))}-{dtype}"
    alone = run(folder, f"one-{name}", *what)
    pair = run(folder, f"{trainer}-{name}", *what, *trainer.split(), "trainer.devices=2", "trainer.accelerator=cpu")
    one, two = (pd.read_csv(run / "per_task.csv") for run in (alone, pair))
    pd.testing.assert_frame_equal(one[EXACT], two[EXACT])
    pd.testing.assert_frame_equal(one.drop(columns=EXACT), two.drop(columns=EXACT), rtol=rtol)
    told = [re.findall(r"train NLL (\S+),", (run / "run.log").read_text()) for run in (alone, pair)]
    assert [len(lines) for lines in told] == [2, 2]  # one line for each epoch, for both processes' documents
    assert [float(nll) for nll in told[1]] == pytest.approx([float(nll) for nll in told[0]], rel=rtol, abs=1.1e-3)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (alone, pair)]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 2 * math.ceil(one["n_train"].sum() / 8)
    assert summaries[0]["best_epoch"] == summaries[1]["best_epoch"]
    for key in ("test_perplexity", "base_test_perplexity"):
        assert math.isclose(summaries[0][key], summaries[1][key], rel_tol=rtol)
    # Each step's figures are for the same global batch.
    losses = [pd.read_csv(run / "metrics.csv").filter(like="train/") for run in (alone, pair)]
    assert losses[0]["train/loss"].notna().sum() == 8  # 4 steps an epoch
    pd.testing.assert_frame_equal(*losses, rtol=rtol, atol=1e-6)
    # One process can read their checkpoints.
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (alone, pair)]
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[1], states[0], rtol=0.05, atol=20 * rtol * 0.01)
    test = pd.read_csv(pair / "documents.csv").query("split == 'test'")
    again = evaluate(restore(pair), pd.read_csv(folder / "t.csv").loc[test["row"]].reset_index(drop=True))
    assert again.per_task["nll"].tolist() == pytest.approx(two["test_nll"].tolist(), rel=rtol)


def test_a_script_continues_in_every_process_after_bora_fit(folder):
    script = folder / "script.py"
    script.write_text(
        "import bora, pandas as pd\n"
        "how = {'min_documents': 5, 'max_tokens': 20, 'max_epochs': 1, 'rank': 2}\n"
        "how['overrides'] = ['trainer=ddp', 'trainer.accelerator=cpu']\n"
        "run = bora.fit(pd.read_csv('t.csv'), tau=10, output='fit', **how)\n"
        "found = bora.sweep(pd.read_csv('t.csv'), [10, 20], output='sweep', **how)\n"
        "print('end', run.tau, len(found.runs), found.failures)\n"
        "try:\n"
        "    bora.fit(pd.read_csv('t.csv'), tau=10, **how)\n"
        "except bora.UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("end 10.0 2 []") == 2
    assert done.stdout.count("need output=") == 2
