"""Two machines, simulated by two agents of torchrun or two tasks of SLURM with one process each, train as one."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bora.runs.directory import RunDirectory
from tests.conftest import one_line, same_files
from tests.faults.processes import SMALL, finish, start, wait_for

pytestmark = pytest.mark.processes

LENGTH = ["data.documents_per_task=32", "data.batch_size=4", "trainer.max_epochs=7", "optim.patience=7", "tau=100"]
RUN = [*SMALL, *LENGTH, "checkpoint_minutes=60"]
PAIR = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
# Rounding is 1e-7 a step; how it grows in seven epochs depends on the texts, which differ by Python's version.
RTOL, ATOL, OF_TEMPERATURE = (1e-4, 1e-8, 1e-4) if sys.version_info[:2] == (3, 11) else (2e-3, 2e-3, 0.02)
EXACT = ["task", "n_train", "n_val", "n_test", "train_tokens", "test_tokens"]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


class Agents:
    """Two agents of torchrun on this machine; the output of each and its process is in FOLDER/0 and FOLDER/1."""

    def __init__(self, folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "bora.run")) -> None:
        self.folder, self.processes = folder, []
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        for node in (0, 1):
            with (folder / str(node)).open("w") as out:
                command = [*torchrun, f"--node-rank={node}", *program, *arguments]
                self.processes.append(subprocess.Popen(command, cwd=folder, stdout=out, stderr=out))

    def output(self, node: int) -> str:
        return (self.folder / str(node)).read_text()

    def wait(self, seconds: float = 120) -> list[int]:
        return [process.wait(seconds) for process in self.processes]

    def wait_for(self, what: Callable[[], bool]) -> None:
        wait_for(what, self.processes[0])

    def signal(self, node: int, signum: int) -> None:
        """Send a signal to all processes of a machine at once."""
        agent = psutil.Process(self.processes[node].pid)
        for process in (agent, *agent.children(recursive=True)):
            process.send_signal(signum)


def two_tasks(folder: Path, *arguments: str, words: tuple[str, str] = ("", "")) -> list[tuple[int, str, str]]:
    """Run as two tasks of a SLURM job, each on its own machine, to the end; return what `finish` does for each.

    Args:
        words: further arguments of each task.
    """
    about = "JOB_ID=1 NTASKS=2 NTASKS_PER_NODE=1 NNODES=2 STEP_NUM_NODES=2 STEP_NUM_TASKS=2 JOB_NAME=bora LOCALID=0"
    slurm = dict(f"SLURM_{word}".split("=") for word in [*about.split(), "NODELIST=localhost"])
    slurm["MASTER_PORT"] = free_port()
    tasks = []
    for i in (0, 1):
        own = slurm | {"SLURM_PROCID": str(i), "SLURM_NODEID": str(i)}
        tasks.append(start(folder, f"task{i}", *arguments, *words[i].split(), environment=own))
    for task in tasks:
        task.join(120)
        assert task.exitcode is not None, "it hangs"
    return [
        (task.exitcode, (folder / f"task{i}.out").read_text(), (folder / f"task{i}.err").read_text())
        for i, task in enumerate(tasks)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Return the directory of an undisturbed run on two machines; its name contains a time."""
    folder = tmp_path_factory.mktemp("whole")
    agents = Agents(folder, *RUN, *PAIR)
    assert agents.wait() == [0, 0], agents.output(0)
    assert "run directory: " in agents.output(0)
    assert agents.output(1) == ""
    (run,) = folder.glob("outputs/*/*")
    assert {file.name for file in run.parent.parent.parent.iterdir()} == {"0", "1", "outputs"}
    return run


def test_two_machines_reach_the_numbers_of_one_process(whole, tmp_path):
    assert finish(tmp_path, "one", *RUN, "hydra.run.dir=one")[0] == 0
    one, two = (pd.read_csv(run / "per_task.csv") for run in (tmp_path / "one", whole))
    pd.testing.assert_frame_equal(one[EXACT], two[EXACT])
    pd.testing.assert_frame_equal(one.drop(columns=EXACT), two.drop(columns=EXACT), rtol=RTOL, atol=ATOL)
    losses = [pd.read_csv(run / "metrics.csv").filter(regex="epoch|train/|val/") for run in (tmp_path / "one", whole)]
    pd.testing.assert_frame_equal(*losses, rtol=RTOL, atol=max(ATOL, 1e-6))
    pd.testing.assert_frame_equal(*(loss[loss["epoch"] == 0] for loss in losses), rtol=1e-5, atol=1e-6)
    one, two = (json.loads((run / "summary.json").read_text()) for run in (tmp_path / "one", whole))
    assert one["temperature"] == pytest.approx(two["temperature"], rel=OF_TEMPERATURE)
    timed = {"seconds", "train_tokens_per_second", "temperature"}
    numbers = [k for k, v in one.items() if isinstance(v, float) and k not in timed]
    assert {k: one[k] for k in numbers} == pytest.approx({k: two[k] for k in numbers}, rel=RTOL)
    assert one["best_epoch"] == two["best_epoch"]


