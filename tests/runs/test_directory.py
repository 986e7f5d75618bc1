"""A finished run with a damaged file is refused, without a traceback, by the run's command and by the report."""

import os
import shutil
from pathlib import Path

import pytest

from bora.commands import report

RUN = "tau=100 logger=none data.modules=[pickle,ssl] data.documents_per_task=9 data.min_documents=5"
RUN = [*RUN.split(), "trainer.max_steps=1", "hydra.run.dir=run"]
DAMAGES = {
    "gone": lambda data: None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "not text": lambda data: b"\xff\xfe" + data,
    "something else": lambda data: b"[1, 2]\n",
    "deep": lambda data: b"[" * 100_000,
    "without its first line": lambda data: data.split(b"\n", 1)[1],
}


@pytest.mark.parametrize("name", ["config.yaml", "per_task.csv", "summary.json"])
def test_a_damaged_file_of_a_finished_run_is_refused(command, call, tmp_path, name):
    assert command(*RUN)[0] == 0
    file: Path = tmp_path / "run" / name
    shutil.copy(file, tmp_path / "whole")
    data = file.read_bytes()
    for damage in [*DAMAGES, "a pipe"]:
        if (name, damage) in (("summary.json", "gone"), ("summary.json", "a pipe"), ("per_task.csv", "half")):
            continue  # an unfinished run, which is trained again; a shorter table is found by --verify
        file.unlink()
        if damage == "a pipe":
            os.mkfifo(file)
        elif (damaged := DAMAGES[damage](data)) is not None:
            file.write_bytes(damaged)
        for code, _, err in (command(*RUN), call(report.main, "run")):
            assert code == 2, damage
            assert all(line.startswith("bora: ") for line in err.splitlines()), err
            assert err.count("\n") == 1 or name == "config.yaml"  # one line for each missing setting
        file.unlink(missing_ok=True)
        shutil.copy(tmp_path / "whole", file)
