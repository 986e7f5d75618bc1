"""A long run uses no more memory, files or threads than a short one: `make test-faults`."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from tests.conftest import table
from tests.faults.processes import start

STEPS, WARM = 2000, 500
SMALL = "tau=100 data=table data.path=t.csv hydra.run.dir=a".split()


@pytest.mark.processes
@pytest.mark.skipif("BORA_LONG" not in os.environ, reason="takes minutes: make test-faults")
@pytest.mark.parametrize("logger", ["none", "wandb", "tensorboard"])
def test_memory_files_and_threads_do_not_grow(tmp_path, logger):
    table(tmp_path / "t.csv", {f"task {d}": 40 for d in range(20)})
    data = ["data.min_documents=5", "data.max_tokens=20", "data.batch_size=2", "lora.rank=2"]
    length = ["trainer.max_epochs=10", "checkpoint_minutes=0.02", "optim.patience=99"]
    process = start(tmp_path, "long", f"logger={logger}", *SMALL, *data, *length)
    metrics, watched, rows = tmp_path / "a/metrics.csv", psutil.Process(process.pid), []
    while process.is_alive():
        process.join(0.2)
        step = last_step(metrics)
        if process.is_alive() and step and (not rows or step > rows[-1][0]):
            rows.append((step, watched.memory_info().rss / 2**20, watched.num_fds(), watched.num_threads()))
    assert process.exitcode == 0, (tmp_path / "long.err").read_text()
    seen = pd.DataFrame(rows, columns=["step", "mebibytes", "files", "threads"])
    print("\n", seen.iloc[:: max(1, len(seen) // 12)].to_string())
    assert seen["step"].max() > STEPS - 50
    late = seen[seen["step"] > WARM]
    slope = np.polyfit(late["step"], late["mebibytes"], 1)[0] * 1000
    assert slope < 10, f"{slope:.1f} MiB more after 1,000 steps"
    assert late["files"].max() - late["files"].min() <= 4
    assert late["threads"].nunique() <= 2
    # A row for every 10 steps and for each epoch; a checkpoint does not grow with the steps.
    assert len(metrics.read_text().splitlines()) < STEPS / 10 + 20
    sizes = {f.stem: f.stat().st_size for f in tmp_path.glob("a/checkpoints/*.ckpt")}
    assert abs(sizes["last"] - sizes["best"]) < 10_000
    assert len(list((tmp_path / "a/checkpoints").iterdir())) == 2
    assert (tmp_path / "a/run.log").stat().st_size < 5_000


def last_step(metrics: Path) -> int:
    steps = [line.split(",")[1] for line in metrics.read_text().splitlines()[1:]] if metrics.is_file() else []
    return int(steps[-1]) if steps and steps[-1].isdigit() else 0
