"""Real runs in separate processes, which can be killed. They are forked from one that has imported everything."""

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["bora.commands.run", "bora.train.run", "transformers.models.opt.modeling_opt"])
SMALL = "logger=none data.modules=[pickle,ssl,argparse] data.documents_per_task=20 data.min_documents=5".split()
SMALL += "data.max_tokens=32 data.batch_size=3 trainer.max_epochs=3 trainer.log_every_n_steps=2 lora.rank=4".split()
SMALL += ["checkpoint_minutes=0"]


def _run(folder: Path, name: str, arguments: list[str], largest_file: int | None, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    os.environ["OMP_NUM_THREADS"] = "1"
    for stream, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
    import torch

    import bora.commands.run

    torch.set_num_threads(1)
    sys.argv = ["bora.commands.run", *arguments]
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    bora.commands.run.main()


def start(
    folder: Path, name: str, *arguments: str, largest_file: int | None = None, environment: dict[str, str] | None = None
) -> ForkServerProcess:
    """Start a run with its output in NAME.out and NAME.err.

    Args:
        largest_file: bytes after which writing to a file fails, as on a full disk.
        environment: further variables for this process only.
    """
    os.environ.pop("HYDRA_FULL_ERROR", None)  # a run in this process may have set it, and the server would inherit it
    process = SERVER.Process(target=_run, args=(folder, name, list(arguments), largest_file, environment or {}))
    process.start()
    return process


def finish(folder: Path, name: str, *arguments: str, largest_file: int | None = None) -> tuple[int, str, str]:
    """Run to the end; return exit code, standard output and standard error."""
    process = start(folder, name, *arguments, largest_file=largest_file)
    process.join(300)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode, (folder / f"{name}.out").read_text(), (folder / f"{name}.err").read_text()


def wait_for(what: Callable[[], bool], process: ForkServerProcess | subprocess.Popen, seconds: float = 300.0) -> None:
    """Wait until what() is true; fail if the process ends first."""
    until = time.monotonic() + seconds
    while not what():
        alive = process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
        assert alive, "it ended before that"
        assert time.monotonic() < until, "that never came"
        time.sleep(0.002)
