"""The report's page and command: where it is written, from folders or an archive, and how broken runs are reported."""

import json
import math

import pandas as pd
import pytest

import bora.commands.report
from bora.report.series import read_runs
from bora.runs.directory import RunDirectory
from tests.report.runs import KNOWN, write_run


def test_a_report_is_written_in_the_folder_it_is_about_and_never_over_another(sweep, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = next(sweep.glob("tau=0,seed=1"))
    for words, place in (((sweep,), "s/report"), ((run,), "s/tau=0,seed=1/report"), ((run, sweep), "s/report")):
        code, out, err = call(bora.commands.report.main, *words)
        ours = words != (run, sweep)
        assert (code, f"{place} holds a page about other runs" in err) == ((0, False) if ours else (2, True))
        assert f"report: {tmp_path / place / 'index.html'}" in out or not ours
    assert call(bora.commands.report.main, sweep)[0] == 0  # replaces its own page, which does not count as a run


def test_an_archive_gives_the_same_report_as_its_folders(sweep, report, tmp_path):
    for file in sweep.glob("*/metrics.csv"):  # which an archive does not hold
        file.unlink()
    report("s", "-o", "folders")  # relative, since the page shows the runs' folders
    code, out, err = report("s", "--archive", "runs.csv.gz")
    assert (code, err) == (0, "")
    assert out == f"{2 * len(KNOWN)} runs: {tmp_path / 'runs.csv.gz'}\n"
    sweep.rename(tmp_path / "gone")
    report("runs.csv.gz", "-o", "archive")
    files = sorted(path.name for path in (tmp_path / "folders").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "archive").iterdir())
    for name in set(files) - {"runs.txt"}:
        assert (tmp_path / "folders" / name).read_bytes() == (tmp_path / "archive" / name).read_bytes(), name
    (tmp_path / "gone").rename(sweep)  # a run whose folder exists again is read from there
    next(sweep.glob("tau=0,seed=1/summary.json")).unlink()
    runs, problems = read_runs([tmp_path])
    assert len(runs) == 2 * len(KNOWN) - 1
    assert [line for line in problems if "is unfinished" in line] == problems != []


def test_each_of_several_series_has_its_own_folder(tmp_path, report):
    write_run(tmp_path / "n/10", 10.0)
    write_run(tmp_path / "c/10", 10.0, prior__parameterization="centered")
    assert report("n", "c", "-o", "out")[0] == 0
    assert len(list((tmp_path / "out").glob("*/table1.csv"))) == 2
    assert (tmp_path / "out/index.html").read_text().count("<h2") == 2


def test_broken_unfinished_and_failed_runs_are_named_and_the_others_reported(sweep, report, tmp_path):
    (sweep / "tau=0,seed=0/summary.json").unlink()  # was interrupted
    (sweep / "tau=0,seed=1/per_task.csv").write_text("task,n_train\na,1\n")
    (sweep / "tau=10,seed=0/summary.json").write_text("{")
    (sweep / "tau=10,seed=1/config.yaml").unlink()
    (sweep / "tau=100,seed=0/summary.json").write_text('{"tau": 100, "seed": 0}')
    (sweep / "runs.csv.gz").write_text("not one")
    failed = sweep / "tau=1e6,seed=0"
    failed.mkdir()
    (failed / "failed.json").write_text(json.dumps({"error": "training diverged", "exit_code": 2}))
    code, _, err = report(sweep)
    assert code == 0
    assert "tau=0,seed=0 is unfinished; rerun the sweep's command" in err
    assert "tau=0,seed=1/per_task.csv is not readable: 'n_val'" in err
    assert "tau=10,seed=0/summary.json is not readable" in err
    assert "tau=10,seed=1/config.yaml is not readable" in err
    assert "tau=100,seed=0 lacks model, " in err
    assert "runs.csv.gz is not an archive of runs" in err
    assert "tau=1e6,seed=0 failed: training diverged" in err
    assert pd.read_csv(tmp_path / "report/table1.csv")["tau"].tolist() == [100, math.inf]
    assert "training diverged" in (tmp_path / "report/index.html").read_text()


@pytest.mark.parametrize("make", [lambda f: None, lambda f: f.mkdir()], ids=["no folder", "an empty folder"])
def test_a_folder_without_runs_is_refused(make, report, tmp_path):
    make(tmp_path / "x")
    code, out, err = report("x")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_verify_names_changed_and_missing_files(report, tmp_path):
    for tau in (0.0, 10.0):
        folder = RunDirectory(write_run(tmp_path / f"s/{tau:g}", tau))
        folder.write_summary(folder.summary())
    arguments = "s", "--verify", "--archive", "runs.csv.gz"  # --archive is the quickest
    assert report(*arguments)[0] == 0
    with (tmp_path / "s/10/per_task.csv").open("a") as file:
        file.write("\n")
    (tmp_path / "s/0/config.yaml").unlink()
    summary = tmp_path / "s/10/summary.json"  # the report is made from it
    summary.write_text(summary.read_text().replace('"seed": 0', '"seed": 1'))
    code, out, err = report(*arguments)
    assert (code, out) == (2, "")
    names = "0/config.yaml", "10/per_task.csv", "10/summary.json"
    changed = [f"bora: s/{name} is missing or was changed" for name in names]
    assert err.splitlines() == changed
    assert report("s", "--archive", "runs.csv.gz")[0] == 0  # without --verify the changes are not refused