def test_two_machines_share_a_sharded_backbone(whole, tmp_path):
    found = two_tasks(tmp_path, *RUN, "trainer=fsdp", *PAIR[1:], "hydra.run.dir=a")
    assert [code for code, *_ in found] == [0, 0]
    ddp, fsdp = (pd.read_csv(run / "per_task.csv") for run in (whole, tmp_path / "a"))
    pd.testing.assert_frame_equal(ddp, fsdp, rtol=RTOL, atol=ATOL)


def test_slurm_and_one_machine_give_the_same_results_as_torchrun(whole, tmp_path):
    assert [code for code, *_ in two_tasks(tmp_path, *RUN, *PAIR, "hydra.run.dir=slurm")] == [0, 0]
    same_files(whole, tmp_path / "slurm")
    again = two_tasks(tmp_path, *RUN, *PAIR, "hydra.run.dir=slurm")
    assert [(code, "this run has already finished" in out) for code, out, _ in again] == [(0, True), (0, False)]
    standalone = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, starter in {"lightning": [], "standalone": standalone}.items():
        words = [*RUN, *PAIR[:2], "trainer.devices=2", f"hydra.run.dir={name}"]
        command = [sys.executable, *starter, "-m", "bora.run", *words]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
        same_files(whole, tmp_path / name)


@pytest.mark.parametrize("node", [0, 1])
def test_sigterm_to_one_machine_stops_both_and_they_resume(whole, tmp_path, node):
    agents, metrics = Agents(tmp_path, *RUN, *PAIR, "hydra.run.dir=a"), tmp_path / "a/metrics.csv"
    agents.wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2)
    agents.processes[node].terminate()
    assert 0 not in agents.wait()
    assert "bora: stopped by SIGTERM" in agents.output(0)
    assert "bora: to resume: torchrun … -m bora.run" in agents.output(0)
    assert (tmp_path / "a/checkpoints/last.ckpt").is_file()
    assert not (tmp_path / "a/summary.json").exists()
    found = two_tasks(tmp_path, *RUN, *PAIR, "hydra.run.dir=a")
    assert [code for code, *_ in found] == [0, 0]
    assert "resuming from" in found[0][1]
    same_files(whole, tmp_path / "a")


@pytest.mark.parametrize("node", [0, 1])
def test_if_one_machine_dies_the_other_stops_at_once(whole, tmp_path, node):
    words = [*RUN, *PAIR, "hydra.run.dir=a", "checkpoint_minutes=0"]
    agents, last = Agents(tmp_path, *words), tmp_path / "a/checkpoints/last.ckpt"
    agents.wait_for(last.is_file)
    agents.signal(node, signal.SIGKILL)
    assert 0 not in agents.wait(60)
    assert "bora: lost contact with another process of the run (" in (out := agents.output(1 - node)), out
    assert ("bora: to resume: torchrun … -m bora.run" in agents.output(0)) == (node == 1)
    assert [code for code, *_ in two_tasks(tmp_path, *words)] == [0, 0]
    same_files(whole, tmp_path / "a")


def test_if_one_machine_hangs_the_other_stops_at_the_timeout(tmp_path):
    (tmp_path / "impatient.py").write_text(
        "from datetime import timedelta\n"
        "import bora.train.processes\n"
        "bora.train.processes.TIMEOUT = timedelta(seconds=5)\n"
        "from bora.commands.run import main\n"
        "main()\n"
    )
    agents = Agents(tmp_path, *RUN, *PAIR, "hydra.run.dir=a", program=("impatient.py",))
    metrics = tmp_path / "a/metrics.csv"
    agents.wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2)
    agents.signal(1, signal.SIGSTOP)
    try:
        assert agents.processes[0].wait(60) == 1
    finally:
        agents.signal(1, signal.SIGKILL)
    assert "bora: lost contact with another process of the run (" in (out := agents.output(0)), out


def test_an_error_in_one_process_ends_all_with_one_line_each(tmp_path):
    for found in two_tasks(tmp_path, *RUN, *PAIR, "hydra.run.dir=a", words=("", "tau=10")):
        one_line(found, "process 1 has other settings than the first (tau)")
    assert not (tmp_path / "a").exists()
    with RunDirectory(tmp_path / "b").locked():
        for found in two_tasks(tmp_path, *RUN, *PAIR, "hydra.run.dir=b"):
            one_line(found, f"another process is working in {tmp_path / 'b'}")


def test_machines_without_a_shared_disk_are_refused(tmp_path):
    (tmp_path / "apart.py").write_text(
        "import os\n"
        "import bora.train.processes\n"
        "if os.environ['RANK'] == '1':\n"
        "    bora.train.processes.CONFIG = 'not there'\n"
        "from bora.commands.run import main\n"
        "main()\n"
    )
    agents = Agents(tmp_path, *RUN, *PAIR, "hydra.run.dir=a", program=("apart.py",))
    assert agents.wait() == [1, 1]  # torchrun's exit code
    for node in (0, 1):
        line = f"does not have the run directory {tmp_path / 'a'}; give a hydra.run.dir=… on a disk"
        assert agents.output(node).count(line) == 1
    assert not (tmp_path / "a").exists()
