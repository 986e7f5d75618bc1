"""Reading an archive returns what was written, to the last bit; the same runs give the same file."""

import gzip
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bora.errors import UserError
from bora.runs.archive import RunRecord, read_archive, write_archive
from bora.runs.older import newer_settings

CONFIG = {"tau": math.inf, "init_from": None, "model.compile": False, "optim.betas": [0.9, 0.999], "trainer.extra": {}}
# Texts that look like other values.
CONFIG |= {"data.name": "2024", "data.text": "null", "data.date": "inf", "data.prompt": ""}
CONFIG["data.template"] = 'æ, "{text}"\r\n'
SUMMARY = {"tau": math.inf, "seed": 3, "data_sha256": "1e5", "lr": 0.1 + 0.2, "nan": math.nan, "whole": 2.0}


def a_run(folder: Path, **more) -> RunRecord:
    columns = {"n_train": [3, 1], "test_nll": [1 / 3, math.nan], "distance": [1.0, 2.0]} | more
    per_task = pd.DataFrame(columns, index=pd.Index(["Å, b", "007"], name="task"))
    versions = {"bora": "0.1.0", "torch": "2.13"}
    return RunRecord(folder, dict(CONFIG), SUMMARY | {"versions": versions, "dropped": {"of a. kind": 1}}, per_task)


def exact(values: dict) -> str:
    return repr(sorted(values.items()))


def test_values_are_read_back_exactly(tmp_path):
    file = tmp_path / "runs.csv.gz"
    written = [a_run(tmp_path / "b/tau=inf,seed=0"), a_run(tmp_path / "a", val_by_batch=[0.1, np.nextafter(0.1, 1)])]
    written[1].config["only.here"] = 1
    write_archive(file, written)
    read = read_archive(file)
    assert [run.folder for run in read] == [tmp_path / "a", tmp_path / "b/tau=inf,seed=0"]
    for was, found in zip(reversed(written), read, strict=True):
        assert exact(found.config) == exact(was.config | newer_settings(was.config))
        assert exact(found.summary) == exact(was.summary)
        pd.testing.assert_frame_equal(found.per_task, was.per_task, check_exact=True)


def test_the_same_runs_give_the_same_bytes(tmp_path):
    one, two = tmp_path / "1.csv.gz", tmp_path / "2.csv.gz"
    write_archive(one, [a_run(tmp_path / "a"), a_run(tmp_path / "b")])
    write_archive(two, [a_run(tmp_path / "b"), a_run(tmp_path / "a")])
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"run,task\na,b\n"), gzip.compress(b"a" * 99)[:20]],
    ids=["no gzip", "other columns", "cut"],  # gzip stores the time
)
def test_a_file_that_is_not_an_archive_is_refused(tmp_path, content):
    (tmp_path / "runs.csv.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"runs\.csv\.gz is not an archive of runs"):
        read_archive(tmp_path / "runs.csv.gz")
