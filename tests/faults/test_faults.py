"""What clusters do: signals, full disks, two processes in a folder, damaged files, losses that are not finite."""

import os
import re
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from bora.bayes.model import HierarchicalLoRA
from bora.commands import report
from bora.runs.directory import RunDirectory
from tests.conftest import same_files, table
from tests.faults.processes import finish, start, wait_for
from tests.faults.test_kills import SMALL

RUN = ["tau=100", *SMALL]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(folder, "whole", *RUN, "hydra.run.dir=whole")[0] == 0
    return folder / "whole"


@pytest.mark.parametrize(("signum", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_run_that_is_asked_to_stop_saves_and_says_so(whole, tmp_path, signum, code):
    # Nothing but the signal makes it save within an epoch.
    run = [*RUN, "checkpoint_minutes=60", "hydra.run.dir=a"]
    process = start(tmp_path, "first", *run)
    metrics = tmp_path / "a/metrics.csv"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2, process)
    process.terminate() if signum == "SIGTERM" else signal_to(process.pid, signum)
    process.join(60)
    assert process.exitcode == code
    said = (tmp_path / "first.err").read_text().splitlines()
    assert said == [f"bora: stopped by {signum}; run the same command again to resume from the last checkpoint"]
    assert torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)["global_step"] > 2
    assert finish(tmp_path, "second", *run)[0] == 0
    same_files(whole, tmp_path / "a")


def signal_to(pid: int, name: str) -> None:

    os.kill(pid, getattr(signal, name))


def test_a_sweep_that_is_asked_to_stop_stops_and_no_job_of_it_has_failed(tmp_path):
    sweep = ["-m", "tau=1,10,100", "name=s", *SMALL]
    process = start(tmp_path, "sweep", *sweep)
    wait_for((tmp_path / "multirun/s/tau=10,seed=0/metrics.csv").is_file, process)
    process.terminate()
    process.join(60)
    assert process.exitcode == 143
    assert (tmp_path / "multirun/s/tau=1,seed=0/summary.json").is_file()
    assert not (tmp_path / "multirun/s/tau=100,seed=0").exists()
    assert not list(tmp_path.rglob("failed.json"))


def test_a_second_process_in_the_same_folder_is_refused(whole, tmp_path):
    run = [*RUN, "hydra.run.dir=a"]
    process = start(tmp_path, "first", *run)
    wait_for((tmp_path / "a/checkpoints/last.ckpt").is_file, process)
    before = {file: file.read_text() for file in [tmp_path / "a/config.yaml", *tmp_path.glob("a/.hydra/*")]}
    assert len(before) == 4
    process_stopped(process.pid, lambda: refused(tmp_path, [*run, "seed=1"]))
    assert {file: file.read_text() for file in before} == before
    process.join(60)
    assert process.exitcode == 0
    same_files(whole, tmp_path / "a")


def process_stopped(pid: int, do) -> None:
    """Do something while a process is halted, so that it cannot finish before."""
    signal_to(pid, "SIGSTOP")
    try:
        do()
    finally:
        signal_to(pid, "SIGCONT")


def refused(folder: Path, run: list[str]) -> None:
    code, _, err = finish(folder, "second", *run)
    assert code == 2
    assert "bora: another process is working in" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "file",
    [
        ".hydra/config.yaml",
        "config.yaml",
        "documents.csv",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    ],
)
def test_a_disk_that_is_full_ends_a_run_in_one_line_and_spoils_nothing(whole, tmp_path, file):
    run = [*RUN, "hydra.run.dir=a"]
    # At the latest this file does not fit any more; for metrics.csv when it has grown to half.
    largest_file = (whole / file).stat().st_size // (2 if file == "metrics.csv" else 1) - 1
    code, _, err = finish(tmp_path, "full", *run, largest_file=largest_file)
    assert code == 1
    assert err.startswith("bora: File too large")
    assert "make room" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a/summary.json").exists()
    assert not list((tmp_path / "a").rglob("*.partial"))
    assert finish(tmp_path, "room", *run)[0] == 0
    same_files(whole, tmp_path / "a")


