"""What happens on clusters: signals, full disks, two processes in one folder."""

import os
import shlex
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import same_files
from tests.faults.processes import SMALL, finish, start, wait_for

pytestmark = pytest.mark.processes

RUN = ["tau=100", *SMALL, "hydra.run.dir=a"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Return the directory of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(folder, "whole", *RUN)[0] == 0
    return folder / "a"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_run_stopped_by_a_signal_saves_and_prints_how_to_resume(whole, tmp_path, name, code):
    run = [*RUN, "checkpoint_minutes=60"]  # so that only the signal makes it save within an epoch
    process, metrics = start(tmp_path, "first", *run), tmp_path / "a/metrics.csv"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2, process)
    os.kill(process.pid, getattr(signal, name))
    process.join(120)
    assert process.exitcode == code
    said = (tmp_path / "first.err").read_text().splitlines()
    resume = f"bora run {shlex.join(run)}"
    assert said == [f"bora: stopped by {name}", f"bora: to resume: {resume}"]
    assert torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)["global_step"] > 2
    assert finish(tmp_path, "second", *run)[0] == 0
    same_files(whole, tmp_path / "a")


def test_the_printed_command_resumes_the_run(tmp_path):
    """Without hydra.run.dir the folder's name contains a time, which must be the same again."""
    process = start(tmp_path, "first", "tau=100", *SMALL, "data.prompt='[task] {task}: '")
    wait_for(lambda: any(tmp_path.glob("outputs/*/*/checkpoints/last.ckpt")), process)
    process.terminate()
    process.join(120)
    command = (tmp_path / "first.err").read_text().splitlines()[-1].removeprefix("bora: to resume: bora run ")
    code, out, _ = finish(tmp_path, "second", *shlex.split(command))
    (run,) = tmp_path.glob("outputs/*/*")
    assert (code, "resuming from" in out, (run / "summary.json").is_file()) == (0, True, True)


def test_a_sweep_stopped_by_a_signal_has_no_failed_job(tmp_path):
    process = start(tmp_path, "sweep", "-m", "tau=1,10,100", "name=s", *SMALL)
    wait_for((tmp_path / "multirun/s/tau=10,seed=0/metrics.csv").is_file, process)
    process.terminate()
    process.join(120)
    assert process.exitcode == 143
    assert (tmp_path / "multirun/s/tau=1,seed=0/summary.json").is_file()
    assert not (tmp_path / "multirun/s/tau=100,seed=0").exists()
    assert not list(tmp_path.rglob("failed.json"))


def test_a_second_process_in_the_same_folder_is_refused(whole, tmp_path):
    process = start(tmp_path, "first", *RUN)
    wait_for((tmp_path / "a/checkpoints/last.ckpt").is_file, process)
    before = {file: file.read_text() for file in (tmp_path / "a/config.yaml", tmp_path / "a/.hydra/overrides.yaml")}
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot finish first
    try:
        code, _, err = finish(tmp_path, "second", *RUN, "seed=1")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert (code, err.count("\n"), "bora: another process is working in" in err) == (2, 1, True)
    assert {file: file.read_text() for file in before} == before
    process.join(120)
    assert process.exitcode == 0
    same_files(whole, tmp_path / "a")


@pytest.mark.parametrize("file", ["config.yaml", "documents.csv", "metrics.csv", "checkpoints/last.ckpt"])
def test_a_full_disk_ends_a_run_with_one_error_and_the_run_can_be_resumed(whole, tmp_path, file):
    # At the latest this file does not fit; metrics.csv does not once it has half its size.
    largest_file = (whole / file).stat().st_size // (2 if file == "metrics.csv" else 1) - 1
    code, _, err = finish(tmp_path, "full", *RUN, largest_file=largest_file)
    said = err.splitlines()
    assert (code, len(said)) == (1, 2)
    assert said[0].startswith("bora: File too large")
    assert said[1] == f"bora: to resume: bora run {shlex.join(RUN)}"
    assert not (tmp_path / "a/summary.json").exists()
    assert not list((tmp_path / "a").rglob("*.partial"))
    assert finish(tmp_path, "room", *RUN)[0] == 0
    same_files(whole, tmp_path / "a")
