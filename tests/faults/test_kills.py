"""Runs that are killed at random moments, again and again, end with the same bytes as uninterrupted ones."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import same_files
from tests.faults.processes import SMALL, finish, start, wait_for

pytestmark = pytest.mark.processes

KILLS = int(os.environ.get("BORA_KILLS", "10"))
FORMS = [
    ["tau=100"],
    ["tau=0"],
    ["tau=inf"],
    ["tau=100", "prior.parameterization=centered", "prior.estimator=dense", "lora.init_std=0.01"],
    ["tau=10", "trainer.accumulate_grad_batches=3", "data.order=shuffled"],
    ["tau=10", "trainer.max_steps=14", "trainer.val_check_interval=0.5"],
]


def check_readable(run: Path) -> None:
    """Check that the files of a killed run can be read."""
    for file in run.glob("checkpoints/*.ckpt"):
        torch.load(file, weights_only=True)
    assert not (run / "summary.json").exists() or (run / "per_task.csv").is_file()


@pytest.mark.parametrize("form", range(len(FORMS)), ids=lambda i: " ".join(FORMS[i]))
def test_killed_runs_end_as_an_uninterrupted_one(form, tmp_path):
    arguments, rng = [*FORMS[form], *SMALL], random.Random(form)
    began = time.monotonic()
    assert finish(tmp_path, "whole", *arguments, "hydra.run.dir=whole")[0] == 0
    seconds = time.monotonic() - began
    kills, number = 0, 0
    while kills < KILLS / len(FORMS):
        number += 1
        name = f"killed{number}"
        while True:
            process = start(tmp_path, name, *arguments, f"hydra.run.dir={name}")
            # Killed between the first imports and after the end; it resumes each time, so in the end it finishes.
            process.join(rng.uniform(0, seconds))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            check_readable(tmp_path / name)
        assert process.exitcode == 0, (tmp_path / f"{name}.err").read_text()
        same_files(tmp_path / "whole", tmp_path / name)
        assert not list((tmp_path / name).rglob("*.partial"))


@pytest.mark.skipif(KILLS < 100, reason="takes a minute: make test-faults")
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_that_are_killed_together_resume_together(trainer, tmp_path):
    run = [sys.executable, "-m", "bora.run", *SMALL, "tau=100", f"trainer={trainer}", "trainer.accelerator=cpu"]

    def begin(name: str) -> subprocess.Popen:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*run, f"hydra.run.dir={name}"], cwd=tmp_path, start_new_session=True, **quiet)

    assert begin("whole").wait(120) == 0
    for rows in (3, 9):
        process, metrics = begin("killed"), tmp_path / "killed/metrics.csv"
        wait_for(lambda m=metrics, n=rows: m.is_file() and len(m.read_text().splitlines()) > n, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert begin("killed").wait(120) == 0
    same_files(tmp_path / "whole", tmp_path / "killed")
