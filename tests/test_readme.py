"""What the README tells its reader to type works, in a real shell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bora
from tests.shown import REPOSITORY, commands

README = (REPOSITORY / "README.md").read_text("utf-8")
COMMANDS = commands(README)
MODEL = f"model.path={Path(bora.__file__).parent / 'assets/opt_mini'}"
SMALL = "data.documents_per_task=12 data.n_tasks=2 data.max_tokens=32 trainer.max_steps=1 logger=none"
# Smaller versions of what would take too long.
SMALLER = {
    "tau=0,1,10,100,1000,10000,inf seed=0,1": "tau=0,inf seed=0,1",
    "experiment=paper": "experiment=paper data.path=. model=opt_mini",
    "experiment=reference": "experiment=reference data.path=. model=opt_mini",
}
JOBS = {"seed=0,1": 4, "experiment=": 6}


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "WANDB_MODE": "offline"}
    environment["BORA_CACHE"] = str(folder / "cache")
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.processes
@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match("bora run", c) and not re.search("…|RUN", c)])
def test_commands_run(command, tmp_path):
    rng = np.random.default_rng(0)
    speeches = [" ".join(rng.choice(["order", "the", "house", "aye", "no", "speaker"], 9)) for _ in range(60)]
    frame = pd.DataFrame({"speaker": ["a", "b"] * 30, "speech": speeches})
    frame.to_csv(tmp_path / "speeches.csv", index=False)
    if "model=opt_350m" in command:  # with a small model's weights
        command += f" {MODEL}"
    if "experiment=" in command:
        many = pd.DataFrame({"rep_name": ["Ann", "Bo"] * 210, "date": "1999-01-01"})
        many["text"] = [" ".join(rng.choice(["ja", "nei", "president", "storting"], 12)) for _ in range(420)]
        many.to_csv(tmp_path / "ton.csv", index=False)
    for large, small in SMALLER.items():
        command = command.replace(large, small)
    shell(f"{command} {SMALL}", tmp_path)
    jobs = next((n for words, n in JOBS.items() if words in command), 1)
    assert len(list(tmp_path.rglob("summary.json"))) == jobs


@pytest.mark.processes
def test_doctor_reports_what_a_run_will_cost(tmp_path):
    (command,) = (c for c in COMMANDS if c.startswith("bora doctor"))
    speeches = pd.DataFrame({"speaker": ["a", "b"] * 30, "speech": [f"order, order: number {i}" for i in range(60)]})
    speeches.to_csv(tmp_path / "speeches.csv", index=False)
    assert "time of an epoch" in shell(command, tmp_path).stdout
    assert {f.name for f in tmp_path.iterdir()} == {"speeches.csv", "cache"}


@pytest.mark.processes
def test_a_sweep_becomes_a_report(tmp_path):
    (command,) = (c for c in COMMANDS if c.startswith("bora report"))
    shell(f"bora run -m tau=0,10 {SMALL} logger=wandb", tmp_path)
    shell(command, tmp_path)
    assert (tmp_path / "multirun/stdlib-opt_mini/report/index.html").is_file()
    (media,) = tmp_path.glob("multirun/stdlib-opt_mini/report/wandb/offline-run-*/files/media")
    assert len(list(media.glob("images/*.png"))) == 7  # one for each figure, except those that need more tasks or τ = ∞
    # Tables 1 and 2, the runs' tasks, and three charts.
    assert len(list(media.rglob("table/**/*.json"))) == 6


@pytest.mark.processes
def test_a_finished_run_is_used(tmp_path):
    words = np.random.default_rng(0).choice(["def", "read", "return", "self"], (40, 9))
    rows = [(("argparse", "ssl")[i % 2], " ".join(w)) for i, w in enumerate(words)]
    pd.DataFrame(rows, columns=["writer", "letter"]).to_csv(tmp_path / "letters.csv", index=False)
    table = "data=table data.path=letters.csv data.task=writer data.text=letter data.drop_duplicates=false"
    shell(f"bora run {table} {SMALL} data.documents_per_task=20 hydra.run.dir=RUN", tmp_path)
    for name, result in (
        ("generate", None),
        ("voices", "RUN/voices/summary.json"),
        ("evaluate", "RUN/evaluation/letters/summary.json"),
        ("adapt", "OUT/summary.json"),
        ("export", "OUT/hierarchical-mean/adapter_config.json"),
    ):
        (command,) = (c for c in COMMANDS if c.startswith(f"bora {name} "))
        if name == "export":
            shutil.rmtree(tmp_path / "OUT")
        shell(command, tmp_path)
        assert result is None or (tmp_path / result).is_file()
