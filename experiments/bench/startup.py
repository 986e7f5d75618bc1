"""From the command to the end of the first optimiser step: python experiments/bench/startup.py [OVERRIDE …]

Six processes, one after the other, each ended in the moment its first training batch is done; the first, which
warms the file cache, does not count.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = """
import os
from lightning import LightningModule
LightningModule.on_train_batch_end = lambda *arguments: os._exit(0)
from bora.commands.run import main
main()
raise SystemExit("no batch was trained on")
"""


def main() -> None:
    seconds = []
    for _ in range(6):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-c", COMMAND, "tau=100", f"hydra.run.dir={folder}", *sys.argv[1:]]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
            seconds.append(time.perf_counter() - start)
    print(f"median {statistics.median(seconds[1:]):.1f} s of", *(f"{s:.1f}" for s in seconds[1:]))


if __name__ == "__main__":
    main()