@pytest.mark.parametrize("folder", ["t.csv/a", "/sys/a"])
def test_a_folder_that_cannot_be_written_to_is_told(command, tmp_path, folder):
    (tmp_path / "t.csv").write_text("")
    code, _, err = command(*RUN, f"hydra.run.dir={folder}")
    assert code == 2
    assert "hydra.run.dir" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_a_damaged_checkpoint_is_refused_or_made_anew_never_half_used(whole, tmp_path, name, damage):
    run = [*RUN, "hydra.run.dir=a"]
    process = start(tmp_path, "first", *run)
    metrics = tmp_path / "a/metrics.csv"
    wait_for(lambda: metrics.is_file() and "\n1," in metrics.read_text(), process)  # the second epoch
    process.kill()
    process.join()
    file = tmp_path / f"a/checkpoints/{name}.ckpt"
    data = bytearray(file.read_bytes())
    if damage == "changed":
        data[len(data) // 2] ^= 0x10
    file.write_bytes(b"" if damage == "empty" else data[: len(data) // 2] if damage == "cut" else data)
    code, _, err = finish(tmp_path, "second", *run)
    if code == 0:  # an epoch that was better has written it anew
        assert name == "best"
        same_files(whole, tmp_path / "a")
        return
    assert code == 2
    assert f"{name}.ckpt is not a readable checkpoint" in err
    assert "resume=never" in err
    assert err.count("\n") == 1
    assert finish(tmp_path, "third", *run, "resume=never")[0] == 0
    same_files(whole, tmp_path / "a")


@pytest.fixture
def bad_batch(monkeypatch):
    """The fifth training batch's loss is not a number."""
    steps = []
    original = HierarchicalLoRA.objective

    def objective(self, batch, n_processes=1):
        found = original(self, batch, n_processes)
        steps.append(1)
        return found._replace(likelihood=found.likelihood * float("nan")) if len(steps) == 5 else found

    monkeypatch.setattr(HierarchicalLoRA, "objective", objective)
    nll = HierarchicalLoRA.nll
    monkeypatch.setattr(
        HierarchicalLoRA,
        "nll",
        lambda self, batch, under="task": (
            nll(self, batch, under)
            * (float("nan") if len(steps) == 5 and torch.is_grad_enabled() is False and self.training else 1.0)
        ),
    )


SMALL_TABLE = [
    "tau=100",
    "logger=none",
    "data=table",
    "data.path=t.csv",
    "data.min_documents=5",
    "data.max_tokens=20",
    "data.batch_size=4",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "checkpoint_minutes=0",
    "hydra.run.dir=a",
]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_task(command, tmp_path, bad_batch):
    table(tmp_path / "t.csv", {"ann": 40})
    code, _, err = command(*SMALL_TABLE)
    assert code == 2
    assert "training diverged: at step 5 the loss is nan, by documents of 'ann'; give a lower optim.lr" in err
    assert "a/checkpoints/last.ckpt" in err
    state = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(v.isfinite().all() for v in state["state_dict"].values())


def test_or_its_step_is_not_taken(command, tmp_path, bad_batch):
    table(tmp_path / "t.csv", {"ann": 40})
    code, out, _ = command(*SMALL_TABLE, "optim.nonfinite=skip")
    assert code == 0
    assert "at step 5 the loss is nan, by documents of 'ann': the step is skipped" in out
    losses = pd.read_csv(tmp_path / "a/metrics.csv")["train/loss"]
    assert (
        losses.isna().sum()
        == losses[4:5].isna().sum() + pd.read_csv(tmp_path / "a/metrics.csv")["val/nll"].notna().sum() + 1
    )
    summary = RunDirectory(tmp_path / "a").summary()
    assert summary["test_perplexity"] < summary["base_test_perplexity"]


def test_a_clock_that_jumps_changes_nothing(command, tmp_path, monkeypatch):
    table(tmp_path / "t.csv", {"ann": 40})
    assert command(*SMALL_TABLE, "hydra.run.dir=b")[0] == 0
    jumps = iter(range(0, -(10**9), -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    assert command(*SMALL_TABLE)[0] == 0
    same_files(tmp_path / "b", tmp_path / "a")


DAMAGES = {
    "gone": lambda data: None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "not text": lambda data: b"\xff\xfe" + data,
    "something else": lambda data: b"[1, 2]\n",
    "deep": lambda data: b"[" * 100_000,
    "without its first line": lambda data: data.split(b"\n", 1)[1],
    "another number": lambda data: re.sub(rb"(?m)(max_tokens: |perplexity\": |pickle,)\d", rb"\g<1>7", data),
    "a pipe": lambda data: "a pipe",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_finished_run_is_told_in_one_line(command, call, tmp_path, damage):
    assert command(*RUN, "hydra.run.dir=run")[0] == 0
    for name in ("config.yaml", "per_task.csv", "summary.json"):
        file = tmp_path / "run" / name
        whole = file.read_bytes()
        data = DAMAGES[damage](whole)
        assert data != whole
        file.unlink()
        if data == "a pipe":
            os.mkfifo(file)
        elif data is not None:
            file.write_bytes(data)
        if name == "summary.json" and not file.is_file():
            continue  # an unfinished run: not told, but done again
        code, _, err = command(*RUN, "hydra.run.dir=run")
        assert (code, err.count("\n"), err[:6]) == (2, 1, "bora: "), (name, err)
        code, _, err = call(report.main, "run")
        assert (code, err.count("\n"), err[:6]) == (2, 1, "bora: "), (name, err)
        file.unlink(missing_ok=True)
        file.write_bytes(whole)
